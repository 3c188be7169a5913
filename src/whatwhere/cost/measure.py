"""Measure what a model costs: parameters and operations by layer, bytes saved for backward, times and peak memory."""

from __future__ import annotations

import itertools
import statistics
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import UserError, check_integer
from ..base.modules import is_ultralytics_wrapper, tensors_in, undisturbed
from ..base.words import brief, cause
from ..ops import saved_for_gates
from .operations import ROOT, LayerNames, OperationCounter, is_within
from .result import Cost, Figures, Latency, LayerCost

_WARM_UP_ROUNDS, _LEAST_ROUNDS = 2, 3
_MOST_TIMES_AS_MANY = 3  # rounds and seconds, where other programs disturb
# with quartiles that far apart, the median of ten rounds moves by some 10 % itself, as much as attention costs
_FARTHEST_QUARTILES = 1 / 3
_WITH_MEMORY_STATISTICS = ("cuda", "xpu")


class TrainingModeError(UserError):
    """The model takes the input in evaluation mode, but not in training mode, as a detector that wants targets."""


def cost(
    model: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    batch_size: int = 1,
    latency: bool = False,
    training: bool = True,
    name: str | None = None,
) -> Cost:
    """Measure what `model` costs: run it on random input, on its own device and in its own dtype.

    A forward pass in evaluation mode counts the operators of each layer (`torch.utils.flop_counter` has the formulas of
    convolutions and matrix products). A forward pass in training mode, without module hooks, finds the bytes saved for
    backward. Afterwards the model is as it was before.

    Args:
        model: Any network that takes one floating-point tensor.
        input_size: Shape of one input without the batch, for example (3, 224, 224).
        batch_size: Number of inputs. All figures are for the whole batch.
        latency: Whether to time the forward pass and the training step, and to measure an accelerator's peak memory.
        training: False measures the bytes saved for backward, and the training step, in evaluation mode: for a model
            that in training mode wants more than images, such as a detector that wants targets.
        name: The model's name in the result; by default the name of its class.

    Raises:
        UserError: The size is impossible, or the model does not take such an input; the message names the layer.
            `TrainingModeError` if the model takes it in evaluation mode alone.

    Example:
        >>> from whatwhere import cost, create_model
        >>> total = cost(create_model("resnet18"), (3, 224, 224)).total
        >>> total.num_params, total.macs
        (11689512, 1814073344)
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise UserError(f"cost measures a torch.nn.Module that runs in Python, got a {type(model).__name__}")
    if is_ultralytics_wrapper(model):
        raise UserError(f"cost measures the network inside this {type(model).__name__}: its attribute `model`")
    if any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers()))):
        raise UserError("the model has lazy layers without a shape yet; run one batch through it first")
    if not isinstance(input_size, Sequence) or not input_size:
        raise UserError(f"input_size must be positive integers such as (3, 224, 224), got {brief(input_size)}")
    for size in input_size:
        check_integer("each size in input_size, such as (3, 224, 224),", size)
    check_integer("batch_size", batch_size)
    # inside torch.inference_mode() autograd saves nothing
    with torch.inference_mode(False), undisturbed(model):
        images = random_input(model, input_size, batch_size)
        names = LayerNames(model)
        counter, calls, output_sizes = _forward_pass(model, images, names)
        with refusal(names, images, runs_in_evaluation=training):
            model.train(training)
            saved = saved_bytes(model, images, names)
        times = measure_latency([model], [images], training=training)[0] if latency else None

    own = _own_figures(names, counter, saved)
    layers = tuple(
        LayerCost(
            name=layer,
            type=type(module).__name__,
            output_size=output_sizes.get(layer),
            num_calls=calls[layer],
            own=own[layer],
            total=sum((figures for inner, figures in own.items() if is_within(inner, layer)), Figures()),
        )
        for layer, module in names.modules.items()
        if layer != ROOT and not isinstance(module, nn.Identity)
    )
    return Cost(
        name=name or type(model).__name__,
        input_size=tuple(input_size),
        batch_size=batch_size,
        own=own[ROOT],
        total=sum(own.values(), Figures()),
        layers=layers,
        uncounted=dict(counter.uncounted),
        latency=times,
        training=training,
    )


def random_input(model: nn.Module, input_size: Sequence[int], batch_size: int) -> Tensor:
    """Return the same standard normal input (batch_size, *input_size) each time, in the model's device and dtype."""
    reference = next((p for p in model.parameters() if p.is_floating_point() or p.is_complex()), torch.empty(0))
    if reference.is_meta:
        raise UserError("the model has no values (meta device); move it to a real device with to_empty(device=...)")
    try:
        images = torch.randn(batch_size, *input_size, generator=torch.Generator().manual_seed(0), device="cpu")
    # torch raises TypeError or OverflowError for a size above 64 bits
    except (RuntimeError, TypeError, OverflowError) as error:
        raise UserError(
            f"no memory for an input of shape {brief((batch_size, *input_size))}; give smaller images"
        ) from error
    return images.to(reference.device, reference.dtype)


def _forward_pass(
    model: nn.Module, images: Tensor, names: LayerNames
) -> tuple[OperationCounter, Counter[str], dict[str, tuple[int, ...]]]:
    fast_path = torch.backends.mha.get_fastpath_enabled()
    calls: Counter[str] = Counter()
    output_sizes: dict[str, tuple[int, ...]] = {}

    def record(layer: str, module: nn.Module, args: Any, output: Any) -> None:
        calls[layer] += 1
        for tensor in tensors_in(output)[:1]:
            output_sizes[layer] = tuple(tensor.shape)

    handles = [module.register_forward_hook(partial(record, layer)) for layer, module in names.modules.items()]
    try:
        # the fused path of nn.MultiheadAttention is one operator without a formula
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
def refusal(names: LayerNames, images: Tensor, *, runs_in_evaluation: bool = False) -> Iterator[None]:
    """Turn any exception of a model that runs on `images` into a UserError that names the layer.

    `runs_in_evaluation` tells that the model is in training mode, and has run on the same images in evaluation mode.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a user's forward may raise anything
        layer, reason = names.describe(names.innermost(error.__traceback__)), cause(error)
        shape, advice = tuple(images.shape), ""
        if _is_too_small(error):
            advice = "; give a batch of 2 or more, or larger images"
        elif runs_in_evaluation:
            part = _part_that_trains(names.modules[ROOT], images)
            instead = f", or measure a part: cost(model.{part}, {shape[1:]})" if part else ""
            raise TrainingModeError(
                f"an input of shape {brief(shape)} fits in evaluation mode, but not in training mode, where cost "
                f"measures the bytes saved for backward: {layer}: {reason}; give training=False to measure them in "
                f"evaluation mode too{instead}"
            ) from error
        raise UserError(f"an input of shape {brief(shape)} does not fit {layer}: {reason}{advice}") from error


def _part_that_trains(model: nn.Module, images: Tensor) -> str:
    """Return the name of the largest child of a model that takes the images in training mode; "" if none does."""
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    for name in sorted(filter(sizes.get, sizes), key=sizes.__getitem__, reverse=True):
        try:
            with torch.no_grad():
                model.get_submodule(name)(images)
        except Exception as error:  # a user's forward may raise anything
            if not _is_too_small(error):
                continue
        return name
    return ""


def _is_too_small(error: Exception) -> bool:
    """Return whether a norm refused to compute statistics of a single value."""
    return "more than 1 value per channel" in str(error)


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


@dataclass(eq=False)
class _Kept:
    """A saved tensor. It is alive exactly as long as the graph keeps it."""

    tensor: Tensor
    layer: str


def saved_bytes(model: nn.Module, images: Tensor, names: LayerNames) -> Counter[str]:
    """Return the bytes that one forward pass of `model`, in its present mode, saves for backward, by layer.

    Each storage counts once and whole, at the layer that saved it first. Parameters and buffers do not count. The
    saved-tensor hooks do not see the tensors that a custom autograd function keeps as attributes: they are found in the
    graph and count at the model itself (`ROOT`), or, if the function keeps a graph of its own, at the innermost layer
    that holds all of this graph's parameters. What a whole block with attention saves for its gates counts at the layer
    that holds them. No module hook is set, so the model takes the same path as in training.
    """
    kept: list[weakref.ref[_Kept]] = []

    def pack(tensor: Tensor) -> _Kept:
        # detached: a node that holds its own output would keep itself alive
        wrapped = _Kept(tensor.detach(), names.current())
        kept.append(weakref.ref(wrapped))
        return wrapped

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda wrapped: wrapped.tensor):
        outputs = tensors_in(model(images))

    seen = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    by_layer: Counter[str] = Counter()

    def count(tensor: Tensor, layer: str) -> None:
        key = _storage(tensor)
        if key and key not in seen:
            seen.add(key)
            by_layer[layer] += tensor.untyped_storage().nbytes()

    owners = {id(parameter): name.rpartition(".")[0] for name, parameter in model.named_parameters()}
    nodes = list(_nodes(output.grad_fn for output in outputs))
    for node in nodes:
        functions, for_gates = saved_for_gates(node)
        for saved in for_gates:
            if isinstance(saved.data, _Kept):
                # a function that is no layer of the model leaves it where it is
                saved.data.layer = _common(names.of(function) for function in functions) or saved.data.layer
    for reference in kept:
        wrapped = reference()
        if wrapped is not None:
            count(wrapped.tensor, wrapped.layer)
    for node in nodes:
        attributes = tensors_in(vars(node)) if hasattr(node, "__dict__") else []
        inner = list(_nodes(tensor.grad_fn for tensor in attributes))
        layer = _common(owners.get(id(getattr(n, "variable", None))) for n in inner)
        # a node has the tensors that its operator saved as attributes
        of_inner = [getattr(n, name) for n in inner for name in dir(n) if name.startswith("_saved_")]
        for tensor in (*attributes, *tensors_in(of_inner)):
            count(tensor, layer)
    return by_layer


def _common(layers: Iterable[str | None]) -> str:
    """Return the innermost layer that holds all of `layers`, without those that are None; `ROOT` if there are none."""
    paths = [layer.split(".") for layer in layers if layer is not None]
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return ".".join(parts[0] for parts in same) or ROOT


def _storage(tensor: Tensor) -> int:
    # only strided tensors have one storage; 0 means none
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _nodes(roots: Iterable[Any]) -> Iterator[Any]:
    pending = [root for root in roots if root is not None]
    visited = set()
    while pending:
        node = pending.pop()
        if node in visited:
            continue
        visited.add(node)
        yield node
        pending.extend(parent for parent, _ in node.next_functions if parent is not None)


def measure_latency(
    models: Sequence[nn.Module],
    images: Sequence[Tensor],
    rounds: int = 10,
    max_seconds: float = 60,
    *,
    training: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Latency]:
    """Time each of `models` on the one of `images` at its place; the training step in the mode `training`.

    Every round times all models, so that a change of the machine's speed affects them alike. Afterwards modes, buffers
    and gradients are as before.

    The results are medians over `rounds` after the warm-up; after 3 of them, no new round starts later than
    `max_seconds`. Where these times are not steady (see `Latency`), up to three times as many rounds are measured in up
    to three times as long, until the last `rounds` are. `progress` is called after each round with the numbers of
    rounds done and of all rounds.
    """
    start = time.perf_counter()
    measured: list[list[tuple[float, float, int | None]]] = [[] for _ in models]
    for round_index in range(_WARM_UP_ROUNDS + _MOST_TIMES_AS_MANY * rounds):
        num_measured, seconds = round_index - _WARM_UP_ROUNDS, time.perf_counter() - start
        is_late = num_measured >= _LEAST_ROUNDS and seconds > max_seconds
        if num_measured >= rounds or is_late:
            results = [
                _latency(done[_WARM_UP_ROUNDS:][-rounds:], model) for done, model in zip(measured, models, strict=True)
            ]
            if all(one.steady for one in results) or seconds > _MOST_TIMES_AS_MANY * max_seconds:
                return results
        for done, model, batch in zip(measured, models, images, strict=True):
            device, peak = batch.device, None
            with undisturbed(model):
                model.eval()
                forward_ms = _milliseconds(partial(_forward, model, batch), device)
                model.train(training)
                if device.type in _WITH_MEMORY_STATISTICS:
                    torch.accelerator.reset_peak_memory_stats(device)
                    own = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), batch))
                    occupied_by_others = torch.accelerator.memory_allocated(device) - own
                training_ms = _milliseconds(partial(_training_step, model, batch), device)
                if device.type in _WITH_MEMORY_STATISTICS:
                    peak = torch.accelerator.max_memory_allocated(device) - occupied_by_others
            done.append((forward_ms, training_ms, peak))
        if progress is not None:
            progress(round_index + 1, max(round_index + 1, _WARM_UP_ROUNDS + rounds))
    return [_latency(done[-rounds:], model) for done, model in zip(measured, models, strict=True)]


def _latency(rounds: Sequence[tuple[float, float, int | None]], model: nn.Module) -> Latency:
    forward, steps, peaks = zip(*rounds, strict=True)
    forward_ms, training_step_ms = statistics.median(forward), statistics.median(steps)
    # without a backward pass both take the same time
    trains = any(parameter.requires_grad for parameter in model.parameters())
    of_step = forward_ms / training_step_ms if trains else 0.0
    return Latency(
        forward_ms,
        training_step_ms,
        peaks[-1],
        spread=max(*(max(times) / min(times) for times in (forward, steps)), of_step),
        steady=all(map(_agree, (forward, steps))) and of_step <= 1,
    )


def _agree(times: Sequence[float]) -> bool:
    # quantiles takes two times or more
    low, median, high = statistics.quantiles([*times, times[-1]][: max(2, len(times))], n=4, method="inclusive")
    return high - low <= _FARTHEST_QUARTILES * median


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
    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    wait()
    start = time.perf_counter()
    run()
    wait()
    return 1000 * (time.perf_counter() - start)
