"""A training run from DATA to its results: what `whatwhere train` does."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..data.names import few, printable
from ..data.prepare import Prepared, fingerprint, prepare
from ..errors import UserError
from ..files import check_writable, write_bytes, write_json
from ..models.registry import check_name
from . import checkpoint
from .build import Material, build_material, build_model, describe, device_name, resolve
from .bundle import Bundle, load_bundle, save_bundle
from .config import Config
from .distributed import Team, team
from .evaluate import Figures, evaluate
from .folder import RESULT, RunFolder
from .loop import LossNotFinite, StopRequested, Trainer, check_weights
from .picture import confusion_png, curves_png

_LONG = 30.0  # seconds of training that an evaluation cut short may not cost


class Screen(Protocol):
    """What a run tells the person who watches."""

    def line(self, text: str) -> None:
        """Say `text`."""

    def warn(self, text: str) -> None:
        """Say `text` as a warning."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far `what` is."""


class Silent:
    """A screen for processes that do not speak."""

    def line(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def progress(self, what: str, done: int, total: int) -> None: ...


class Stopped(Exception):  # noqa: N818 - no error
    """The run was asked to stop, and everything is saved.

    Attributes:
        signal: The number of the signal that asked, 0 where another process was asked.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


@dataclass
class _Record:
    """What a run has come to so far, besides the trainer's state."""

    num_evaluated: int = 0
    best_epoch: int = 0
    best_score: float | None = None
    seconds: float = 0.0


@dataclass
class Run:
    """A run in progress: trains, evaluates after each epoch, keeps the best network, saves."""

    config: Config
    team: Team
    classes: tuple[str, ...]
    material: Material
    trainer: Trainer
    folder: RunFolder
    screen: Screen
    record: _Record = field(default_factory=_Record)

    def __post_init__(self) -> None:
        self._saved = self._counted = time.monotonic()
        self._epoch_began = (self.trainer.position.step, self._counted)
        self._writer: Any = None

    def restore(self) -> None:
        """Take up the newest sound checkpoint, if there is one; drop what was written after it."""
        # the first chooses for all: another might find another one damaged
        found = checkpoint.newest(self.folder.last, self.screen.warn) if self.team.is_first else None
        step = self.team.of_first(-1 if found is None else found[0])
        state = None
        if step >= 0:
            state = found[1] if found is not None else checkpoint.read(self.folder.last, step)
            self.trainer.load_state_dict(state["trainer"])
            self.record = _Record(**state["record"])
        self.team.wait()
        if self.team.is_first:
            self.folder.keep_metrics(self.record.num_evaluated)
            checkpoint.clear_after(self.folder.last, self.trainer.position.step)
            at_end = self.trainer.position.step == self.record.best_epoch * self.trainer.order.steps_per_epoch
            if self.record.num_evaluated == self.record.best_epoch > 0 and at_end:
                self._keep_best()  # a kill may have come between the checkpoint and the bundle
        self._epoch_began = (self.trainer.position.step, time.monotonic())
        step, total = self.trainer.position.step, self.trainer.num_steps
        self.screen.line(
            f"continuing after step {step:,} of {total:,}" if state else "no checkpoint yet: starting anew"
        )

    def train(self) -> None:
        """Train to the last epoch or the early stop.

        Raises:
            StopRequested: It was asked to stop; everything is saved.
        """
        trainer, save_seconds = self.trainer, 60 * self.config.save_minutes
        try:
            if self.record.num_evaluated < trainer.epoch:  # stopped or killed before the evaluation
                self._end_epoch()
            if self._is_early():
                return
            for epoch_ends in trainer.run(self.material.train):
                self.screen.progress("training", trainer.position.step, trainer.num_steps)
                if epoch_ends:
                    self._end_epoch()
                    if self._is_early():
                        return
                elif self.team.is_first and time.monotonic() - self._saved >= save_seconds:
                    self.save()
        except StopRequested:
            self.save()
            self.team.wait()  # a process that ended before the first had saved would make torchrun end that one too
            raise

    def save(self) -> None:
        """Write a checkpoint."""
        if not self.team.is_first:
            return
        state = self.trainer.state_dict()
        self._count_time()
        checkpoint.save(self.folder.last, self.trainer.position.step, {"trainer": state, "record": asdict(self.record)})
        self._saved = time.monotonic()

    def evaluate(self, model: nn.Module, part: str) -> Figures:
        """Return the figures of `model` on a part's images, each counted once over all processes."""
        batches = self.material.evaluation[part]
        done = 0

        def on_batch(num_images: int) -> None:
            nonlocal done
            done += num_images
            self.screen.progress(f"evaluating ({part})", done, len(batches.labels) // self.team.world_size)
            # alone, a stop need not wait; many could not agree on a batch here
            if self.trainer.stop_requested and self.team.world_size == 1:
                raise StopRequested

        return evaluate(model, batches, len(self.classes), self.team, autocast=self.trainer.autocast, on_batch=on_batch)

    def _end_epoch(self) -> None:
        """Evaluate, write the epoch's line, keep the network if it is the best so far, save."""
        trainer, epoch = self.trainer, self.trainer.epoch
        first_step, began = self._epoch_began
        images_per_step = self.material.order.num_samples / self.material.order.steps_per_epoch
        speed = (trainer.position.step - first_step) * images_per_step / max(time.monotonic() - began, 1e-9)
        trainer.align()
        for model in {id(network): network for network in (trainer.model, trainer.evaluated)}.values():
            check_weights(model)
        if self.team.is_first and time.monotonic() - self._saved >= _LONG:
            self.save()
        figures = self.evaluate(trainer.evaluated, "val")
        score = figures.score(self.config.best_by)
        score = score if math.isfinite(score) else -sys.float_info.max
        is_best = self.record.best_score is None or score > self.record.best_score
        self.record.num_evaluated = epoch
        if is_best:
            self.record.best_epoch, self.record.best_score = epoch, score
        if self.team.is_first:
            self._count_time()
            record = {
                "epoch": epoch,
                "step": trainer.position.step,
                "lr": trainer.optimizer.param_groups[0]["lr"],
                "train_loss": trainer.epoch_loss,
                **{f"val_{name}": value for name, value in figures.summary().items() if name != "num_images"},
                "is_best": is_best,
                "seconds": round(self.record.seconds, 3),
            }
            self.folder.append_metrics(record)
            self.save()
            if is_best:
                self._keep_best()
            self._show(record, speed)
        self._epoch_began = (trainer.position.step, time.monotonic())

    def _keep_best(self) -> None:
        """Write the network as it is as the best one."""
        line = next(line for line in self.folder.metrics() if line["epoch"] == self.record.best_epoch)
        info = {name: value for name, value in line.items() if name == "epoch" or name.startswith("val_")}
        model = self.trainer.evaluated
        save_bundle(self.folder.best, Bundle(model, self.config.model, self.classes, self.material.preprocessing, info))

    def _show(self, record: dict[str, Any], images_per_second: float) -> None:
        epoch, total = record["epoch"], self.config.epochs
        left = self.record.seconds / epoch * (total - epoch)
        self.screen.line(
            f"epoch {epoch}/{total}: loss {record['train_loss']:.4f}, validation {record['val_accuracy']:.2%} "
            f"(balanced {record['val_balanced_accuracy']:.2%}, loss {record['val_loss']:.4f})"
            f"{', best so far' if record['is_best'] else ''}; "
            f"{images_per_second:,.0f} images/s, "
            f"{duration(left)} left"
        )
        if self.config.tensorboard:
            # what a killed run wrote after its last checkpoint is dropped
            self._writer = self._writer or _tensorboard(self.folder.path, record["step"])
            for name, value in record.items():
                if name not in ("epoch", "step", "is_best"):
                    self._writer.add_scalar(name, value, record["step"])
            self._writer.flush()

    def _is_early(self) -> bool:
        waited = self.record.num_evaluated - self.record.best_epoch
        return bool(self.config.early_stop) and waited >= self.config.early_stop

    def _count_time(self) -> None:
        now = time.monotonic()
        self.record.seconds += now - self._counted
        self._counted = now

    def finish(self) -> dict[str, Any]:
        """Evaluate the kept network once more, on the test images too; write the result and the pictures."""
        self.team.wait()  # the last bundle is written
        best = load_bundle(self.folder.best, self.team.device)
        parts = {part: self.evaluate(best.model, part) for part in self.material.evaluation}
        self._count_time()
        judged = "test" if "test" in parts else "val"
        result = {
            "status": "finished" if self.trainer.epoch == self.config.epochs else "stopped early",
            "best_epoch": best.info["epoch"],
            "num_epochs": self.trainer.epoch,
            "seconds": round(self.record.seconds, 1),
            **{part: figures.summary() for part, figures in parts.items()},
            "judged_on": judged,
            "classes": list(self.classes),
            "per_class": parts[judged].per_class(self.classes),
            "confusion": parts[judged].confusion.tolist(),
        }
        if self.team.is_first:
            self._draw(parts[judged])
            write_json(self.folder.path / RESULT, result)
        return result

    def _draw(self, figures: Figures) -> None:
        data = printable(Path(self.config.data).name or self.config.data)
        title = f"{self.config.model}, {data}, seed {self.config.seed}"
        part = "test" if "test" in self.material.evaluation else "validation"
        curves = curves_png(self.folder.metrics(), title)
        write_bytes(self.folder.path / "curves.png", curves)
        confusion = confusion_png(figures.confusion, self.classes, f"{title}: {part} images")
        write_bytes(self.folder.path / "confusion.png", confusion)


def _tensorboard(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)


def run_training(
    data: str, given: Mapping[str, Any], *, out: Path | None, resume: bool, dry_run: bool, command: str, screen: Screen
) -> dict[str, Any] | None:
    """Train a network on DATA and return the result, as `result.json` has it; None from a dry run.

    Args:
        data: As `find_source` takes it.
        given: Options by name; those left out are chosen (`config.defaults`).
        out: Folder of the run; by default runs/{DATA}/{model}-seed{seed}.
        resume: Continue the run that is there; start one where there is none.
        dry_run: Check everything, train for a few steps, write nothing.
        command: What the user typed, for the advice how to continue.
        screen: Hears of the progress.

    Raises:
        UserError: Anything that the user can mend.
        Stopped: The run was asked to stop and is saved.
    """
    Config(data=data, **given)  # what is wrong in itself is said before a long check of the images
    if "model" in given:
        check_name(given["model"])
    if given.get("tensorboard") and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs TensorBoard: pip install 'whatwhere[tensorboard]'")
    if given.get("deterministic"):
        # read by cuBLAS when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with team(given.get("device", "")) as processes, _others_lost(processes, command):
        screen = screen if processes.is_first else Silent()
        with processes.first_alone():
            prepared = _prepare(data, given, screen)
        config = resolve(data, given, prepared.median_side, processes)
        path = out or Path("runs") / (Path(data).stem or "data") / f"{config.model}-seed{config.seed}"
        folder = RunFolder(path)
        if resume:
            # what is not given is as it was: another machine would choose otherwise
            config = resolve(data, {**folder.fixed_options(), **given}, prepared.median_side, processes)
        processes.check_same(json.dumps([fingerprint(prepared), asdict(config)], default=str), "images or options")
        with processes.first_alone():
            model = build_model(config, len(prepared.classes))
        for line in describe(config, given, prepared, model, processes):
            screen.line(line)
        with _out_of_memory(config, command), _deterministic(config):
            if dry_run:
                _try_out(config, prepared, model, processes, screen)
                return None
            return _run(config, prepared, model, processes, folder, resume, command, screen)


def _run(
    config: Config,
    prepared: Prepared,
    model: nn.Module,
    processes: Team,
    folder: RunFolder,
    resume: bool,
    command: str,
    screen: Screen,
) -> dict[str, Any]:
    if processes.is_first:
        check_writable(folder.path)
    with checkpoint.locked(folder.path) if processes.is_first else contextlib.nullcontext():
        if processes.is_first:
            folder.begin(config, prepared, _session(config, processes), resume=resume)
        processes.wait()
        if folder.result is not None:
            screen.line(f"the run in {str(folder.path)!r} is finished; nothing to do")
            return folder.result
        material, trainer = _material_and_trainer(config, prepared, model, processes, screen)
        run = Run(config, processes, prepared.classes, material, trainer, folder, screen)
        if resume:
            run.restore()
        received: list[int] = []
        try:
            with _signals(trainer, received, alone=processes.world_size == 1):
                run.train()
                return run.finish()
        except StopRequested:
            position = f"step {trainer.position.step:,} of {trainer.num_steps:,}"
            message = f"stopped after {position}, saved in {str(folder.path)!r}; continue with: {_again(command)}"
            raise Stopped(received[0] if received else 0, message) from None
        except LossNotFinite as error:
            raise UserError(_with_paths(error, prepared, folder)) from error


def _prepare(data: str, given: Mapping[str, Any], screen: Screen) -> Prepared:
    names = ("val_fraction", "test_fraction", "skip_bad", "check", "download")
    texts = ("group_from", "path_column", "label_column", "data_dir")
    options = {name: given[name] for name in names if name in given}
    options |= {name: given[name] for name in texts if given.get(name)}
    seed = given.get("seed", 0)
    prepared = prepare(
        data, seed=seed, progress=lambda done, total: screen.progress("checking the images", done, total), **options
    )
    if prepared.left_out:
        screen.warn(f"left out as bad: {few(prepared.left_out, 5)}")
    for finding in prepared.report.findings if prepared.report is not None else ():
        if finding.severity == "warning":
            screen.warn(finding.message)
    return prepared


def _material_and_trainer(
    config: Config, prepared: Prepared, model: nn.Module, processes: Team, screen: Screen
) -> tuple[Material, Trainer]:
    began = time.monotonic()
    material = build_material(config, prepared, processes)
    if material.cache != "none":
        where = "on the device" if material.cache == "device" else "in memory"
        screen.line(f"images decoded and kept {where} ({time.monotonic() - began:.1f} s)")
    model = model.to(processes.device)
    if config.sync_bn and processes.world_size > 1:
        if processes.device.type != "cuda":
            raise UserError("--sync-bn needs a GPU for each process: torch has it for CUDA only; leave it out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    trainer = Trainer(
        model,
        config,
        material.order,
        num_classes=len(prepared.classes),
        seed=config.seed,
        team=processes,
        class_weights=material.class_weights,
        compile=config.compile,
    )
    return material, trainer


def _try_out(config: Config, prepared: Prepared, model: nn.Module, processes: Team, screen: Screen) -> None:
    material, trainer = _material_and_trainer(config, prepared, model, processes, screen)
    times = []
    for _ in trainer.run(material.train):
        trainer.settle()
        times.append(time.monotonic())
        if len(times) == 4 or trainer.position.step == trainer.num_steps:
            break
    step = (times[-1] - times[0]) / max(1, len(times) - 1)
    memory = ""
    if processes.device.type == "cuda":
        memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory"
    whole = duration(step * trainer.num_steps)
    screen.line(
        f"dry run: {trainer.position.step} steps done, {step:.2f} s a step{memory}; {trainer.order.steps_per_epoch} "
        f"steps an epoch, about {whole} in all without evaluation; nothing written"
    )


@contextlib.contextmanager
def _signals(trainer: Trainer, received: list[int], *, alone: bool) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C ask the trainer to stop; a second Ctrl-C interrupts a lone process at once."""

    def ask(number: int, frame: Any) -> None:
        # torchrun passes on what the terminal has sent already
        if received and number == signal.SIGINT and alone:
            raise KeyboardInterrupt
        received.append(number)
        trainer.stop_requested = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _out_of_memory(config: Config, command: str) -> Iterator[None]:
    """Turn what torch says of exhausted memory, and of workers that it cost, into advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        exhausted = ("out of memory", "allocate memory", "ALLOC_FAILED", "shared memory")
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in text for words in exhausted):
            raise UserError(
                f"out of memory with batches of {config.batch_size} images of {config.image_size} px in "
                f"{config.accumulate} pieces; raise --accumulate (same steps, less memory), or lower --batch-size, "
                f"--image-size or --workers{'' if config.amp != 'none' else ', or give --amp bf16'}; a run that has "
                "checkpoints keeps its options: for others give another --out"
            ) from error
        if "DataLoader worker" in text and "exited unexpectedly" in text:
            raise UserError(
                "a process that reads images ended unexpectedly, often for want of memory or of shared memory; lower "
                f"--workers, and continue with: {_again(command)}"
            ) from error
        raise


@contextlib.contextmanager
def _others_lost(processes: Team, command: str) -> Iterator[None]:
    """Turn what the exchange between processes says when one of them is gone into a sentence."""
    try:
        yield
    except RuntimeError as error:
        is_exchange = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if processes.world_size == 1 or not is_exchange:
            raise
        raise UserError(
            f"process {processes.rank} of {processes.world_size} lost another one; see what that one said, and "
            f"continue with: {_again(command)}"
        ) from error


@contextlib.contextmanager
def _deterministic(config: Config) -> Iterator[None]:
    """Use deterministic algorithms where that is asked for; else let cuDNN search the fastest."""
    before, searching = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(config.deterministic or before)
    torch.backends.cudnn.benchmark = not (config.deterministic or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = searching


def _again(command: str) -> str:
    return command if " --resume" in command else f"{command} --resume"


def _with_paths(error: LossNotFinite, prepared: Prepared, folder: RunFolder) -> str:
    paths = [prepared.parts["train"][index].path for index in error.indices]
    return (
        f"{error}; the batch: {few(paths, 8)}; the weights saved before are kept in {str(folder.last)!r} "
        f"and {str(folder.best)!r}, and a new run, with another --out, can start from the latter with --pretrained"
    )


def _session(config: Config, processes: Team) -> dict[str, Any]:
    """Return what is to be known of where and with what a run is computed."""
    import PIL
    import torchvision

    return {
        "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "device": device_name(processes.device),
        "num_processes": processes.world_size,
        "num_threads": torch.get_num_threads(),
        "workers": config.workers,
    }


def duration(seconds: float) -> str:
    """Return a length of time for people: "12 s", "3 min", "2 h 5 min"."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
