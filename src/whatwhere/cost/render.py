"""Costs as tables: for a terminal, for a notebook, in Markdown and as comma-separated values."""

from __future__ import annotations

import csv
import html as html_escapes
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .compare import METRICS, TIMES, ComparedLayer, CostComparison, Difference
from .measure import Cost

_LABELS = {
    "num_params": "parameters",
    "param_bytes": "parameter size",
    "macs": "MACs (conv, linear)",
    "flops": "FLOPs (conv, linear)",
    "other_flops": "FLOPs of everything else",
    "saved_bytes": "saved for backward",
    "forward_ms": "forward pass",
    "training_step_ms": "training step",
    "peak_memory_bytes": "peak memory",
}
_BY_LAYER = ("num_params", "macs", "saved_bytes")
_PIPED_WIDTH = 10_000


@dataclass(frozen=True)
class Table:
    """A table as text: the first `num_text_columns` columns are words, the others figures."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    num_text_columns: int = 1
    note: str = ""


def cost_tables(cost: Cost, depth: int) -> list[Table]:
    """Return the layers of `cost` down to `depth`, and its totals."""
    layers = [layer for layer in cost.layers if layer.depth <= depth]
    rows = [
        (
            "  " * (layer.depth - 1) + layer.name.rpartition(".")[2],
            layer.type + (f" x{layer.num_calls}" if layer.num_calls > 1 else ""),
            "" if layer.output_size is None else "x".join(map(str, layer.output_size)),
            *(format_figure(metric, getattr(layer.total, metric)) for metric in _BY_LAYER),
        )
        for layer in layers
    ]
    columns = ("layer", "type", "output", "parameters", "MACs", "saved")
    totals = [(_LABELS[metric], format_figure(metric, getattr(cost.total, metric))) for metric in METRICS]
    times = {} if cost.latency is None else {metric: getattr(cost.latency, metric) for metric in TIMES}
    totals += [(_LABELS[key], format_figure(key, value)) for key, value in times.items() if value is not None]
    title = f"{cost.name}, input {_shape(cost)}"
    return [
        *([Table(title, columns, rows, num_text_columns=3)] if rows else []),
        Table("total", ("", cost.name), totals, note=_uncounted(cost)),
    ]


def comparison_tables(comparison: CostComparison, depth: int) -> list[Table]:
    """Return the totals side by side, then one table per figure with the layers down to `depth`.

    Added or removed layers below `depth` are gathered under the layer that contains them, by type; layers that cost
    nothing of a kind in either model have no line.
    """
    a, b = comparison.a, comparison.b
    head = (a.name, b.name, "difference", "ratio")
    totals = [(_LABELS[metric], *_cells(metric, comparison[metric])) for metric in METRICS]
    for metric in TIMES:
        time = comparison.time(metric)
        if time is not None:
            totals.append((_LABELS[metric], *_cells(metric, time)))
    notes = [note for note in (_changes(comparison), _uncounted(a), _uncounted(b)) if note]
    tables = [
        Table(f"{a.name} and {b.name}, input {_shape(a)}", ("", *head), totals, note="\n".join(notes)),
    ]
    for metric in _BY_LAYER:
        rows = []
        for layer in comparison.layers:
            if layer.depth <= depth and (layer[metric].a or layer[metric].b):
                rows.append((_label(layer), *_cells(metric, layer[metric])))
                rows += _gathered(comparison, layer, depth, metric)
        tables.append(Table(f"{_LABELS[metric]} by layer", ("layer", *head), rows))
    return tables


def rich_tables(tables: list[Table]) -> Any:
    """Return `tables` as something rich can print."""
    import rich.box
    import rich.console
    import rich.table
    from rich.text import Text

    parts: list[Any] = []
    for table in tables:
        # not the table's own title, which would be folded to the width of the table
        parts.append(Text(table.title, style="bold"))
        columns = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(table.columns):
            is_text = index < table.num_text_columns
            columns.add_column(Text(name), justify="left" if is_text else "right", overflow="fold")
        for row in table.rows:
            is_change = row[0].lstrip().startswith(("+ ", "- "))
            columns.add_row(*map(Text, row), style="green" if is_change else None)
        parts.append(columns)
        if table.note:
            parts.append(Text(table.note + "\n"))
    return rich.console.Group(*parts)


def show(renderable: Any) -> None:
    """Print to standard output; plain and as wide as need be when that is not a terminal."""
    import rich.console

    terminal = rich.console.Console()
    if terminal.is_terminal:
        terminal.print(renderable)
    else:
        print(text(renderable), flush=True)


def text(renderable: Any) -> str:
    """Return what rich prints, as plain text."""
    import rich.console

    target = rich.console.Console(file=io.StringIO(), width=_PIPED_WIDTH, color_system=None, force_terminal=False)
    target.print(renderable)
    printed: str = target.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in printed.splitlines())


def markdown(tables: list[Table]) -> str:
    """Return `tables` in Markdown."""
    parts = []
    for table in tables:
        rules = ["---" if index < table.num_text_columns else "---:" for index in range(len(table.columns))]
        lines = [f"**{table.title}**", ""]
        # no-break spaces, because Markdown would drop the indentation of a cell
        lines += [
            "| " + " | ".join(cell.replace("  ", "\u00a0\u00a0").replace("|", "\\|") for cell in row) + " |"
            for row in (table.columns, rules, *table.rows)
        ]
        parts.append("\n".join(lines) + (f"\n\n{table.note}" if table.note else ""))
    return "\n\n".join(parts) + "\n"


def html(tables: list[Table]) -> str:
    """Return `tables` in HTML, for a notebook."""

    def row(cells: tuple[str, ...], tag: str, num_text_columns: int) -> str:
        styles = ("text-align:left;white-space:pre", "text-align:right;white-space:nowrap")
        return "".join(
            f'<{tag} style="{styles[index >= num_text_columns]}">{html_escapes.escape(cell)}</{tag}>'
            for index, cell in enumerate(cells)
        )

    parts = []
    for table in tables:
        body = "".join(f"<tr>{row(cells, 'td', table.num_text_columns)}</tr>" for cells in table.rows)
        parts.append(
            f"<table><caption>{html_escapes.escape(table.title)}</caption>"
            f"<thead><tr>{row(table.columns, 'th', table.num_text_columns)}</tr></thead><tbody>{body}</tbody></table>"
            + "".join(f"<p>{html_escapes.escape(line)}</p>" for line in table.note.splitlines())
        )
    return "".join(parts)


def cost_csv(cost: Cost) -> str:
    """Return all layers of `cost` and its total, a line each, figures in plain integers."""

    def line(name: str, kind: str, size: Any, figures: Any) -> list[Any]:
        shape = "" if size is None else "x".join(map(str, size))
        return [name, kind, shape, *(getattr(figures, metric) for metric in METRICS)]

    lines = [line(layer.name, layer.type, layer.output_size, layer.total) for layer in cost.layers]
    lines.append(line("total", cost.name, None, cost.total))
    return _csv(["layer", "type", "output_size", *METRICS], lines)


def comparison_csv(comparison: CostComparison) -> str:
    """Return all layers of a comparison and its totals, a line per layer and figure."""

    def line(name: str, kind: str, status: str, metric: str, value: Difference) -> list[Any]:
        ratio = "" if value.ratio is None else value.ratio
        return [name, kind, status, metric, value.a, value.b, value.difference, ratio]

    lines = [
        line(layer.name, layer.type, layer.status, metric, layer[metric])
        for layer in comparison.layers
        for metric in METRICS
    ]
    lines += [line("total", "", "", metric, comparison[metric]) for metric in METRICS]
    return _csv(["layer", "type", "status", "figure", "a", "b", "difference", "ratio"], lines)


def format_figure(metric: str, value: float) -> str:
    """Return a figure with its unit: counts of parameters exactly, sizes in MiB, operations in M or G."""
    if metric == "num_params":
        return f"{value:,.0f}"
    if metric.endswith("_bytes"):
        return f"{value / 2**20:,.2f} MiB"
    if metric.endswith("_ms"):
        return f"{value:,.1f} ms"
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if abs(value) >= size:
            return f"{value / size:,.4f} {unit}" if unit == "G" else f"{value / size:,.2f} {unit}"
    return f"{value:,.0f}"


def _csv(head: list[str], lines: list[list[Any]]) -> str:
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return target.getvalue()


def _shape(cost: Cost) -> str:
    return "x".join(map(str, (cost.batch_size, *cost.input_size)))


def _cells(metric: str, value: Difference) -> tuple[str, str, str, str]:
    sign = "+" if value.difference > 0 else ""
    difference = "0" if value.difference == 0 else sign + format_figure(metric, value.difference)
    ratio = "" if value.ratio is None else f"x{value.ratio:.3f}"
    return format_figure(metric, value.a), format_figure(metric, value.b), difference, ratio


def _label(layer: ComparedLayer) -> str:
    mark = {"both": "", "added": "+ ", "removed": "- "}[layer.status]
    kind = f" ({layer.type})" if mark or " -> " in layer.type else ""
    return "  " * (layer.depth - 1) + mark + layer.name.rpartition(".")[2] + kind


def _gathered(
    comparison: CostComparison, parent: ComparedLayer, depth: int, metric: str
) -> list[tuple[str, str, str, str, str]]:
    """Return a line for each type of added or removed layers that lie in `parent` but below `depth`."""
    if parent.depth != depth or parent.status != "both":
        return []
    rows = []
    for mark, layers in (("+", comparison.added), ("-", comparison.removed)):
        inside = [layer for layer in layers if layer.name.startswith(f"{parent.name}.")]
        for kind, count in Counter(layer.type for layer in inside).items():
            figure = getattr(comparison.summed(tuple(layer for layer in inside if layer.type == kind)), metric)
            value = Difference(0, figure) if mark == "+" else Difference(figure, 0)
            rows.append(("  " * parent.depth + f"{mark} {count} x {kind}", *_cells(metric, value)))
    return rows


def _changes(comparison: CostComparison) -> str:
    sentences = []
    for word, layers in (("added", comparison.added), ("removed", comparison.removed)):
        if layers:
            figures = comparison.summed(layers)
            kinds = ", ".join(f"{count} x {kind}" for kind, count in Counter(layer.type for layer in layers).items())
            sentences.append(
                f"{word}: {kinds}, themselves {figures.num_params:,} parameters, "
                f"{format_figure('macs', figures.macs)} MACs, "
                f"{format_figure('saved_bytes', figures.saved_bytes)} saved for backward"
            )
    return "\n".join(sentences)


def _uncounted(cost: Cost) -> str:
    if not cost.uncounted:
        return ""
    names = ", ".join(f"{name} ({count} x)" for name, count in sorted(cost.uncounted.items()))
    return f"not counted among the FLOPs of {cost.name}: {names}"
