"""What a model costs: `cost`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import UserError, check_integer
from ..base.modules import tensors_in, undisturbed
from ..base.words import brief, cause
from .latency import measure_latency
from .layers import ROOT, LayerNames, is_within
from .memory import saved_bytes
from .operations import OperationCounter
from .result import Cost, Figures, LayerCost


def cost(
    model: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    batch_size: int = 1,
    latency: bool = False,
    name: str | None = None,
) -> Cost:
    """Measure what `model` costs, by running it on random input on its own device and in its own dtype.

    One forward pass in evaluation mode counts operators by layer (`torch.utils.flop_counter` for convolutions and
    matrix products), one in training mode, free of module hooks, finds the bytes saved for backward. The model is left
    as it was.

    Args:
        model: Any network that takes one floating-point tensor.
        input_size: Shape of one input without the batch, for example (3, 224, 224).
        batch_size: Number of inputs; all figures are for the whole batch.
        latency: Whether to time forward pass and training step too, and on an accelerator measure the peak memory.
        name: What to call the model; by default the name of its class.

    Raises:
        UserError: An impossible size, or an input that the model does not take, naming the layer that refused it.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise UserError(f"cost measures a torch.nn.Module that runs in Python, got a {type(model).__name__}")
    if any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers()))):
        raise UserError("the model has lazy layers without a shape yet; run one batch through it first")
    size = _input_size(input_size, batch_size)
    # within torch.inference_mode() nothing would be kept for backward
    with torch.inference_mode(False), undisturbed(model):
        images = random_input(model, size, batch_size)
        names = LayerNames(model)
        counter, calls, output_sizes = _forward_pass(model, images, names)
        with refusal(names, images):
            model.train()
            saved = saved_bytes(model, images, names)
        times = measure_latency([model], [images])[0] if latency else None

    own = _own_figures(names, counter, saved)
    layers = tuple(
        LayerCost(
            name=layer,
            type=type(module).__name__,
            output_size=output_sizes.get(layer),
            num_calls=calls[layer],
            own=own[layer],
            total=_sum(figures for inner, figures in own.items() if is_within(inner, layer)),
        )
        for layer, module in names.modules.items()
        if layer != ROOT and not isinstance(module, nn.Identity)
    )
    return Cost(
        name=name or type(model).__name__,
        input_size=size,
        batch_size=batch_size,
        own=own[ROOT],
        total=_sum(own.values()),
        layers=layers,
        uncounted=dict(counter.uncounted),
        latency=times,
    )


def random_input(model: nn.Module, input_size: Sequence[int], batch_size: int) -> Tensor:
    """Return normal random input of the model's device and floating dtype, the same every time."""
    reference = next((p for p in model.parameters() if p.is_floating_point() or p.is_complex()), torch.empty(0))
    if reference.is_meta:
        raise UserError("the model has no values (meta device); move it to a real device with to_empty(device=...)")
    try:
        images = torch.randn(batch_size, *input_size, generator=torch.Generator().manual_seed(0), device="cpu")
    # beyond 64 bits torch raises a TypeError or an OverflowError
    except (RuntimeError, TypeError, OverflowError) as error:
        raise UserError(
            f"no memory for an input of shape {brief((batch_size, *input_size))}; give smaller images"
        ) from error
    return images.to(reference.device, reference.dtype)


def _input_size(input_size: Sequence[int], batch_size: int) -> tuple[int, ...]:
    if not isinstance(input_size, Sequence) or not input_size:
        raise UserError(f"input_size must be positive integers such as (3, 224, 224), got {brief(input_size)}")
    for size in input_size:
        check_integer("each size in input_size, such as (3, 224, 224),", size)
    check_integer("batch_size", batch_size)
    return tuple(input_size)


def _forward_pass(
    model: nn.Module, images: Tensor, names: LayerNames
) -> tuple[OperationCounter, Counter[str], dict[str, tuple[int, ...]]]:
    fast_path = torch.backends.mha.get_fastpath_enabled()
    calls: Counter[str] = Counter()
    output_sizes: dict[str, tuple[int, ...]] = {}

    def hook(layer: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            calls[layer] += 1
            tensor = next(iter(tensors_in(output)), None)
            if tensor is not None:
                output_sizes[layer] = tuple(tensor.shape)

        return record

    handles = [module.register_forward_hook(hook(layer)) for layer, module in names.modules.items()]
    try:
        # the fused path of nn.MultiheadAttention is one operator without a formula, its plain path has all of them
        torch.backends.mha.set_fastpath_enabled(False)
        with refusal(names, images), torch.no_grad(), OperationCounter(names) as counter:
            model.eval()
            model(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()
    return counter, calls, output_sizes


@contextmanager
def refusal(names: LayerNames, images: Tensor) -> Iterator[None]:
    """Turn what a model raises on `images` into one sentence that names the layer."""
    try:
        yield
    except UserError:
        raise
    # whatever a stranger's forward raises
    except Exception as error:
        layer = names.describe(names.innermost(error.__traceback__))
        reason = cause(error)
        advice = "; give a batch of 2 or more, or larger images" if "more than 1 value per channel" in reason else ""
        raise UserError(
            f"an input of shape {brief(tuple(images.shape))} does not fit {layer}: {reason}{advice}"
        ) from error


def _own_figures(names: LayerNames, counter: OperationCounter, saved: Counter[str]) -> dict[str, Figures]:
    counted: set[int] = set()
    own = {}
    for name, module in names.modules.items():
        fresh = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        counted.update(map(id, fresh))
        own[name] = Figures(
            num_params=sum(p.numel() for p in fresh),
            param_bytes=sum(p.numel() * p.element_size() for p in fresh),
            macs=counter.macs[name],
            other_flops=counter.other_flops[name],
            saved_bytes=saved[name],
        )
    return own


def _sum(figures: Iterable[Figures]) -> Figures:
    return sum(figures, Figures())
