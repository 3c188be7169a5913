"""A training run from DATA to its result, from top to bottom: what `whatwhere train` calls."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from ..attention.gate import largest_mix
from ..base.errors import Stopped, UserError
from ..base.files import DiskFull
from ..base.screen import OnlyProgress, Screen, Silent, about
from ..base.words import counted, few, printable
from ..collect.result import told_of_mix
from ..data.images import ImageError
from ..data.preprocess import Preprocessing
from ..data.split import Prepared, fingerprint
from ..explain.health import health_of
from ..networks.spec import NetworkSpec
from . import checkpoint
from .bundle import Bundle, load_bundle
from .config import Config
from .distributed import Team, team
from .estimate import Outlook
from .evaluate import Figures, evaluate, merit
from .plots import TensorBoard
from .run_folder import LAST, METRICS, RUN, EpochLine, RunFolder
from .setup import (
    build_material,
    build_model,
    build_trainer,
    check_apart,
    check_given,
    describe,
    deterministic,
    prepare_images,
    preprocessing_of,
    resolve,
    session,
)
from .state import Progress, RunState
from .stops import Unfinished, listening, memory_errors
from .trainer import Diverged, Trainer, check_weights

_MOST_HEALTH_IMAGES = 256
_LONG = 30.0  # seconds of training; before an evaluation, more than this is saved first


def run_training(
    data: str,
    given: Mapping[str, Any],
    *,
    out: Path | None,
    resume: bool,
    dry_run: bool,
    command: str,
    screen: Screen,
    with_test: bool = True,
    say_how_long: bool = True,
    began: Callable[[RunFolder], None] = lambda folder: None,
    clock: Callable[[], float] = time.monotonic,
    trainer_class: type[Trainer] = Trainer,
    folder_class: type[RunFolder] = RunFolder,
) -> dict[str, Any] | None:
    """Train a network on DATA and return the result as in `result.json`.

    Returns None after a dry run, and in every process but the first.

    Args:
        data: As `find_source` takes it.
        given: Options by name; the others are chosen (`config.defaults`). An `attention` MODULE:NAME is imported, so it
            must come from the caller, never from a file.
        out: Folder of the run; runs/{DATA}/{model}-seed{seed} by default.
        resume: Continue the run in the folder; start one where there is none.
        dry_run: Check everything and train a few steps; write nothing.
        command: The command that continues the run, for messages.
        screen: Shows messages and progress.
        with_test: Evaluate the best network on the test images at the end. Without it the test images are only checked,
            and the result is on the validation images.
        say_how_long: Show an estimate after the first steps.
        began: Called with the folder of the run once it is known.
        clock: Returns the time in seconds, for estimates.
        trainer_class: Trains the network.
        folder_class: Keeps the files of the run.

    Raises:
        UserError: Anything that the user can correct.
        Stopped: The run was asked to stop and is saved.
    """
    if out is not None and not resume and not dry_run:
        folder_class(out).check_new()
    # options that are not given stay as they were: the split depends on them, and defaults on the machine
    kept = folder_class(out).fixed_options(given) if out is not None and resume else {}
    given, attention = check_given(data, given)
    if out is None and given.get("model"):
        out = _default_folder(data, given["model"], given.get("seed", 0))
        kept = folder_class(out).fixed_options(given) if resume else {}
    with team(given.get("device", ""), command) as processes:
        screen = screen if processes.is_first else Silent()

        def images_and_options(screen: Screen) -> tuple[Prepared, Config]:
            with processes.first_alone():
                prepared = prepare_images(data, {**kept, **given}, screen)
            return prepared, resolve(data, {**kept, **given}, prepared, processes)

        is_late = resume and out is None  # the images choose the network, it names the folder, and that has the options
        prepared, config = images_and_options(OnlyProgress(screen) if is_late else screen)
        folder = folder_class(out or _default_folder(data, config.model, config.seed))
        if is_late:
            kept = folder.fixed_options(given)
            prepared, config = images_and_options(screen)
        check_apart(folder.path, prepared)
        processes.check_same(json.dumps([fingerprint(prepared), asdict(config)], default=str), "images or options")
        preprocessing = (folder.preprocessing if resume else None) or preprocessing_of(config)
        with processes.first_alone():
            model, spec = build_model(config, len(prepared.classes), attention)
            if resume:
                folder.check_same(config, prepared)
        for line in describe(config, given, prepared, model, processes, is_continued=bool(kept)):
            screen.line(line)
        began(folder)
        run = Run(config, spec, prepared, preprocessing, processes, folder, screen, attention, say_how_long, clock)
        with memory_errors(config), deterministic(config):
            if dry_run:
                run.set_up(model, with_test, trainer_class)
                run.outlook.try_out(run.material.train, run.evaluate, num_done=len(folder.metrics()) if resume else 0)
                return None
            with folder.held() if processes.is_first else contextlib.nullcontext():
                if processes.is_first:
                    now = session(config, processes)
                    folder.begin(config, prepared, preprocessing, now, given=given, resume=resume)
                processes.wait()
                result = folder.result
                if result is not None:
                    screen.line(f"the run in {str(folder.path)!r} is finished; nothing to do")
                else:
                    with _images_put_back(command):
                        run.set_up(model, with_test, trainer_class)
                        if resume:
                            run.restore()
                        result = _to_the_end(run, command)
                return result if processes.is_first else None


def _default_folder(data: str, model: str, seed: int) -> Path:
    return Path("runs") / (Path(data).stem or "data") / f"{model.replace(':', '-')}-seed{seed}"


@contextlib.contextmanager
def _images_put_back(command: str) -> Iterator[None]:
    """Complete the message on an image that cannot be read any more."""
    try:
        yield
    except ImageError as error:
        if error.kind == "silent":
            raise UserError(f"{error}; when it does, continue with", command) from error
        raise UserError(
            f"{error}; start again with another --out, or put the whole file back, and continue with", command
        ) from error


def _to_the_end(run: Run, command: str) -> dict[str, Any]:
    """Train and return the result; complete the message of what ends a run early."""
    folder = run.folder
    is_alone = run.team.world_size == 1
    with listening(run.trainer.request_stop, lambda: run.is_saving, alone=is_alone) as received:
        try:
            run.train()
            return run.finish()
        except Stopped as stopped:
            message = f"{stopped}, saved in {str(folder.path)!r}; continue with: {command}"
            raise Stopped(message, received[0] if received else 0) from None
        except (KeyboardInterrupt, Unfinished) as error:
            how = "at once" if isinstance(error, KeyboardInterrupt) else "in a step that takes long"
            message = f"interrupted {how}; what was saved before is kept in {str(folder.path)!r}"
            raise Stopped(f"{message}; continue with: {command}", received[0] if received else signal.SIGINT) from None
        except DiskFull as error:
            raise UserError(f"{error}; free space there, and continue with", command) from error
        except Diverged as error:
            if not error.indices:
                raise
            paths = [run.prepared.parts["train"][index].path for index in error.indices]
            kept, command = f"the weights saved before are kept in {str(folder.last)!r}", ""
            if folder.has_best:
                kept, command = f"{kept}; a new run can start from the best ones", folder.continued_by(run.config.data)
            advice = f"{error.advice}; the batch: {few(paths, 8)}; {kept}"
            raise Diverged(error.reason, advice, command=command) from error


@dataclass
class Run:
    """A run in progress: trains, evaluates after each epoch, keeps the best network, saves checkpoints."""

    config: Config
    spec: NetworkSpec
    prepared: Prepared
    preprocessing: Preprocessing
    team: Team
    folder: RunFolder
    screen: Screen
    attention: Callable[..., nn.Module] | None  # the imported code where `config.attention` is an import path
    say_how_long: bool
    clock: Callable[[], float]  # for estimates alone; it changes no record

    def set_up(self, model: nn.Module, with_test: bool, trainer_class: type[Trainer]) -> None:
        """Read the images ahead and build the trainer."""
        began = self.clock()
        self.material = build_material(self.config, self.prepared, self.preprocessing, self.team, with_test=with_test)
        reading = self.clock() - began
        if self.material.cache != "none":
            where = "on the device" if self.material.cache == "device" else "in memory"
            self.screen.line(f"images decoded and kept {where} ({reading:.1f} s)")
        num_classes = len(self.prepared.classes)
        self.trainer = build_trainer(self.config, self.material.train, model, num_classes, self.team, trainer_class)
        self.progress = Progress()
        num_images = {part: len(samples) for part, samples in self.prepared.parts.items()}
        screen = self.screen if self.say_how_long and self.team.is_first else None
        self.outlook = Outlook(self.config, num_images, self.trainer, screen, self.clock, reading)
        self.is_saving = False
        self._saved = self._counted = time.monotonic()
        self._epoch_began = (self.trainer.position.step, self._counted)
        self._tensorboard = TensorBoard(self.folder.path) if self.config.tensorboard else None

    def restore(self) -> None:
        """Continue from the newest sound checkpoint, if there is one; remove what was written after it."""
        # rank 0 chooses for all: another process might read a damaged copy
        found = checkpoint.newest(self.folder.last, self.screen.warn) if self.team.is_first else None
        num_lines = len(self.folder.metrics())
        # a kill may come between the first line and the first checkpoint, which the first bundle follows
        if self.team.is_first and found is None and (num_lines > 1 or self.folder.has_best):
            raise UserError(
                f"{str(self.folder.path)!r} has {counted(num_lines, 'epoch')} in {METRICS}, but no checkpoint in "
                f"{LAST}/ to go on from; put it back, or start again with another --out"
            )
        step = self.team.of_first(-1 if found is None else found[0])
        if step >= 0:
            state = found[1] if found is not None else checkpoint.read(self.folder.last, step)
            with checkpoint.check_fits(self.folder.last, step):
                self._take(msgspec.convert(state, RunState), step)
        self.team.wait()
        if self.team.is_first:
            self.folder.keep_metrics(self.progress.num_evaluated)
            checkpoint.clear_after(self.folder.last, self.trainer.position.step)
            at_end = self.trainer.position.step == self.progress.best_epoch * self.trainer.order.steps_per_epoch
            if self.progress.num_evaluated == self.progress.best_epoch > 0 and at_end:
                self._keep_best()  # a kill may have come between the checkpoint and the bundle
        self._epoch_began = (self.trainer.position.step, time.monotonic())
        self.screen.line(
            f"continuing after step {step:,} of {self.trainer.num_steps:,}"
            if step >= 0
            else "no checkpoint yet: starting from the beginning"
        )

    def _take(self, state: RunState, step: int) -> None:
        """Go on from the state of the checkpoint of `step`; raise ValueError where it is not one of this run."""
        if state.run not in ("", self._digest):
            raise UserError(
                f"{str(self.folder.path / RUN)!r} has other options, images or preprocessing than its checkpoint was "
                "written with; put the old file back, or start again with another --out"
            )
        self.trainer.load_state_dict(state.trainer)
        self.progress, length = state.record, self.trainer.order.steps_per_epoch
        done, best = self.progress.num_evaluated, self.progress.best_epoch
        has_best = self.progress.best_score is not None
        if self.trainer.position.step != step or not has_best <= best <= done * has_best or done > step // length:
            raise ValueError(f"it is of step {self.trainer.position.step:,}, with {done:,} evaluations")
        if len(lines := self.folder.metrics()) < done:
            raise ValueError(f"{METRICS} lacks the line of epoch {len(lines) + 1:,}")
        if state.metrics not in ("", self.folder.metrics_digest(done)):
            raise UserError(
                f"{str(self.folder.path / METRICS)!r} has other figures of {counted(done, 'epoch')} than its "
                "checkpoint was written with; put the old file back, or start again with another --out"
            )

    @functools.cached_property
    def _digest(self) -> str:
        """What the checkpoints keep of `run.json`."""
        description = self.folder.description
        return "" if description is None else description.digest

    def train(self) -> None:
        """Train to the last epoch or the early stop; raise Stopped after a request to stop, when all is saved."""
        trainer, save_seconds = self.trainer, 60 * self.config.save_minutes
        try:
            if self.progress.num_evaluated < trainer.epoch:  # stopped or killed before the evaluation
                self._end_epoch()
            if self._is_early():
                return
            for epoch_ends in trainer.run(self.material.train):
                self.screen.progress("training", trainer.position.step, trainer.num_steps)
                self._leave_out(self.outlook.after_step())
                if epoch_ends:
                    self._end_epoch()
                    if self._is_early():
                        return
                elif self.team.is_first and time.monotonic() - self._saved >= save_seconds:
                    self.save()
        # between two steps, so that the state is whole; other processes may be in a step
        except (Stopped, ImageError) as error:
            if isinstance(error, ImageError) and self.team.world_size > 1:
                raise
            self.save(is_last=True)
            self.team.wait()  # torchrun kills all processes once one ends: rank 0 must have saved before
            raise

    def save(self, *, is_last: bool = False) -> None:
        """Write a checkpoint; `is_last` says that the run ends with it."""
        if self.team.is_first:
            self.is_saving = True
            state = self.trainer.state_dict()
            self._count_time()
            metrics = self.folder.metrics_digest(self.progress.num_evaluated)
            state = {"trainer": state, "record": asdict(self.progress), "run": self._digest, "metrics": metrics}
            checkpoint.save(self.folder.last, self.trainer.position.step, state)
            self._saved = time.monotonic()
            self.is_saving = is_last

    def evaluate(
        self, model: nn.Module, part: str, *, with_probabilities: bool = False, most: int | None = None
    ) -> Figures:
        """Evaluate `model` on the "val" or "test" images, each counted once over all processes.

        With `most`, only so many batches of each process are evaluated.
        """
        batches = self.material.evaluation[part]

        def on_batch(done: int) -> None:
            self.screen.progress(f"evaluating ({part})", done, len(batches.labels) // self.team.world_size)
            # several processes could not agree on the batch to stop at
            if self.trainer.stop_requested and self.team.world_size == 1:
                raise self.trainer.stopped()

        return evaluate(
            model,
            islice(batches, most),
            len(self.prepared.classes),
            self.team,
            autocast=self.trainer.autocast,
            on_batch=on_batch,
            collect=len(batches.labels) if with_probabilities else 0,
        )

    def _end_epoch(self) -> None:
        """Evaluate, write the epoch's line, keep the network if it is the best so far, save."""
        trainer, epoch, progress = self.trainer, self.trainer.epoch, self.progress
        first_step, began = self._epoch_began
        images_per_step = trainer.order.num_samples / trainer.order.steps_per_epoch
        speed = (trainer.position.step - first_step) * images_per_step / max(time.monotonic() - began, 1e-9)
        trainer.align()
        for model in dict.fromkeys((trainer.model, trainer.evaluated)):
            check_weights(model)
        if self.team.is_first and time.monotonic() - self._saved >= _LONG:
            self.save()
        figures = self.evaluate(trainer.evaluated, "val")
        is_last = self.config.best_by == "last"
        rank = (float(epoch), 0.0) if is_last else merit(figures, self.config.best_by)
        is_best = progress.best_score is None or rank > (progress.best_score, -progress.best_loss)
        progress.num_evaluated = epoch
        if is_best:
            progress.best_epoch, progress.best_score, progress.best_loss = epoch, rank[0], -rank[1]
        if self.team.is_first:
            self._count_time()
            validation = {f"val_{name}": value for name, value in figures.summary().items() if name != "num_images"}
            line = EpochLine(
                epoch=epoch,
                step=trainer.position.step,
                lr=trainer.optimizer.param_groups[0]["lr"],
                train_loss=trainer.epoch_loss,
                **validation,
                is_best=is_best,
                seconds=round(progress.seconds, 3),
            )
            self.folder.append_metrics(line)
            self.save()
            if is_best:
                self._keep_best()
            self._show(line, speed)
            if self._tensorboard is not None:
                self._tensorboard.write(msgspec.to_builtins(line))
        self._epoch_began = (trainer.position.step, time.monotonic())

    def _keep_best(self) -> None:
        """Write the network as it is now as the best one."""
        line = self.folder.metrics()[self.progress.best_epoch - 1]
        figures = msgspec.to_builtins(line).items()
        info = {name: value for name, value in figures if name == "epoch" or name.startswith("val_")}
        bundle = Bundle(self.trainer.evaluated, self.spec, self.prepared.classes, self.material.preprocessing, info)
        self.folder.save_best(bundle)

    def _show(self, line: EpochLine, images_per_second: float) -> None:
        total = self.config.epochs
        left = self.progress.seconds / line.epoch * (total - line.epoch)
        loss = "not finite" if line.val_loss is None else f"{line.val_loss:.4f}"
        best = ", best so far" if line.is_best and self.config.best_by != "last" else ""
        self.screen.line(
            f"epoch {line.epoch}/{total}: loss {line.train_loss:.4f}, validation {line.val_accuracy:.2%} "
            f"(balanced {line.val_balanced_accuracy:.2%}, loss {loss}){best}; "
            f"{images_per_second:,.0f} images/s, {about(left)} left"
        )

    def _is_early(self) -> bool:
        """Return whether the validation has not improved for `early_stop` epochs."""
        waited = self.progress.num_evaluated - self.progress.best_epoch
        return bool(self.config.early_stop) and waited >= self.config.early_stop

    def _count_time(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self._counted
        self._counted = now

    def _leave_out(self, seconds: float) -> None:
        """Leave out seconds without training from the times of the run."""
        self._counted += seconds
        self._epoch_began = (self._epoch_began[0], self._epoch_began[1] + seconds)

    def _gate_faults(self, model: nn.Module) -> list[dict[str, str]] | None:
        """Return what gate health finds with validation images spread over all; None where nothing is known."""
        batches = self.material.evaluation["val"]
        apart = -(-len(batches.labels) // _MOST_HEALTH_IMAGES)  # the images are sorted by their classes
        spread = (batch.images for batch in replace(batches, rank=0, world_size=apart))
        try:
            with self.trainer.autocast():
                findings = health_of(model, spread, _MOST_HEALTH_IMAGES)
        except Exception:  # a user's attention may raise anything outside its own forward pass; the result counts more
            return None
        if findings is None:
            return None
        return [{"layer": one.layer, "gate": one.gate, "fault": one.fault} for one in findings]

    def finish(self) -> dict[str, Any]:
        """Evaluate the best network on the validation and test images; write the result and the pictures."""
        self.team.wait()  # rank 0 has written the last bundle
        best = load_bundle(self.folder.best, self.team.device, attention=self.attention)
        parts = {part: self.evaluate(best.model, part, with_probabilities=True) for part in self.material.evaluation}
        self._count_time()
        mix = largest_mix(best.model)
        judged, classes = "test" if "test" in parts else "val", self.prepared.classes
        result = {
            "status": "finished" if self.trainer.epoch == self.config.epochs else "stopped early",
            "best_by": self.config.best_by,
            "best_epoch": self.progress.best_epoch,
            "num_epochs": self.trainer.epoch,
            "seconds": round(self.progress.seconds, 1),
            **{part: figures.summary() for part, figures in parts.items()},
            "judged_on": judged,
            "classes": list(classes),
            "per_class": parts[judged].per_class(classes),
            "confusion": parts[judged].confusion.tolist(),
            "run": self._digest,
            "weights": best.digest,
            "largest_mix": mix,
            "gates": self._gate_faults(best.model) if self.team.is_first else None,
        }
        if self.team.is_first:
            data = printable(Path(self.config.data).name or self.config.data)
            title = f"{self.spec.describe()}, {data}, seed {self.config.seed}"
            self.folder.draw(title, parts[judged].confusion, classes, "test" if judged == "test" else "validation")
            self.folder.save_result(result)
            if told := told_of_mix(mix):
                self.screen.warn(told)
        return result
