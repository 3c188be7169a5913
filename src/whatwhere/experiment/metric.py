"""What a comparison judges by: which way is better, and in which unit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..errors import UserError, brief

DEFAULT_MARGIN = 0.5  # points
_LARGEST, _SMALLEST = 1e100, 1e-100  # squares and cubes of what lies between are numbers still
# figures of which less is usually better: words wherever they stand in a name, and words of their own
_WITHIN = ("loss", "error", "perplexity", "latency", "rmse")
_WORDS = {"err", "mae", "mse", "fid", "wer", "cer", "time"}


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


def check_direction(name: str, lower_is_better: bool | None) -> bool:
    """Return whether lower is better of figures called `name`; `lower_is_better` is what was said, None for nothing.

    Raises:
        UserError: It is not said and a name such as val_loss makes it doubtful, or it contradicts a metric of ours.
    """
    if lower_is_better is not None and not isinstance(lower_is_better, bool):
        raise UserError(f"lower_is_better must be True, False or None, got {brief(lower_is_better)}")
    if name in METRICS:
        known = METRICS[name]
        if lower_is_better is known.higher_is_better:
            way, option = ("higher", "lower") if known.higher_is_better else ("lower", "higher")
            raise UserError(f"{name} is a metric of which {way} is better; leave out --{option}-is-better")
        return not known.higher_is_better
    if lower_is_better is None and _is_usually_lower(name):
        raise UserError(
            f"whether a higher or a lower {brief(name)} is better does not follow from its name; give "
            "--lower-is-better or --higher-is-better (in Python lower_is_better=True or False)"
        )
    return bool(lower_is_better)


def _is_usually_lower(name: str) -> bool:
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    return bool(words & _WORDS) or any(part in name.lower() for part in _WITHIN)


def check_figure(value: float, what: str) -> None:
    """Raise UserError if a figure is of a size that no figure has, and that arithmetic with it does not bear."""
    if value and not _SMALLEST <= abs(value) <= _LARGEST:
        raise UserError(f"{what} is {value:g}, and no figure is beyond {_SMALLEST:g} and {_LARGEST:g}; correct it")


def is_share(name: str) -> bool:
    """Return whether the metric is one of ours that is a share, of at most 1."""
    return name in METRICS and METRICS[name].unit == "points"


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
            worst = min(values) if min(values) < 0 else max(values)
            raise UserError(f"{known.label} must be a share or a percentage, got {worst:g}")
        if any(0 < value <= 1 for value in values):
            share = next(value for value in values if 0 < value <= 1)
            raise UserError(
                f"{known.label} has shares and percentages, such as {share:g} and {max(values):g}; give all as shares"
            )
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
            f"the margin must be a number of at least 0, in {metric.unit or 'the unit of the figures'}, "
            f"got {brief(given)}"
        )
    if metric.unit == "points" and given > 100:
        raise UserError(f"a margin of {given:g} points is more than all there is; give at most 100")
    check_figure(given, "the margin")
    return float(given)
