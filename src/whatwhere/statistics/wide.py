"""Tables with a column for each arm, such as seed, none, se, cbam."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import UserError
from ..base.words import brief, few, listed, short
from .cells import MISSING, holds_a_figure, is_like_a_number
from .direction import is_called_a_cost, is_called_a_metric

if TYPE_CHECKING:
    from .columns import Roles

EXAMPLE = "'arm,seed,accuracy', 'none,0,0.61', 'cbam,0,0.62'"
_BASELINES = {"none", "baseline", "plain"}
# words that only a column computed from the arms has in its name, and words that make it none of an arm together
_COMPUTED = {"delta", "difference", "gain", "improvement", "vs", "Δ", "差", "差值", "提升"}
_ASIDE = {
    *("mean", "average", "median", "std", "stdev", "best", "worst", "sum", "total", "diff", "rel", "p", "value"),
    *("rank", "index", "idx", "row", "nr", "run", "trial", "repeat", "rep", "fold", "gpu", "n", "num", "images"),
    *("samples", "序号", "平均", "均值", "标准差", "中位数", "最好", "最佳"),
}
_UNNAMED = re.compile(r"Unnamed: \d+")  # what pandas makes of a column without a name


def is_unnamed(name: str) -> bool:
    """Return whether a column has no name, in the way of a spreadsheet or of pandas."""
    return not name or _UNNAMED.fullmatch(name) is not None


def counts_rows(column: int, name: str, cells: Sequence[str], path: Path) -> bool:
    """Return whether a column has no name, is the first and counts the rows, as pandas writes it.

    Raises:
        UserError: Another column without a name holds numbers.
    """
    if not is_unnamed(name) or not any(map(is_like_a_number, cells)):
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

    An arm has numbers, or numbers that need correction, or no figure in any run: its runs are missing then. A note
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
        if column not in roles.taken and not counts_rows(column, name, cells(column), path)
    ]
    free = [column for column in free if not is_unnamed(head[column])]
    # beside the arms stand what a run took, when it ran, and what was computed from the arms
    likely = [column for column in free if not is_called_a_cost(head[column]) and not _is_aside(head[column])]
    with_numbers = [head[column] for column in likely if any(map(is_like_a_number, cells(column)))]
    has_baseline = any(head[column].lower() in _BASELINES for column in free)
    names_figures = metric is not None and metric not in head
    if len(with_numbers) < 2 and not (with_numbers and has_baseline):
        return
    is_sure, is_likely = has_baseline and names_figures, has_baseline or names_figures
    if not is_sure and (not is_likely or any(map(is_called_a_metric, with_numbers))):
        raise _unclear(with_numbers, names_figures=names_figures)
    roles.arms = [c for c in likely if head[c] in with_numbers or _may_be_an_arm(head[c], cells(c))]
    roles.notes.append(f"each column is taken as an arm: {listed([head[column] for column in roles.arms])}")
    others = [column for column in free if column not in roles.arms]
    # an arm may be called as a setting is, such as pretrained
    others += [column for column in roles.settings if len(set(cells(column))) > 1]
    for column in others:
        roles.notes.append(f"the column {short(head[column])} is left out: it is taken for no arm")


def _is_aside(name: str) -> bool:
    """Return whether a column is computed from arms, or counts, by its name: "cbam vs none", mean, run, n_images."""
    words = set(re.findall(r"[^\W\d_]+", name.lower()))
    return bool(words) and (words <= _ASIDE or bool(words & _COMPUTED))


def _may_be_an_arm(name: str, cells: Sequence[str]) -> bool:
    """Return whether a column without plain numbers is that of an arm: by its name, or as no cell is anything else."""
    figures = [cell for cell in cells if cell.lower() not in MISSING]
    return name.lower() in _BASELINES or not figures or any(map(holds_a_figure, figures))


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
