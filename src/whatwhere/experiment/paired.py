from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from ..errors import UserError


@dataclass(frozen=True)
class PairedDifference:
    """The figures of two arms, pair by pair: the runs of a pair share a seed and differ in the arm alone.

    Attributes:
        seeds: One per pair.
        baseline: The baseline's figure for each seed.
        treatment: The other arm's.
    """

    seeds: tuple[int, ...]
    baseline: tuple[float, ...]
    treatment: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.seeds) == len(self.baseline) == len(self.treatment) >= 2:
            raise UserError(
                "a paired difference needs two or more seeds and one figure of each arm per seed, got "
                f"{len(self.seeds)} seeds, {len(self.baseline)} and {len(self.treatment)} figures"
            )

    @property
    def differences(self) -> tuple[float, ...]:
        """Treatment minus baseline, pair by pair."""
        return tuple(t - b for b, t in zip(self.baseline, self.treatment, strict=True))

    @property
    def mean(self) -> float:
        """The mean difference."""
        return statistics.fmean(self.differences)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the paired-t interval of the mean difference: mean -+ t(n - 1) * s / sqrt(n)."""
        from scipy.stats import t

        quantile = float(t.ppf((1 + confidence) / 2, len(self.seeds) - 1))
        half_width: float = quantile * statistics.stdev(self.differences) / math.sqrt(len(self.seeds))
        return self.mean - half_width, self.mean + half_width

    @property
    def smallest_p_value(self) -> float:
        """The least two-sided p-value that the exact sign-flip test can reach with this many pairs, 2 / 2**n."""
        return 2 / float(2 ** len(self.seeds))
