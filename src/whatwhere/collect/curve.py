"""The figures of a run after each epoch, from the CSV that its program writes, in one pass of little memory."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..base.errors import UserError
from ..base.files import open_file
from ..base.words import brief, printable

_NO_FIGURES = {"epoch", "step", "time", "lr"}
_LONGEST_LINE = 100_000  # letters
_ROUNDING = 2e-5  # a sum of shares that are written with five decimals


@dataclass
class Curve:
    """What counts of the figures of a run.

    Attributes:
        head: The columns.
        epochs: The epochs that have figures beside those of a test.
        last: The last figure of each column; not finite where the training diverged.
        last_epochs: The epoch of that figure, but for those of a test.
        ended: Columns whose last figure is further from the end than any two of its figures are from each other.
        best: The figures at the best epoch by the metric that was asked for.
        best_epoch: That epoch; None without one.
        peaks: For each weighted sum of columns that was asked for, the epochs at which it was highest, and above 0.
    """

    head: list[str] = field(default_factory=list)
    epochs: set[int] = field(default_factory=set)
    last: dict[str, float] = field(default_factory=dict)
    last_epochs: dict[str, int] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: int | None = None
    peaks: list[set[int]] = field(default_factory=list)


def is_figure(column: str) -> bool:
    """Return whether a column may be judged by; epochs, times and learning rates may not."""
    return column not in _NO_FIGURES and not column.startswith(("lr/", "lr-"))


def read_curve(
    path: Path, best_by: str = "", *, lower_is_better: bool = False, sums: Sequence[Mapping[str, float]] = ()
) -> Curve:
    """Read the CSV of a run.

    Args:
        path: The CSV. A row may have empty cells; the rows of an epoch add up. A last line that a crash has cut short
            is left out.
        best_by: The column that chooses the best epoch, the first of equal ones.
        lower_is_better: Whether the best is the lowest.
        sums: For each sum whose peaks are wanted, the weights of its columns, by their names up to a "(".

    Raises:
        UserError: The file cannot be read, or is no CSV of numbers with a line for each epoch.
    """
    curve, highest, longest = Curve(), [dict[int, float]() for _ in sums], dict[str, int]()
    texts, before, first = set[str](), 0.0, math.inf
    rows = _rows(path)
    _, curve.head = next(rows, (0, []))
    counted = next((name for name in ("epoch", "step") if name in curve.head), None)
    if curve.head and counted is None:
        raise UserError(f"{str(path)!r} has no column epoch; it should hold a line for each epoch of one run")
    for line, cells in rows:
        row = _numbers(zip(curve.head, cells, strict=True), texts, curve, f"line {line} of {str(path)!r}")
        at = row.get(counted or "", math.nan)
        if not 0 <= at < 2**53:
            raise UserError(f"line {line} of {str(path)!r} has no {counted}")
        figures = {name: value for name, value in row.items() if is_figure(name)}
        curve.last.update(figures)
        if not all(name.startswith("test") for name in figures):
            if at == first < before:
                raise UserError(
                    f"line {line} of {str(path)!r} begins again with {counted} {at:g}, after {before:g}; take out the "
                    "lines of the other training"
                )
            before = at
            first = min(first, int(at))
            curve.epochs.add(int(at))
        for name in figures:
            if not name.startswith("test"):
                previous = curve.last_epochs[name] if name in longest else int(first) - 1
                longest[name] = max(1, longest.get(name, 1), int(at) - previous)
                curve.last_epochs[name] = int(at)
        for peaks, weights in zip(highest, sums, strict=True):
            weighted = [(weights.get(name.partition("(")[0]), value) for name, value in figures.items()]
            _keep_highest(peaks, int(at), sum(weight * value for weight, value in weighted if weight is not None))
        value = row.get(best_by, math.nan)
        if math.isfinite(value):
            best = curve.best.get(best_by)
            if best is None or (value < best if lower_is_better else value > best):
                curve.best, curve.best_epoch = figures, int(at)
    # a validation may come every few epochs; where the next one is overdue, the training was cut off
    curve.ended = {name for name, at in curve.last_epochs.items() if max(curve.epochs) - at >= longest[name]}
    curve.peaks = [set(peaks) for peaks in highest]
    if curve.best:
        # a test after the training has one figure
        tests = {name: value for name, value in curve.last.items() if name.startswith("test")}
        curve.best = {**tests, **curve.best}
    return curve


def _keep_highest(peaks: dict[int, float], epoch: int, value: float) -> None:
    """Add the value of an epoch to the highest ones, if it is one of them; two that differ by rounding are equal."""
    if value > 0 and value > max(peaks.values(), default=0) - _ROUNDING:
        peaks[epoch] = value
        for other in [other for other in peaks if peaks[other] < value - _ROUNDING]:
            del peaks[other]


def _numbers(cells: Iterable[tuple[str, str]], texts: set[str], curve: Curve, where: str) -> dict[str, float]:
    """Return the numbers in the cells of a line; `texts` are the columns that hold text, found so far."""
    row = {}
    for name, cell in cells:
        if cell and name not in texts:
            try:
                row[name] = float(cell)
            except ValueError:
                if name in curve.last or not is_figure(name):
                    raise UserError(f"{where}: {name} is {brief(cell)}, not a number") from None
                texts.add(name)
    return row


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line, the head first, without a last line that was cut short."""
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as file:
            width, head = 0, list[str]()
            reader = csv.reader(_whole_lines(file), skipinitialspace=True)
            for row in reader:
                cells = [cell.strip() for cell in row]
                if not any(cells):
                    continue
                if cells == head:  # timm writes it again where a training goes on
                    continue
                if not width:
                    width, head, cells = len(cells), cells, list(map(printable, cells))
                    twice = next((name for name in cells if cells.count(name) > 1), None)
                    if twice is not None:
                        raise UserError(f"{str(path)!r} has the column {brief(twice)} twice")
                if len(cells) != width:
                    raise UserError(
                        f"line {reader.line_num} of {str(path)!r} has {len(cells)} fields, its head has {width}"
                    )
                yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r} is not UTF-8; is it the CSV of a run?") from error
    except csv.Error as error:
        raise UserError(f"{str(path)!r} is not CSV: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def _whole_lines(file: Iterator[str]) -> Iterator[str]:
    """Yield the lines that end; programs end every line, so that one without an end was cut short."""
    while line := file.readline(_LONGEST_LINE):  # type: ignore[attr-defined]
        if not line.endswith(("\n", "\r")):
            if len(line) == _LONGEST_LINE:
                raise csv.Error(f"a line has more than {_LONGEST_LINE:,} letters")
            return
        yield line
