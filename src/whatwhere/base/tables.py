"""Tables for a terminal, a notebook, Markdown and CSV."""

from __future__ import annotations

import csv
import html as html_escapes
import io
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .words import printable, short

_PIPED_WIDTH = 10_000
_LONGEST_CELL = 500  # letters
# of JSON in ASCII; the group has half a surrogate pair
_JSON_ESCAPE = re.compile(r"\\(?:ud[89ab]..\\ud[c-f]..|u(d[89a-f]..)|.)")
_HTML_CHANGE = ' style="color:#1a7f37"'


@dataclass(frozen=True)
class Table:
    """A table of texts. The first `num_text_columns` columns hold words, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    num_text_columns: int = 1
    note: str = ""


def rich_tables(tables: list[Table]) -> Any:
    """Return `tables` for rich to print; control characters in names are escaped."""
    import rich.box
    import rich.console
    import rich.table
    from rich.text import Text

    def cell(text: str) -> Text:
        return Text(short(text, _LONGEST_CELL))

    parts: list[Any] = []
    for table in tables:
        # rich would fold a title to the width of its table
        parts.append(Text(short(table.title, _LONGEST_CELL), style="bold"))
        columns = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(table.columns):
            is_text = index < table.num_text_columns
            columns.add_column(cell(name), justify="left" if is_text else "right", overflow="fold")
        for row in table.rows:
            columns.add_row(*map(cell, row), style="green" if _is_change(row) else None)
        parts.append(columns)
        if table.note:
            parts.append(Text(printable_lines(table.note) + "\n"))
    return rich.console.Group(*parts)


def printable_lines(text: str) -> str:
    """Return a text with the control characters in its lines escaped."""
    return "\n".join(map(printable, text.split("\n")))


def say(lines: str) -> None:
    """Print lines on standard output, as they are but for control characters."""
    print(printable_lines(lines), flush=True)


def say_json(value: Any) -> None:
    """Print a value as JSON in ASCII.

    A byte of a path that is not UTF-8 is written as `printable` does: many readers of JSON refuse half a surrogate
    pair, which Python has in its place.
    """

    def whole(escape: re.Match[str]) -> str:
        return printable(chr(int(escape[1], 16))).replace("\\", "\\\\") if escape[1] else escape[0]

    print(_JSON_ESCAPE.sub(whole, json.dumps(value, indent=2)), flush=True)


def tell(sentence: str) -> None:
    """Print a sentence on standard error, on one line."""
    print(f"whatwhere: {printable(sentence)}", file=sys.stderr)


def show(renderable: Any) -> None:
    """Print `rich_tables` and the like to standard output; plain and in full width if that is not a terminal."""
    import rich.console

    terminal = rich.console.Console()
    if terminal.is_terminal:
        terminal.print(renderable)
    else:
        printed, encoding = text(renderable), sys.stdout.encoding or "utf-8"
        try:
            printed.encode(encoding)
        except UnicodeEncodeError:
            printed = printed.replace("\N{BOX DRAWINGS LIGHT HORIZONTAL}", "-")
            printed = printed.encode(encoding, "backslashreplace").decode(encoding)
        print(printed, flush=True)


def text(renderable: Any) -> str:
    """Return what rich would print, as plain text, as wide as the terminal; in full width without one."""
    import rich.console

    terminal = rich.console.Console()
    width = terminal.width if terminal.is_terminal else _PIPED_WIDTH
    target = rich.console.Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
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
    parts = []
    for table in tables:
        sides = ["left" if index < table.num_text_columns else "right" for index in range(len(table.columns))]
        lines = []
        for tag, cells in (("th", table.columns), *(("td", row) for row in table.rows)):
            line = "".join(
                f'<{tag} style="text-align:{side};white-space:pre;padding:0.15em 0.8em">'
                f"{html_escapes.escape(cell)}</{tag}>"
                for side, cell in zip(sides, cells, strict=True)
            )
            lines.append(f"<tr{_HTML_CHANGE if tag == 'td' and _is_change(cells) else ''}>{line}</tr>")
        parts.append(
            '<table style="margin:0.8em 0;border-collapse:collapse">'
            f'<caption style="text-align:left;font-weight:bold">{html_escapes.escape(table.title)}</caption>'
            f"<thead>{lines[0]}</thead><tbody>{''.join(lines[1:])}</tbody></table>"
            + "".join(f"<p>{html_escapes.escape(line)}</p>" for line in table.note.splitlines())
        )
    return "".join(parts)


def _is_change(cells: Sequence[str]) -> bool:
    """Return whether a row is of something added or removed: its first cell begins with + or -."""
    return cells[0].lstrip().startswith(("+ ", "- "))


def comma_separated(head: Sequence[object], lines: Iterable[Sequence[object]] = ()) -> str:
    """Return CSV text: `head`, then `lines`; names as `printable` writes them, so that all of it is UTF-8."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    for line in (head, *lines):
        writer.writerow([printable(str(cell)) if isinstance(cell, (str, Path)) else cell for cell in line])
    return target.getvalue()
