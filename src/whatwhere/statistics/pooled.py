"""The mean effect over several data sets: random effects, and a second interval that needs no known variances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_MOST_STEPS = 500  # each doubles the estimate or better, and most need ten


@dataclass(frozen=True)
class Pooled:
    """Two means over k independent data sets, each with its standard error.

    Every attribute but `num` is an array of the shape that remains when the axis of the data sets is gone, so one call
    takes one verdict or a hundred thousand simulated ones.

    The random-effects interval alone errs too often: where the means differ in precision and chance makes tau**2 small,
    one precise data set decides, up to 12 % on each side where 2.5 % are allowed (`benchmarks/across.py`; Röver, Knapp
    and Friede, BMC Medical Research Methodology 15:99, 2015). The t interval of the plain mean errs at most as often as
    allowed, whatever the variances (Bakirov and Székely, Journal of Mathematical Sciences 139, 2006; Ibragimov and
    Müller, JBES 28, 2010), but where few means lie close together by chance it is too short for them. A claim therefore
    needs both, and each interval here reaches from the lower of two lower bounds to the higher of two upper ones.

    Attributes:
        num: k, the number of data sets.
        mean: Sum of w y / sum of w with w = 1 / (v + tau**2); y and v are the means and squared errors.
        error: sqrt(max(1, q) / sum of w), q = sum of w (y - mean)**2 / (k - 1), after Hartung and Knapp (Statistics in
            Medicine 20, 2001), the factor never below 1.
        plain_mean, plain_error: Of y, each data set counting alike: s / sqrt(k).
        tau_squared: Variance of the true effects between data sets, after Paule and Mandel.
    """

    num: int
    mean: Any
    error: Any
    plain_mean: Any
    plain_error: Any
    tau_squared: Any

    def interval(self, confidence: float = 0.95) -> tuple[Any, Any]:
        """Return the interval of the mean effect: mean -+ t(k - 1) * error, and the same of the plain mean."""
        return self._around(confidence, self.error, self.plain_error)

    def prediction_interval(self, confidence: float = 0.95) -> tuple[Any, Any]:
        """Return the interval for the effect in the next data set.

        mean -+ t(k - 1) * sqrt(tau**2 + error**2) (Higgins, Thompson and Spiegelhalter, JRSS A 172, 2009; with k - 1
        degrees of freedom as IntHout et al., BMJ Open 6, 2016), and plain_mean -+ t(k - 1) * s * sqrt(1 + 1 / k). The
        first alone covers as little as 71 %.
        """
        each = np.sqrt(self.tau_squared + self.error**2), self.plain_error * np.sqrt(self.num + 1)
        return self._around(confidence, *each)

    def _around(self, confidence: float, error: Any, plain_error: Any) -> tuple[Any, Any]:
        from scipy.special import stdtrit

        quantile = float(stdtrit(self.num - 1, (1 + confidence) / 2))
        ends = [
            (mean - quantile * deviation, mean + quantile * deviation)
            for mean, deviation in ((self.mean, error), (self.plain_mean, plain_error))
        ]
        return np.minimum(ends[0][0], ends[1][0]), np.maximum(ends[0][1], ends[1][1])

    def p_difference(self) -> Any:
        """Return the two-sided p-value that the mean effect is 0: at most a just where `interval(1 - a)` excludes 0."""
        tails = np.maximum(self._tail(self.mean, self.error), self._tail(self.plain_mean, self.plain_error))
        other_tails = np.maximum(self._tail(-self.mean, self.error), self._tail(-self.plain_mean, self.plain_error))
        return np.minimum(1.0, 2 * np.minimum(tails, other_tails))

    def p_equivalence(self, margin: float) -> Any:
        """Return twice the p-value that the mean effect lies outside -+ `margin`.

        At most a just where `interval(1 - a)` lies inside the margin.
        """
        tails = (
            self._tail(margin - np.abs(mean), error)
            for mean, error in ((self.mean, self.error), (self.plain_mean, self.plain_error))
        )
        return np.minimum(1.0, 2 * np.maximum(*tails))

    def _tail(self, distance: Any, error: Any) -> Any:
        """Return the probability that t exceeds distance / error."""
        from scipy.special import stdtr

        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # plain means that are equal have no error
            return stdtr(self.num - 1, -np.nan_to_num(np.divide(distance, error), nan=0.0))


def pooled(means: Any, squared_errors: Any) -> Pooled:
    """Return the mean effect over data sets.

    Args:
        means: The mean difference in each data set, shape (..., k), k at least 2.
        squared_errors: Their squared standard errors, positive, the same shape.
    """
    y, v = np.asarray(means, float), np.asarray(squared_errors, float)
    num = y.shape[-1]
    tau_squared = paule_mandel(y, v)
    weights = _weights(v, tau_squared)
    total = weights.sum(-1)
    mean = (weights * y).sum(-1) / total
    q = (weights * (y - mean[..., None]) ** 2).sum(-1) / (num - 1)
    error = np.sqrt(np.maximum(1.0, q) / total)
    return Pooled(num, mean, error, y.mean(-1), y.std(-1, ddof=1) / np.sqrt(num), tau_squared)


def paule_mandel(means: Any, squared_errors: Any) -> Any:
    """Return the variance between data sets, tau**2, after Paule and Mandel (J. Res. NBS 87, 1982).

    The tau**2 at which Q = sum of w (y - mean)**2, with w = 1 / (v + tau**2), is k - 1; 0 where Q is below that at 0.
    Q falls and is convex in tau**2, so Newton's steps from 0 come nearer from below.

    Args:
        means: As `pooled` takes them.
        squared_errors: Likewise.
    """
    y, v = np.asarray(means, float), np.asarray(squared_errors, float)
    tau_squared = np.zeros(y.shape[:-1])
    for _ in range(_MOST_STEPS):
        weights = _weights(v, tau_squared)
        mean = (weights * y).sum(-1) / weights.sum(-1)
        squares = weights * (y - mean[..., None]) ** 2
        excess, slope = squares.sum(-1) - (y.shape[-1] - 1), (weights * squares).sum(-1)
        step = np.divide(excess, slope, out=np.zeros_like(excess), where=(excess > 0) & (slope > 0))
        tau_squared = tau_squared + step
        if (step <= 1e-13 * tau_squared).all():
            break
    return tau_squared


def _weights(squared_errors: Any, tau_squared: Any) -> Any:
    return 1 / (squared_errors + tau_squared[..., None])
