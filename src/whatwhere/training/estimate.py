"""About how long a run takes, from a few of its steps, and what would be faster. It changes no result of the run."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import torch
from torch import nn

from ..base.screen import Screen, about
from ..base.words import counted
from ..cost import measure_latency
from ..data.batches import Batch, TrainBatches
from ..data.split import Prepared
from .config import CIFAR_SIZE, Config
from .distributed import Team
from .evaluate import Figures
from .setup import build_material, chosen_cache, preprocessing_of
from .trainer import Trainer

HOUR = 3600.0  # seconds; for what takes longer something faster is named
FEW_EPOCHS, ENOUGH_EPOCHS = 10, 30

_SHORT = 60.0  # seconds; what is shorter needs no estimate
_MEASURED, _LEAST_STEPS = 2.0, 2  # the seconds and the steps that are timed
_SMALLER = (128, 96, 64, 32)  # px
_NUM_IMAGES = 4  # in a step that compares image sizes
_NUM_READ = 3  # batches that show how long images take to be read


@dataclass(frozen=True)
class Pace:
    """Seconds that a run takes for an image that is trained or evaluated once, and before its first step."""

    trained: float
    evaluated: float
    start: float = 0.0

    def seconds(self, epochs: float, num_images: Mapping[str, int]) -> float:
        """Return the seconds of a run: start + epochs * train * trained + ((epochs + 1) * val + test) * evaluated.

        `num_images` has the images of each part. After each epoch the validation images are evaluated, and at the end
        both parts by the best network.
        """
        num_evaluated = (epochs + 1) * num_images["val"] + num_images["test"]
        return self.start + epochs * num_images["train"] * self.trained + num_evaluated * self.evaluated


NOTHING = Pace(0.0, 0.0)


class FirstSteps:
    """Times the first steps of a run as they come. The very first does not count: it is slower than the others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.num_steps = 0  # that have ended
        self._began, self._is_known = 0.0, False

    def add(self) -> float | None:
        """Note that a step has ended. Return the seconds of a step as soon as enough are timed; None before and after.

        Enough are two steps and two seconds: a GPU works behind the program, so that single steps tell nothing.
        """
        now = self.clock()
        self.num_steps += 1
        if self.num_steps == 1:
            self._began = now
        num_timed, seconds = self.num_steps - 1, now - self._began
        if self._is_known or num_timed < _LEAST_STEPS or seconds < _MEASURED:
            return None
        self._is_known = True
        return seconds / num_timed


@dataclass
class Outlook:
    """Says about how long a run takes, and what would be faster.

    Attributes:
        config, trainer: The options and the trainer of the run.
        num_images: The images of each part.
        screen: Shows it; None shows nothing.
        clock: Returns the time in seconds.
        reading: Seconds that the images took to be read before the first step.
    """

    config: Config
    num_images: Mapping[str, int]
    trainer: Trainer
    screen: Screen | None
    clock: Callable[[], float]
    reading: float
    _first_steps: FirstSteps = field(init=False)

    def __post_init__(self) -> None:
        self._first_steps = FirstSteps(self.clock)

    def after_step(self) -> float:
        """Note the end of a step, and show the estimate when the first ones are timed; return the seconds it took."""
        step = self._first_steps.add()
        if step is None or self.screen is None:
            return 0.0
        began, steps_per_epoch = time.monotonic(), self.trainer.order.steps_per_epoch
        position = self.trainer.position.step
        epochs = (self.trainer.num_steps - position) / steps_per_epoch
        # a step is a forward pass and a backward pass, which takes twice as long
        seconds = self._seconds(step, epochs, self._per_image(step) / 3)
        if seconds >= _SHORT:
            most = ", at most" if self.config.early_stop else ""
            self.screen.line(
                f"{about(seconds)} to go{most}: {epochs:.4g} epochs of {counted(steps_per_epoch, 'step')}, "
                f"{step:.2g} s a step"
            )
        if position == self._first_steps.num_steps:  # a run that is continued has spent more already
            self._name_faster(seconds)
        return time.monotonic() - began

    def try_out(self, batches: TrainBatches, evaluate: Callable[..., Figures], num_done: int) -> None:
        """Train at most 4 steps, evaluate at most 2 batches, and show how long the run would take.

        `num_done` is the number of epochs that are done already, in a run that is to be continued.
        """
        trainer, times = self.trainer, [self.clock()]
        for _ in islice(trainer.run(batches), 4):
            trainer.settle()
            times.append(self.clock())
        times = times[1:] if len(times) > 2 else times  # the first step is slower than the others
        step = (times[-1] - times[0]) / (len(times) - 1)
        on_gpu = trainer.team.device.type == "cuda"
        memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory" if on_gpu else ""
        began = self.clock()
        num_evaluated = evaluate(trainer.evaluated, "val", most=2).num_images
        evaluated = (self.clock() - began) / max(1, num_evaluated)
        seconds = self.reading + self._seconds(step, self.config.epochs - num_done, evaluated)
        if self.screen is not None:
            self.screen.line(
                f"dry run: {step:.2g} s a step{memory}; {counted(trainer.order.steps_per_epoch, 'step')} an epoch, "
                f"{about(seconds)} in all; nothing written"
            )
            self._name_faster(seconds)

    def _per_image(self, step: float) -> float:
        order = self.trainer.order
        return step * order.steps_per_epoch / order.num_samples

    def _seconds(self, step: float, epochs: float, evaluated: float) -> float:
        parts = {part: self.num_images.get(part, 0) for part in ("train", "val", "test")}
        return Pace(self._per_image(step), evaluated).seconds(epochs, parts)

    def _name_faster(self, seconds: float) -> None:
        """Name options that are faster, if the run takes more than an hour on a CPU."""
        if seconds > HOUR and self.trainer.team.device.type == "cpu" and self.screen is not None:
            try:
                text = faster(self.config, seconds, partial(relative_times, self.trainer.model))
            except Exception:  # the network of a user may not take other sizes, and that is no fault of the run
                return
            if text:
                self.screen.line(text)


def faster(config: Config, seconds: float, relative: Callable[[list[int]], list[float]]) -> str:
    """Return a sentence that names options with which a run of `seconds` takes about an hour at most; "" for none.

    They are smaller images, fewer epochs, or both: the largest images that leave 30 epochs or more, or the smallest
    ones. `relative` returns how long a step takes with images of each of these sizes, the first of them being 1.
    """
    epochs, size = config.epochs, config.image_size
    sizes = [size, *(smaller for smaller in _SMALLER if smaller < size)]
    lengths = {pixels: seconds / epochs * factor for pixels, factor in zip(sizes, relative(sizes), strict=True)}
    enough = (pixels for pixels in sizes if HOUR / lengths[pixels] >= min(epochs, ENOUGH_EPOCHS))
    pixels = next(enough, sizes[-1])
    per_epoch = lengths[pixels]
    fitting = min(epochs, max(int(HOUR / per_epoch), FEW_EPOCHS))
    if fitting < epochs and fitting > FEW_EPOCHS:
        fitting -= fitting % 5
    if fitting * per_epoch > 0.8 * seconds:
        return ""
    options = [f"--image-size {pixels}"] if pixels < size else []
    if pixels <= CIFAR_SIZE < size:  # without it, another network would be chosen
        options.append(f"--model {config.model}")
    options += [f"--epochs {fitting}"] if fitting < epochs else []
    return f"faster on this machine: {' '.join(options)} ({about(fitting * per_epoch)}), with another --out"


def relative_times(model: nn.Module, sizes: list[int]) -> list[float]:
    """Measure how long a training step takes with square images of each of `sizes`, relative to the first.

    All are 1 where other programs disturb the measurement: then no size is known to be faster. A copy of the network is
    measured, on a few random images; neither the network nor torch's random state changes.
    """
    # a copy, because hooks of DistributedDataParallel would wait for the other processes
    network, device = copy.deepcopy(model), next(model.parameters()).device
    images = [torch.zeros(_NUM_IMAGES, 3, size, size, device=device) for size in sizes]
    times = measure_latency([network] * len(sizes), images, rounds=3, max_seconds=10)
    if not all(one.steady for one in times):
        return [1.0] * len(sizes)
    return [one.training_step_ms / times[0].training_step_ms for one in times]


def measure_reading(
    config: Config, prepared: Prepared, team: Team, clock: Callable[[], float] = time.monotonic
) -> Pace:
    """Measure what a run takes besides its network: to read, decode and augment images.

    A few images of each part are read as the run would read them: ahead of the first step if they fit into memory, or
    else in each step.
    """
    cache = chosen_cache(config, prepared, team)
    parts = {part: samples for part, samples in prepared.parts.items() if samples}
    num_images = sum(map(len, parts.values()))
    most = {"train": _NUM_READ * config.batch_size, "val": config.batch_size}
    few = {part: parts[part][:: max(1, len(parts[part]) // most[part])][: most[part]] for part in most}
    began = clock()
    sampled = dataclasses.replace(prepared, parts=few)
    cached = dataclasses.replace(config, cache=cache)
    material = build_material(cached, sampled, preprocessing_of(config), team, with_test=False)
    start = (clock() - began) * num_images / sum(map(len, few.values()))

    def per_image(batches: Iterable[Batch]) -> float:
        began, count = clock(), sum(len(batch.labels) for batch in batches)
        return (clock() - began) / max(1, count)

    trained = per_image(material.train.steps(0, material.train.order.steps_per_epoch))
    return Pace(trained, per_image(material.evaluation["val"]), 0.0 if cache == "none" else start)
