"""Data sets on which the same trained networks were tested: they are one, for a mean over data sets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from .looks import LEAST_PAIRS

# for all pairs of data sets of all arms; by mistake two data sets count as one, which is the safe side
LIMIT = 1 / 1000


def related(arms: Sequence[Mapping[str, Mapping[Hashable, float]]]) -> list[list[str]]:
    """Return groups of two or more data sets in which the differences of a seed go together.

    Independent trainings have differences that know nothing of each other, whatever their seeds are called. Those of
    the same networks, tested on other images, share what the training made of the seed. For each pair of data sets and
    for all together, the agreement of ranks is tested (Kendall's W; r is the mean of Spearman's correlations over k
    data sets and n seeds): F = (1 + (k - 1) r) / (1 - r) with v and (k - 1) v degrees of freedom, v = n - 1 - 2 / k
    (Kendall and Babington Smith, Ann. Math. Stat. 10, 1939), at 1/1000 shared among all tests (Bonferroni). Only seeds
    that all of the k data sets have count, six at least.

    Args:
        arms: For each arm the differences by seed, by data set.
    """
    tests = []
    for of_sets in arms:
        sizes = {2, len(of_sets)} - {0, 1}
        tests += [(of_sets, group) for size in sizes for group in itertools.combinations(of_sets, size)]
    groups: list[set[str]] = []
    for of_sets, group in tests:
        if _chance([of_sets[name] for name in group]) * len(tests) <= LIMIT:
            touched = [one for one in groups if one & {*group}]
            groups = [one for one in groups if one not in touched] + [set(group).union(*touched)]
    names = dict.fromkeys(name for of_sets in arms for name in of_sets)
    return [[name for name in names if name in group] for group in groups]


def _chance(differences: Sequence[Mapping[Hashable, float]]) -> float:
    """Return the probability that the ranks of independent data sets agree so well."""
    from scipy.special import fdtrc

    seeds = [seed for seed in differences[0] if all(seed in of for of in differences[1:])]
    table = np.array([_ranks([of[seed] for seed in seeds]) for of in differences])
    if len(seeds) < LEAST_PAIRS or (np.ptp(table, axis=1) == 0).any():
        return 1.0
    k, n = table.shape
    correlation = (np.corrcoef(table).sum() - k) / (k * (k - 1))
    if correlation > 1 - 1e-12:
        return 1 / float(math.factorial(n)) ** (k - 1) if n < 20 else 0.0
    degrees = n - 1 - 2 / k
    return float(fdtrc(degrees, (k - 1) * degrees, (1 + (k - 1) * correlation) / (1 - correlation)))


def _ranks(values: Sequence[float]) -> Any:
    """Return the rank of each value, equal ones with the mean of theirs."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]
