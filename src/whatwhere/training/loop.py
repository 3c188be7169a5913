from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..data.digits import ImageSet
from ..errors import UserError, check_integer
from ..modes import modes_kept
from ..randomness import generator, seeded


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum, linear warm-up, then cosine decay to zero.

    Attributes:
        num_epochs: Passes over the training images.
        batch_size: Images per step.
        learning_rate: Its peak.
        momentum: Of SGD.
        weight_decay: On weights of two or more dimensions; norms, biases and learned scalars have none.
        warmup_epochs: Epochs of linear rise.
    """

    num_epochs: int = 40
    batch_size: int = 25
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: int = 3

    def __post_init__(self) -> None:
        check_integer("num_epochs", self.num_epochs)
        check_integer("batch_size", self.batch_size)
        check_integer("warmup_epochs", self.warmup_epochs, least=0)
        for name, value in (("learning_rate", self.learning_rate), ("weight_decay", self.weight_decay)):
            if not 0 <= value < math.inf:
                raise UserError(f"{name} must be at least 0 and finite, got {value!r}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must be at least 0 and below 1, got {self.momentum!r}")


def train(
    model: nn.Module, images: ImageSet, recipe: Recipe, *, seed: int, after_epoch: Callable[[float], None] | None = None
) -> list[float]:
    """Train `model` in place with cross-entropy and return the mean loss of each epoch.

    The order of the images is a function of (seed, epoch), other random numbers (dropout) on a CPU of (seed, step): two
    networks trained with one seed see the same batches.

    Args:
        model: A classifier that returns logits.
        images: The training images.
        recipe: How to train.
        seed: Any integer.
        after_epoch: Called with the loss of each epoch.

    Raises:
        UserError: No image, or a loss that is not finite, with the step at which it came.
    """
    if not len(images):
        raise UserError("there is no image to train on")
    steps_per_epoch = math.ceil(len(images) / recipe.batch_size)
    optimizer = torch.optim.SGD(
        parameter_groups(model, recipe.weight_decay),
        recipe.learning_rate,
        recipe.momentum,
        nesterov=recipe.momentum > 0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, _warmup_cosine(recipe.warmup_epochs * steps_per_epoch, recipe.num_epochs * steps_per_epoch)
    )
    device = next(model.parameters()).device
    losses = []
    for epoch in range(recipe.num_epochs):
        model.train()
        order = torch.randperm(len(images), device="cpu", generator=generator(seed, f"order.{epoch}"))
        total = 0.0
        for step, batch in enumerate(torch.split(order, recipe.batch_size), start=epoch * steps_per_epoch):
            with seeded(seed, f"step.{step}"):
                logits = model(images.images[batch].to(device))
                loss = F.cross_entropy(logits, images.labels[batch].to(device))
            if not loss.isfinite():
                raise UserError(f"the loss is {loss.item()} at step {step} (epoch {epoch}); lower the learning rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        losses.append(total / len(images))
        if after_epoch is not None:
            after_epoch(losses[-1])
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, images: ImageSet, batch_size: int = 256) -> float:
    """Return the share of `images` that `model`, in evaluation mode, classifies correctly, in [0, 1]."""
    device = next(model.parameters()).device
    batches = zip(torch.split(images.images, batch_size), torch.split(images.labels, batch_size), strict=True)
    correct = 0
    with modes_kept(model):
        model.eval()
        for batch, labels in batches:
            correct += int((model(batch.to(device)).argmax(1).cpu() == labels).sum())
    return correct / len(images)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return `model`'s parameters for an optimizer, without decay on those of fewer than two dimensions."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def _warmup_cosine(num_warmup_steps: int, num_steps: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < num_warmup_steps:
            return (step + 1) / num_warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)))

    return factor
