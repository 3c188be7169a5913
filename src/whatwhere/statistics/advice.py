"""How many pairs would probably settle what cannot be told yet."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from .decide import Case

MOST_PAIRS = 1000  # nobody is advised to train more
_PROBABLY = 0.8
_QUANTILES = (np.arange(40) + 0.5) / 40


def pairs_to_settle(case: Case, num_sharing: int, margin: float) -> tuple[int, int | None] | None:
    """Return from how many to how many pairs in all would probably settle it; the upper end None: more than 1,000.

    What mean and standard deviation may be, given the pairs (normal differences, the usual uninformative prior:
    s**2 (n - 1) / chi2 and, given that, a normal mean), is spread over a grid of quantiles. For each case the look is
    found at which the expected interval has left 0 or lies inside the margin; 80 % of these lie at the lower end or
    above, 80 % at the upper end or below.

    None where no look is left.
    """
    paired, plan = case.paired, case.plan
    if paired is None or plan is None or paired.standard_deviation == 0:
        return None
    num_pairs = len(paired)
    looks = itertools.takewhile(lambda look: look <= MOST_PAIRS or plan.last is not None, plan.looks())
    candidates = [look for look in looks if look > num_pairs]
    if not candidates:
        return None
    deviations, means = _plausible(paired.mean, paired.standard_deviation, num_pairs)
    never = candidates[-1] + 1
    settled = np.full(means.shape, never)
    for candidate in reversed(candidates):
        half = _half_width(candidate, case.level(num_sharing, candidate)) * deviations
        expected = np.abs(num_pairs * paired.mean + (candidate - num_pairs) * means) / candidate
        settled = np.where((expected > half) | (expected + half < margin), candidate, settled)
    low, high = np.quantile(settled, (1 - _PROBABLY, _PROBABLY), method="inverted_cdf")
    if low == never:
        return candidates[-1], None
    return int(low), None if high == never else int(high)


def _plausible(mean: float, deviation: float, num_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return standard deviations and means, each (40, 40)."""
    from scipy.special import chdtri, ndtri

    degrees = num_pairs - 1
    deviations = deviation * np.sqrt(degrees / chdtri(degrees, _QUANTILES))[:, None]
    means = mean + deviations / math.sqrt(num_pairs) * ndtri(_QUANTILES)
    return np.broadcast_to(deviations, means.shape), means


@functools.lru_cache(maxsize=4096)
def _half_width(num_pairs: int, level: float) -> float:
    """Return half the t interval's width in standard deviations."""
    from scipy.special import stdtrit

    return math.inf if level <= 0 else -float(stdtrit(num_pairs - 1, level / 2)) / math.sqrt(num_pairs)
