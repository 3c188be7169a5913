"""An audit: the files of a comparison must agree, and a run drawn at random must come out the same, trained again."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from ..base.documents import read_json
from ..base.errors import Stopped, UserError, check_integer
from ..base.files import check_writable, write_json
from ..base.processes import num_cores
from ..base.screen import OnlyProgress, Screen, duration
from ..base.words import brief, cause, counted, few, short
from ..collect.result import RESULT, Result
from ..data.split import Prepared, fingerprint
from ..statistics.looks import LEAST_PAIRS
from ..statistics.metric import METRICS
from ..training.config import Config
from ..training.distributed import team
from ..training.run_folder import METRICS as LINES
from ..training.run_folder import EpochLine, RunFolder
from ..training.setup import prepare_images, session, with_file_of_weights
from ..training.train import run_training
from ..training.trainer import Diverged
from .agreement import Mismatch, check_agreement, differing
from .arms import Arm
from .conditions import Conditions, computed_as_in
from .content import DESIGN, RESULTS, VERDICT
from .design import WEIGHTS, Design, code_of, read_design
from .gather import Gathered
from .planning import check_networks, hash_contents, images_fingerprint
from .runs import Finished

_DRAWN = "audit.json"
_LEVEL = 0.001  # how often a figure of an honest run lies beyond its bound by chance
_AGAIN = "training it again"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to audit; None leaves it open.

    Attributes:
        data: DATA, where it is not as compare.json names it.
        arm, seed: Which runs to draw from.
        num_runs: How many runs to train again.
        arms: Arms with code of the user, which is imported, so that it must not come from a file.
        pretrained: The file of weights, where it is not as compare.json names it.
        out: Folder for the trainings; None for one that is removed.
    """

    data: str | None = None
    arm: str | None = None
    seed: int | None = None
    num_runs: int = 1
    arms: tuple[Arm, ...] = ()
    pretrained: str | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        check_integer("--runs", self.num_runs)


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of a run and of its repetition, as a share or in nats; `bound` is None where they must be equal."""

    name: str
    there: float
    here: float
    bound: float | None


class Repeated(msgspec.Struct, frozen=True, kw_only=True):
    """A run and its repetition.

    Attributes:
        arm, seed: Which run.
        differing: What differs between the two machines; empty where all must be equal to the last bit.
        is_same_machine: Whether both were trained on a machine of the same name.
        weights_there, weights_here: SHA-256 of the weights of the best network; "" for a run of an old version.
        figures: The figures of the images that the run is judged on.
        mismatches: What is not as it should be.
    """

    arm: str
    seed: int
    differing: tuple[str, ...]
    is_same_machine: bool
    weights_there: str
    weights_here: str
    figures: tuple[Figure, ...]
    mismatches: tuple[Mismatch, ...]

    def sentence(self, metric: str) -> str:
        """Return the outcome in words; `metric` is the one that the comparison is judged by."""
        run = f"{self.arm}, seed {self.seed}, trained again,"
        if self.mismatches:
            is_same = bool(self.weights_there) and self.weights_there == self.weights_here
            how = "is the same network to the last bit, but has other figures" if is_same else "came out otherwise"
            is_certain = is_same or self.differing or self.is_same_machine
            more = "" if is_certain else "; run.json does not tell every processor from another: audit it there too"
            return f"failed: {run} {how}: {self.mismatches[0].sentence}{more}"
        if not self.differing:
            weights = "the same weights to the last bit and " if self.weights_there else ""
            return f"passed: {run} has {weights}the same figures to the last digit"
        bound = next((figure.bound for figure in self.figures if figure.name == metric), None)
        return (
            f"passed, weakly: {run} is no further from the comparison than another seed may be, and nothing more can "
            f"be asked here ({few(self.differing, 4)}); {METRICS[metric].label} changed by less than "
            f"{in_unit(metric, bound or 0.0)} may pass"
        )


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of an audit.

    Attributes:
        comparison: Its folder.
        design: SHA-256 of the design as it was at first.
        metric: What the comparison is judged by.
        changes: What changed since then, as the comparison notes it.
        mismatches: What the files say differently from each other.
        runs: The runs that were trained again.
    """

    comparison: str
    design: str
    metric: str
    changes: tuple[str, ...]
    mismatches: tuple[Mismatch, ...]
    runs: tuple[Repeated, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.mismatches and not any(run.mismatches for run in self.runs)

    @property
    def sentences(self) -> list[str]:
        """The outcome in words: of the files, or of each run."""
        if self.mismatches:
            return [f"failed: the files of {self.comparison!r} do not agree; nothing was trained again"]
        return [run.sentence(self.metric) for run in self.runs]

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        told: dict[str, Any] = msgspec.to_builtins(self)
        return {"passed": self.passed, "sentences": self.sentences, **told}


def in_unit(metric: str, value: float) -> str:
    """Return a difference in a figure as it is shown: in points, or as it is."""
    known = METRICS[metric]
    return f"{known.scale * value:.{2 if known.unit else 4}f} {known.unit}".rstrip()


def audit(folder: Path, asked: Asked, free: Mapping[str, Any], *, command: str, screen: Screen) -> Audit:
    """Check that the files in the folder of a comparison agree, then train runs again that are drawn at random.

    The files are compare.json, results.csv, verdict.json and, of each run, run.json, result.json and metrics.jsonl;
    none of them is changed. Where they do not agree, nothing is trained.

    A run is repeated to the last bit where device, processor, instruction set, number of threads and versions are the
    same, and a GPU was asked to be deterministic; also where only the processor differs, or is not recorded, and the
    weights come out equal. Elsewhere trainings diverge as two seeds do, so the bound on the difference of
    two figures is that of two runs of the arm: t(n - 1) * s * sqrt(2), with the standard deviation s of the n other
    runs of the arm, which one honest audit in 1,000 exceeds by chance.

    Args:
        folder: Of the comparison.
        asked: What to audit.
        free: Options of `train` that change no result, such as device.
        command: The command that continues the audit, for messages.
        screen: Shows messages and progress.

    Raises:
        UserError: There is no judged comparison, the images, code or weights are others, or it cannot be audited here.
        Stopped: The audit was asked to stop.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("audit trains in one process; start it without torchrun")
    design = read_design(folder, "put back the one that it began with")
    lacking = [name for name in (RESULTS, VERDICT, "runs") if not (folder / name).exists()]
    if design is None or lacking or len(design.arm_options) < len(design.arms):
        raise UserError(
            f"{str(folder)!r} holds no {lacking[0] if design and lacking else f'complete {DESIGN}'}; give the folder "
            "of a comparison that was judged, with its runs/ARM/seed-N"
        )
    check_networks(design, folder)
    screen.line(f"SHA-256 of the design at first: {design.digest()}")
    for change in design.changes:
        screen.line(f"changed since: {change}")
    gathered, mismatches = check_agreement(folder, design)
    outcome = Audit(
        comparison=str(folder),
        design=design.digest(),
        metric=design.metric,
        changes=design.changes,
        mismatches=tuple(mismatches),
        runs=(),
    )
    if mismatches:
        return outcome
    screen.line(f"the files agree: {counted(len(gathered.finished), 'run')}, the table and the verdict")
    with _folder(asked.out) as out:
        drawn = _drawn(out, asked, design, gathered)
        for arm, seed in drawn:
            screen.line(f"drawn: {arm}, seed {seed}")
        repetition = _Repetition(folder, out, asked, free, design, gathered, command, screen)
        repetition.check_images()
        repeated = tuple(repetition.of(arm, seed) for arm, seed in drawn)
    return msgspec.structs.replace(outcome, runs=repeated)


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Yield the folder for the trainings: `out`, or one that is removed after the block."""
    if out is not None:
        check_writable(out)
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="whatwhere-audit-") as temporary:
        try:
            yield Path(temporary)
        except Stopped as stopped:
            raise Stopped("the audit is stopped; with --out it could go on later", stopped.signal) from None


def _drawn(out: Path, asked: Asked, design: Design, gathered: Gathered) -> list[tuple[str, int]]:
    """Return the runs to train again: those that `out` was begun with, or drawn at random by the operating system."""
    candidates = [
        (arm, seed) for arm, seed in gathered.finished if asked.arm in (None, arm) and asked.seed in (None, seed)
    ]
    if len(candidates) < asked.num_runs:
        raise UserError(
            f"{len(candidates)} of the {len(gathered.finished)} finished runs are of that --arm and --seed, and --runs "
            f"is {asked.num_runs}; the arms are {few(gathered.results.arms, 10)}"
        )
    named = {arm.name: arm for arm in asked.arms}
    for name in dict.fromkeys(arm for arm, _ in candidates):
        arm = next(arm for arm in design.arms if arm.name == name)
        if arm.is_code and named.get(name) != arm:
            raise UserError(
                f"the arm {name} is code ({short(arm.spec)}), and whatwhere never imports code named in a file; name "
                f"it again, --attention {name}=MODULE:NAME, or choose another with --arm"
            )
    file = out / _DRAWN
    if not file.is_file():
        drawn = secrets.SystemRandom().sample(candidates, asked.num_runs)
        write_json(file, {"design": design.digest(), "drawn": drawn})
        return drawn
    try:
        begun = read_json(file, _Begun)
    except ValueError as error:
        raise UserError(f"{str(file)!r} is damaged ({cause(error)}); give another --out") from error
    if begun.design != design.digest() or len(begun.drawn) != asked.num_runs or not {*begun.drawn} <= {*candidates}:
        raise UserError(f"{str(out)!r} holds an audit of another comparison, or of other runs; give another --out")
    return list(begun.drawn)


class _Begun(msgspec.Struct):
    """The content of `audit.json`."""

    design: str
    drawn: tuple[tuple[str, int], ...]


@dataclass
class _Repetition:
    """Trains runs again in `out`."""

    folder: Path
    out: Path
    asked: Asked
    free: Mapping[str, Any]
    design: Design
    gathered: Gathered
    command: str
    screen: Screen

    def of(self, arm: str, seed: int) -> Repeated:
        """Train a run again, and compare the two.

        Raises:
            UserError: The images, code or weights are others, or there would be nothing to compare with.
        """
        run = self.gathered.finished[arm, seed]
        self._check_contents(arm)
        options = self._options(run, self.design.run_options(arm, seed))
        if fingerprint(self._images(options)) != run.description.data_fingerprint:
            why = "its images or their split are not those of the comparison with its seed"
            return self._repeated(run, Conditions((), True), wrong=why)
        sessions = run.description.sessions
        with computed_as_in(sessions), team(options["device"]) as processes:
            is_random = processes.device.type != "cpu" and not options["deterministic"]
            conditions = Conditions.of([*sessions, session(Config(), processes)], is_random)
            different = conditions.differing
            self._check_bound(arm, seed, different)
            how = f"within a bound, because {few(different)}" if different else "to the last bit"
            if conditions.processor and not different:
                how += f" if its weights are equal, as {conditions.processor}"
            threads, cores = torch.get_num_threads(), num_cores()
            slow = f" on {counted(cores, 'core')}, so it takes longer" if threads > cores else ""
            self.screen.line(
                f"training {arm}, seed {seed} again, in {counted(threads, 'thread')}{slow}; there it took "
                f"{duration(run.result.seconds)}; compared {how}"
            )
            again = RunFolder(self.out / arm / f"seed-{seed}")
            try:
                told = run_training(
                    self._data,
                    options,
                    out=again.path,
                    resume=True,
                    dry_run=False,
                    command=self.command,
                    screen=self.screen,
                )
            except Diverged as error:
                return self._repeated(run, conditions, wrong=f"trained again, it fails: {error.reason}")
        assert again.description is not None
        # it may have been begun elsewhere
        conditions = Conditions.of([*sessions, *again.description.sessions], is_random)
        repeated = self._repeated(run, conditions, again=again, result=msgspec.convert(told, Result))
        self._check_bound(arm, seed, repeated.differing)
        return repeated

    def _check_bound(self, arm: str, seed: int, different: Sequence[str]) -> None:
        """Raise UserError where a bound is needed and there are too few runs for one."""
        num_others = len(self.gathered.results.runs(arm)) - 1
        if different and num_others < LEAST_PAIRS - 1:
            raise UserError(
                f"{arm}, seed {seed} cannot be repeated to the last bit here ({few(different)}), and "
                f"a bound needs {LEAST_PAIRS - 1} other runs of {arm}, not {num_others}; audit it on such a machine"
            )

    @property
    def _data(self) -> str:
        return self.asked.data or self.design.data

    def _options(self, run: Finished, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options with which a run is trained again: here, but with the check that decides its split."""
        described = run.description.options
        kind = described["device"].partition(":")[0]
        here = torch.accelerator.current_accelerator(check_available=True)
        is_here = kind == "cpu" or (here is not None and here.type == kind)
        where = {"check": described["check"], "device": kind if is_here else "", **self.free}
        weights = {} if self.asked.pretrained is None else {"pretrained": self.asked.pretrained}
        return with_file_of_weights({**options, **where, **weights})[0]

    def _images(self, options: Mapping[str, Any]) -> Prepared:
        return prepare_images(self._data, options, OnlyProgress(self.screen))

    def check_images(self) -> None:
        """Raise UserError unless the images are those of the comparison."""
        run = next(iter(self.gathered.finished.values()))
        try:
            prepared = self._images(self._options(run, {**self.design.options, "seed": 0}))
        except UserError as error:
            if os.path.exists(self._data):
                raise
            raise UserError(
                f"{error}; where the images of the comparison lie elsewhere, name them with --data"
            ) from error
        if images_fingerprint(prepared) != self.design.data_fingerprint:
            raise UserError(
                f"{brief(self._data, 200)} has other images, labels or splits than the comparison; give its own with "
                "--data"
            )

    def _check_contents(self, arm: str) -> None:
        """Raise UserError unless the user's code of an arm, which is imported, and the weights are the comparison's."""
        begun_with = self.design.options["pretrained"]
        if self.asked.pretrained and (not begun_with or begun_with == "imagenet"):
            raise UserError("the comparison starts from no file of weights; leave out --pretrained")
        weights = with_file_of_weights({"pretrained": self.asked.pretrained or begun_with})[0]["pretrained"]
        found = hash_contents([known for known in self.design.arms if known.name == arm], weights)
        for what, advice in ((code_of(arm), "restore it"), (WEIGHTS, "give that file with --pretrained")):
            if (before := self.design.contents.get(what)) is not None and found.get(what) != before:
                how = "is another than that of the comparison" if what in found else "is not here"
                raise UserError(f"{what} {how}; {advice}")

    def _repeated(
        self,
        run: Finished,
        conditions: Conditions,
        *,
        again: RunFolder | None = None,
        result: Result | None = None,
        wrong: str = "",
    ) -> Repeated:
        """Compare a run with its repetition; where that has no result, `wrong` says why."""
        arm, seed = run.folder.parent.name, int(run.folder.name.partition("-")[2])
        where, different = f"runs/{arm}/{run.folder.name}", conditions.differing
        if conditions.processor and not different and not (result is not None and _is_same_network(run.result, result)):
            different = (conditions.processor,)
        mismatches, figures = [], []
        if again is None or result is None:
            mismatches.append(Mismatch(file=where, figure=wrong, arm=arm, seed=seed))
        else:
            figures = list(self._figures(arm, seed, run.result, result, is_bounded=bool(different)))
            mismatches += [
                Mismatch(
                    file=f"{where}/{RESULT}",
                    figure=figure.name,
                    arm=arm,
                    seed=seed,
                    said=figure.there,
                    found=figure.here,
                    by=_AGAIN,
                    bound=figure.bound,
                )
                for figure in figures
                if figure.bound is not None and abs(figure.there - figure.here) > figure.bound
            ]
            lines = [[_kept(line) for line in folder.metrics()] for folder in (RunFolder(run.folder), again)]
            for file, said, found in (
                ()
                if different
                else (
                    (RESULT, _kept(run.result), _kept(result)),
                    (LINES, *lines),
                )
            ):
                mismatches += differing(f"{where}/{file}", said, found, by=_AGAIN, exact=True, arm=arm, seed=seed)
        return Repeated(
            arm=arm,
            seed=seed,
            differing=different,
            is_same_machine=conditions.is_same_machine,
            weights_there=run.result.weights,
            weights_here="" if result is None else result.weights,
            figures=tuple(figures),
            mismatches=tuple(mismatches),
        )

    def _figures(self, arm: str, seed: int, there: Result, here: Result, *, is_bounded: bool) -> Iterator[Figure]:
        """Yield the figures of the judged images that both have, where asked with bounds from the other runs."""
        for name in METRICS:
            said, found = getattr(there.judged, name), getattr(here.judged, name)
            others = [value for other, value in self.gathered.results.values(arm, name).items() if other != seed]
            if said is not None and found is not None and (not is_bounded or len(others) >= LEAST_PAIRS - 1):
                bound = self._bound(others) if is_bounded else None
                yield Figure(name=name, there=said, here=found, bound=bound)

    def _bound(self, others: Sequence[float]) -> float:
        """Return how far two runs of an arm may be apart, by the spread of its other runs."""
        from scipy.special import stdtrit

        # figures at their ceiling may not vary at all, and one image may
        spread = max(statistics.stdev(others), 1 / self.gathered.num_images)
        return float(stdtrit(len(others) - 1, 1 - _LEVEL / 2)) * spread * math.sqrt(2)


def _is_same_network(there: Result, here: Result) -> bool:
    """Return whether the weights that two runs ended with are known and equal; only the best ones are known."""
    return there.weights == here.weights != "" and there.best_epoch == there.num_epochs


def _kept(content: Result | EpochLine) -> dict[str, Any]:
    """Return what a repetition has in common with its run: all but its time and the hash of run.json, which has paths.

    What results of earlier versions do not say is "".
    """
    told = msgspec.to_builtins(content)
    return {name: value for name, value in told.items() if value != "" and name not in ("seconds", "run")}
