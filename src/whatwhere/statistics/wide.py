"""Tables with a column for each arm, such as seed, none, se, cbam."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import UserError
from ..base.words import brief, few, listed, short
from .cells import MISSING, is_like_a_number, mending
from .direction import is_called_a_cost, is_called_a_metric

if TYPE_CHECKING:
    from .columns import Roles

EXAMPLE = "'arm,seed,accuracy', 'none,0,0.61', 'cbam,0,0.62'"
_BASELINES = {"none", "baseline", "plain"}
_UNNAMED = re.compile(r"Unnamed: \d+")  # what pandas makes of a column without a name


def counts_rows(column: int, name: str, cells: Sequence[str], path: Path) -> bool:
    """Return whether a column has no name, is the first and counts the rows, as pandas writes it.

    Raises:
        UserError: Another column without a name holds numbers.
    """
    if (name and not _UNNAMED.fullmatch(name)) or not any(map(is_like_a_number, cells)):
        return False
    if column or not all(cell.isdecimal() for cell in cells if cell):
        raise UserError(f"column {column + 1} of {str(path)!r} has no name; name it, or take it out")
    return True


def find_arms(
    roles: Roles, head: Sequence[str], cells: Callable[[int], list[str]], metric: str | None, path: Path
) -> None:
    """Find the columns that are arms, `roles.arms`, in a table that has one for each arm.

    It is such a table if a column is called none, baseline or plain, or if the metric asked for is no column; and if no
    column is called like a metric. With both, the names of the others do not matter: an arm may be called distilled.

    An arm has numbers, or cells that only lack correction, or no figure in any run: its runs are missing then. A note
    names all columns that are left out.

    Args:
        roles: What else is known of the columns; the arms and notes are added to it.
        head: The names of the columns.
        cells: The cells of a column.
        metric: What the figures are, as the user says.
        path: The table.

    Raises:
        UserError: The columns may be figures of one arm, or one figure of several arms.
    """
    free = [
        column
        for column, name in enumerate(head)
        if column not in roles.taken and column != roles.state and not counts_rows(column, name, cells(column), path)
    ]
    numbers = [column for column in free if head[column] and any(map(is_like_a_number, cells(column)))]
    # beside the arms stand what a run took, and when it ran
    sure = [column for column in numbers if not is_called_a_cost(head[column])]
    has_baseline = any(head[column].lower() in _BASELINES for column in free)
    names_figures = metric is not None and metric not in head
    if len(numbers) < 2 and not (numbers and has_baseline):
        return
    names = [head[column] for column in sure]
    if not (has_baseline or names_figures) or (
        not (has_baseline and names_figures) and any(is_called_a_metric(head[column]) for column in numbers)
    ):
        raise _unclear([head[column] for column in numbers], names_figures=names_figures)
    empty = [c for c in free if head[c] and c not in numbers and _may_be_an_arm(head[c], cells(c))]
    roles.arms = sorted([*sure, *empty])
    names = [head[column] for column in roles.arms]
    roles.notes.append(f"each column is taken as an arm: {listed(names)}")
    others = [column for column in free if head[column] and column not in roles.arms]
    for column in others:
        roles.notes.append(f"the column {short(head[column])} is left out: it is taken for no arm")


def _may_be_an_arm(name: str, cells: Sequence[str]) -> bool:
    figures = [cell for cell in cells if cell.lower() not in MISSING]
    return name.lower() in _BASELINES or not figures or any(mending(cell, set()) for cell in figures)


def _unclear(names: Sequence[str], *, names_figures: bool) -> UserError:
    """Return the error that a column may be an arm or a figure; the user named the figures or did not."""
    last = (
        "if each column is an arm, write the names of the arms alone above them, one of them none or baseline"
        if names_figures
        else "if each column is an arm, say what its figures are, such as --metric accuracy"
    )
    return UserError(
        f"no column 'arm': {few(list(map(brief, names)), letters=50)} may be figures of one arm, or one figure of "
        f"several arms; name it with --arm-column, write lines such as {EXAMPLE}, or, {last}"
    )
