"""The lines of a table, and whether each of them is one run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import UserError
from ..base.files import read_csv
from ..base.limits import TABLE_BYTES, TABLE_COLUMNS, TABLE_LINES
from ..base.words import brief, counted, few, printable, short
from .columns import ARM, SEED, Roles
from .derived import odd_seed
from .direction import is_called_a_metric

if TYPE_CHECKING:
    from .cells import Line
    from .epochs import Row


def read_lines(path: Path, *, may_be_empty: bool) -> tuple[str, list[str], list[Line]]:
    """Return the delimiter, the head and the lines of a table.

    Raises:
        UserError: The file cannot be read, is too large, or has no head or no lines, which `may_be_empty` allows.
    """
    size = 0
    with contextlib.suppress(OSError, ValueError):  # `read_csv` says why
        size = path.stat().st_size
    _check_size(path, size, TABLE_BYTES, "bytes")
    delimiter, rows = read_csv(path)
    if not rows and not may_be_empty:
        raise UserError(
            f"{str(path)!r} has no lines; it needs a head such as arm,seed,accuracy and a line for each run"
        )
    (_, head), *lines = rows or [(0, [])]
    _check_size(path, len(head), TABLE_COLUMNS, "columns")
    _check_size(path, len(lines), TABLE_LINES, "lines")
    head = [printable(name.strip()) for name in head]
    if sum(map(bool, head)) < 2 and not may_be_empty:
        raise UserError(
            f"the first line of {str(path)!r}, {brief(','.join(head))}, is no head of a table; save it with commas, "
            "semicolons or tabs between the columns, and their names in the first line"
        )
    twice = next((name for name in head if name and head.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{str(path)!r} has the column {brief(twice)} twice; give each its own name")
    # spreadsheets write delimiters behind the last column
    lines = [(number, row if any(map(str.strip, row[len(head) :])) else row[: len(head)]) for number, row in lines]
    return delimiter, head, lines


def _check_size(path: Path, size: int, most: int, what: str) -> None:
    """Raise UserError if a table is too large to read in bounded time and memory."""
    if size > most:
        raise UserError(
            f"{str(path)!r} has {size:,} {what}; a table of runs has at most {most:,}: keep the columns "
            "and the epochs that count"
        )


def check_lines(lines: list[Line], head: list[str], roles: Roles, path: Path) -> None:
    """Raise UserError unless every line is a run, or an epoch of one: not the head again, no total, no row of means."""
    for number, row in lines:
        if len(row) != len(head):
            advice = (
                "a number with a decimal comma needs quotes"
                if len(row) > len(head)
                else f"{brief(','.join(row))} is no whole run: complete it, or take it out"
            )
            raise UserError(
                f"line {number} of {str(path)!r} has {counted(len(row), 'field')}, its head has {len(head)}; {advice}"
            )
        if [cell.strip() for cell in row] == head:
            raise UserError(f"line {number} of {str(path)!r} repeats the head; take it out")
        missing = [
            name
            for name, column in ((ARM, roles.arm), (SEED, roles.seed))
            if column is not None and not row[column].strip()
        ]
        if missing:
            raise UserError(
                f"line {number} of {str(path)!r} has no {missing[0]}; give it, or take the line out if it is not a run "
                "(a total, for example)"
            )
    if roles.seed is None:
        return
    odd = odd_seed(row[roles.seed].strip() for _, row in lines)
    if odd is not None:
        number = next(number for number, row in lines if row[roles.seed].strip() == odd[0])
        raise UserError(f"line {number} of {str(path)!r}: {odd[1]}")


def check_one_line_a_run(rows: list[Row], lines: list[Line], head: list[str], columns: list[int]) -> None:
    """Raise UserError where two lines are one run: with the columns, beside those of figures, in which they differ.

    A column of whole numbers that is not called like a metric, such as a fold, is none of figures here.
    """
    first: dict[tuple[str, str], tuple[int, list[str]]] = {}
    for row, (number, cells) in zip(rows, lines, strict=True):
        before, known = first.setdefault((row.arm, row.seed), (number, cells))
        if before == number:
            continue
        where = f"lines {before} and {number} of {str(row.path)!r} are both arm {brief(row.arm)} with seed"
        pairs = [(one.strip(), other.strip()) for one, other in zip(known, cells, strict=True)]
        differing = {
            head[column]: pair
            for column, pair in enumerate(pairs)
            if pair[0] != pair[1]
            and (column not in columns or (all(map(str.isdecimal, pair)) and not is_called_a_metric(head[column])))
        }
        advice = "a pair needs one run of each arm: keep one of them, or give each run its own seed"
        if differing:
            told = [f"{short(name)} ({', '.join(map(short, values))})" for name, values in differing.items()]
            advice = f"they differ in {few(told, 4)}: keep the lines of one, or give each a table of its own"
        raise UserError(f"{where} {brief(row.seed)}; {advice}")
