"""From pairs to a decision: looks, arms, and how the error is shared among them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from .independence import Doubt
from .looks import ALPHA, Plan
from .paired import PairedDifference

HELPS, HURTS, SAME, UNKNOWN = "helps", "hurts", "no practical difference", "cannot tell yet"


@dataclass(frozen=True)
class Case:
    """One arm against the baseline, before the decision.

    Attributes:
        arm: Its name.
        paired: The pairs that are judged; None with fewer than 2.
        plan: None where no look can be yet.
        blocked: Why there can be no verdict on them; "" if there can.
        waiting: Seeds that the next look waits for.
        doubt: Why the pairs may be no independent draws: the look counts, but nothing is claimed.
    """

    arm: str
    paired: PairedDifference | None
    plan: Plan | None
    blocked: str = ""
    waiting: tuple[Hashable, ...] = ()
    doubt: Doubt | None = None

    def level(self, num_arms: int, num_pairs: int | None = None) -> float:
        """Return the level of the test at this look, or at that at `num_pairs`, where `num_arms` share alpha."""
        if self.plan is None or self.paired is None or self.blocked:
            return 0.0
        return self.plan.level(num_pairs or len(self.paired), ALPHA / num_arms)


@dataclass(frozen=True)
class Decision:
    """A case's verdict, the level it is read at, and among how many arms alpha was shared for it."""

    verdict: str
    level: float | None
    num_sharing: int


def decide(cases: Sequence[Case], margin: float, *, higher_is_better: bool = True) -> list[Decision]:
    """Return the decision on each case: see `judge` for the rule."""
    differ, sharing = _claims(cases, lambda paired: paired.p_t())
    same, sharing_same = _claims(cases, lambda paired: paired.p_equivalence(margin))
    decisions = []
    for index, case in enumerate(cases):
        verdict, num_sharing = UNKNOWN, sharing[index]
        if case.paired is not None and not case.blocked:
            if same[index]:
                verdict, num_sharing = SAME, sharing_same[index]
            elif differ[index]:
                verdict = HELPS if (case.paired.mean > 0) is higher_is_better else HURTS
        level = None if case.blocked or case.paired is None else case.level(num_sharing)
        decisions.append(Decision(verdict, level, num_sharing))
    return decisions


def _claims(cases: Sequence[Case], p_value: Callable[[PairedDifference], float]) -> tuple[list[bool], list[int]]:
    """Return which cases' p-values reach their level, after Holm's step-down, and among how many arms it was shared."""
    p = [1.0 if case.blocked or case.doubt or case.paired is None else p_value(case.paired) for case in cases]
    claims, sharing, left = [False] * len(cases), [0] * len(cases), list(range(len(cases)))
    while left:
        # cases at different looks have different levels, so not the least p-value but any that reaches its own
        reaching = [index for index in left if p[index] <= cases[index].level(len(left))]
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
