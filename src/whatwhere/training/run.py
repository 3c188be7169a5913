"""A training run in progress: trains, evaluates, keeps the best network, saves, and at the end says how good it is."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..base.files import write_bytes, write_json
from ..base.screen import Screen, duration
from ..base.words import printable
from ..networks.spec import NetworkSpec
from . import checkpoint
from .bundle import Bundle, load_bundle, save_bundle
from .config import Config
from .distributed import Team
from .evaluate import Figures, evaluate
from .plots import confusion_png, curves_png
from .run_folder import RESULT, RunFolder
from .setup import Material
from .stops import Stopped
from .trainer import Trainer, check_weights

_LONG = 30.0  # seconds of training that an evaluation cut short may not cost


@dataclass
class _Record:
    """What a run has come to so far, besides the trainer's state."""

    num_evaluated: int = 0
    best_epoch: int = 0
    best_score: float | None = None
    seconds: float = 0.0


@dataclass
class Run:
    """A run in progress: trains, evaluates after each epoch, keeps the best network, saves.

    `attention` is what `config.attention` names, where that is an import path.
    """

    config: Config
    spec: NetworkSpec
    team: Team
    classes: tuple[str, ...]
    material: Material
    trainer: Trainer
    folder: RunFolder
    screen: Screen
    attention: Callable[..., nn.Module] | None = None
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
            Stopped: It was asked to stop; everything is saved.
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
        except Stopped:
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

    def evaluate(self, model: nn.Module, part: str, *, with_probabilities: bool = False) -> Figures:
        """Return the figures of `model` on a part's images, each counted once over all processes."""
        batches = self.material.evaluation[part]
        done = 0

        def on_batch(num_images: int) -> None:
            nonlocal done
            done += num_images
            self.screen.progress(f"evaluating ({part})", done, len(batches.labels) // self.team.world_size)
            # alone, a stop need not wait; many could not agree on a batch here
            if self.trainer.stop_requested and self.team.world_size == 1:
                raise self.trainer.stopped()

        return evaluate(
            model,
            batches,
            len(self.classes),
            self.team,
            autocast=self.trainer.autocast,
            on_batch=on_batch,
            collect=len(batches.labels) if with_probabilities else 0,
        )

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
        score = float(epoch) if self.config.best_by == "last" else figures.score(self.config.best_by)
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
        network = Bundle(self.trainer.evaluated, self.spec, self.classes, self.material.preprocessing, info)
        save_bundle(self.folder.best, network)

    def _show(self, record: dict[str, Any], images_per_second: float) -> None:
        epoch, total = record["epoch"], self.config.epochs
        left = self.record.seconds / epoch * (total - epoch)
        loss = "not finite" if record["val_loss"] is None else f"{record['val_loss']:.4f}"
        best = ", best so far" if record["is_best"] and self.config.best_by != "last" else ""
        self.screen.line(
            f"epoch {epoch}/{total}: loss {record['train_loss']:.4f}, validation {record['val_accuracy']:.2%} "
            f"(balanced {record['val_balanced_accuracy']:.2%}, loss {loss}){best}; "
            f"{images_per_second:,.0f} images/s, "
            f"{duration(left)} left"
        )
        if self.config.tensorboard:
            # what a killed run wrote after its last checkpoint is dropped
            self._writer = self._writer or _tensorboard(self.folder.path, record["step"])
            for name, value in record.items():
                if name not in ("epoch", "step", "is_best") and value is not None:
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
        best = load_bundle(self.folder.best, self.team.device, attention=self.attention)
        parts = {part: self.evaluate(best.model, part, with_probabilities=True) for part in self.material.evaluation}
        self._count_time()
        judged = "test" if "test" in parts else "val"
        result = {
            "status": "finished" if self.trainer.epoch == self.config.epochs else "stopped early",
            "best_by": self.config.best_by,
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
        title = f"{self.spec.describe()}, {data}, seed {self.config.seed}"
        part = "test" if "test" in self.material.evaluation else "validation"
        curves = curves_png(self.folder.metrics(), title)
        write_bytes(self.folder.path / "curves.png", curves)
        confusion = confusion_png(figures.confusion, self.classes, f"{title}: {part} images")
        write_bytes(self.folder.path / "confusion.png", confusion)


def _tensorboard(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)
