"""Paired differences over seeds: mean, interval, exact test, probability of winning a pair."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from ..base.errors import UserError

_MOST_EXACT = 40  # pairs; half of their sign patterns, 2**20, fit any memory
_NUM_RANDOM = 99_999
_ROUNDING = 1e-9  # differences of decimal figures are equal up to this share of their size


@dataclass(frozen=True)
class PairedDifference:
    """The figures of two arms, pair by pair: the runs of a pair share a seed and differ in the arm alone.

    Attributes:
        seeds: One per pair.
        baseline: The baseline's figure for each seed.
        treatment: The other arm's.
    """

    seeds: tuple[Hashable, ...]
    baseline: tuple[float, ...]
    treatment: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.seeds) == len(self.baseline) == len(self.treatment) >= 2:
            raise UserError(
                "a paired difference needs two or more seeds and one figure of each arm per seed, got "
                f"{len(self.seeds)} seeds, {len(self.baseline)} and {len(self.treatment)} figures"
            )

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def differences(self) -> tuple[float, ...]:
        """Treatment minus baseline, pair by pair."""
        return tuple(t - b for b, t in zip(self.baseline, self.treatment, strict=True))

    @property
    def mean(self) -> float:
        """The mean difference."""
        return statistics.fmean(self.differences)

    @property
    def standard_deviation(self) -> float:
        """Of the differences, with n - 1; exactly 0 where they are equal up to rounding."""
        differences = self.differences
        deviation = float(np.std(differences, ddof=1))
        largest = max(abs(value) for value in (*self.baseline, *self.treatment))
        return 0.0 if deviation <= _ROUNDING * largest else deviation

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the paired-t interval of the mean difference: mean -+ t(n - 1) * s / sqrt(n)."""
        from scipy.special import stdtrit

        quantile = float(stdtrit(len(self) - 1, (1 + confidence) / 2))
        half_width: float = quantile * self.standard_deviation / math.sqrt(len(self))
        return self.mean - half_width, self.mean + half_width

    def p_t(self) -> float:
        """Return the two-sided p-value of the paired t-test that the mean difference is 0.

        Differences that are all equal have no spread to compare with: there it is the sign-flip test's.
        """
        if self.standard_deviation == 0:
            return self.p_sign_flip()
        return 2 * self._t_tail(abs(self.mean))

    def p_equivalence(self, margin: float) -> float:
        """Return twice the p-value of two one-sided t-tests that the mean difference lies outside -+ `margin`.

        At most alpha just where the t interval of confidence 1 - alpha lies inside the margin. Differences that are
        all equal and inside it: 2 / 2**n, the sign-flip test's.
        """
        distance = margin - abs(self.mean)
        if self.standard_deviation == 0:
            return self.smallest_p_value if distance > 0 or self.mean == 0 else 1.0
        return min(1.0, 2 * self._t_tail(distance))

    def _t_tail(self, distance: float) -> float:
        from scipy.special import stdtr

        return float(stdtr(len(self) - 1, -distance * math.sqrt(len(self)) / self.standard_deviation))

    def p_sign_flip(self) -> float:
        """Return the two-sided p-value of the sign-flip test on the mean.

        The share of the 2**n ways to give the differences signs whose mean is at least as far from 0 as the one seen;
        exact up to 40 pairs, above from 99,999 random ones (the same in every call). It holds for differences that
        are symmetric about 0, of whatever distribution.
        """
        return _p_sign_flip(self.differences)

    @property
    def smallest_p_value(self) -> float:
        """The least two-sided p-value that the exact sign-flip test can reach with this many pairs, 2 / 2**n."""
        return 2 / float(2 ** len(self))

    def win_probability(self, confidence: float = 0.95) -> tuple[float, float, float]:
        """Return the probability that the treatment's figure is the larger in a random pair, with its interval.

        (wins + ties / 2) / n, and Clopper and Pearson's interval of it, exact where there are no ties.
        """
        from scipy.special import betaincinv

        differences = self.differences
        wins = sum(d > 0 for d in differences) + sum(d == 0 for d in differences) / 2
        losses, tail = len(self) - wins, (1 - confidence) / 2
        low = float(betaincinv(wins, losses + 1, tail)) if wins else 0.0
        high = float(betaincinv(wins + 1, losses, 1 - tail)) if losses else 1.0
        return float(wins) / len(self), low, high

    def skewness(self) -> float:
        """Return the differences' skewness in units of its standard error under normality; 0 without spread.

        G1 / SE(G1) with G1 = n sum(d - mean)**3 / ((n - 1)(n - 2) s**3) and SE(G1)**2 = 6 n (n - 1) / ((n - 2)(n + 1)
        (n + 3)), exact for normal differences; beyond about 2 the t interval is not to be trusted to its last decimal.
        """
        n, s = len(self), self.standard_deviation
        if n < 3 or s == 0:
            return 0.0
        cubes = float(np.sum((np.asarray(self.differences) - self.mean) ** 3))
        g1 = n * cubes / ((n - 1) * (n - 2) * s**3)
        return g1 / math.sqrt(6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3)))


@functools.lru_cache(maxsize=256)
def _p_sign_flip(values: tuple[float, ...]) -> float:
    differences = np.asarray(values)
    if len(differences) > _MOST_EXACT:
        from scipy.stats import permutation_test

        result = permutation_test(
            (differences,),
            np.mean,
            permutation_type="samples",
            n_resamples=_NUM_RANDOM,
            vectorized=True,
            batch=10_000,
            rng=np.random.default_rng(0),
        )
        return float(result.pvalue)
    seen = abs(float(differences.sum())) - _ROUNDING * float(np.abs(differences).sum())
    if seen <= 0:
        return 1.0
    # the sums of one half in order, so that for each of the other's it is found how many reach the one seen
    half = len(differences) // 2
    first, second = np.sort(_signed_sums(differences[:half])), _signed_sums(differences[half:])
    num_reaching = int((len(first) - np.searchsorted(first, seen - second)).sum())
    return min(1.0, math.ldexp(2 * num_reaching, -len(differences)))


def _signed_sums(values: np.ndarray) -> np.ndarray:
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
    return sums
