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
from ..base.limits import CURVE_LINE_LETTERS
from ..base.words import brief, number_in, printable

_NO_FIGURES = {"epoch", "step", "time", "lr"}
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
    """Return whether a column may be judged by; epochs, times, learning rates and loads of devices may not."""
    return column not in _NO_FIGURES and not column.startswith(("lr/", "lr-", "DeviceStatsMonitor"))


def read_curve(
    path: Path, best_by: str = "", *, lower_is_better: bool = False, sums: Sequence[Mapping[str, float]] = ()
) -> Curve:
    """Read the CSV of a run.

    Args:
        path: The CSV. A row may have empty cells; the rows of an epoch add up. A last line that a crash has cut short
            is left out. Where the epochs step back, a training was resumed: what it wrote before counts up to there.
        best_by: The column that chooses the best epoch, the first of equal ones.
        lower_is_better: Whether the best is the lowest.
        sums: For each sum whose peaks are wanted, the weights of its columns, by their names up to a "(".

    Raises:
        UserError: The file cannot be read, or is no CSV of numbers with a line for each epoch.
    """
    rows, texts = _rows(path), set[str]()
    _, head = next(rows, (0, []))
    built = _Building(Curve(head), best_by, lower_is_better, sums, [{} for _ in sums])
    counted = next((name for name in ("epoch", "step") if name in head), None)
    if head and counted is None:
        raise UserError(f"{str(path)!r} has no column epoch; it should hold a line for each epoch of one run")
    for line, cells in rows:
        where = f"line {line} of {str(path)!r}"
        row = _numbers(zip(head, cells, strict=True), texts, built.curve, where)
        figures = {name: value for name, value in row.items() if is_figure(name)}
        at = row.get(counted or "", math.nan)
        if not figures and counted not in row:  # monitors of Lightning write a step alone
            continue
        if not 0 <= at < 2**53:
            raise UserError(f"{where} has no {counted}")
        if not all(name.startswith("test") for name in figures):
            if at == built.first < built.newest:
                raise UserError(
                    f"{where} begins again with {counted} {at:g}, after {built.newest:g}; take out the lines of the "
                    "other training"
                )
            built.begin(int(at))
        built.add(int(at), figures)
    return built.finished()


@dataclass
class _Building:
    """A curve that grows line by line.

    Attributes:
        best_by, lower_is_better, sums: As in `read_curve`.
        highest: For each sum, its highest values by epoch.
        bests: Epochs and their figures, each better than the one before.
        longest: The most epochs between two figures of a column.
        newest: The epoch of the line before.
        first: The first epoch.
    """

    curve: Curve
    best_by: str
    lower_is_better: bool
    sums: Sequence[Mapping[str, float]]
    highest: list[dict[int, float]]
    bests: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    longest: dict[str, int] = field(default_factory=dict)
    newest: int = 0
    first: float = math.inf

    def begin(self, epoch: int) -> None:
        """Begin a line of an epoch; where epochs step back, a resumed training writes the later ones again."""
        curve = self.curve
        if epoch < self.newest:
            curve.epochs = {one for one in curve.epochs if one < epoch}
            for name in [name for name, at in curve.last_epochs.items() if at >= epoch]:
                del curve.last_epochs[name], curve.last[name]
            while self.bests and self.bests[-1][0] >= epoch:
                self.bests.pop()
            self.highest = [{at: value for at, value in peaks.items() if at < epoch} for peaks in self.highest]
        self.newest, self.first = epoch, min(self.first, epoch)
        curve.epochs.add(epoch)

    def add(self, epoch: int, figures: dict[str, float]) -> None:
        """Add the figures of a line."""
        curve = self.curve
        curve.last.update(figures)
        for name in figures:
            if not name.startswith("test"):
                before = epoch - 1 if name in self.longest else int(self.first) - 1
                gap = epoch - curve.last_epochs.get(name, before)
                self.longest[name] = max(1, self.longest.get(name, 1), gap)
                curve.last_epochs[name] = epoch
        for peaks, weights in zip(self.highest, self.sums, strict=True):
            weighted = [(weights.get(name.partition("(")[0]), value) for name, value in figures.items()]
            _keep_highest(peaks, epoch, sum(weight * value for weight, value in weighted if weight is not None))
        value, best = figures.get(self.best_by, math.nan), self.bests[-1][1][self.best_by] if self.bests else None
        if math.isfinite(value) and (best is None or (value < best if self.lower_is_better else value > best)):
            self.bests.append((epoch, figures))

    def finished(self) -> Curve:
        """Return the curve."""
        curve = self.curve
        # a validation may come every few epochs; where the next one is overdue, the training was cut off
        overdue = {name: max(curve.epochs) - at for name, at in curve.last_epochs.items()}
        curve.ended = {name for name, epochs in overdue.items() if epochs >= self.longest[name]}
        curve.peaks = [set(peaks) for peaks in self.highest]
        if self.bests:
            curve.best_epoch, best = self.bests[-1]
            # a test after the training has one figure
            curve.best = {name: value for name, value in curve.last.items() if name.startswith("test")} | best
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
                row[name] = number_in(cell.strip())
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
    while line := file.readline(CURVE_LINE_LETTERS):  # type: ignore[attr-defined]
        if not line.endswith(("\n", "\r")):
            if len(line) == CURVE_LINE_LETTERS:
                raise csv.Error(f"a line has more than {CURVE_LINE_LETTERS:,} letters")
            return
        yield line
