"""Figures by arm and seed, from runs or from a CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from ..base.errors import UserError
from ..base.files import read_csv
from ..base.tables import comma_separated
from ..base.words import brief, few, printable, short, suggest
from .derived import as_number, odd_seed
from .metric import check_figure, is_share
from .paired import PairedDifference

_ARM, _SEED = "arm", "seed"
_ARRANGED = re.compile(r"[+-]?(?!0,)\d{1,3},\d{3}")  # 1,200: with thousands, or with a decimal comma
_UNNAMED = re.compile(r"Unnamed: \d+")  # what pandas makes of a column without a name
_SEPARATED = re.compile(r"[+-]?\d[\d.,]*\d")
_PERCENT = re.compile(r"([+-]?\d+([.,]\d+)?)\s*%")
_LONGEST_NAME = 300  # letters of an arm, a seed or a figure; sentences and tables hold several names
_MISSING = {"", "-", "na", "n/a", "nan", "none", "null", "failed"}


class Results:
    """The figures of each run: by arm, seed and metric.

    Arms stand in the order in which they were added, seeds by number, then text. The order of the seeds decides which
    pairs are the first, so it must not depend on any figure. A figure that is missing or not finite is a missing run.

    Attributes:
        notes: What the reader of the table left out, as sentences.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._figures: dict[str, dict[Hashable, dict[str, float]]] = {}
        self._seeds: set[Hashable] = set()
        self._first: list[Hashable] = []
        self._spellings: dict[tuple[str, float], Hashable] = {}

    def put_first(self, seeds: Iterable[Hashable]) -> None:
        """Put these seeds before all others, in this order."""
        self._first = list(seeds)

    def add_arm(self, arm: str) -> None:
        """Add an arm without runs, if it is not there yet."""
        check_length(arm)
        self._figures.setdefault(arm, {})

    def add(self, arm: str, seed: Hashable, figures: Mapping[str, float]) -> None:
        """Add a run.

        Raises:
            UserError: The run is there already, perhaps with another spelling of the seed (0, 0.0, 00), a figure is
                beyond 1e-100 and 1e100, or a name is too long.
        """
        for name in (arm, str(seed), *figures):
            check_length(name)
        for name, value in figures.items():
            if math.isfinite(value):
                check_figure(value, f"{name} of arm {brief(arm)} with seed {brief(seed)}")
        runs = self._figures.setdefault(arm, {})
        if seed in runs:
            raise UserError(f"arm {brief(arm)} has seed {brief(seed)} twice; a pair needs one run of each arm")
        number = as_number(seed)
        before = seed if number is None else self._spellings.setdefault((arm, number), seed)
        if before != seed:
            raise UserError(
                f"arm {brief(arm)} has the seeds {brief(before)} and {brief(seed)}, which are one number; a pair needs "
                "one run of each arm"
            )
        runs[seed] = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
        self._seeds.add(seed)

    @property
    def arms(self) -> list[str]:
        """The arms, in order."""
        return list(self._figures)

    @property
    def seeds(self) -> list[Hashable]:
        """The seeds of any arm, in order."""
        first = [seed for seed in self._first if seed in self._seeds]
        return first + sorted(self._seeds - set(first), key=_by_number)

    @property
    def metrics(self) -> list[str]:
        """The metrics of any run, in order."""
        runs = (figures for arm in self._figures.values() for figures in arm.values())
        return list(dict.fromkeys(name for figures in runs for name in figures))

    def runs(self, arm: str) -> dict[Hashable, dict[str, float]]:
        """Return the figures of an arm's runs, by seed."""
        return dict(self._figures.get(arm, {}))

    def only(self, arms: Iterable[str], seeds: Iterable[Hashable]) -> Results:
        """Return the runs of these arms and seeds, in this order."""
        chosen, wanted = Results(), list(seeds)
        for arm in arms:
            chosen.add_arm(arm)
            for seed in wanted:
                if seed in self._figures.get(arm, {}):
                    chosen.add(arm, seed, self._figures[arm][seed])
        return chosen

    def values(self, arm: str, metric: str) -> dict[Hashable, float]:
        """Return an arm's figures by seed."""
        runs = self._figures.get(arm, {})
        return {seed: runs[seed][metric] for seed in self.seeds if metric in runs.get(seed, {})}

    def paired(self, baseline: str, arm: str, metric: str, scale: float = 1.0) -> PairedDifference | None:
        """Return the complete pairs of two arms, in the order of the seeds; None if there are fewer than two."""
        a, b = self.values(baseline, metric), self.values(arm, metric)
        seeds = [seed for seed in a if seed in b]
        if len(seeds) < 2:
            return None
        return PairedDifference(
            tuple(seeds), tuple(scale * a[seed] for seed in seeds), tuple(scale * b[seed] for seed in seeds)
        )

    def missing(self, baseline: str, arm: str, metric: str) -> dict[str, list[Hashable]]:
        """Return, for each of the two arms, the seeds that it lacks and another arm has."""
        there = {name: self.values(name, metric).keys() for name in self._figures}
        seeds = set().union(*there.values())
        lacking = {
            name: [seed for seed in self.seeds if seed in seeds and seed not in there[name]] for name in (baseline, arm)
        }
        return {name: missing for name, missing in lacking.items() if missing}

    def to_csv(self) -> str:
        """Return a line for each run: arm, seed, and a column for each metric."""
        metrics = self.metrics
        lines = [
            (arm, seed, *(repr(figures[name]) if name in figures else "" for name in metrics))
            for arm, runs in self._figures.items()
            for seed, figures in runs.items()
        ]
        return comma_separated((_ARM, _SEED, *metrics), lines)


def _by_number(seed: Hashable) -> tuple[float, str]:
    value = as_number(seed)
    return math.inf if value is None else value, str(seed)


def numbered(seeds: Sequence[Hashable]) -> str:
    """Return "seed 3", "seeds 3, 7"; the first few, and how many more there are."""
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {few([str(seed) for seed in seeds], 6)}"


def check_length(name: str) -> None:
    """Raise UserError if `name` is too long for an arm, a seed or a figure."""
    if len(name) > _LONGEST_NAME:
        raise UserError(f"the name {brief(name)} has {len(name):,} letters; give one of at most {_LONGEST_NAME}")


def read_results(path: Path, metric: str | None = None, *, may_be_empty: bool = False) -> Results:
    r"""Return the results in a CSV (comma, semicolon or tab) with columns arm, seed and one for each metric.

    A number may have a decimal comma. If it may also have a separator of thousands, such as "1,200" in a table with
    commas between its columns, it is refused.

    An empty figure, or one of -, na, n/a, nan, none, null, failed, is a missing run. Columns without numbers are
    ignored. A column of numbers and text is left out, unless it is the one to judge by (`metric` or accuracy); so is a
    first column of whole numbers without a name, which counts the rows. The notes of the results name both.

    Args:
        path: The table.
        metric: A column that must be there.
        may_be_empty: Whether there may be no column of figures.

    Raises:
        UserError: A missing file, another kind of table, a missing metric, text among the figures to judge by, figures
            beyond 1e-100 and 1e100, a seed that names no run (`odd_seed`), or a run twice.

    Example:
        >>> from pathlib import Path
        >>> from whatwhere.experiment import read_results
        >>> table = Path("results.csv")
        >>> _ = table.write_text("arm,seed,mAP50\nnone,0,0.6131\ncbam,0,0.6204\n")
        >>> results = read_results(table)
        >>> results.arms, results.metrics
        (['none', 'cbam'], ['mAP50'])
    """
    delimiter, rows = read_csv(path, strict=True)
    if not rows:
        raise UserError(
            f"{str(path)!r} has no lines; it needs a head such as arm,seed,accuracy and a line for each run"
        )
    (_, head), *lines = rows
    head = [printable(name.strip()) for name in head]
    lowered = [name.lower() for name in head]
    for name in (_ARM, _SEED):
        if name not in lowered:
            raise UserError(
                f"{str(path)!r} has no column {brief(name)}{suggest(name, lowered)}; it has "
                f"{few(list(map(brief, head)), 10)}"
            )
    arm, seed = lowered.index(_ARM), lowered.index(_SEED)
    twice = next((name for name in head if name and head.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{str(path)!r} has the column {brief(twice)} twice; give each its own name")
    _check_lines(lines, head, arm, seed, path)
    results = Results()
    columns = _metric_columns(lines, head, {arm, seed}, metric, delimiter, path, results.notes)
    if not columns and not may_be_empty:
        raise UserError(f"{str(path)!r} has no column of figures beside arm and seed, such as accuracy")
    for number, row in lines:
        figures = {head[column]: _number(row[column], delimiter) for column in columns}
        try:
            arm_name, seed_name = printable(row[arm].strip()), printable(row[seed].strip())
            results.add(arm_name, seed_name, {k: v for k, v in figures.items() if v is not None})
        except UserError as error:
            raise UserError(f"line {number} of {str(path)!r}: {error}") from error
    return results


def _check_lines(lines: list[tuple[int, list[str]]], head: list[str], arm: int, seed: int, path: Path) -> None:
    """Raise UserError unless every line is a run: not the head again, no total, no row of means."""
    for number, row in lines:
        if len(row) != len(head):
            raise UserError(
                f"line {number} of {str(path)!r} has {len(row)} fields, its head has {len(head)}; a number with a "
                "decimal comma needs quotes"
            )
        if [cell.strip() for cell in row] == head:
            raise UserError(f"line {number} of {str(path)!r} repeats the head; take it out")
        missing = [name for name, column in ((_ARM, arm), (_SEED, seed)) if not row[column].strip()]
        if missing:
            raise UserError(
                f"line {number} of {str(path)!r} has no {missing[0]}; give it, or take the line out if it is not a run "
                "(a total, for example)"
            )
    odd = odd_seed(row[seed].strip() for _, row in lines)
    if odd is not None:
        number = next(number for number, row in lines if row[seed].strip() == odd[0])
        raise UserError(f"line {number} of {str(path)!r}: {odd[1]}")


def _metric_columns(
    lines: list[tuple[int, list[str]]],
    head: list[str],
    taken: set[int],
    metric: str | None,
    delimiter: str,
    path: Path,
    notes: list[str],
) -> list[int]:
    """Return the columns that hold numbers; add to `notes` the columns that look like figures but are left out."""
    sound, nearly = [], []
    # judged by, whatever other columns there are
    chosen = metric or ("accuracy" if "accuracy" in head else None)
    for column in sorted(set(range(len(head))) - taken):
        name = head[column]
        cells = [(number, row[column].strip()) for number, row in lines if row[column].strip().lower() not in _MISSING]
        texts = [(number, cell) for number, cell in cells if _number(cell, delimiter) is None]
        hints = [hint for _, cell in texts if (hint := _mending(cell, delimiter))]
        if len(texts) < len(cells) and (not name or _UNNAMED.fullmatch(name)):
            if column or not all(cell.isdecimal() for _, cell in cells):
                raise UserError(f"column {column + 1} of {str(path)!r} has no name; name it, or take it out")
            notes.append("the first column has no name and counts the rows: it is left out")
            continue
        # a mistake in the figures to judge by is an error, not a note
        if texts and (name == chosen or (chosen is None and len(texts) < len(cells))):
            raise _no_number(texts[0], name, delimiter, path)
        if 0 < len(texts) < len(cells):
            number, cell = texts[0]
            notes.append(f"the column {short(name)} holds text, such as {brief(cell)} in line {number}: it is left out")
        if texts and len(hints) == len(cells):
            nearly.append((texts[0], name))
        if name == metric or (cells and not texts):
            sound.append(column)
    if not sound and nearly:
        raise _no_number(*nearly[0], delimiter, path)
    for text, name in nearly if metric is None else ():
        if is_share(name):
            raise _no_number(text, name, delimiter, path)
    if metric is not None and metric not in head:
        names = [head[column] for column in sound]
        raise UserError(
            f"{str(path)!r} has no column {brief(metric)}{suggest(metric, names)}; its figures: {few(names, 10)}"
        )
    return sound


def _no_number(text: tuple[int, str], name: str, delimiter: str, path: Path) -> UserError:
    number, cell = text
    advice = _mending(cell, delimiter) or "leave it empty where a run failed"
    return UserError(f"line {number} of {str(path)!r}: {short(name)} is {brief(cell)}, not a number; {advice}")


def _mending(cell: str, delimiter: str) -> str:
    """Return how to correct a cell that is nearly a number; "" where it is not."""
    if found := _PERCENT.fullmatch(cell):
        return f"write {found[1]}, without the percent sign"
    arranged = delimiter == "," and _ARRANGED.fullmatch(cell)
    if arranged or ("," in cell and _SEPARATED.fullmatch(cell) and _number(cell, delimiter) is None):
        return "write it without separators of thousands, and with a decimal point"
    return ""


def _number(cell: str, delimiter: str) -> float | None:
    """Return the number in a cell, also with a decimal comma; None where the comma may separate thousands."""
    cell = cell.strip()
    if delimiter == "," and _ARRANGED.fullmatch(cell):
        return None
    try:
        return float(cell.replace(",", "."))
    except ValueError:
        return None
