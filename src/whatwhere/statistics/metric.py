"""The metric of a comparison: its unit, its margin, and whether higher or lower is better."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..base.errors import UserError, is_number
from ..base.words import brief, named
from .direction import (
    has_no_end,
    is_at_most_all,
    is_called_a_loss,
    is_called_higher,
    is_called_signed,
    is_of_other_images,
)

DEFAULT_MARGIN = 0.5  # points
UNNAMED = "figure"  # the metric of a table with a column for each arm, until the user names it
_LARGEST, _SMALLEST = 1e100, 1e-100  # between them squares and cubes do not overflow
_ONE_SCALE = 4.0  # shares of one comparison hardly ever differ by a larger factor


@dataclass(frozen=True)
class Metric:
    """A figure of each run.

    Attributes:
        name: Its key in the results.
        label: Its name in words.
        scale: What a figure is multiplied by to be shown.
        unit: Of figures so shown, "points" (hundredths of a share) or "".
        higher_is_better: Which way is better; None where neither the name nor the user tells.
    """

    name: str
    label: str
    scale: float = 1.0
    unit: str = ""
    higher_is_better: bool | None = True


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


def usual_metric(names: Iterable[str]) -> str | None:
    """Return the metric to judge by where nobody named one: accuracy, as whatwhere calls it; None where it is unclear.

    It is unclear where accuracy is not there, and where such a figure of other images stands beside it, as val_accuracy
    does, or a loss beside a loss: Keras calls those of the training images accuracy and loss.
    """
    names = list(names)
    others = [name for name in names if is_of_other_images(name)]
    is_clear = "loss" not in names and all(map(is_called_a_loss, others)) if others else True
    return "accuracy" if "accuracy" in names and is_clear else None


def tells_direction(name: str) -> bool:
    """Return whether the name of a metric tells which way is better."""
    return name in METRICS or is_called_higher(name)


def check_direction(name: str, lower_is_better: bool | None) -> bool:
    """Return whether lower is better for the metric `name`; `lower_is_better` is what the user said, or None.

    Raises:
        UserError: The user did not say and the name does not tell (`is_called_higher`), or the two contradict.
    """
    if lower_is_better is not None and not isinstance(lower_is_better, bool):
        raise UserError(f"lower_is_better must be True, False or None, got {brief(lower_is_better)}")
    if name in METRICS:
        known = METRICS[name]
        if lower_is_better is known.higher_is_better:
            way, option = ("higher", "lower") if known.higher_is_better else ("lower", "higher")
            raise UserError(f"{name} is a metric where {way} is better; leave out --{option}-is-better")
        return not known.higher_is_better
    if lower_is_better is None and name == UNNAMED:
        raise UserError(
            "each column is an arm, and what its figures are is not known; give their name, such as --metric accuracy"
        )
    if lower_is_better is None and not tells_direction(name):
        raise UserError(
            f"whether a higher or a lower {brief(name)} is better does not follow from its name; give "
            "--lower-is-better or --higher-is-better (in Python lower_is_better=True or False), and with --margin what "
            "difference matters"
        )
    return bool(lower_is_better)


def two_scales(name: str, values: Iterable[float]) -> tuple[float, float] | None:
    """Return a share and a percentage among figures of one metric, of runs or of arms; None where all have one scale.

    Figures have two scales if all lie within 0 and 100, some of them at most 1 and some above, and those of at most 1,
    times 100, fall among the others: all are then within a factor of 4 of each other. The two groups are then a factor
    of 25 or more apart, so figures that vary across 1, such as log losses from 0.8 to 1.3 or milliseconds from 0.5 to
    90, have one scale. Known shares have two scales as soon as figures lie on both sides of 1, and shares by their name
    (mAP50) where half of the figures or more are at most 1. Figures without an upper end by their name (a loss, a time)
    never have. Zeros are ignored.
    """
    figures = [value for value in values if value]
    shares = [value for value in figures if value <= 1]
    percentages = [value for value in figures if value > 1]
    if not shares or not percentages or min(shares) < 0 or max(percentages) > 100:
        return None
    if name in METRICS:
        return (shares[0], percentages[0]) if is_share(name) else None
    if is_at_most_all(name) and len(shares) >= len(percentages):
        return shares[0], percentages[0]
    together = [*(100 * value for value in shares), *percentages]
    if has_no_end(name) or max(together) > _ONE_SCALE * min(together):
        return None
    return shares[0], percentages[0]


def check_figure(value: float, what: str) -> None:
    """Raise UserError if a figure is too large or too small to compute with."""
    if value and not _SMALLEST <= abs(value) <= _LARGEST:
        raise UserError(f"{what} is {value:g}; figures must lie between {_SMALLEST:g} and {_LARGEST:g}")


def is_share(name: str) -> bool:
    """Return whether `name` is a known metric that is a share, at most 1."""
    return name in METRICS and METRICS[name].unit == "points"


def metric_for(name: str, values: Iterable[float], *, lower_is_better: bool = False) -> Metric:
    """Return the metric for figures called `name`; an unknown name gets its unit from the values.

    Where the name is that of a share of a whole, higher being better (accuracy, mAP50), figures between 0 and 1 are
    shares and shown in points, and figures between 0 and 100 are percentages, so points already; all others, such as a
    PSNR, a reward or a correlation, are shown as they are.
    """
    values = list(values)
    if name in METRICS and METRICS[name].higher_is_better is not lower_is_better:
        known = METRICS[name]
        if known.unit != "points" or not values or (min(values) >= 0 and max(values) <= 1):
            return known
        if min(values) < 0 or max(values) > 100:
            worst = min(values) if min(values) < 0 else max(values)
            raise UserError(f"{known.label} must be a share or a percentage, got {worst:g}")
        return replace(known, scale=1.0)
    label = name.replace("_", " ")
    # a loss between 0 and 1 is no share, and what an unknown figure is, is not known
    is_a_share = is_at_most_all(name) and not is_called_signed(name)
    if lower_is_better or not is_a_share or not values or min(values) < 0 or max(values) > 100:
        return Metric(name, label, higher_is_better=not lower_is_better)
    return Metric(name, label, 100 if max(values) <= 1 else 1, "points")


def margin_for(metric: Metric, given: float | None) -> float:
    """Return the margin in the unit shown: the one given, else 0.5 points.

    Raises:
        UserError: No margin is given and the metric's unit is not points, or the margin is no number of at least 0.
    """
    if given is None:
        if metric.unit != "points":
            raise UserError(
                f"what difference in {named(metric.label)} matters is not known; give it, in the unit of the figures, "
                "with --margin"
            )
        return DEFAULT_MARGIN
    if not is_number(given) or not 0 <= given <= sys.float_info.max:
        raise UserError(
            f"the margin must be a number of at least 0, in {metric.unit or 'the unit of the figures'}, "
            f"got {brief(given)}"
        )
    if metric.unit == "points" and given > 100:
        raise UserError(f"a margin of {given:g} points is more than all there is; give at most 100")
    check_figure(given, "the margin")
    return float(given)


def num_decimals(value: float) -> int:
    """Return the number of decimals of a figure: 1 for 0.50, 0 for 250.0."""
    mantissa, _, exponent = repr(float(value)).partition("e")
    return max(0, len(mantissa.partition(".")[2].rstrip("0")) - int(exponent or 0))
