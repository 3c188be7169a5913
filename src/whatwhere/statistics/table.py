"""Read the figures of runs from a CSV."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..base.errors import UserError
from ..base.words import brief, few, listed, printable, short, suggest
from .cells import (
    MISSING,
    Line,
    decimal_signs,
    epoch_of,
    holds_decimals,
    is_like_a_number,
    mending,
    number_of,
    setting_of,
)
from .columns import (
    BEST_EPOCH,
    BETWEEN_NOTES,
    HARDLY_BEGUN,
    Reading,
    Roles,
    check_is_head,
    find_roles,
    has_notes,
    is_collected_head,
)
from .direction import is_called_a_metric, is_called_higher
from .epochs import CHOSEN, EPOCHS, Row, one_a_run
from .lines import check_lines, check_one_line_a_run, read_lines
from .metric import UNNAMED, usual_metric
from .results import Results
from .wide import counts_rows
from .within_pairs import attention_of_arms, check_data, check_pairs, differing_settings

# W&B, MLflow, Optuna, Ray, SLURM
_FINISHED = {
    *("finished", "completed", "complete", "success", "succeeded", "done", "ok", "terminated", "true", "yes", "y"),
    *("已完成", "完成", "成功", "是", "fertig", "abgeschlossen", "terminé"),
}


def read_results(
    path: Path, metric: str | None = None, *, may_be_empty: bool = False, reading: Reading | None = None
) -> Results:
    r"""Return the results in a CSV (comma, semicolon or tab) with a line for each run: arm, seed and its figures.

    The columns of arm and seed are found by their usual names (`find_roles`); a note of the results says so where they
    are not called arm and seed. A table may also have a column for each arm: seed, none, se, cbam. A run with several
    lines and a column epoch counts with its last epoch, and a note says so, or with its best (`Reading.epoch`).

    A number may have a decimal comma. If its sign may also separate thousands, as in "1,200" where no
    other cell tells, it is refused.

    An empty figure, or one of -, na, n/a, nan, none, null, failed, is a missing run. Columns without numbers are
    ignored. A column of numbers and text is left out, unless it is the one to judge by (`metric` or accuracy); so is a
    first column of whole numbers without a name, which counts the rows. The notes of the results name both.

    Args:
        path: The table.
        metric: A column that must be there; in a table with a column for each arm, the name of its figures.
        may_be_empty: Whether the table is one that `Results.to_csv` wrote, perhaps before there were figures. All its
            columns are figures then.
        reading: Which columns and epochs to take.

    Raises:
        UserError: A missing file, another kind of table, a missing metric, text among the figures to judge by, figures
            beyond 1e-100 and 1e100, a seed that names no run (`odd_seed`), a run twice, or runs that end at different
            epochs.

    Example:
        >>> from pathlib import Path
        >>> from whatwhere.experiment import read_results
        >>> table = Path("results.csv")
        >>> _ = table.write_text("arm,seed,mAP50\nnone,0,0.6131\ncbam,0,0.6204\n")
        >>> results = read_results(table)
        >>> results.arms, results.metrics
        (['none', 'cbam'], ['mAP50'])
    """
    reading = reading or Reading()
    reading = reading if metric is None else replace(reading, metric=metric)
    results = Results()
    for row in read_tables([Table(path)], reading, results.notes, may_be_empty=may_be_empty):
        add_row(results, row)
    return results


@dataclass
class Table:
    """A CSV with runs.

    Attributes:
        arm, seed: Those of all its lines, where its path tells.
        head: The names of its columns.
        rows: Its lines as runs, or as epochs of runs.
        unfinished: The column that says of all its lines that they are of no finished run, and what it says.
        others: The texts in each column that is not judged and has no known meaning, by arm.
    """

    path: Path
    arm: str | None = None
    seed: str | None = None
    head: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    unfinished: tuple[str, list[str]] | None = None
    others: dict[str, dict[str, set[str]]] = field(default_factory=dict)


def read_tables(
    tables: Sequence[Table], reading: Reading, notes: list[str], *, may_be_empty: bool = False
) -> list[Row]:
    """Return the runs in tables, and add to `notes` what was understood or left out.

    `may_be_empty` is as in `read_results`.
    """
    for table in tables:
        _read_rows(table, reading, notes, may_be_empty=may_be_empty)
    _check_some_finished(tables)
    known = [EPOCHS, *dict.fromkeys(name for table in tables for name in table.head)]
    for name in sorted(reading.may_differ - {*known}):
        place = repr(str(tables[0].path)) if len(tables) == 1 else "the tables"
        raise UserError(f"--may-differ {brief(name)} is no column of {place}{suggest(name, known)}")
    rows = [row for table in tables for row in table.rows]
    _note_columns_of_arms(tables, rows, notes)
    if len({row.seed for row in rows}) < len(rows):
        differing = differing_settings(rows)
        of_arms = attention_of_arms(rows, differing)
        check_pairs(rows, [key for key in differing if key not in of_arms], reading, notes)
        check_data(rows, differing, notes)
    return one_a_run(rows, reading, notes, ends_are_checked=all(is_collected_head(table.head) for table in tables))


def _note_columns_of_arms(tables: Sequence[Table], rows: list[Row], notes: list[str]) -> None:
    """Note columns with one text in each arm that differ between arms: they may be settings, such as another size."""
    seeds = defaultdict[str, set[str]](set)
    for row in rows:
        seeds[row.arm].add(row.seed)
    texts = defaultdict[str, defaultdict[str, set[str]]](lambda: defaultdict(set))
    for table in tables:
        for name, by_arm in table.others.items():
            for arm, found in by_arm.items():
                texts[name][arm] |= found
    names = [
        name
        for name, by_arm in texts.items()
        if all(len(found) == 1 for found in by_arm.values()) and len(set().union(*by_arm.values())) > 1
    ]
    if names and all(len(found) > 1 for found in seeds.values()):  # of one run each, every column is so
        notes.append(
            f"columns that differ between arms, and are the same in all runs of an arm: {listed(names)}; if they are "
            "settings, the verdict is about them and the arm together"
        )


def _read_rows(table: Table, reading: Reading, notes: list[str], *, may_be_empty: bool) -> None:
    """Read the head and the rows of a table."""
    path, arm, seed = table.path, table.arm, table.seed
    is_run = arm is not None and seed is not None
    delimiter, head, lines = read_lines(path, may_be_empty=is_run)
    table.head = head
    if not lines and is_run:
        notes.append(f"the table {short(str(path))} has no lines: its run counts as missing")
        table.rows = [Row(str(arm), str(seed), path, 0, None, {})]
        return
    if not lines and not may_be_empty:
        raise UserError(f"{str(path)!r} has a head and no lines; it needs a line for each run")
    signs = decimal_signs(head, lines, delimiter)
    roles = find_roles(head, lines, path, reading, needs_arm=arm is None, needs_seed=seed is None)
    check_is_head(head, roles, path)
    if may_be_empty:
        roles = Roles(roles.arm, roles.seed)
    notes += [note for note in roles.notes if note not in notes]
    if has_notes(head):
        roles.no_figures.add(len(head) - 1)
        told = dict.fromkeys(note for _, row in lines for note in row[-1].split(BETWEEN_NOTES) if note)
        notes += [printable(note) for note in told]
    check_lines(lines, head, roles, path)
    columns = roles.arms or _metric_columns(lines, head, roles.taken, reading.metric, signs, path, notes)
    if not columns and not may_be_empty:
        raise UserError(f"{str(path)!r} has no column of figures beside arm and seed, such as accuracy")
    rows = _lines_as_rows(table, lines, roles, columns, reading.metric or UNNAMED, signs)
    if not roles.arms and roles.epoch is None:
        check_one_line_a_run(rows, lines, head, columns)
    table.others = _other_texts(rows, lines, head, roles, reading.metric)
    table.rows = rows
    for column in roles.states:
        _leave_out_unfinished(table, lines, column, reading, notes)
    if any(head[column].lower() == BEST_EPOCH for column in roles.no_figures) and CHOSEN not in notes:
        notes.append(CHOSEN)


def _lines_as_rows(
    table: Table, lines: list[Line], roles: Roles, columns: list[int], metric: str, signs: set[str]
) -> list[Row]:
    """Return a row for each line; where each column is an arm, one for each of them, its figure called `metric`."""
    rows = []
    for number, cells in lines:
        of = [None if column is None else printable(cells[column].strip()) for column in (roles.arm, roles.seed)]
        seed = table.seed or of[1] or ""
        epoch = None if roles.epoch is None else _epoch_in(table, number, cells[roles.epoch], roles.epoch, signs)
        figures = {
            column: number_of(cells[column], signs)
            for column in columns
            if roles.epoch is None or cells[column].strip()  # else not logged in this epoch
        }
        settings = {table.head[column]: setting_of(cells[column].strip(), signs) for column in roles.settings}
        if not roles.arms:
            named = {table.head[column]: value for column, value in figures.items()}
            is_idle = roles.use is not None and cells[roles.use].strip() == HARDLY_BEGUN
            why = "" if roles.more_epochs is None else printable(cells[roles.more_epochs].strip())
            rows.append(Row(table.arm or of[0] or "", seed, table.path, number, epoch, named, settings, is_idle, why))
        for column in roles.arms:
            if figures.get(column) is None and cells[column].strip().lower() not in MISSING:
                raise _no_number((number, cells[column].strip()), table.head[column], signs, table.path)
            named = {metric: figures[column]} if column in figures else {}
            rows.append(Row(table.head[column], seed, table.path, number, epoch, named, settings))
    return rows


def _epoch_in(table: Table, line: int, cell: str, column: int, signs: set[str]) -> float | None:
    try:
        return epoch_of(cell, signs)
    except ValueError:
        raise UserError(
            f"line {line} of {str(table.path)!r}: {short(table.head[column])} is {brief(cell)}, no number of an epoch; "
            "write its number, or rename the column if it holds something else"
        ) from None


def _other_texts(
    rows: list[Row], lines: list[Line], head: list[str], roles: Roles, metric: str | None
) -> dict[str, dict[str, set[str]]]:
    """Return the texts in each column without a known meaning, by arm; none where each column is an arm."""
    texts: dict[str, dict[str, set[str]]] = {}
    if roles.arms:
        return texts
    for column in sorted(set(range(len(head))) - roles.taken):
        name = head[column]
        is_text = not any(is_like_a_number(cells[column].strip()) for _, cells in lines)
        if name != metric and (metric is not None or is_text or not is_called_a_metric(name)):
            by_arm = texts.setdefault(name, {})
            for row, (_, cells) in zip(rows, lines, strict=True):
                by_arm.setdefault(row.arm, set()).add(cells[column].strip())
    return texts


def add_row(results: Results, row: Row) -> None:
    """Add the run of a line, or of a folder, which has line 0.

    Raises:
        UserError: As `Results.add`, with the place.
    """
    try:
        figures = {name: value for name, value in row.figures.items() if value is not None}
        results.add(row.arm, row.seed, figures, has_hardly_begun=row.has_hardly_begun)
        if row.more_epochs:
            results.more_epochs[row.arm] = row.more_epochs
    except UserError as error:
        where = f"line {row.line} of {str(row.path)!r}" if row.line else repr(str(row.path))
        raise UserError(f"{where}: {error}") from error


def _leave_out_unfinished(table: Table, lines: list[Line], state: int, reading: Reading, notes: list[str]) -> None:
    """Take the figures of runs that did not finish, by the column with their state; a note names them."""
    name, texts = table.head[state], {number: row[state].strip() for number, row in lines}
    # of a column called status, 1 may be that of a failed process
    finished = _FINISHED if name.lower().endswith(("state", "status")) else {*_FINISHED, "1"}
    # where each epoch has lines, the last one that tells counts
    told = [row for row in table.rows if texts[row.line]]
    told.sort(key=lambda row: 0.0 if row.epoch is None else row.epoch)
    last = {(row.arm, row.seed): texts[row.line] for row in told}
    states = {row.line: last.get((row.arm, row.seed), "") for row in table.rows}
    states = {line: text for line, text in states.items() if text.lower() not in finished}
    if not any(texts.values()) or not states or name in reading.may_differ:
        return
    named = [
        f"{row.arm}, seed {row.seed} ({short(states[row.line]) or 'no state'})"
        for row in table.rows
        if row.line in states
    ]
    notes.append(
        f"runs that did not finish, by the column {short(name)}, count as missing: "
        f"{few(list(dict.fromkeys(named)), 6, '; ')} (--may-differ {name} counts them)"
    )
    table.rows = [replace(row, figures={}) if row.line in states else row for row in table.rows]
    table.unfinished = (name, list(dict.fromkeys(states.values()))) if len(states) == len(lines) else None


def _check_some_finished(tables: Sequence[Table]) -> None:
    """Raise UserError where no run is left because the tables say of all that they did not finish."""
    unfinished = next((table for table in tables if table.unfinished is not None), None)
    if unfinished is None or any(row.figures for table in tables for row in table.rows):
        return
    name, texts = unfinished.unfinished or ("", [])
    raise UserError(
        f"no run is finished, by the column {short(name)} of {str(unfinished.path)!r} "
        f"({few(list(map(brief, texts)), 4)}); write finished there for those that are, or, if all are, give "
        f"--may-differ {name}"
    )


def _metric_columns(
    lines: list[Line],
    head: list[str],
    taken: set[int],
    metric: str | None,
    signs: set[str],
    path: Path,
    notes: list[str],
) -> list[int]:
    """Return the columns that hold numbers; add to `notes` the columns that look like figures but are left out."""
    sound, nearly, empty = [], [], []
    # judged by, whatever other columns there are
    chosen = metric or usual_metric(head)
    for column in sorted(set(range(len(head))) - taken):
        name = head[column]
        cells = [(number, row[column].strip()) for number, row in lines if row[column].strip().lower() not in MISSING]
        numbers = [number_of(cell, signs) for _, cell in cells]
        texts = [cell for cell, number in zip(cells, numbers, strict=True) if number is None]
        if counts_rows(column, name, [cell for _, cell in cells], path):
            notes.append("the first column has no name and counts the rows: it is left out")
            continue
        # a mistake in the figures to judge by is an error, not a note
        if texts and (name == chosen or (chosen is None and len(texts) < len(cells))):
            raise _no_number(texts[0], name, signs, path, is_chosen=name == chosen)
        if 0 < len(texts) < len(cells):
            number, cell = texts[0]
            notes.append(f"the column {short(name)} holds text, such as {brief(cell)} in line {number}: it is left out")
        is_figure = is_called_higher(name) and any(holds_decimals(cell) for _, cell in texts)
        if len(texts) == len(cells) and texts and (is_figure or all(mending(cell, signs) for _, cell in texts)):
            nearly.append((texts[0], name))
        if not texts and not any(number is not None and math.isfinite(number) for number in numbers):
            is_told = is_called_higher(name) or any(row[column].strip() for _, row in lines)
            empty += [name] if name and is_told else []
        if name == metric or (cells and not texts):
            sound.append(column)
    if not sound and nearly:
        raise _no_number(*nearly[0], signs, path)
    if empty and chosen not in empty:
        notes.append(f"columns without a finite figure in any line: {few(empty, 6)}; they are left out")
    _tell_nearly(nearly if metric is None else [], signs, path, notes)
    if metric is not None and metric not in head:
        names = [head[column] for column in sound]
        raise UserError(
            f"{str(path)!r} has no column {brief(metric)}{suggest(metric, names)}; its figures: {listed(names)}"
        )
    return sound


def _tell_nearly(nearly: list[tuple[tuple[int, str], str]], signs: set[str], path: Path, notes: list[str]) -> None:
    """Note the columns, each with its first cell, whose cells are all nearly numbers: they are left out.

    Raises:
        UserError: One of them is called like a metric: another column must not be judged in its place.
    """
    for text, name in nearly:
        if is_called_a_metric(name):
            raise _no_number(text, name, signs, path)
        number, cell = text
        notes.append(
            f"the column {short(name)} holds no plain numbers, such as {brief(cell)} in line {number}: left out"
        )


def _no_number(text: tuple[int, str], name: str, signs: set[str], path: Path, *, is_chosen: bool = True) -> UserError:
    number, cell = text
    alone = "write the number alone" if holds_decimals(cell) else "leave it empty where a run failed"
    advice = mending(cell, signs) or alone
    if not is_chosen:
        advice += ", or, if it is no figure, name the one to judge by with --metric"
    return UserError(f"line {number} of {str(path)!r}: {short(name)} is {brief(cell)}, not a number; {advice}")
