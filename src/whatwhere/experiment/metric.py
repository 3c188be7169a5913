"""What a comparison judges by: which way is better, and in which unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..errors import UserError

DEFAULT_MARGIN = 0.5  # points


@dataclass(frozen=True)
class Metric:
    """A figure that a run comes to.

    Attributes:
        name: Its key in the results.
        label: What people call it.
        scale: What a figure is multiplied by to be shown.
        unit: Of figures so shown, "points" (hundredths of a share) or "".
        higher_is_better: Which way is better.
    """

    name: str
    label: str
    scale: float = 1.0
    unit: str = ""
    higher_is_better: bool = True


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", 100, "points"),
        Metric("balanced_accuracy", "balanced accuracy", 100, "points"),
        Metric("macro_f1", "macro F1", 100, "points"),
        Metric("auroc", "AUROC", 100, "points"),
        Metric("loss", "log loss", higher_is_better=False),
        Metric("calibration_error", "calibration error", 100, "points", higher_is_better=False),
    )
}


def metric_for(name: str, values: Iterable[float], *, lower_is_better: bool = False) -> Metric:
    """Return how figures called `name` are shown, those from elsewhere by their values.

    Where higher is better, and for our own metrics in points, figures within 0 and 1 are taken for shares and shown in
    points, and figures within 0 and 100 for percentages, which are points already; all others are shown as they are.
    """
    values = list(values)
    if name in METRICS and METRICS[name].higher_is_better is not lower_is_better:
        known = METRICS[name]
        if known.unit != "points" or not values or (min(values) >= 0 and max(values) <= 1):
            return known
        if min(values) < 0 or max(values) > 100:
            raise UserError(f"{known.label} must be a share or a percentage, got {max(values, key=abs)}")
        return replace(known, scale=1.0)
    label = name.replace("_", " ")
    if lower_is_better or not values or min(values) < 0 or max(values) > 100:
        return Metric(name, label, higher_is_better=not lower_is_better)
    return Metric(name, label, 100 if max(values) <= 1 else 1, "points")


def margin_for(metric: Metric, given: float | None) -> float:
    """Return the margin in the unit shown: the one given, else 0.5 points.

    Raises:
        UserError: None is given and the metric's unit is not points, or it is no number of at least 0.
    """
    if given is None:
        if metric.unit != "points":
            raise UserError(
                f"what difference in {metric.label} matters is not known; give it, in the unit of the figures, with "
                "--margin"
            )
        return DEFAULT_MARGIN
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < float("inf"):
        raise UserError(
            f"the margin must be a number of at least 0, in {metric.unit or 'the unit of the figures'}, got {given!r}"
        )
    return float(given)
