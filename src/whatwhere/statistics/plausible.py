"""Figures that a metric cannot have, and figures that mark a failed run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from statistics import median_low
from typing import NamedTuple

from ..base.words import named, short
from .derived import smallest_gap
from .direction import is_at_most_all, is_called_signed, is_never_negative
from .independence import Doubt
from .metric import METRICS, Metric, two_scales
from .results import Results, numbered

_LEAVE_EMPTY = "if that marks a run that failed, leave the figure empty"
_SHARE = "give shares or percentages, and leave the figure of a run that failed empty"
_FAR = 10.0  # times the largest of the other figures
_LARGEST_MARKS = {2.0**31 - 1, 2.0**31, 2.0**32 - 1, 2.0**63, float.fromhex("0x1.fffffep+127")}

_Figures = Mapping[tuple[str, Hashable], float]


class Fault(NamedTuple):
    """What is wrong with the figures of a metric, and what to do about it."""

    what: str
    advice: str


def fault_of(results: Results, name: str) -> Fault | None:
    """Return the first fault in the figures of the metric `name`; None where there is none.

    - shares and percentages in one metric (`two_scales`);
    - a figure below 0, or above 100, of a metric that cannot have one by its name;
    - a number that programs write for a run without a result: -1, -9, -99, ..., or 999, 9999, ..., a power of ten from
      10,000 on, or the largest of a type. It must be ten times further from 0 than all others, or the only negative
      one, beside figures that are no whole numbers. A metric whose name says that it has negative figures has no such
      -1, and may have its only negative figure.
    """
    figures = {(arm, seed): value for arm in results.arms for seed, value in results.values(arm, name).items()}
    # one run at chance level hides the scale of its arm; the median does not show it
    if found := two_scales(name, figures.values()) or two_scales(name, _middle_figures(results, name)):
        share, percentage = (_told(figures, value) for value in found)
        neither = "" if name in METRICS else ", or all times 100 if they are neither"
        return Fault(
            f"{short(name)} has two scales, shares such as {share} and percentages such as {percentage}",
            f"give all as shares{neither}, and leave the figure of a run that failed empty",
        )
    if is_never_negative(name) and (low := [value for value in figures.values() if value < 0]):
        return Fault(f"{short(name)} is {_told(figures, low[0])}, and it cannot be negative", _LEAVE_EMPTY)
    if is_at_most_all(name) and (high := [value for value in figures.values() if value > 100]):
        return Fault(f"{short(name)} is {_told(figures, high[0])}, and it cannot be above 100", _SHARE)
    return _marked(name, figures)


def _middle_figures(results: Results, name: str) -> list[float]:
    """Return a figure in the middle of each arm's."""
    by_arm = (results.values(arm, name).values() for arm in results.arms)
    return [median_low(values) for values in by_arm if values]


def _marked(name: str, figures: _Figures) -> Fault | None:
    """Return the fault of the first figure that is no result but a mark."""
    marks = [value for value in figures.values() if _is_mark(value) and not (value == -1 and is_called_signed(name))]
    others = [value for value in figures.values() if not _is_mark(value)]
    if not marks or not others:
        return None
    if far := [mark for mark in marks if abs(mark) > _FAR * max(map(abs, others))]:
        return Fault(f"{short(name)} is {_told(figures, far[0])}, far from all other figures", _LEAVE_EMPTY)
    if is_called_signed(name) or min(others) < 0 or not any(value % 1 for value in others):
        return None
    if below := [mark for mark in marks if mark < 0]:
        return Fault(
            f"{short(name)} is {_told(figures, below[0])}, and all figures but such marks of failed runs are 0 or more",
            f"{_LEAVE_EMPTY}; if it is a result, rename the metric, such as signed_{short(name, 30)}",
        )
    return None


def _told(figures: _Figures, value: float) -> str:
    """Return a figure with the run that it is of, the first one."""
    arm, seed = next(run for run, figure in figures.items() if figure == value)
    return f"{value:g} (arm {named(arm)}, seed {named(str(seed))})"


def _is_mark(value: float) -> bool:
    size = abs(value)
    if value % 1 or size in (0, *range(2, 9)):
        return False
    digits = f"{size:.0f}"
    nines = {*digits} == {"9"} and (value < 0 or size >= 999)
    power = digits.strip("0") == "1" and (size >= 10_000 or value == -1)
    return nines or power or size in _LARGEST_MARKS


def doubt_about_zeros(
    results: Results, metric: Metric, baseline: str, arm: str, seeds: Sequence[Hashable]
) -> Doubt | None:
    """Return the doubt that figures of exactly 0 are no results; None where they may be.

    They may not where the other figures of the arm lie closer to each other than to 0, and 0 is more than two steps
    away from them. A step is the smallest difference between two figures of the two arms: counts of a few errors, or of
    few test images, reach 0 by chance.
    """
    by_arm = {name: results.values(name, metric.name) for name in (baseline, arm)}
    step = smallest_gap(values[seed] for values in by_arm.values() for seed in seeds)
    for name, values in by_arm.items():
        zeros = [seed for seed in seeds if values[seed] == 0]
        others = [values[seed] for seed in seeds if values[seed]]
        # two steps of 1 in 50 are 0.04 only up to rounding
        if zeros and others and min(others) > (1 + 1e-9) * max(max(others) - min(others), 2 * step):
            return Doubt(
                f"{named(metric.label)} of {named(name)} is exactly 0 for {numbered(zeros)}, and {min(others):g} or "
                "more for the others: those runs failed, or learned nothing",
                "leave the figure of a run that failed empty, or train it again; a 0 counts as a result",
            )
    return None
