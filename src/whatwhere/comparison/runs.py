"""The runs of a comparison: each arm and seed in its own folder, and one process that does them one after another."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ..base.errors import UserError
from ..base.files import Unreadable, write_json
from ..base.screen import Screen, about, duration
from ..base.words import brief, cause, counted, few
from ..collect.result import RESULT, OfAnotherRun, Result
from ..training.config import ADDED, FREE, OPTIONS
from ..training.evaluate import merit
from ..training.run_folder import Damaged, RunDescription, RunFolder
from ..training.train import run_training
from ..training.trainer import Diverged
from .budget import Budget, typed
from .design import Design

SEARCH_SEED = 1_000_000  # no seed of a comparison is as large
_DIVERGED = "diverged.json"


@dataclass(frozen=True)
class Finished:
    """A finished run: the content of its files.

    Attributes:
        folder: Folder of the run.
        result, description: The content of `result.json` and `run.json`.
        drawn: Parts of the images that its seed drew.
    """

    folder: Path
    result: Result
    description: RunDescription
    drawn: Sequence[str]

    @property
    def environment(self) -> tuple[tuple[str, str], ...]:
        """(name, value) of the machine and the versions that it ran with."""
        session = self.description.sessions[-1]
        names = ("device", "torch", "torchvision", "pillow", "python")
        return tuple((name, str(session.get(name, "unknown"))) for name in names)

    @functools.cached_property
    def curve(self) -> list[tuple[int, float]]:
        """Each epoch with its validation accuracy in [0, 1].

        Raises:
            UserError: `metrics.jsonl` is damaged.
        """
        try:
            return [(line.epoch, line.val_accuracy) for line in RunFolder(self.folder).metrics()]
        except Unreadable:
            raise
        except UserError as error:
            raise _damaged(self.folder, error) from error


@dataclass
class Task:
    """One run to do.

    Attributes:
        label: Name on the screen.
        folder: Folder of the run.
        options: Options that change its result.
        searching: Whether the run belongs to a learning-rate search: it uses no test images, and it may diverge.
    """

    label: str
    folder: Path
    options: dict[str, Any]
    searching: bool = False
    _finished: Finished | None = None

    @property
    def arm(self) -> str:
        """Name of the arm."""
        return self.folder.parent.name

    def finished(self) -> Finished | None:
        """Return the finished run; None before. Its files are read once, because they do not change any more.

        Raises:
            UserError: The folder holds a run with other options, or its files are damaged.
        """
        if self._finished is None and (self.folder / RESULT).is_file():
            folder = RunFolder(self.folder)
            try:
                content, description = folder.result, folder.description
                if content is None or description is None or description.drawn is msgspec.UNSET:
                    raise ValueError("run.json does not describe it")
                result = msgspec.convert(content, Result)
            except (OfAnotherRun, Unreadable):
                raise
            except (ValueError, OSError) as error:
                raise _damaged(self.folder, error) from error
            had = ADDED | description.config
            for name, value in self.options.items():
                if name in OPTIONS and name not in FREE and had.get(name) != value:
                    raise UserError(
                        f"the run in {str(self.folder)!r} has {name} {brief(had.get(name))}, the comparison "
                        f"{brief(value)}; move that folder away and run again"
                    )
            self._finished = Finished(self.folder, result, description, description.drawn)
        return self._finished

    def is_done(self) -> bool:
        """Return whether the run has finished, or diverged in a learning-rate search."""
        return (self.searching and (self.folder / _DIVERGED).is_file()) or self.finished() is not None

    def note_divergence(self, error: Diverged) -> None:
        """Record for all processes that this learning rate diverged."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / _DIVERGED, {"reason": error.reason})


def _damaged(folder: Path, error: Exception) -> UserError:
    """Return the error about a finished run with damaged files."""
    if isinstance(error, Damaged):
        return UserError(f"{error.reason}; move its folder away and run again")
    return UserError(f"the run in {str(folder)!r} is damaged ({cause(error)}); move that folder away and run again")


class Runs:
    """The runs in the folder of a comparison. Each `Task` is made once, so that a finished run is read once."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._tasks: dict[str, Task] = {}

    def tasks(self, design: Design) -> list[Task]:
        """Return the runs that the design needs now, seed by seed, so that pairs are complete early."""
        seeds = design.seeds()
        return [
            self._task(f"{arm.name}, seed {seed}", f"runs/{arm.name}/seed-{seed}", design.run_options(arm.name, seed))
            for seed in max(seeds.values(), key=len)
            for arm in design.arms
            if seed in seeds[arm.name]
        ]

    def searches(self, design: Design) -> dict[str, list[Task]]:
        """Return, by arm, the runs that choose its learning rate; nothing for an arm that has one.

        There is one run for each rate, with a seed that no other run has. The smallest rate comes first, because it
        diverges last.
        """
        return {
            arm.name: [
                self._task(
                    f"{arm.name}, searching, lr {rate:g}",
                    f"search/{arm.name}/lr-{rate:g}",
                    {**design.run_options(arm.name, SEARCH_SEED), "lr": rate},
                    searching=True,
                )
                for rate in sorted(design.lr_search)
            ]
            for arm in design.arms
            if design.lr_search and "lr" not in design.arm_options[arm.name]
        }

    def with_rates(self, design: Design) -> Design:
        """Return the design with the best learning rate of each arm whose search has finished.

        The best rate has the best figure on the validation images; of equal ones, the lowest loss (`merit`). An arm
        that has a rate keeps it.

        Raises:
            UserError: An arm diverges at every rate.
        """
        best_by = design.options["best_by"]
        best_by = "accuracy" if best_by == "last" else best_by
        arm_options = dict(design.arm_options)
        for arm, tasks in self.searches(design).items():
            if all(task.is_done() for task in tasks):
                runs = [(task.options["lr"], task.finished()) for task in tasks]
                scores = {rate: merit(run.result.val, best_by) for rate, run in runs if run is not None}
                if not scores:
                    tried = ", ".join(f"{rate:g}" for rate, _ in runs)
                    raise UserError(
                        f"{arm} diverges at every learning rate of the search, {tried}; give lower ones, and another "
                        "--out"
                    )
                arm_options[arm] = {**arm_options[arm], "lr": max(scores, key=scores.__getitem__)}
        return msgspec.structs.replace(design, arm_options=arm_options)

    def _task(self, label: str, folder: str, options: dict[str, Any], *, searching: bool = False) -> Task:
        known = self._tasks.get(folder)
        if known is None or known.options != options:
            known = self._tasks[folder] = Task(label, self.out / folder, options, searching)
        return known


class Spread(Protocol):
    """Does tasks in several processes: `shards.run_shards`, `cluster.Cluster.do`."""

    def __call__(self, runner: Runner, tasks: Sequence[Task], *more: str) -> None:
        """Do the tasks that a Runner has left; `more` are further arguments of the processes."""


@dataclass(frozen=True)
class Share:
    """The share of a comparison's runs that this process does, and where.

    Attributes:
        out: Folder of the comparison.
        shard: (i, n), the share, counted from 1; None for all runs and the verdict.
        spread: Does the runs in several processes; None does them in this one.
        is_inner: Whether this process is one of those; the outer process then shows what concerns the whole.
        num_devices, num_processes: The devices on which runs are done at the same time, and how many runs.
    """

    out: Path
    shard: tuple[int, int] | None = None
    spread: Spread | None = None
    is_inner: bool = False
    num_devices: int = 1
    num_processes: int = 1

    @property
    def num_parts(self) -> int:
        """The parts into which the runs of the whole comparison go, one for each device of each machine."""
        return self.num_devices * (self.shard[1] if self.shard else 1)

    @property
    def at_once(self) -> str:
        """In words, how many runs are done at the same time; a time that is told counts one on each device."""
        devices = counted(self.num_devices, "device")
        if self.num_processes > self.num_devices:
            timed = "one after another" if self.num_devices == 1 else f"{self.num_devices} at a time"
            return f"in {self.num_processes} processes on {devices}, timed as {timed}"
        return "one after another" if self.num_devices == 1 else f"on {devices}"

    def of(self, tasks: Sequence[Task]) -> list[Task]:
        """Return the share's tasks: whole seeds, so that one machine does both runs of a pair."""
        index, count = self.shard or (1, 1)
        seeds = list(dict.fromkeys(task.folder.name for task in tasks))
        return [task for task in tasks if seeds.index(task.folder.name) % count == index - 1]


class RunScreen:
    """Shows a part of a comparison: its progress, and each warning once for all parts, but not its lines."""

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
        free: Options that do not change a result: device, workers, ...
        command: Command that continues the comparison.
        screen: Shows messages and progress.
        share: The share of the tasks that it does.
        warned: The warnings shown so far.
        train: Trains one run, as `run_training` does.
        clock: Returns the time in seconds.
        expected: Returns about how many seconds a run takes; None where that is not known.
        budget: The time that it may take; None for any.
        failures: What failed and why, by label.
    """

    data: str
    free: Mapping[str, Any]
    command: str
    screen: Screen
    share: Share
    warned: set[str]
    train: Callable[..., dict[str, Any] | None] = run_training
    clock: Callable[[], float] = time.monotonic
    expected: Callable[[Task], float] | None = None
    budget: Budget | None = None
    failures: dict[str, str] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)  # of each run that this process did, by label
    _expected_seconds: float = 0.0  # of these runs

    def do(self, tasks: Sequence[Task], after: Callable[[Task], None] = lambda task: None) -> None:
        """Do what is not finished of the share; call `after` with each run that ended in this process.

        Keep a failure and go on, unless the first run fails. Do not begin a seed that would end after the budget.

        Raises:
            UserError: The first run failed.
            Stopped: A run was asked to stop and is saved.
        """
        tasks = self.share.of(tasks)
        left = [task for task in tasks if not task.is_done()]
        if left and self.share.spread is not None:
            rest = None if self.budget is None else self.budget.left()
            if rest is not None and rest < 1:
                self._say_the_rest(left)
                return
            try:
                self.share.spread(self, left, *([] if rest is None else ["--budget", typed(rest)]))
            except UserError as error:
                missing = [task.label for task in left if not task.is_done()]
                if len(missing) == len(tasks):
                    raise
                self.failures.update(dict.fromkeys(missing, str(error)))
            return
        num_done = len(tasks) - len(left)
        part = f" of part {self.share.shard[0]}/{self.share.shard[1]}" if self.share.shard else ""
        if num_done and left:
            self.screen.line(f"{num_done} of {len(tasks)} runs{part} are finished already")
        for number, task in enumerate(left, start=1):
            if self._ends_too_late(task, left[number - 1 :], done=left[: number - 1]):
                self._say_the_rest(left[number - 1 :])
                return
            began = self.clock()
            try:
                result = self.attempt(task)
            except UserError as error:
                if not self._seconds and not num_done:
                    sentence, *command = error.args
                    raise UserError(f"{task.label} failed: {sentence}", *command) from error
                self.fail(task, str(error))
                continue
            if result is None:
                self.screen.line(f"{task.label} diverged")
                continue
            self._seconds[task.label] = self.clock() - began
            remaining = self._remaining(task, left[number:])
            judged = result["judged_on"]
            self.screen.line(
                f"run {num_done + number} of {len(tasks)}{part}: "
                + outcome(task, judged, result[judged]["accuracy"], self._seconds[task.label])
                + (f"; {about(remaining)} left" if left[number:] else "")
            )
            after(task)

    def _ends_too_late(self, task: Task, left: Sequence[Task], *, done: Sequence[Task]) -> bool:
        """Return whether a run begins a seed, and that would end after the budget, at the speed so far."""
        if self.budget is None or task.searching or any(task.folder.name == other.folder.name for other in done):
            return False
        of_seed = [other for other in left if other.folder.name == task.folder.name]
        return self.budget.left() < sum(map(self.expected or (lambda task: 1.0), of_seed)) * self._slowness()

    def _say_the_rest(self, left: Sequence[Task]) -> None:
        self.screen.line(
            f"{self.budget} ends before another seed would: {counted(len(left), 'run')} left, with which the same "
            "command goes on"
        )

    def _slowness(self) -> float:
        """Return how much longer the runs of this process took than expected; without any, what was expected holds."""
        if not self._expected_seconds:
            return 1.0 if self.expected else 0.0
        return sum(self._seconds.values()) / self._expected_seconds

    def attempt(self, task: Task) -> dict[str, Any] | None:
        """Train a run and return its result; None where it diverged in a learning-rate search.

        Raises:
            UserError: It failed; the message is without advice that is for a single run.
            Stopped: It was asked to stop and is saved.
        """
        try:
            return self.train(
                self.data,
                {**task.options, **self.free},
                out=task.folder,
                resume=True,
                dry_run=False,
                command=self.command,
                screen=RunScreen(self.screen, task.label, self.warned),
                with_test=not task.searching,
                say_how_long=False,
            )
        except Diverged as error:
            if task.searching:
                task.note_divergence(error)
                return None
            raise UserError(f"{error.reason}; a comparison with another learning rate needs another --out") from error

    def fail(self, task: Task, why: str) -> None:
        """Keep and show why a run failed."""
        self.failures[task.label] = why
        self.screen.warn(f"{task.label} failed: {why}")

    def _remaining(self, done: Task, left: Sequence[Task]) -> float:
        """Return about how many seconds the runs `left` take, from those of this process, the last of them `done`.

        A run that is expected to take twice as long as another counts twice.
        """
        expected = self.expected or (lambda task: 1.0)
        self._expected_seconds += expected(done)
        return sum(map(expected, left)) * self._slowness()


def outcome(task: Task, judged_on: str, accuracy: float, seconds: float) -> str:
    """Return what a run that has ended came to, in words."""
    images = "test" if judged_on == "test" else "validation"
    return f"{task.label}: {accuracy:.2%} of the {images} images, {duration(seconds)}"


def failed(failures: Mapping[str, str]) -> UserError:
    """Return the last error of a comparison with failed runs; each failure was shown when it happened."""
    return UserError(
        f"{counted(len(failures), 'run')} failed ({few(list(failures), 6)}), as said above; the finished ones are "
        "kept, and the same command tries again"
    )
