"""The training loop in plain PyTorch; every random number is a function of the seed and the step."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import v2

from ..attention import no_weight_decay
from ..base.errors import Stopped, UserError
from ..base.randomness import seeded, stream_seed
from ..data.batches import Batch, ImageSet, Order, TensorBatches, TrainBatches
from .config import Recipe
from .distributed import Team
from .state import Position, ScalerState, TrainerState, load_network, load_optimizer_state, optimizer_state


@dataclass
class _Loss:
    """The loss of a step, summed over images and processes, and the number of processes asked to stop."""

    step: int
    indices: Tensor
    total: Tensor
    work: Any
    copied: Any = None

    def __post_init__(self) -> None:
        if self.total.is_cuda:
            if self.work is not None:
                self.work.wait()  # makes the CUDA stream wait, not this process
            on_gpu, self.total = self.total, torch.empty(self.total.shape, pin_memory=True)
            self.total.copy_(on_gpu, non_blocking=True)
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record()

    def read(self) -> list[float]:
        if self.copied is not None:
            self.copied.synchronize()
        elif self.work is not None:
            self.work.wait()
        values: list[float] = self.total.tolist()
        return values


class Trainer:
    """Trains a network step by step: holds the model, the optimizer, the averaged model and the position.

    `model` is a classifier that returns logits, on the team's device. `order` has the samples of each step, and
    `class_weights` (num_classes,) the weight of each class in the loss. With `compile`, torch.compile runs the network.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        order: Order,
        *,
        num_classes: int,
        seed: int,
        team: Team,
        class_weights: Tensor | None = None,
        compile: bool = False,
    ) -> None:
        if not order.num_samples:
            raise UserError("there is no image to train on")
        if recipe.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model, self.recipe, self.order, self.seed, self.team = model, recipe, order, seed, team
        self.class_weights = None if class_weights is None else class_weights.to(team.device)
        self.optimizer = make_optimizer(model, recipe, no_weight_decay(model))
        self.scaler = torch.amp.GradScaler(team.device.type, enabled=recipe.amp == "fp16")
        self.average: AveragedModel | None = None
        if recipe.ema:
            self.average = AveragedModel(model, multi_avg_fn=_averaging(recipe.ema), use_buffers=True)
        kinds = ((v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix))
        mixings = [kind(alpha=a, num_classes=num_classes) for kind, a in kinds if a and num_classes > 1]
        # with one kind, a choice would draw a number more
        self.mixing: nn.Module | None = v2.RandomChoice(mixings) if len(mixings) == 2 else next(iter(mixings), None)
        self.position = Position()
        self.num_steps = recipe.epochs * order.steps_per_epoch
        num_warmup_steps = round(min(recipe.warmup_epochs, recipe.epochs) * order.steps_per_epoch)
        self._factor = warmup_cosine(num_warmup_steps, self.num_steps)
        self.stop_requested = False
        self._unread: deque[_Loss] = deque()
        self._stopping: int | None = None  # the first step in which a process had been asked to stop
        self.parallel: DistributedDataParallel | None = None
        if team.world_size > 1:
            self.parallel = DistributedDataParallel(model, [team.device] if team.device.type == "cuda" else None)
        forward = self.parallel or model
        self.forward: Callable[[Tensor], Tensor] = torch.compile(forward) if compile else forward

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate and keep: the averaged one, if there is one."""
        return self.model if self.average is None else self.average.module

    def align(self) -> None:
        """Broadcast rank 0's BatchNorm buffers: each process has updated its own."""
        self.team.align(self.model.buffers())
        if self.average is not None:
            self.team.align(self.average.module.buffers())

    @property
    def epoch(self) -> int:
        """Number of whole epochs done."""
        return self.position.step // self.order.steps_per_epoch

    def autocast(self) -> Any:
        """Return the autocast context of a forward pass."""
        return autocast(self.team.device, self.recipe.amp)

    @property
    def epoch_loss(self) -> float:
        """Mean loss of the current epoch, or of the one that just ended, over the steps read so far."""
        return self.position.loss_sum / max(1, self.position.num_images)

    def request_stop(self) -> None:
        """Stop before the next step."""
        self.stop_requested = True

    def stopped(self) -> Stopped:
        """Return the exception to raise after a stop was requested; it says where training stands."""
        return Stopped(f"stopped after step {self.position.step:,} of {self.num_steps:,}")

    def run(self, batches: TrainBatches | TensorBatches) -> Iterator[bool]:
        """Train from the position to the end; yield after each step whether an epoch ends with it.

        Raises:
            Diverged: The loss of a step is not finite.
            Stopped: `request_stop` was called, here or in another process.
        """
        self.model.train()
        for batch in batches.steps(self.position.step, self.num_steps):
            self.step(batch)
            ends = self.position.step % self.order.steps_per_epoch == 0
            if ends:
                self.settle()
            yield ends

    def step(self, batch: Batch) -> None:
        """Do one step of the optimizer."""
        step, recipe = self.position.step, self.recipe
        # before the forward pass, which updates BatchNorm buffers: a stop leaves the state of a whole step
        self.settle(keep=1)
        alone = self.team.world_size == 1
        if self.stop_requested if alone else self._stopping is not None and self._stopping < step - 1:
            raise self.stopped()
        self._set_rate(step)
        num_images = self.order.size(step)
        self.optimizer.zero_grad()
        loss_sum = torch.zeros((), device=self.team.device)
        pieces = min(recipe.accumulate, len(batch.labels))
        with step_randomness(self.seed, step, self.team):
            for piece in range(pieces):
                images, labels = (part.tensor_split(pieces)[piece] for part in (batch.images, batch.labels))
                # the processes sum their gradients in the last piece
                is_last = piece == pieces - 1
                with contextlib.nullcontext() if is_last or self.parallel is None else self.parallel.no_sync():
                    loss = self.loss(images, labels, piece)
                    # DDP averages the gradients of the processes: this factor makes the mean over all images
                    share = len(labels) * self.team.world_size / num_images
                    self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
                loss_sum += loss.detach() * len(labels)
        if recipe.clip_grad:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.position.step += 1
        total = torch.stack([loss_sum, torch.full_like(loss_sum, float(self.stop_requested))])
        self._unread.append(_Loss(step, batch.indices, *self.team.start_sum(total)))

    def loss(self, images: Tensor, labels: Tensor, piece: int) -> Tensor:
        """Return the mean loss of a piece of the batch."""
        targets = labels
        if self.mixing is not None and len(labels) > 1:
            with seeded(self.seed, f"mixup.{self.position.step}.{piece}"):
                images, targets = self.mixing(images, labels)
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            logits = self.forward(images).float()
        smoothing = self.recipe.label_smoothing
        if self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        # torch's weighted mean divides by the sum of the weights in this piece, which differs from piece to piece
        total = F.cross_entropy(logits, targets, self.class_weights, label_smoothing=smoothing, reduction="sum")
        return total / len(labels)

    def settle(self, keep: int = 0) -> None:
        """Read the losses of all steps but the last `keep`; raise Diverged where one is not finite.

        Losses are read one step late, so that the CPU does not wait for the GPU, and before anything is saved.
        """
        while len(self._unread) > keep:
            loss = self._unread.popleft()
            loss_sum, num_stopping = loss.read()
            num_images = self.order.size(loss.step)
            if not math.isfinite(loss_sum):
                epoch = 1 + loss.step // self.order.steps_per_epoch
                raise Diverged(
                    f"the loss is {loss_sum / num_images} in step {1 + loss.step} (epoch {epoch})",
                    indices=loss.indices.tolist(),
                )
            if loss.step % self.order.steps_per_epoch == 0:
                self.position.loss_sum, self.position.num_images = 0.0, 0
            self.position.loss_sum += loss_sum
            self.position.num_images += num_images
            if num_stopping and self._stopping is None:
                self._stopping = loss.step

    def _set_rate(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * self._factor(step)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a continuation needs, for `checkpoint.save`."""
        self.settle()
        check_weights(self.model)
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "scaler": self.scaler.state_dict(),
            "position": asdict(self.position),
        }

    def load_state_dict(self, state: Any) -> None:
        """Load what `state_dict` returned.

        Raises:
            UserError: As `load_optimizer_state`.
            ValueError: It is no such state, or not one of this network and recipe.
        """
        found = msgspec.convert(state, TrainerState)
        if found.position.step > self.num_steps:
            raise ValueError(f"it is after step {found.position.step:,} of {self.num_steps:,}")
        load_network(self.model, found.model)
        if self.average is not None:
            load_network(self.average, found.average or {})
        sizes = [len(group.params) for group in found.optimizer.groups]
        if sizes != [len(group["params"]) for group in self.optimizer.param_groups]:
            # runs of earlier versions decay the weight of SRM; a run goes on as it began
            self.optimizer = make_optimizer(self.model, self.recipe)
        load_optimizer_state(self.optimizer, found.optimizer)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(msgspec.to_builtins(msgspec.convert(found.scaler, ScalerState)))
        self.position = found.position
        self._set_rate(max(0, self.position.step - 1))  # of the last step done, which the epoch's line tells


class Diverged(UserError):  # noqa: N818 - a UserError by its base
    """The loss or a weight is not finite.

    Attributes:
        reason: What is not finite, and where.
        advice: What to do, in a training alone.
        indices: Numbers of the samples that this process had in the step with such a loss; none for a weight.
    """

    def __init__(
        self, reason: str, advice: str = "lower the learning rate", indices: Sequence[int] = (), command: str = ""
    ) -> None:
        super().__init__(f"{reason}; {advice}", command)
        self.reason, self.advice, self.indices = reason, advice, indices


def make_optimizer(model: nn.Module, recipe: Recipe, exempt: Collection[str] = ()) -> torch.optim.Optimizer:
    """Return the optimizer for `model`: no weight decay on parameters of fewer than two dimensions, and on `exempt`."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (free if parameter.dim() < 2 or name in exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.lr)
    return torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.momentum > 0)


def warmup_cosine(num_warmup_steps: int, num_steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate as a function of the step: linear warm-up, then cosine decay to 0."""

    def factor(step: int) -> float:
        if step < num_warmup_steps:
            return (step + 1) / num_warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)))

    return factor


def autocast(device: torch.device, amp: str) -> Any:
    """Return the context of a forward pass under `amp`: "none", "bf16" or "fp16"."""
    dtype = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else contextlib.nullcontext()


@contextlib.contextmanager
def step_randomness(seed: int, step: int, team: Team) -> Iterator[None]:
    """Seed dropout and stochastic depth by (seed, step, rank), on the CPU and on the team's device."""
    on_cuda = team.device.type == "cuda"
    name = f"step.{step}.rank.{team.rank}"
    with torch.random.fork_rng([team.device] if on_cuda else []), seeded(seed, name):
        if on_cuda:
            torch.cuda.manual_seed(stream_seed(seed, name))
        elif team.device.type == "mps":
            torch.mps.manual_seed(stream_seed(seed, name))
        yield


def _averaging(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return the update of the averaged weights; the decay of update n is min(decay, (1 + n) / (10 + n))."""

    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], num_averaged: Tensor) -> None:
        current = min(decay, (1 + int(num_averaged)) / (10 + int(num_averaged)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - current)
        else:  # counters
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    return update


def check_weights(model: nn.Module) -> None:
    """Raise Diverged if a weight is NaN or infinite."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            advice = "lower the learning rate or clip the gradient"
            raise Diverged(f"the weights of {name} are no longer finite", advice)


def train(
    model: nn.Module, images: ImageSet, recipe: Recipe, *, seed: int, after_epoch: Callable[[float], None] | None = None
) -> list[float]:
    """Train `model`, which returns logits, in place on images in memory; return the mean loss of each epoch.

    The images are not augmented. Their order is a function of (seed, epoch), other random numbers of (seed, step): two
    networks trained with the same seed see the same batches. `after_epoch` is called with the mean loss of each epoch.

    Raises:
        UserError: No image, or a loss that is not finite.
    """
    order = Order(len(images), recipe.batch_size, seed)
    num_classes = int(images.labels.max()) + 1 if len(images) else 0
    device = next(model.parameters()).device
    trainer = Trainer(model, recipe, order, num_classes=num_classes, seed=seed, team=Team(0, 1, 0, device))
    losses = []
    for epoch_ends in trainer.run(TensorBatches(images.images, images.labels, order, device)):
        if epoch_ends:
            losses.append(trainer.epoch_loss)
            if after_epoch is not None:
                after_epoch(losses[-1])
    return losses
