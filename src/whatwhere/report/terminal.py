"""The report of a comparison as tables for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..base.tables import Table
from ..base.words import printable, short
from ..comparison.content import ClassRow, Content, Costs, GateRow, PerClass
from ..statistics.across import Across, AcrossArm
from ..statistics.looks import ALPHA, LEAST_PAIRS
from ..statistics.metric import Metric
from ..statistics.verdict import Difference
from ..statistics.wording import percent
from .charts import NEXT, Scale, forest_scale
from .figures import (
    EPOCHS_FIRST,
    NONE,
    SeedTable,
    compared,
    cost_table,
    gate_rows,
    interval,
    p_value,
    plain,
    seed_table,
    unit_of,
    wins,
    without_one,
)

_WIDTH = 100
_BETWEEN = 3  # blanks around a column
_LONGEST_HEAD = 20  # longer names are folded
_MOST_CLASSES = 12
_MOST_GATES = 12
_COST_COLUMNS = 3  # side by side
_PLOT, _LONGEST_NAME = 21, 19  # letters of a forest plot, and of a name beside it


def tables(content: Content | Mapping[str, Any]) -> list[Table]:
    """Return a comparison as tables: arms that need more epochs, the verdicts, then the figures behind them.

    `content` may be the JSON values of a `verdict.json`.

    Raises:
        UserError: The JSON values are no content of a report.
    """
    content = Content.of(content)
    judgement = content.judgement
    differing = _differing(content.per_class)
    found = []
    if content.first:
        rows = [(printable(arm), printable(why)) for arm, why in content.first]
        found.append(Table("Before the verdict: train longer", ("arm", "finding"), rows, 2, EPOCHS_FIRST))
    found.append(_verdicts(content, has_differing=bool(differing)))
    seeds = seed_table(judgement.arms, judgement.metric)
    if seeds is not None:
        found += _seeds(seeds, judgement.baseline, judgement.metric)
    if content.judgement.others:
        found.append(_others(content.judgement.others, judgement.baseline))
    if content.cost is not None:
        found += _cost(content.cost, judgement.baseline)
    if content.per_class is not None and differing:
        found.append(_classes(differing, content.per_class, judgement.baseline))
    if content.gates:
        found.append(_gates(content.gates))
    return found


def _verdicts(content: Content, *, has_differing: bool) -> Table:
    judgement, metric, per_class = content.judgement, content.judgement.metric, content.per_class
    rows, notes = [], []
    for arm in judgement.arms:
        name = printable(arm.arm)
        rows.append(
            (
                name,
                arm.headline,
                plain(arm.mean_difference, metric, signed=True),
                interval(arm.interval_95, metric),
                p_value(arm.p_t),
                NONE if arm.level is None else f"{arm.level:.2g}",
                wins(arm, metric),
            )
        )
        # files of old versions have no conclusion
        notes.append(f"{printable(arm.conclusion)}." if arm.conclusion else f"{name}:")
        notes += [f"  {printable(line)}" for line in (arm.reason, arm.advice, *arm.cautions) if line]
    if any(arm.level is not None and arm.level < ALPHA and arm.interval_95 for arm in judgement.arms):
        notes.append(
            "the verdict is read at the interval in its sentence, which is wider than the 95 % interval of the table: "
            "the error of 5 % is shared by all arms, and by all times that the figures are judged"
        )
    if content.images:
        notes.append(f"images: {printable(content.images)}")
    notes += [printable(caution) for caution in content.cautions]
    notes += [f"changed after the start: {printable(change)}" for change in content.changes]
    if per_class is not None and per_class.rows and not has_differing:
        notes.append(
            f"classes: no clear difference in {per_class.metric} in any of {len(per_class.rows)} (p after Holm above "
            f"{ALPHA:g})"
        )
    unit = f", {metric.unit}" if metric.unit else ""
    direction = "" if metric.higher_is_better else ", lower is better"
    title = f"{content.title}: {metric.label} minus that of {judgement.baseline}{unit}{direction}"
    columns = ("arm", "verdict", "mean", "95 % interval", "p", "p limit", "better in")
    return Table(printable(title), columns, rows, num_text_columns=2, note="\n".join(notes))


def _seeds(seeds: SeedTable, baseline: str, metric: Metric) -> Iterator[Table]:
    """Yield tables of every pair, with as many arms side by side as there is room for."""
    cells = [
        [f"{figure} ({difference})" for figure, difference in (row[2][index] for row in seeds.rows)]
        for index in range(len(seeds.arms))
    ]
    means = [f"{figure} ({difference})" for figure, difference in seeds.mean]
    first = [(printable(seed), before) for seed, before, _ in seeds.rows]
    title = f"Every seed: {metric.label}{unit_of(metric)}, in brackets the difference to {baseline}"
    note = printable(seeds.note)
    if any("*" in cell for column in cells for cell in column):
        note += "\n* after the look that gave the verdict: not in the means, intervals and tests here"
    widths = [
        max(min(len(name), _LONGEST_HEAD), *map(len, (*column, mean))) + _BETWEEN
        for name, column, mean in zip(seeds.arms, cells, means, strict=True)
    ]
    used = max(min(len(baseline), _LONGEST_HEAD), *(len(before) for _, before in first)) + _BETWEEN
    used += max(len("st. dev."), *(len(seed) for seed, _ in first))
    for chunk in _chunks(widths, _WIDTH - used):
        rows = [(*head, *(cells[index][number] for index in chunk)) for number, head in enumerate(first)]
        rows.append(("mean", seeds.baseline_mean, *(means[index] for index in chunk)))
        rows.append(("st. dev.", "", *(f"({seeds.deviation[index]})" for index in chunk)))
        columns = ("seed", printable(baseline), *(printable(seeds.arms[index]) for index in chunk))
        yield Table(printable(title), columns, rows, note=note)
        title = "Every seed, continued"


def _chunks(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Yield the indices of columns that fit side by side, at least one at a time."""
    chunk: list[int] = []
    left = room
    for index, width in enumerate(widths):
        if chunk and width > left:
            yield chunk
            chunk, left = [], room
        chunk.append(index)
        left -= width
    if chunk:
        yield chunk


def _others(others: Sequence[Difference], baseline: str) -> Table:
    labels = [printable(other.metric.label + unit_of(other.metric)) for other in others]
    rows = []
    for index, (label, other) in enumerate(zip(labels, others, strict=True)):
        baseline_mean, _, *cells = compared(other, other.metric, other.p_t)
        once = "" if index and label == labels[index - 1] else label
        rows.append((once, printable(other.arm), baseline_mean, *cells))
    columns = ("metric", "arm", printable(baseline), "difference", "95 % interval", "p")
    note = "for information: these metrics decide no verdict, and their p-values are not corrected"
    if any(other.p_t is None for other in others):
        note += f"\n-: no p with fewer than {LEAST_PAIRS} pairs; no interval and no p where the pairs are in doubt"
    lower = dict.fromkeys(printable(other.metric.label) for other in others if other.better == "lower")
    if lower:
        note = f"lower is better: {', '.join(lower)}\n{note}"
    return Table("Other metrics", columns, rows, num_text_columns=2, note=note)


def _cost(cost: Costs, baseline: str) -> list[Table]:
    table = cost_table(cost, baseline)
    found = []
    for start in range(0, len(table.heads), _COST_COLUMNS):
        part = slice(start, start + _COST_COLUMNS)
        rows = [
            (printable(arm), *("" if figure == NONE else f"{figure} {ratio:6}" for figure, ratio in cells[part]))
            for arm, cells in table.rows
        ]
        title = "Cost, continued" if start else f"Cost, and its ratio to that of {baseline}"
        note = "" if start + _COST_COLUMNS < len(table.heads) else table.basis
        heads = ("arm", *(f"{head} {'':6}" for head in table.heads[part]))
        found.append(Table(printable(title), heads, rows, note=note))
    return found


def _differing(per_class: PerClass | None) -> list[ClassRow]:
    rows = [] if per_class is None else per_class.rows
    found = [(row.p_t_holm, row) for row in rows if row.p_t_holm is not None and row.p_t_holm <= ALPHA]
    return [row for _, row in sorted(found, key=lambda item: item[0])]


def _classes(differing: Sequence[ClassRow], per_class: PerClass, baseline: str) -> Table:
    metric = Metric("", per_class.metric, unit=per_class.unit)
    rows = []
    for row in differing[:_MOST_CLASSES]:
        baseline_mean, _, *cells = compared(row, metric, row.p_t_holm)
        rows.append((printable(row.name), printable(row.arm), f"{row.num_images:,}", baseline_mean, *cells))
    left = len(differing) - len(rows)
    note = f"{len(differing)} of {len(per_class.rows)}" + (f"; {left} more are not shown" if left else "")
    columns = ("class", "arm", "images", printable(baseline), "difference", "95 % interval", "p, Holm")
    title = f"Classes with a difference in {metric.label}: p after Holm at most {percent(ALPHA)}"
    return Table(title, columns, rows, num_text_columns=2, note=note)


def _gates(gates: Sequence[GateRow]) -> Table:
    rows, advice = gate_rows(gates)
    left = len(rows) - _MOST_GATES
    notes = [f"{left} more are not shown"] * (left > 0) + advice
    shown = [tuple(map(printable, row)) for row in rows[:_MOST_GATES]]
    return Table("Gates that do little", ("arm", "layer", "gate", "finding", "runs"), shown, 4, "\n".join(notes))


def across_tables(verdict: Across, title: str) -> list[Table]:
    """Return a verdict across comparisons as tables of 80 columns: the verdicts, then a forest plot for each arm."""
    metric = verdict.metric
    rows, notes = [], []
    for arm in verdict.arms:
        rows.append(
            (
                printable(arm.arm),
                arm.headline,
                plain(arm.mean_difference, metric, signed=True),
                interval(arm.interval_95, metric),
                p_value(arm.p_difference),
            )
        )
        notes.append(f"{printable(arm.conclusion)}.")
        notes += [f"  {printable(line)}" for line in (arm.reason, *arm.cautions)]
    if any(arm.level is not None and arm.level < ALPHA for arm in verdict.arms):
        notes.append(
            "the verdict is read at the interval in its sentence, which is wider than the 95 % interval of the table: "
            "the error of 5 % is shared by all arms"
        )
    notes += [printable(caution) for caution in verdict.cautions]
    unit = f", {metric.unit}" if metric.unit else ""
    direction = "" if metric.higher_is_better else ", lower is better"
    head = printable(f"{title}: {metric.label} minus that of the baseline{unit}{direction}")
    columns = ("arm", "verdict", "mean", "95 % interval", "p")
    found = [Table(head, columns, rows, num_text_columns=2, note="\n".join(notes))]
    found += [_forest(arm, verdict) for arm in verdict.arms]
    if without := [tuple(short(cell, _LONGEST_NAME) for cell in row) for row in without_one(verdict)]:
        columns = ("arm", "without", "mean", "deciding interval", "verdict")
        found.append(Table("The mean without one data set", columns, without, num_text_columns=2))
    return found


def _forest(arm: AcrossArm, verdict: Across) -> Table:
    metric, scale = verdict.metric, forest_scale(arm, verdict.margin)

    def plotted(bounds: tuple[float, float] | None, mean: float | None, marks: str) -> str:
        return "" if scale is None else _plot(scale, verdict.margin, bounds, mean, marks)

    rows = []
    for one in arm.comparisons:
        plot = plotted(one.interval_95, one.mean_difference, "-x" if one.left_out else "-o")
        figures = plain(one.mean_difference, metric, signed=True), interval(one.interval_95, metric)
        rows.append((short(one.comparison, _LONGEST_NAME), plot, *figures, f"{one.num_pairs}"))
    if arm.mean_difference is not None:
        plot = plotted(arm.interval_95, arm.mean_difference, "=#")
        figures = plain(arm.mean_difference, metric, signed=True), interval(arm.interval_95, metric)
        rows.append((f"mean of {len(arm.data_sets)} data sets", plot, *figures, ""))
        following = interval(arm.prediction_interval, metric)
        rows.append((NEXT, plotted(arm.prediction_interval, None, "~~"), "", following, ""))
    notes = ["| 0, : margin, < > goes on"]
    for one in arm.comparisons:
        if one.left_out:
            notes[0] = "| 0, : margin, < > goes on, x does not count"
            notes.append(f"{printable(one.comparison)}: {printable(one.left_out)}")
    sides = ("worse", "better") if metric.higher_is_better else ("better", "worse")
    columns = ("comparison", " | ".join(sides), "mean", "95 % interval", "pairs")
    return Table(printable(f"{arm.arm}: every comparison"), columns, rows, num_text_columns=2, note="\n".join(notes))


def _plot(scale: Scale, margin: float, bounds: tuple[float, float] | None, mean: float | None, marks: str) -> str:
    """Return a line of a forest plot: `marks` are those of an interval and of its mean. Its blanks do not break."""

    def place(value: float) -> int:
        return min(_PLOT - 1, int(scale.share(value) / 100 * _PLOT))

    line = ["\N{NO-BREAK SPACE}"] * _PLOT
    for edge in (-margin, margin) if margin else ():
        line[place(edge)] = ":"
    line[place(0.0)] = "|"
    if bounds is not None:
        low, high = bounds
        line[place(low) : place(high) + 1] = marks[0] * (place(high) + 1 - place(low))
        line[0] = "<" if low < scale.low else line[0]
        line[-1] = ">" if high > scale.high else line[-1]
    if mean is not None:
        line[place(mean)] = marks[1]
    return "".join(line)
