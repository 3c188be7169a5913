"""A run of any program, as its folder tells."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .curve import Curve, read_curve
from .result import Result
from .settings import read_settings


@dataclass(eq=False)
class Run:
    """A run.

    Attributes:
        path: Its folder.
        settings: What it was trained with, by name.
        curve: Its figures.
        epochs_asked: Epochs that it was to train; None where that is not known.
        num_epochs: Epochs that it trained.
        stopped_early: Whether its program ended it before `epochs_asked` on purpose.
        has_hardly_begun: Whether its attention changes hardly anything at the end.
        is_chosen: Whether the epoch was chosen on the reported images.
        learned: What a run of whatwhere came to, and its validation accuracy after each epoch; None for others.
        fault: Why it has no figures that count, as part of a sentence; "" where it has some.
        notes: What else is odd about it, as sentences.
        arm, seed: Their names, once `name_runs` has found them.
    """

    path: Path
    settings: dict[str, str]
    curve: Curve = field(default_factory=Curve)
    epochs_asked: int | None = None
    num_epochs: int = 0
    stopped_early: bool = False
    has_hardly_begun: bool = False
    is_chosen: bool = False
    learned: tuple[Result, list[float]] | None = None
    fault: str = ""
    notes: list[str] = field(default_factory=list)
    arm: str = ""
    seed: str = ""

    def epochs_without(self, metric: str | None) -> int:
        """Return for how many epochs before its end the run has no such figure; 0 for that of a test."""
        end = max(self.curve.epochs, default=0)
        return end - self.curve.last_epochs.get(metric or "", end)


@dataclass(frozen=True)
class Choice:
    """Which epoch of a run is taken: the best by the figure `best_by`, or the last where that is ""."""

    best_by: str = ""
    lower_is_better: bool = False


@dataclass(frozen=True)
class Program:
    """A program that leaves run folders.

    Attributes:
        name: Its name.
        table: The file with the figures of each epoch.
        is_run: From a folder and the names of its files to whether the program wrote the folder.
        read: Reads the folder of a run.
        ignored: Settings that change no figure: names, paths of output, the machine.
        if_alike: What may have gone wrong where no setting differs between arms, as part of a sentence.
        attention_file: The file that names the attention of whatwhere in a run; "" where there is none of its own.
        chooses_epoch: Whether its runs report one epoch, which their training chose.
        complete: Gives runs that went on from a checkpoint the settings that they began with, by those of the others;
            returns what to tell about it, as sentences. Seeds, and arms that the path tells, are known by then.
    """

    name: str
    table: str
    is_run: Callable[[Path, set[str]], bool]
    read: Callable[[Path, Choice], Run]
    ignored: frozenset[str]
    if_alike: str = ""
    attention_file: str = ""
    chooses_epoch: bool = False
    complete: Callable[[Sequence[Run]], list[str]] = lambda runs: []


def run_with_csv(
    folder: Path,
    settings: str,
    table: str,
    choice: Choice,
    *,
    asked: str = "epochs",
    sums: Sequence[Mapping[str, float]] = (),
) -> Run:
    """Read a folder that holds a file of settings, and a CSV with a line for each epoch, which count from 0.

    `asked` is the setting with the number of epochs to train; `sums` are those of `read_curve`.
    """
    path = folder / settings
    run = Run(folder, read_settings(path) if os.path.lexists(path) else {})
    run.epochs_asked = whole_number(run.settings.get(asked, ""))
    if not os.path.lexists(folder / table):
        run.fault = f"has no {table}"
        return run
    run.curve = read_curve(folder / table, choice.best_by, lower_is_better=choice.lower_is_better, sums=sums)
    run.num_epochs = 1 + max(run.curve.epochs, default=-1)
    if not run.curve.epochs:
        run.fault = f"has no epoch in {table}"
    return run


def whole_number(text: str) -> int | None:
    """Return the number of at most nine digits that a setting spells; None where it spells none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
