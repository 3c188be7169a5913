"""The charts of the page: dots, intervals and lines as positions along their axes, in per cent of the axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..base.words import counted
from ..comparison.content import ClassRow, Curve, Curves, PerClass
from ..statistics.across import DEPENDS, HELPS_ON_AVERAGE, HURTS_ON_AVERAGE, AcrossArm, Member
from ..statistics.metric import Metric
from ..statistics.verdict import HELPS, HURTS, SAME, UNKNOWN, ArmVerdict
from ..statistics.wording import percent, quantity, span
from .figures import interval, plain, wins

KINDS = {
    HELPS: "helps",
    HELPS_ON_AVERAGE: "helps",
    HURTS: "hurts",
    HURTS_ON_AVERAGE: "hurts",
    SAME: "same",
    DEPENDS: "depends",
    UNKNOWN: "unknown",
}
NEXT = "the next data set"
_NO_PAIRS, _NO_INTERVAL = "no two pairs yet", "no interval: the pairs are in doubt"
_WORSE_LEFT = ("\N{LEFTWARDS ARROW} worse", "better \N{RIGHTWARDS ARROW}")
_BETTER_LEFT = ("\N{LEFTWARDS ARROW} better", "worse \N{RIGHTWARDS ARROW}")
_LONG_LABEL = 5  # characters: more than a phone has room for seven times
_FURTHEST = 1.5  # intervals are cut so far beyond the range of dots and margin, in units of that range
_APART = 2.6  # per cent of the width between dots side by side
_MOST_LANES = 4
_LANE_HEIGHT, _TOP, _BELOW_DOTS, _BOTTOM = 9, 12, 18, 16
_ENLARGED_BELOW = 0.5  # of the whole range
_LEAST_ENLARGED = 4  # epochs


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: str
    label: str

    @property
    def anchor(self) -> str:
        """The alignment of the label that keeps it within the axis."""
        share = float(self.at[:-1])
        return "start" if share < 2 else "end" if share > 98 else "middle"


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """Return the position of a value, 0 at `low` and 100 at `high`, clipped to these."""
        return min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low)))

    def at(self, value: float) -> str:
        """Return a position for SVG: "43.21%"."""
        return f"{self.share(value):.2f}%"

    def ticks(self, at_most: int, *, signed: bool = False, whole: bool = False) -> list[Tick]:
        """Return about `at_most` ticks at round values: steps of 1, 2 or 5 times a power of ten.

        `signed`: labels have a sign, except 0. `whole`: ticks are at integers only.
        """
        least = (self.high - self.low) / at_most
        power = 10.0 ** math.floor(math.log10(least))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
        if whole:
            step = max(1.0, step)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [Tick(self.at(k * step), _label(k * step, step, signed=signed)) for k in range(first, last + 1)]


def padded(low: float, high: float) -> Scale:
    """Return a scale from `low` to `high` with 4 % of room at either end; twice as wide as a single value."""
    room = 0.04 * (high - low) if low < high else abs(low) or 1.0
    return Scale(low - room, high + room)


def _label(value: float, step: float, *, signed: bool) -> str:
    if abs(value) < step / 2:
        return "0"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    sign = "+" if signed else ""
    return f"{value:{sign}.1e}" if decimals > 5 or abs(value) >= 1e6 else f"{value:{sign},.{decimals}f}"


@dataclass(frozen=True)
class Bar:
    """An interval along the axis; `open_start` and `open_end` say that it continues beyond the axis."""

    start: str
    end: str
    open_start: bool = False
    open_end: bool = False

    @property
    def width(self) -> str:
        """Its length along the axis."""
        return f"{float(self.end[:-1]) - float(self.start[:-1]):.2f}%"


@dataclass(frozen=True)
class Dot:
    """One seed: its position, height and tooltip; `counts` says whether the verdict uses it."""

    at: str
    y: int
    title: str
    counts: bool = True


@dataclass(frozen=True)
class Row:
    """One row of a chart: its marks, and the same in words."""

    name: str
    kind: str
    description: str
    mean: str | None = None
    interval: Bar | None = None
    deciding: Bar | None = None
    dots: tuple[Dot, ...] = ()
    words: str = ""
    values: tuple[str, ...] = ()
    is_marked: bool = False
    is_mean: bool = False


@dataclass(frozen=True)
class Chart:
    """Rows over one axis: `band` is the margin around 0, `rule` the line of no difference."""

    id: str
    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    rule: str
    band: Bar | None
    left: str
    right: str
    height: int = 19
    bar_y: int = 9

    @property
    def goes_beyond(self) -> bool:
        """Whether an interval continues beyond the axis."""
        bars = (bar for row in self.rows for bar in (row.interval, row.deciding) if bar)
        return any(bar.open_start or bar.open_end for bar in bars)


def pairs_chart(arms: Sequence[ArmVerdict], baseline: str, margin: float, metric: Metric) -> Chart | None:
    """Return the chart of all differences, a dot for each pair; None without pairs."""
    values = [value for arm in arms for value in arm.differences]
    if not values:
        return None
    low, high = min(-margin, *values), max(margin, *values)
    ends = [end for arm in arms for bounds in (arm.interval_95, arm.deciding_interval) for end in bounds or ()]
    beyond = _FURTHEST * (high - low)
    scale = padded(max(low - beyond, min([low, *ends])), min(high + beyond, max([high, *ends])))
    lanes = {arm.arm: _lanes([scale.share(value) for value in arm.differences]) for arm in arms}
    num_lanes = 1 + max(itertools.chain.from_iterable(lanes.values()))
    rows = tuple(_pairs_row(arm, baseline, scale, metric, lanes[arm.arm]) for arm in arms)
    bar_y = _TOP + (num_lanes - 1) * _LANE_HEIGHT + _BELOW_DOTS
    return Chart(
        "pairs",
        rows,
        _ticks(scale),
        scale.at(0.0),
        Bar(scale.at(-margin), scale.at(margin)) if margin > 0 else None,
        *(_WORSE_LEFT if metric.higher_is_better else _BETTER_LEFT),
        height=bar_y + _BOTTOM,
        bar_y=bar_y,
    )


def _ticks(scale: Scale) -> tuple[Tick, ...]:
    ticks = scale.ticks(7, signed=True)
    is_long = max(len(tick.label) for tick in ticks) > _LONG_LABEL
    return tuple(scale.ticks(4, signed=True) if is_long else ticks)


def _lanes(shares: Sequence[float]) -> list[int]:
    """Return a lane for each dot; dots that would hide each other get different lanes while there are free ones."""
    last = [-math.inf] * _MOST_LANES
    lanes = [0] * len(shares)
    for index in sorted(range(len(shares)), key=shares.__getitem__):
        free = (lane for lane in range(_MOST_LANES) if shares[index] - last[lane] >= _APART)
        lanes[index] = next(free, min(range(_MOST_LANES), key=last.__getitem__))
        last[lanes[index]] = shares[index]
    return lanes


def _pairs_row(arm: ArmVerdict, baseline: str, scale: Scale, metric: Metric, lanes: Sequence[int]) -> Row:
    name, kind, mean = arm.arm, KINDS[arm.verdict], arm.mean_difference
    if mean is None:
        return Row(name, kind, f"{name}: {_NO_PAIRS}", words=arm.headline, values=(_NO_PAIRS,))
    each = zip(arm.seeds, arm.baseline, arm.treatment, arm.differences, lanes, strict=True)
    dots = tuple(
        Dot(
            scale.at(difference),
            _TOP + lane * _LANE_HEIGHT,
            f"seed {seed}: {baseline} {quantity(before, metric)}, {name} {quantity(after, metric)}, "
            f"difference {quantity(difference, metric, signed=True)}",
            counts=index < arm.num_pairs,
        )
        for index, (seed, before, after, difference, lane) in enumerate(each)
    )
    average = quantity(mean, metric, signed=True)
    if arm.interval_95 is None:
        words, better = _NO_INTERVAL, ""
    else:
        words, better = f"95 %: {span(arm.interval_95, metric)}", f" Better in {wins(arm, metric)} pairs."
    bars = _bar(scale, arm.interval_95), _bar(scale, arm.deciding_interval if arm.interval_95 else None)
    description = f"{name}: {arm.headline}. Mean difference {average}, {words}.{better}"
    return Row(name, kind, description, scale.at(mean), *bars, dots, arm.headline, (average, words))


def _bar(scale: Scale, bounds: Sequence[float] | None) -> Bar | None:
    if bounds is None:
        return None
    low, high = bounds
    return Bar(scale.at(low), scale.at(high), low < scale.low, high > scale.high)


def wins_chart(arms: Sequence[ArmVerdict], metric: Metric) -> Chart | None:
    """Return the chart of the probability that each arm is better in a random pair; None without one."""
    if all(arm.win_probability is None for arm in arms):
        return None
    scale = Scale(0.0, 1.0)
    rows = []
    for arm in arms:
        name, share = arm.arm, arm.win_probability
        if share is None:
            why = _NO_PAIRS if arm.mean_difference is None else _NO_INTERVAL
            rows.append(Row(name, "unknown", f"{name}: {why}", values=(why,)))
            continue
        low, high = (percent(round(bound, 2)) for bound in arm.win_interval or ())
        values = (percent(round(share, 3)), f"95 %: {low} to {high}")
        words = f"better in {wins(arm, metric)}"
        description = f"{name}: {words} pairs; {values[0]}, 95 % interval {low} to {high}"
        marks = scale.at(share), _bar(scale, arm.win_interval)
        rows.append(Row(name, KINDS[arm.verdict], description, *marks, words=words, values=values))
    ticks = tuple(Tick(scale.at(share), percent(share)) for share in (0, 0.25, 0.5, 0.75, 1))
    return Chart("wins", tuple(rows), ticks, scale.at(0.5), None, "", "", height=44, bar_y=22)


def forest_scale(arm: AcrossArm, margin: float) -> Scale | None:
    """Return the axis of a forest plot, as long as most intervals need; None without means."""
    means = [one.mean_difference for one in arm.comparisons if one.mean_difference is not None]
    if not means:
        return None
    bounds = [one.interval_95 for one in arm.comparisons if not one.left_out]
    ends = [end for pair in (*bounds, arm.deciding_interval, arm.prediction_interval) for end in pair or ()]
    low, high = min(-margin, 0.0, *means), max(margin, 0.0, *means)
    beyond = _FURTHEST * (high - low)
    return padded(max(low - beyond, min([low, *ends])), min(high + beyond, max([high, *ends])))


def forest_chart(arm: AcrossArm, number: int, margin: float, metric: Metric) -> Chart | None:
    """Return the forest plot of an arm: a row for each comparison, their mean, and the next data set."""
    scale = forest_scale(arm, margin)
    if scale is None:
        return None
    weights = {one.name: one.weight for one in arm.data_sets}
    rows = [_forest_row(one, weights.get(one.data_set), scale, metric) for one in arm.comparisons]
    if arm.mean_difference is not None and arm.interval_95 and arm.prediction_interval:
        mean, words = quantity(arm.mean_difference, metric, signed=True), f"95 %: {span(arm.interval_95, metric)}"
        name, kind = f"mean over {len(arm.data_sets)} data sets", KINDS[arm.verdict]
        description = f"{name}: {mean}, {words}"
        bars = _bar(scale, arm.interval_95), _bar(scale, arm.deciding_interval)
        at = scale.at(arm.mean_difference)
        rows.append(Row(name, kind, description, at, *bars, words=arm.verdict, values=(mean, words), is_mean=True))
        words = f"95 %: {span(arm.prediction_interval, metric)}"
        following = _bar(scale, arm.prediction_interval)
        rows.append(Row(NEXT, "unknown", f"{NEXT}: {words}", None, None, following, values=("prediction", words)))
    sides = _WORSE_LEFT if metric.higher_is_better else _BETTER_LEFT
    band = Bar(scale.at(-margin), scale.at(margin)) if margin > 0 else None
    return Chart(f"forest-{number}", tuple(rows), _ticks(scale), scale.at(0.0), band, *sides, height=40, bar_y=20)


def _forest_row(one: Member, weight: float | None, scale: Scale, metric: Metric) -> Row:
    pairs = counted(one.num_pairs, "pair")
    if one.mean_difference is None:
        description = f"{one.comparison}: {_NO_PAIRS}"
        return Row(one.comparison, "unknown", description, words="does not count", values=(_NO_PAIRS,))
    mean = quantity(one.mean_difference, metric, signed=True)
    words = _NO_INTERVAL if one.interval_95 is None else f"95 %: {span(one.interval_95, metric)}"
    of = "" if one.data_set == one.comparison else f" of {one.data_set}"
    about = pairs + of
    if one.left_out:
        about += "; does not count"
    elif one.verdict != UNKNOWN:
        about += f"; {one.verdict}"
    if weight is not None and not one.left_out:
        about += f"; weight {percent(round(weight, 2))}" + (" with it" if of else "")
    kind = "plain" if one.left_out else KINDS[one.verdict]
    description = f"{one.comparison}: {about}. Mean difference {mean}, {words}"
    at, bar = scale.at(one.mean_difference), _bar(scale, one.interval_95)
    return Row(one.comparison, kind, description, at, bar, words=about, values=(mean, words))


@dataclass(frozen=True)
class Classes:
    """Differences by class: a chart for each arm, and the number of intervals that do not contain 0."""

    charts: tuple[tuple[str, Chart], ...]
    num_rows: int
    num_missing: int


def class_charts(per_class: PerClass, baseline: str, alpha: float) -> Classes:
    """Return a chart of the classes for each arm, sorted by the mean difference."""
    metric = Metric("", per_class.metric, unit=per_class.unit)
    ends = [end for row in per_class.rows for end in row.interval_95 or (row.mean_difference,)]
    scale = padded(min(0.0, *ends), max(0.0, *ends))
    charts = []
    for number, arm in enumerate(dict.fromkeys(row.arm for row in per_class.rows)):
        found = sorted((row for row in per_class.rows if row.arm == arm), key=lambda row: row.mean_difference)
        rows = tuple(_class_row(row, scale, metric, baseline, alpha) for row in found)
        charts.append((arm, Chart(f"classes-{number}", rows, _ticks(scale), scale.at(0.0), None, *_WORSE_LEFT)))
    intervals = [row.interval_95 for row in per_class.rows if row.interval_95 is not None]
    missing = sum(low > 0 or high < 0 for low, high in intervals)
    return Classes(tuple(charts), len(per_class.rows), missing)


def _class_row(row: ClassRow, scale: Scale, metric: Metric, baseline: str, alpha: float) -> Row:
    p = row.p_t_holm
    marked = p is not None and p <= alpha
    bounds = interval(row.interval_95, metric)
    description = (
        f"{row.name}: {baseline} {quantity(row.baseline_mean, metric)}, {row.arm} {quantity(row.arm_mean, metric)}, "
        f"difference {quantity(row.mean_difference, metric, signed=True)}, "
        + (_NO_INTERVAL if row.interval_95 is None else f"95 % interval {bounds}")
        + ("" if p is None else f", Holm p {p:.3g}")
    )
    return Row(
        row.name,
        "marked" if marked else "plain",
        description,
        scale.at(row.mean_difference),
        _bar(scale, row.interval_95),
        words=counted(row.num_images, "image"),
        values=(plain(row.mean_difference, metric, signed=True), f"({bounds})"),
        is_marked=marked,
    )


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
    """The curve of each arm with that of the baseline, all on the same axes."""

    id: str
    heading: str
    baseline: Line | None
    arms: tuple[tuple[str, Line], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def curve_panels(curves: Curves, baseline: str) -> list[Panels]:
    """Return the learning curves; also their second half, enlarged, if it is hard to see at the scale of the whole."""
    series = {arm: points for arm, curve in curves.arms.items() if (points := _finite(curve))}
    if not series:
        return []
    last = max(points[-1][0] for points in series.values())
    middle = (min(points[0][0] for points in series.values()) + last) / 2
    half = {arm: late for arm, points in series.items() if (late := [point for point in points if point[0] >= middle])}
    whole = _panels("whole", f"All {curves.x}s", series, baseline)
    height, second = (_range(found.values()) for found in (series, half))
    if last - middle < _LEAST_ENLARGED or second[1] - second[0] > _ENLARGED_BELOW * (height[1] - height[0]):
        return [whole]
    return [whole, _panels("half", f"From {curves.x} {math.ceil(middle)} on, enlarged", half, baseline)]


_Point = tuple[float, float, float, float]


def _finite(curve: Curve) -> list[_Point]:
    return [
        (epoch, mean, low, high)
        for epoch, mean, low, high in zip(curve.epochs, curve.mean, curve.low, curve.high, strict=True)
        if mean is not None and low is not None and high is not None and all(map(math.isfinite, (mean, low, high)))
    ]


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
