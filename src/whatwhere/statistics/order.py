"""Whether the figures of two arms rise, or fall, from seed to seed: those of independent runs do not."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from .results import by_number

_MOST_EXACT = 100  # seeds; with more, the normal distribution is exact enough


def chance_of_order(arms: Sequence[Mapping[Hashable, float]], seeds: Sequence[Hashable]) -> tuple[str, float]:
    """Return "rise" or "fall", and an upper bound on the probability that all arms do so as clearly by chance.

    The seeds stand in the order of their numbers. A pair of runs is out of order if it falls where the others rise, or
    is equal. The bound is twice the probability of so few pairs out of order, in the arm that has most of them: what
    the seed decides may be the same in all arms.
    """
    ordered = sorted(seeds, key=by_number)
    found = {"rise": 0.0, "fall": 0.0}
    for way, sign in (("rise", 1), ("fall", -1)):
        for figures in arms:
            values = sign * np.array([figures[seed] for seed in ordered])
            num_odd = int((np.triu(values[:, None] >= values[None, :], 1)).sum())
            found[way] = max(found[way], min(1.0, 2 * _chance_of_inversions(len(values), num_odd)))
    way = min(found, key=found.__getitem__)
    return way, found[way]


def _chance_of_inversions(n: int, most: int) -> float:
    """Return the probability that a random order of n has at most so many pairs out of order (Kendall, 1938)."""
    if n > _MOST_EXACT:
        deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 72)
        return 0.5 * math.erfc((n * (n - 1) / 4 - most - 0.5) / deviation / math.sqrt(2))
    return float(_chances(n)[: most + 1].sum())


@functools.lru_cache(maxsize=16)
def _chances(n: int) -> Any:
    """Return the probabilities of 0, 1, ... pairs out of order in a random order of n."""
    chances = np.ones(1)
    for count in range(2, n + 1):  # the next one stands before 0 to count - 1 of the others
        chances = np.convolve(chances, np.full(count, 1 / count))
    return chances
