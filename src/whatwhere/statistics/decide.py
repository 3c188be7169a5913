"""From pairs to a decision: looks, arms, and how the error is shared among them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from .independence import Doubt
from .looks import ALPHA, Schedule
from .paired import PairedDifference

HELPS, HURTS, SAME, UNKNOWN = "helps", "hurts", "no practical difference", "cannot tell yet"

MOST_PAIRS = 1000  # no advice to train more
_PROBABLY = 0.8
_QUANTILES = (np.arange(40) + 0.5) / 40


class Outlook(NamedTuple):
    """How many pairs in all will probably settle a case.

    Attributes:
        low: 80 % of what is plausible needs so many or more.
        high: 80 % needs so many or fewer; None where that is more than `last`.
        last: Pairs at the schedule's last look, or at the last of up to 1,000.
        is_hopeless: `last` settles less than 80 % of what is plausible; where the schedule ends, less than half,
            because its pairs are planned already.
    """

    low: int
    high: int | None
    last: int
    is_hopeless: bool


@dataclass(frozen=True)
class Case:
    """One arm against the baseline. `decide` adds the verdict, the level and who shares it; `judge` the outlook.

    Attributes:
        arm: Its name.
        paired: The pairs that are judged; None with fewer than 2.
        schedule: Its looks; None where there are too few pairs for one.
        blocked: Why there can be no verdict yet; "" if there can.
        waiting: Seeds without a complete pair that the next look needs.
        doubt: Why the pairs may not be independent: the look counts, but nothing is claimed.
        hardly_used: Which of the two arms have an attention that has hardly begun in most of the judged runs.
        is_control: Whether it is a positive control, an arm that is known to do worse.
        num_pairs: Complete pairs, those after the look included.
        num_to_look: Pairs missing for the next look; None after the last.
        everything: All complete pairs; None with fewer than 2.
        verdict: One of the four.
        level: Two-sided level of the test that the verdict is read at; None where there can be no verdict.
        num_sharing: Number of arms that share the error at that level.
        outlook: Pairs that will probably settle it.
    """

    arm: str
    paired: PairedDifference | None
    schedule: Schedule | None
    blocked: str = ""
    waiting: tuple[Hashable, ...] = ()
    doubt: Doubt | None = None
    hardly_used: tuple[str, ...] = ()
    is_control: bool = False
    num_pairs: int = 0
    num_to_look: int | None = None
    everything: PairedDifference | None = None
    verdict: str = UNKNOWN
    level: float | None = None
    num_sharing: int = 1
    outlook: Outlook | None = None

    @property
    def judged(self) -> PairedDifference | None:
        """The pairs, if something may be claimed about them."""
        return None if self.blocked or self.doubt is not None else self.paired

    def level_among(self, num_arms: int, num_pairs: int | None = None) -> float:
        """Return the level of the test at this look, or at that at `num_pairs`, where `num_arms` share alpha."""
        if self.schedule is None or self.paired is None or self.blocked:
            return 0.0
        return self.schedule.level(num_pairs or len(self.paired), ALPHA / num_arms)


def decide(cases: Sequence[Case], margin: float, *, higher_is_better: bool = True) -> list[Case]:
    """Return the cases with their verdicts.

    "no practical difference" where the interval of the mean lies inside the margin; else "helps" or "hurts" where it
    lies on one side of 0; else "cannot tell yet". Holm's step-down shares the error among the arms in both.
    """
    p_t = [1.0 if case.judged is None else case.judged.p_t() for case in cases]
    p_equivalence = [1.0 if case.judged is None else case.judged.p_equivalence(margin) for case in cases]
    differ, sharing = step_down(p_t, lambda index, left: cases[index].level_among(left))
    same, sharing_same = step_down(p_equivalence, lambda index, left: cases[index].level_among(left))
    decided = []
    for index, case in enumerate(cases):
        if case.paired is None or case.blocked:
            decided.append(case)
            continue
        verdict, num_sharing = UNKNOWN, sharing[index]
        if same[index]:
            verdict, num_sharing = SAME, sharing_same[index]
        elif differ[index]:
            verdict = HELPS if (case.paired.mean > 0) is higher_is_better else HURTS
        level = case.level_among(num_sharing)
        decided.append(replace(case, verdict=verdict, level=level, num_sharing=num_sharing))
    return decided


def step_down(p: Sequence[float], level: Callable[[int, int], float]) -> tuple[list[bool], list[int]]:
    """Return which p-values reach their level, after Holm's step-down, and among how many the error was shared.

    `level` takes the index of a p-value and how many share the error, and returns the level of its test.
    """
    claims, sharing, left = [False] * len(p), [0] * len(p), list(range(len(p)))
    while left:
        # cases at different looks have different levels, so not the least p-value but any that reaches its own
        reaching = [index for index in left if p[index] <= level(index, len(left))]
        if not reaching:
            break
        first = min(reaching, key=p.__getitem__)
        claims[first], sharing[first] = True, len(left)
        left.remove(first)
    for index in left:
        sharing[index] = len(left)
    return claims, sharing


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected after Holm: the largest, so far, of p times the number of hypotheses left."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def pairs_to_settle(case: Case, margin: float) -> Outlook | None:
    """Return how many pairs in all will probably settle a case.

    What mean and standard deviation may be, given the pairs (normal differences, the usual uninformative prior:
    s**2 (n - 1) / chi2 and, given that, a normal mean), is spread over a grid of quantiles. For each case the look is
    found at which the expected interval has left 0 or lies inside the margin; 80 % of these lie at the lower end or
    above, 80 % at the upper end or below.

    None where there is a verdict or a doubt, or no look is left.
    """
    from scipy.special import chdtri, ndtri

    paired, schedule = case.paired, case.schedule
    if case.verdict != UNKNOWN or case.level is None or case.doubt is not None:
        return None
    if paired is None or schedule is None or paired.standard_deviation == 0:
        return None
    num_pairs = len(paired)
    looks = itertools.takewhile(lambda look: look <= MOST_PAIRS or schedule.last is not None, schedule.looks())
    candidates = [look for look in looks if look > num_pairs]
    if not candidates:
        return None
    deviations = paired.standard_deviation * np.sqrt((num_pairs - 1) / chdtri(num_pairs - 1, _QUANTILES))[:, None]
    means = paired.mean + deviations / math.sqrt(num_pairs) * ndtri(_QUANTILES)
    never = candidates[-1] + 1
    settled = np.full(means.shape, never)
    for candidate in reversed(candidates):
        half = _half_width(candidate, case.level_among(case.num_sharing, candidate)) * deviations
        expected = np.abs(num_pairs * paired.mean + (candidate - num_pairs) * means) / candidate
        settled = np.where((expected > half) | (expected + half < margin), candidate, settled)
    low, middle, high = (int(q) for q in np.quantile(settled, (1 - _PROBABLY, 0.5, _PROBABLY), method="inverted_cdf"))
    last = candidates[-1]
    is_hopeless = never == (high if schedule.last is None else middle)
    return Outlook(min(low, last), None if high == never else high, last, is_hopeless)


@functools.lru_cache(maxsize=4096)
def _half_width(num_pairs: int, level: float) -> float:
    """Return half the t interval's width in standard deviations."""
    from scipy.special import stdtrit

    return math.inf if level <= 0 else -float(stdtrit(num_pairs - 1, level / 2)) / math.sqrt(num_pairs)


def least_found(num_pairs: int, level: float, probability: float = _PROBABLY) -> float:
    """Return the mean difference that pairs find with this probability, in standard deviations of their differences.

    With T of the noncentral t distribution (n - 1 degrees of freedom, noncentrality d sqrt(n)) and the bound t of the
    two-sided test at `level`, it is the d with P(T > t) = probability.
    """
    from scipy.optimize import brentq
    from scipy.special import nctdtr, stdtrit

    bound = -float(stdtrit(num_pairs - 1, level / 2))
    shift = brentq(lambda nc: float(nctdtr(num_pairs - 1, nc, bound)) - (1 - probability), 0.0, 3 * bound + 10)
    return float(shift) / math.sqrt(num_pairs)
