"""A copy of a network for predictions alone: norms folded into convolutions, a layout and a dtype that are fast."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_map_only

from ..attention import Gate
from ..base.errors import UserError
from ..base.modules import tensors_in, undisturbed
from ..base.words import brief, cause
from ..insert.flow import Call, Flow, check_can_change, record_example
from ..insert.host import AttendedBatchNorm2d, inserted_in, is_plain_batch_norm, release
from ..ops import FoldedNorm, has_hooks
from ..ops.lean import without_autocast

# of the largest value: the rounding of many layers, in float32 and in 16 bits
_ROUNDING, _ROUNDING_OF_HALF = 1e-4, 0.05
# arguments, and the tensors that the network gives for them
Trial: TypeAlias = tuple[tuple[Any, ...], list[Tensor]]


def optimize_for_inference(
    model: nn.Module, example: Any = None, *, dtype: torch.dtype | Literal["auto"] | None = None
) -> nn.Module:
    """Return a copy of a network that makes the same predictions in less time; the network itself does not change.

    The copy is in evaluation mode and needs no gradients. In it

    - each BatchNorm2d that alone takes the output of a Conv2d is folded into it, with the norm's running statistics::

          W' = W * weight / sqrt(var + eps)        b' = (b - mean) * weight / sqrt(var + eps) + bias

      What else the norm does stays: the activation of timm's BatchNormAct2d, the attention that `attend` put behind it.
      Not folded are norms inside a gate, which work on one channel, and those where anything but the norm used the
      convolution's output, or something else their weights: a hook, a sum, a list of features.
    - the layout is channels_last, if the network can be run in it;
    - with `dtype` the weights have that dtype. Arguments are brought to it, and results back.

    Copies are run on the example, and on two of it in one batch, and must reproduce the network but for rounding.

    The network must go the same way for every input. If it uses a convolution's output elsewhere for some inputs only
    (an option of `forward`, a norm for each domain), the example does not show that: for these the copy is wrong. It
    cannot be trained any more, and its state dict fits no other network: save the network, not the copy.
    `torch.compile` takes the copy too.

    Args:
        model: Any convolutional network, trained.
        example: What the network is called with: a tensor, or a tuple of arguments; None takes one image, of a usual
            size.
        dtype: None keeps the network's. "auto" is bfloat16 where the processor or the GPU of the network computes it
            in hardware (AVX-512 BF16 or AMX on a CPU) and the network can be run in it, else the network's. bfloat16
            has three digits: probabilities change by some thousandths, and so may the class of an image that lies
            between two.

    Returns:
        The copy, of the class of `model`.

    Raises:
        UserError: The network does not run on the example, cannot be copied, or the copy computes something else.

    Example:
        >>> import torch
        >>> from whatwhere import create_model, optimize_for_inference
        >>> fast = optimize_for_inference(create_model("cbam_resnet18", seed=0), torch.randn(1, 3, 64, 64))
        >>> fast(torch.randn(8, 3, 64, 64)).shape
        torch.Size([8, 1000])
    """
    if dtype not in (None, "auto") and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UserError(f"dtype must be a floating dtype of torch, 'auto' or None, got {brief(dtype)}")
    check_can_change(model, "optimize_for_inference")
    with torch.inference_mode(False), torch.no_grad():
        plain = _copied(model)
        floating = [parameter for parameter in plain.parameters() if parameter.is_floating_point()]
        own = floating[0].dtype if floating else torch.get_default_dtype()
        if own.itemsize < torch.float32.itemsize:
            # the rounding of 16 bits would hide a norm that must not be folded
            plain.float()
            example = _in_dtype(example, torch.float32)
        flow = record_example(copy.deepcopy(plain), copy.deepcopy(example), caller="optimize_for_inference")
        example = flow.arguments if example is None else example if isinstance(example, tuple) else (example,)
        trials = [(example, _results(plain, example)), *_twice(plain, example)]
        fast = _folded(plain, flow)
        # some networks can only be run in the usual layout
        for layout in (torch.channels_last, torch.contiguous_format):
            _lay_out(fast, layout)
            reason = _why_other(fast, trials, _ROUNDING)
            if not reason:
                break
        else:
            raise UserError(
                f"with its norms folded the network {reason}; optimize the part of it that takes images alone"
            )
        wanted = dtype if isinstance(dtype, torch.dtype) else own if dtype is None else _fast_dtype(fast) or own
        if {parameter.dtype for parameter in floating} <= {wanted}:
            # also where 16 bits have become 32 for the trials
            return fast.to(wanted)
        trials = [(_in_dtype(given, own), results) for given, results in trials]
        cast = _cast(fast, wanted, own)
        reason = _why_other(cast, trials, _ROUNDING if wanted.itemsize >= torch.float32.itemsize else _ROUNDING_OF_HALF)
        if reason and dtype != "auto":
            raise UserError(
                f"in {str(wanted).removeprefix('torch.')} the network {reason}; give another dtype, or None"
            )
        return fast.to(own) if reason else cast


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that shares nothing with the network."""
    try:
        found = copy.deepcopy(model)
    except Exception as error:  # a user's network may raise anything
        raise UserError(f"the network cannot be copied: {cause(error)}") from error
    modules = list(model.modules())
    given = {id(one) for one in (*modules, *model.parameters())}
    is_shared = any(id(one) in given for one in (*found.modules(), *found.parameters()))
    if is_shared or len(modules) != len(list(found.modules())):
        raise UserError("a copy of the network shares modules or weights with it")
    replaced = next((module for module in modules if "forward" in vars(module)), None)
    if replaced is not None:
        raise UserError(f"the forward of a {type(replaced).__name__} was replaced, and runs the network, not its copy")
    return found.eval().requires_grad_(False)


def _twice(plain: nn.Module, example: tuple[Any, ...]) -> list[Trial]:
    """Return a trial of the example with its images twice in a batch; none if it has none or no batch is taken."""
    images = next((value for value in tensors_in(example) if value.dim() == 4), None)
    if images is None:
        return []

    def doubled(value: Tensor) -> Tensor:
        return torch.cat([value, value]) if value.dim() and len(value) == len(images) else value

    batch = tree_map_only(Tensor, doubled, example)
    try:
        return [(batch, _results(plain, batch))]
    except Exception:  # a user's network may raise anything, as where it takes one image at a time
        return []


def _results(network: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Return the tensors that a network gives, each time from the same state and random numbers."""
    with undisturbed(network), without_autocast(_device_type(network)):
        torch.manual_seed(0)
        # copies: a network may keep a state in attributes, and change its arguments
        return tensors_in(copy.deepcopy(network)(*copy.deepcopy(arguments)))


def _device_type(network: nn.Module) -> str:
    return next((parameter.device.type for parameter in network.parameters()), "cpu")


def _why_other(network: nn.Module, trials: list[Trial], tolerance: float) -> str:
    """Return how the results of a network differ from those in `trials`; "" if they differ by rounding."""
    for arguments, expected in trials:
        try:
            found = _results(network, arguments)
        except Exception as error:  # a user's network may raise anything
            return f"does not run: {cause(error)}"
        if not expected:
            return "returns no tensors to compare"
        if len(found) != len(expected) or not all(map(partial(_is_close, tolerance), found, expected)):
            return "computes something else"
    return ""


def _is_close(tolerance: float, found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.is_floating_point() != expected.is_floating_point():
        return False
    if not expected.is_floating_point():
        # a class, or a place, may change with rounding
        return tolerance > _ROUNDING or torch.equal(found, expected)
    largest = expected.nan_to_num(0, 0, 0).abs().max().item() if expected.numel() else 0
    return torch.allclose(found.double(), expected.double(), rtol=0, atol=tolerance * largest, equal_nan=True)


def _folded(plain: nn.Module, flow: Flow) -> nn.Module:
    """Return a copy with each norm folded that can be; `flow` is that of another copy."""
    fast = copy.deepcopy(plain)
    recorded = dict(zip(flow.calls[0].module.modules(), fast.modules(), strict=True))
    for convolution, norm in _pairs(flow):
        _fold(recorded[convolution], recorded[norm])
    for keeper, inserted in inserted_in(fast):
        if not inserted.is_in_step(keeper):
            inserted.put_back(keeper)
    return fast


def _lay_out(network: nn.Module, layout: torch.memory_format) -> None:
    # unlike `to`, which refuses a network that has tensors of five dimensions too
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.contiguous(memory_format=layout)


def _pairs(flow: Flow) -> list[tuple[nn.Module, nn.Module]]:
    """Return each convolution with the norm that alone takes its output, both called once."""
    found: list[tuple[nn.Module, nn.Module]] = []
    in_gates = {module for call in flow.calls if isinstance(call.module, Gate) for module in call.module.modules()}
    outlived = set(flow.alive.values())
    for call in flow.calls:
        norm = call.module
        if len(call.entries) != 1 or norm in in_gates or not _can_be_folded(norm):
            continue
        output = call.entries[0]
        producer = next(iter(flow.producers(output)), None)
        if producer is None or type(producer.module) is not nn.Conv2d:
            continue
        hooked = (*(by.module for by in output.returned_by), *(c.module for c in flow.calls if output in c.entries))
        if (
            flow.num_calls[producer.module] == flow.num_calls[norm] == 1
            and all(call in consumer.calls for consumer in output.consumers)
            # kept by the network, by a hook or in its results
            and output not in outlived
            and not has_hooks(producer.module, norm)
            and not any(has_hooks(module, inside=False) for module in hooked)
            and all(_has_its_weights_alone(one, flow) for one in (producer, call))
        ):
            found.append((producer.module, norm))
    return found


def _has_its_weights_alone(call: Call, flow: Flow) -> bool:
    """Return whether nothing but the call of a module computes with its weights."""
    tensors = (*call.module.parameters(recurse=False), *call.module.buffers(recurse=False))
    nodes = [flow.alive[id(tensor)] for tensor in tensors if id(tensor) in flow.alive]
    return all(call in consumer.calls for node in nodes for consumer in node.consumers)


def _can_be_folded(norm: nn.Module) -> bool:
    is_known = is_plain_batch_norm(norm) or isinstance(norm, AttendedBatchNorm2d) or _is_timms(norm)
    # some networks keep a norm in training mode
    return is_known and isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None and not norm.training


def _is_timms(norm: nn.Module) -> bool:
    """Return whether a norm is timm's BatchNormAct2d: the norm, then its child `drop`, then `act`."""
    return type(norm).__name__ == "BatchNormAct2d" and [name for name, _ in norm.named_children()] == ["drop", "act"]


def _fold(convolution: nn.Module, norm: nn.Module) -> None:
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    of_norm = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    convolution.weight, convolution.bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *of_norm)
    if isinstance(norm, AttendedBatchNorm2d):
        release(norm)
    FoldedNorm.take_the_place_of(norm)


def _fast_dtype(network: nn.Module) -> torch.dtype | None:
    """Return bfloat16 where the device of a network computes it in hardware, else None."""
    device = _device_type(network)
    if device == "cpu":
        is_there = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        is_there = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_there else None


def _cast(network: nn.Module, wanted: torch.dtype, own: torch.dtype) -> nn.Module:
    """Return a copy in the dtype `wanted` that takes `own` and returns it."""
    cast = copy.deepcopy(network)
    # unlike `to`, which would leave a complex weight its real part
    cast._apply(partial(_in_dtype, dtype=wanted))  # type: ignore[no-untyped-call]
    if wanted != own:
        cast.register_forward_pre_hook(_Cast(wanted), with_kwargs=True)
        cast.register_forward_hook(_CastBack(wanted, own))
    return cast


def _in_dtype(values: Any, dtype: torch.dtype) -> Any:
    return tree_map_only(Tensor, lambda value: value.to(dtype) if value.is_floating_point() else value, values)


@dataclass(frozen=True)
class _Cast:
    """A forward pre-hook: the arguments come in this dtype."""

    dtype: torch.dtype

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return _in_dtype((args, kwargs), self.dtype)


@dataclass(frozen=True)
class _CastBack:
    """A forward hook: results in the dtype `inside` get that of the network."""

    inside: torch.dtype
    own: torch.dtype

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return tree_map_only(Tensor, lambda value: value.to(self.own) if value.dtype is self.inside else value, output)
