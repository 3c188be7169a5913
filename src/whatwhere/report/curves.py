"""Learning curves: lines and bands as points of a box, each arm over the baseline."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .scale import Scale, Tick, padded

_ENLARGED_BELOW = 0.5  # of the whole range
_LEAST_ENLARGED = 4  # epochs


@dataclass(frozen=True)
class Line:
    """A curve in a box of 100 by 100: mean, band from least to largest, and where the mean ends."""

    points: str
    band: str
    end_x: str
    end_y: str
    value: str


@dataclass(frozen=True)
class Panels:
    """Curves of each arm over those of the baseline, all over the same axes."""

    id: str
    heading: str
    baseline: Line | None
    arms: tuple[tuple[str, Line], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def curve_panels(curves: Mapping[str, Any], baseline: str) -> list[Panels]:
    """Return the learning curves, whole and, where the scale hides it, their second half enlarged."""
    series = {arm: list(_finite(curve)) for arm, curve in curves["arms"].items()}
    series = {arm: points for arm, points in series.items() if points}
    if not series:
        return []
    last = max(points[-1][0] for points in series.values())
    middle = (min(points[0][0] for points in series.values()) + last) / 2
    half = {arm: [point for point in points if point[0] >= middle] for arm, points in series.items()}
    half = {arm: points for arm, points in half.items() if points}
    whole = _panels("whole", f"All {curves['x']}s", series, baseline)
    height, second = (_range(found.values()) for found in (series, half))
    if last - middle < _LEAST_ENLARGED or second[1] - second[0] > _ENLARGED_BELOW * (height[1] - height[0]):
        return [whole]
    return [whole, _panels("half", f"From {curves['x']} {math.ceil(middle)} on, enlarged", half, baseline)]


_Point = tuple[float, float, float, float]


def _finite(curve: Mapping[str, Any]) -> Iterable[_Point]:
    for point in zip(curve["epochs"], curve["mean"], curve["low"], curve["high"], strict=True):
        if all(value is not None and math.isfinite(value) for value in point):
            yield point


def _range(series: Iterable[Sequence[_Point]]) -> tuple[float, float]:
    points = list(itertools.chain.from_iterable(series))
    return min(point[2] for point in points), max(point[3] for point in points)


def _panels(panel_id: str, heading: str, series: Mapping[str, Sequence[_Point]], baseline: str) -> Panels:
    first, last = (pick(points[end][0] for points in series.values()) for pick, end in ((min, 0), (max, -1)))
    x = Scale(first, last) if last > first else Scale(first - 0.5, last + 0.5)
    y = padded(*_range(series.values()))
    lines = {arm: _line(points, x, y) for arm, points in series.items()}
    upside_down = tuple(Tick(f"{100 - float(tick.at[:-1]):.2f}%", tick.label) for tick in y.ticks(6))
    others = tuple((arm, line) for arm, line in lines.items() if arm != baseline)
    return Panels(panel_id, heading, lines.get(baseline), others, tuple(x.ticks(5, whole=True)), upside_down)


def _line(points: Sequence[_Point], x: Scale, y: Scale) -> Line:
    def joined(corners: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{x.share(epoch):.2f},{100 - y.share(value):.2f}" for epoch, value in corners)

    mean = [(epoch, value) for epoch, value, _, _ in points]
    low = [(epoch, value) for epoch, _, value, _ in points]
    high = [(epoch, value) for epoch, _, _, value in reversed(points)]
    epoch, value = mean[-1]
    end_y = f"{100 - y.share(value):.2f}%"
    return Line(joined(mean), joined([*low, *high]), x.at(epoch), end_y, f"{value:.4g}")
