"""The report of a comparison as tables for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..base.tables import Table
from ..base.words import printable
from ..statistics.metric import Metric
from ..statistics.wording import percent
from .figures import (
    EPOCHS_FIRST,
    SeedTable,
    cost_basis,
    cost_columns,
    interval,
    p_value,
    plain,
    ratio,
    seed_table,
    unit_of,
    wins,
)

_WIDTH = 100
_BETWEEN = 3  # columns
_LONGEST_HEAD = 20  # longer names are folded
_MOST_CLASSES = 12
_COST_COLUMNS = 3  # side by side


def tables(content: Mapping[str, Any]) -> list[Table]:
    """Return a comparison as tables: what comes before any verdict, verdicts, then what they come from.

    Args:
        content: Everything that is shown, as JSON values.
    """
    judgement = content["judgement"]
    metric = Metric(**judgement["metric"])
    found = [_first(content["first"])] if content.get("first") else []
    found.append(_verdicts(content, metric))
    seeds = seed_table(judgement["arms"], metric)
    if seeds is not None:
        found += _seeds(seeds, judgement["baseline"], metric)
    if judgement["others"]:
        found.append(_others(judgement["others"], judgement["baseline"]))
    if content["cost"]:
        found += _cost(content["cost"], judgement["baseline"])
    classes = _differing_classes(content)
    if classes:
        found.append(_classes(classes, content["per_class"], judgement))
    return found


def _first(first: Sequence[Sequence[str]]) -> Table:
    rows = [(printable(arm), printable(why)) for arm, why in first]
    return Table("Before the verdict: train longer", ("arm", "finding"), rows, num_text_columns=2, note=EPOCHS_FIRST)


def _verdicts(content: Mapping[str, Any], metric: Metric) -> Table:
    judgement = content["judgement"]
    rows, notes = [], []
    for arm in judgement["arms"]:
        name = printable(arm["arm"])
        rows.append(
            (
                name,
                arm["verdict"],
                plain(arm["mean_difference"], metric, signed=True),
                interval(arm["interval_95"], metric),
                p_value(arm["p_t"]),
                "-" if arm["level"] is None else f"{arm['level']:.2g}",
                wins(arm, metric),
            )
        )
        notes.append(f"{name}: {arm['reason']}")
        notes += [f"  {printable(line)}" for line in (arm["advice"], *arm["cautions"]) if line]
    notes += [printable(caution) for caution in content["cautions"]]
    notes += [f"changed after the start: {printable(change)}" for change in content["changes"]]
    if content["per_class"] and content["per_class"]["rows"] and not _differing_classes(content):
        notes.append(
            f"classes: in none of {len(content['per_class']['rows'])} does {content['per_class']['metric']} differ (p "
            f"after Holm at most {judgement['alpha']:g})"
        )
    unit = f", {metric.unit}" if metric.unit else ""
    direction = "" if metric.higher_is_better else ", lower is better"
    title = f"{content['title']}: {metric.label} minus that of {judgement['baseline']}{unit}{direction}"
    columns = ("arm", "verdict", "mean", "95 % interval", "p", "p at most", "better in")
    return Table(printable(title), columns, rows, num_text_columns=2, note="\n".join(notes))


def _seeds(seeds: SeedTable, baseline: str, metric: Metric) -> Iterator[Table]:
    """Yield every pair, as many arms side by side as there is room for."""
    cells = [[_with_difference(*row[2][index]) for row in seeds.rows] for index in range(len(seeds.arms))]
    means = [_with_difference(*mean) for mean in seeds.mean]
    first = [(printable(seed), before) for seed, before, _ in seeds.rows]
    shown = metric.label + unit_of(metric)
    title = f"Every seed: {shown}, in brackets the difference to {baseline}"
    late = any("*" in cell for column in cells for cell in column)
    note = printable(seeds.note)
    if late:
        note += "\n* after the look that the verdict is read from: in no mean, interval or test here"
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


def _with_difference(figure: str, difference: str) -> str:
    return f"{figure} ({difference})"


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


def _others(others: Sequence[Mapping[str, Any]], baseline: str) -> Table:
    rows = []
    lower: dict[str, None] = {}
    shown = None
    for other in others:
        metric = Metric(**other["metric"])
        label = metric.label + unit_of(metric)
        if metric.higher_is_better is False:
            lower[printable(metric.label)] = None
        rows.append(
            (
                "" if label == shown else printable(label),
                printable(other["arm"]),
                plain(other["baseline_mean"], metric),
                plain(other["mean_difference"], metric, signed=True),
                interval(other["interval_95"], metric),
                p_value(other["p_t"]),
            )
        )
        shown = label
    columns = ("metric", "arm", printable(baseline), "difference", "95 % interval", "p")
    note = "for information: no verdict is read from these, and their p-values are corrected for nothing"
    if any(other["p_t"] is None for other in others):
        note += "\n-: these pairs may be no independent draws"
    if lower:
        note = f"lower is better: {', '.join(lower)}\n{note}"
    return Table("Other metrics", columns, rows, num_text_columns=2, note=note)


def _cost(cost: Mapping[str, Any], baseline: str) -> list[Table]:
    columns = cost_columns(cost["rows"])
    base = next((row for row in cost["rows"] if row["arm"] == baseline), None)
    parts = [columns[start : start + _COST_COLUMNS] for start in range(0, len(columns), _COST_COLUMNS)]
    found = []
    for number, part in enumerate(parts):
        rows = [
            (
                printable(row["arm"]),
                *(
                    ""
                    if row[column.key] is None
                    else f"{column.text(row[column.key])} {ratio(row, base, column.key):6}"
                    for column in part
                ),
            )
            for row in cost["rows"]
        ]
        title = "Cost, continued" if number else f"Cost, and its ratio to that of {baseline}"
        note = cost_basis(cost) if number == len(parts) - 1 else ""
        heads = ("arm", *(f"{column.head} {'':6}" for column in part))
        found.append(Table(printable(title), heads, rows, note=note))
    return found


def _differing_classes(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if not content["per_class"]:
        return []
    alpha = content["judgement"]["alpha"]
    return [row for row in content["per_class"]["rows"] if row["p_t_holm"] is not None and row["p_t_holm"] <= alpha]


def _classes(
    differing: Sequence[Mapping[str, Any]], per_class: Mapping[str, Any], judgement: Mapping[str, Any]
) -> Table:
    metric = Metric("", per_class["metric"], unit=per_class["unit"])
    first = sorted(differing, key=lambda row: row["p_t_holm"])[:_MOST_CLASSES]
    rows = [
        (
            printable(row["class"]),
            printable(row["arm"]),
            f"{row['num_images']:,}",
            plain(row["baseline_mean"], metric),
            plain(row["mean_difference"], metric, signed=True),
            interval(row["interval_95"], metric),
            p_value(row["p_t_holm"]),
        )
        for row in first
    ]
    left = len(differing) - len(first)
    note = f"{len(differing)} of {len(per_class['rows'])}" + (f"; {left} more are not shown" if left else "")
    columns = ("class", "arm", "images", printable(judgement["baseline"]), "difference", "95 % interval", "p, Holm")
    title = f"Classes whose {metric.label} differs, p after Holm at most {percent(judgement['alpha'])}"
    return Table(title, columns, rows, num_text_columns=2, note=note)
