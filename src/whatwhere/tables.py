"""Tables of text and figures: for a terminal, for a notebook, in Markdown and as comma-separated values."""

from __future__ import annotations

import csv
import html as html_escapes
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_PIPED_WIDTH = 10_000


@dataclass(frozen=True)
class Table:
    """A table as text: the first `num_text_columns` columns are words, the others figures."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    num_text_columns: int = 1
    note: str = ""


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


def comma_separated(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return a head and lines as comma-separated values."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return target.getvalue()
