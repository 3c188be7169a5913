"""Wall-clock time of a forward pass and of a training step, and the accelerator's peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..base.modules import tensors_in, undisturbed

_WARM_UP_ROUNDS = 2
_LEAST_ROUNDS = 3
_WITH_MEMORY_STATISTICS = ("cuda", "xpu")


@dataclass(frozen=True)
class Latency:
    """Medians over rounds.

    Attributes:
        forward_ms: One forward pass in evaluation mode, without gradients.
        training_step_ms: Forward, mean of the output as loss, and backward in training mode; no optimizer.
        peak_memory_bytes: Most memory that the model, its input and a training step take on the accelerator, without
            what else lies there; None on a CPU.
    """

    forward_ms: float
    training_step_ms: float
    peak_memory_bytes: int | None


def measure_latency(
    models: Sequence[nn.Module], images: Sequence[Tensor], rounds: int = 10, max_seconds: float = 60
) -> list[Latency]:
    """Time `models`, each on its own `images`, in turn within every round, so that drift of the machine hits all.

    The models are left as they were: mode, buffers, gradients.

    Args:
        models: What to time.
        images: An input for each.
        rounds: How many rounds to take the medians of, after a warm-up.
        max_seconds: No further round begins after this time, once there are three.
    """
    deadline = time.perf_counter() + max_seconds
    forward: list[list[float]] = [[] for _ in models]
    training: list[list[float]] = [[] for _ in models]
    peaks: list[int | None] = [None for _ in models]
    for round_index in range(_WARM_UP_ROUNDS + rounds):
        if round_index >= _WARM_UP_ROUNDS + _LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        for index, (model, batch) in enumerate(zip(models, images, strict=True)):
            with undisturbed(model):
                model.eval()
                forward_ms = _milliseconds(partial(_forward, model, batch), batch.device)
                model.train()
                occupied_before = _reset_peak(batch.device)
                training_ms = _milliseconds(partial(_training_step, model, batch), batch.device)
                peaks[index] = _peak(model, batch, occupied_before)
            if round_index >= _WARM_UP_ROUNDS:
                forward[index].append(forward_ms)
                training[index].append(training_ms)
    return [
        Latency(statistics.median(forward[index]), statistics.median(training[index]), peaks[index])
        for index in range(len(models))
    ]


def _forward(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        model(images)


def _training_step(model: nn.Module, images: Tensor) -> None:
    loss = sum(output.float().mean() for output in tensors_in(model(images)) if output.requires_grad)
    if isinstance(loss, Tensor):
        loss.backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        parameter.grad = None


def _milliseconds(run: Callable[[], None], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return 1000 * (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _reset_peak(device: torch.device) -> int:
    if device.type not in _WITH_MEMORY_STATISTICS:
        return 0
    torch.accelerator.reset_peak_memory_stats(device)
    return torch.accelerator.memory_allocated(device)


def _peak(model: nn.Module, images: Tensor, occupied_before: int) -> int | None:
    if images.device.type not in _WITH_MEMORY_STATISTICS:
        return None
    own = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), images))
    return torch.accelerator.max_memory_allocated(images.device) - occupied_before + own
