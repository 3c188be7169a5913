"""Lines and a progress bar on the terminal; results as tables."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..base.screen import Remaining, about
from ..base.tables import Table, printable_lines
from ..base.words import printable

_SILENCE = 60.0  # seconds; without a terminal, a line of progress ends a longer silence
_MOST_CLASSES = 40  # in a table; the JSON result lists all
_PARTS = {"train": "training", "val": "validation", "test": "test", "all": "all"}


def kept_for_json(json: bool) -> contextlib.AbstractContextManager[object]:
    """Return a block in which, with `json`, whatever prints does so to standard error: the output is the result."""
    return contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `cli.main`; rich ends the program itself."""
        raise  # noqa: PLE0704 - rich calls this where it has caught the BrokenPipeError


class TerminalScreen:
    """Prints lines on standard output or error, and a progress bar if that is a terminal.

    Elsewhere it prints how far a command is after each minute in which it printed nothing.
    """

    def __init__(self, to_stderr: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = _Console(stderr=to_stderr, soft_wrap=True, highlight=False)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.bar = Progress(
            *columns,
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
            redirect_stdout=not to_stderr,  # what a command prints there meanwhile is its result
        )
        self.task: Any = None
        self._clock, self._remaining, self._printed = clock, Remaining(clock), clock()

    def __enter__(self) -> TerminalScreen:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def line(self, text: str) -> None:
        """Print a line."""
        self._printed = self._clock()
        self.console.print(printable_lines(text), markup=False)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._printed = self._clock()
        self.console.print(f"warning: {printable_lines(text)}", markup=False, style="yellow")

    def progress(self, what: str, done: int, total: int) -> None:
        """Update the progress bar; without a terminal, print a line now and then."""
        seconds = self._remaining.seconds(what, done, total)
        left = f"{about(seconds)} left" if seconds else ""
        if self.bar.disable:
            if left and self._clock() - self._printed >= _SILENCE:
                self.line(f"{what}: {done:,} of {total:,}, {left}")
            return
        if self.task is None:
            self.task = self.bar.add_task("", total=total, left="")
        self.bar.update(self.task, description=printable(what), completed=min(done, total), total=total, left=left)


def result_tables(result: dict[str, Any]) -> list[Table]:
    """Return tables of the figures of a run or an evaluation, overall and by class."""
    # `evaluate` has the figures of one part, or of all images
    given = {result["split"]: result["images"]} if "images" in result else result
    parts = [(name, given[part]) for part, name in _PARTS.items() if part in given]
    note = ""
    if "best_epoch" in result:
        why = "the last" if result.get("best_by") == "last" else "chosen on the validation images"
        note = f"The network of epoch {result['best_epoch']}, {why}."
    overall = Table(
        "Figures",
        ("", "images", "accuracy", "95 % interval", "balanced accuracy", "cross-entropy"),
        [
            (
                name,
                f"{figures['num_images']:,}",
                f"{figures['accuracy']:.2%}",
                _interval(figures["accuracy"], figures["num_images"]),
                f"{figures['balanced_accuracy']:.2%}",
                "-" if figures["loss"] is None else f"{figures['loss']:.4f}",
            )
            for name, figures in parts
        ],
        note=note,
    )
    rows = sorted(result["per_class"], key=lambda row: (row["f1"] is not None, row["f1"] or 0.0))
    shown = rows[:_MOST_CLASSES]
    judged = _PARTS[result["split"] if "images" in result else result["judged_on"]]
    per_class = Table(
        f"Classes, the worst first ({judged} images)",
        ("", "images", "precision", "recall", "F1"),
        [
            (row["class"], f"{row['num_images']:,}", *(_share(row[name]) for name in ("precision", "recall", "f1")))
            for row in shown
        ],
        note=f"{len(rows) - len(shown)} more classes in the JSON result." if len(rows) > len(shown) else "",
    )
    return [overall, per_class]


def _interval(accuracy: float, num_images: int) -> str:
    """Return Wilson's interval of an accuracy, for images that are independent of each other; wide for few images."""
    from scipy.stats import binomtest

    if not num_images:
        return "-"
    low, high = binomtest(round(accuracy * num_images), num_images).proportion_ci(method="wilson")
    return f"{100 * low:.1f} to {high:.1%}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
