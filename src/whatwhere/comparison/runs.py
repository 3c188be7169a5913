"""The runs of a comparison: each arm and seed in a folder of its own, finished ones never repeated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import UNSET

from ..base.errors import UserError
from ..base.files import write_json
from ..base.screen import Screen, duration
from ..base.words import brief, cause, counted, few
from ..training.config import FREE, OPTIONS
from ..training.run_folder import RESULT, RunDescription, RunFolder
from ..training.train import run_training
from ..training.trainer import Diverged, LossNotFinite
from .design import Design

SEARCH_SEED = 1_000_000  # no seed of the comparison itself
_DIVERGED = "diverged.json"


@dataclass
class Task:
    """One run to do. A finished run is read once: it does not change any more.

    Attributes:
        label: Its name on the screen.
        folder: The folder of the run.
        options: The options that change its result.
        searching: Whether the run belongs to a learning-rate search. It does not use the test images, and it may
            diverge.
    """

    label: str
    folder: Path
    options: dict[str, Any]
    searching: bool = False
    _finished: tuple[dict[str, Any], RunDescription] | None = None

    def result(self) -> dict[str, Any] | None:
        """Return the content of `result.json`; None while the run is not finished.

        Raises:
            UserError: The folder holds a run with other options, or a damaged one.
        """
        finished = self._read()
        return None if finished is None else finished[0]

    def description(self) -> RunDescription:
        """Return the content of `run.json` of a finished run."""
        finished = self._read()
        assert finished is not None
        return finished[1]

    def _read(self) -> tuple[dict[str, Any], RunDescription] | None:
        if self._finished is None and (self.folder / RESULT).is_file():
            folder = RunFolder(self.folder)
            try:
                result, description = folder.result, folder.description
                if result is None or description is None or description.drawn is UNSET:
                    raise ValueError("run.json does not describe it")
                if "test" not in result and result["judged_on"] == "test":
                    raise ValueError("result.json lacks the figures that it is judged on")
            except (ValueError, OSError) as error:
                raise damaged(self.folder, error) from error
            wanted = {name: value for name, value in self.options.items() if name in OPTIONS and name not in FREE}
            had = description.config
            changed = [name for name, value in wanted.items() if had.get(name) != value]
            if changed:
                name = changed[0]
                raise UserError(
                    f"the run in {str(self.folder)!r} has {name} {brief(had.get(name))}, the comparison "
                    f"{brief(wanted[name])}; move that folder away and run again"
                )
            self._finished = result, description
        return self._finished

    def is_done(self) -> bool:
        """Return whether there is nothing left to do, because it is finished or was a try that diverged."""
        return (self.searching and (self.folder / _DIVERGED).is_file()) or self.result() is not None

    def note_divergence(self, error: Diverged) -> None:
        """Keep for all processes that this try has diverged."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / _DIVERGED, {"reason": str(error)})


def damaged(folder: Path, error: Exception) -> UserError:
    """Return the error about a finished run with damaged files."""
    return UserError(f"the run in {str(folder)!r} is damaged ({cause(error)}); move that folder away and run again")


def tasks(design: Design, out: Path) -> list[Task]:
    """Return the runs that the design has now, seed by seed, so that pairs are complete early."""
    seeds = design.seeds()
    return [
        Task(
            f"{arm.name}, seed {seed}",
            out / "runs" / arm.name / f"seed-{seed}",
            design.run_options(arm.name, seed),
        )
        for seed in max(seeds.values(), key=len)
        for arm in design.arms
        if seed in seeds[arm.name]
    ]


def search_tasks(design: Design, out: Path) -> dict[str, dict[float, Task]]:
    """Return the runs that choose the learning rate of each arm that has none yet.

    One a rate, on images and a seed of their own kind, the smallest first, which diverges last.
    """
    return {
        arm.name: {
            rate: Task(
                f"{arm.name}, searching, lr {rate:g}",
                out / "search" / arm.name / f"lr-{rate:g}",
                {**design.run_options(arm.name, SEARCH_SEED), "lr": rate},
                searching=True,
            )
            for rate in sorted(design.lr_search)
        }
        for arm in design.arms
        if "lr" not in design.arm_options[arm.name]
    }


def share(items: Sequence[Task], shard: tuple[int, int]) -> list[Task]:
    """Return the part of shard (i, n), counted from 1: whole seeds, so that a pair's runs share a machine."""
    index, count = shard
    keys = list(dict.fromkeys(item.folder.name for item in items))
    return [item for item in items if keys.index(item.folder.name) % count == index - 1]


class RunScreen:
    """Shows a part of a comparison: its progress and, once for all parts, its warnings, but not its lines."""

    def __init__(self, screen: Screen, label: str, warned: set[str]) -> None:
        self.screen, self.prefix, self.warned = screen, f"{label}: " if label else "", warned

    def line(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        if text not in self.warned:
            self.warned.add(text)
            self.screen.warn(f"{self.prefix}{text}")

    def progress(self, what: str, done: int, total: int) -> None:
        self.screen.progress(f"{self.prefix}{what}", done, total)


@dataclass
class Runner:
    """Does tasks one after another.

    Attributes:
        data: DATA.
        free: Options that shape no result: device, workers, ...
        command: What to type to continue.
        screen: Hears of the progress.
        whose: Said of the number of runs, where it is that of a share.
        after: Called after each run.
        failures: What failed, by label.
        warned: The warnings that were shown.
    """

    data: str
    free: Mapping[str, Any]
    command: str
    screen: Screen
    whose: str = ""
    after: Callable[[], None] = lambda: None
    failures: dict[str, str] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    _seconds: list[float] = field(default_factory=list)

    def do(self, items: Sequence[Task]) -> None:
        """Do what is not finished. A failure is kept and the others go on, unless nothing has succeeded before it.

        Raises:
            UserError: The first run failed.
            Stopped: A run was asked to stop and is saved.
        """
        left = [item for item in items if not item.is_done()]
        num_done = len(items) - len(left)
        if num_done and left:
            self.screen.line(f"{num_done} of {len(items)} runs{self.whose} are finished already")
        for index, item in enumerate(left):
            began = time.monotonic()
            try:
                result = run_training(
                    self.data,
                    {**item.options, **self.free},
                    out=item.folder,
                    resume=True,
                    dry_run=False,
                    command=self.command,
                    screen=RunScreen(self.screen, item.label, self.warned),
                    with_test=not item.searching,
                )
            except UserError as error:
                if item.searching and isinstance(error, Diverged):
                    item.note_divergence(error)
                    self.screen.line(f"{item.label} diverged")
                    continue
                why = _why(error)
                if not self._seconds and not num_done:
                    raise UserError(f"{item.label} failed: {why}") from error
                self.failures[item.label] = why
                self.screen.warn(f"{item.label} failed: {why}")
                continue
            assert result is not None
            self._seconds.append(time.monotonic() - began)
            remaining = sum(self._seconds) / len(self._seconds) * (len(left) - index - 1)
            figures = result[result["judged_on"]]
            part = "test" if result["judged_on"] == "test" else "validation"
            left_text = f"; about {duration(remaining)} left" if remaining else ""
            self.screen.line(
                f"run {num_done + index + 1} of {len(items)}{self.whose}: {item.label}: {figures['accuracy']:.2%} of "
                f"the {part} images, {duration(self._seconds[-1])}{left_text}"
            )
            self.after()


def _why(error: UserError) -> str:
    """Return what a run failed of, without the advice for a run that stands alone."""
    if isinstance(error.__cause__, LossNotFinite):
        error = error.__cause__
    if isinstance(error, Diverged):
        return str(error).partition(";")[0] + "; a comparison with another learning rate needs another --out"
    return str(error)


def failed(failures: Mapping[str, str]) -> UserError:
    """Return what is said at the end where runs failed; of each it has been said why."""
    return UserError(
        f"{counted(len(failures), 'run')} failed ({few(list(failures), 6)}), as said above; the finished ones are "
        "kept, and the same command tries again"
    )


def chosen_rates(design: Design, out: Path) -> dict[str, float] | None:
    """Return each arm's learning rate: of the best validation figure; None while a run of the search is missing.

    An arm that has its rate keeps it. A rate at which it diverges is the worst there is.

    Raises:
        UserError: An arm diverges at every rate.
    """
    best_by = design.options["best_by"]
    best_by = "accuracy" if best_by == "last" else best_by
    rates = {arm: options["lr"] for arm, options in design.arm_options.items() if "lr" in options}
    searches = search_tasks(design, out)
    if not all(task.is_done() for by_rate in searches.values() for task in by_rate.values()):
        return None
    for arm, by_rate in searches.items():
        scores = dict(_scores(by_rate, best_by))
        if not scores:
            tried = ", ".join(f"{rate:g}" for rate in by_rate)
            raise UserError(
                f"{arm} diverges at every learning rate of the search, {tried}; give lower ones, and another --out"
            )
        rates[arm] = max(scores, key=scores.__getitem__)
    return rates


def _scores(by_rate: Mapping[float, Task], best_by: str) -> Iterator[tuple[float, float]]:
    for rate, task in by_rate.items():
        result = task.result()
        if result is not None:
            score = result["val"][best_by]
            # a loss that is not finite has no value
            yield rate, -math.inf if score is None else -score if best_by == "loss" else score
