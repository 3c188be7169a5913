"""Small functions that C++ can compute too: what a module says of itself, believed as long as it is what it seems."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn


class Layers(NamedTuple):
    """A channel gate sigmoid(sum over the pools of W2 relu(W1 pool + b1) + b2), or of W1 pool + b1."""

    w1: Tensor
    b1: Tensor | None
    w2: Tensor | None = None
    b2: Tensor | None = None


class Convolution(NamedTuple):
    """A spatial gate sigmoid(slope * (convolution of the maps) + offset)."""

    kernel: Tensor  # (1, number of maps, k, k), k odd
    slope: float
    offset: float


# The functions that decide what a class computes, as they were when it was made. Somebody may replace them.
_FUNCTIONS = ("forward", "mlp", "form")
_FORWARD: dict[type[nn.Module], Any] = {
    layer: layer.forward for layer in (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.Identity)
}
_KNOWN: dict[type, dict[str, Any]] = {}
Class = TypeVar("Class", bound=type)


def known(gate: Class) -> Class:
    """Believe the method `form` of a class, for exactly this class; a decorator."""
    _KNOWN[gate] = {name: getattr(gate, name) for name in _FUNCTIONS if hasattr(gate, name)}
    return gate


def form_of(function: object) -> Any:
    """Return the form of `what` or `where`; None where it has none, or may compute something else."""
    functions = _KNOWN.get(type(function))
    if functions is None or not functions.keys().isdisjoint(vars(function)):
        return None
    if any(getattr(type(function), name) is not before for name, before in functions.items()):
        return None
    return functions["form"](function)


def _is(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a layer is exactly of a kind, and its weights are plain tensors of real numbers."""
    if type(layer) is not kind or kind.forward is not _FORWARD[kind]:
        return False
    weights = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    return all(type(weight) in (Tensor, nn.Parameter) and not weight.is_complex() for weight in weights)


def layers(first: nn.Module, second: nn.Module | None = None) -> Layers | None:
    """Return the form of one linear layer, or of two with a ReLU between them; None where they are something else."""
    if not _is(first, nn.Linear) or (second is not None and not _is(second, nn.Linear)):
        return None
    assert isinstance(first, nn.Linear)
    if second is None:
        return Layers(first.weight, first.bias)
    assert isinstance(second, nn.Linear)
    return Layers(first.weight, first.bias, second.weight, second.bias)


def convolution(conv: nn.Module, norm: nn.Module) -> Convolution | None:
    """Return the form of a convolution to one channel and a norm in evaluation mode; None where they are others."""
    if not _is(conv, nn.Conv2d):
        return None
    assert isinstance(conv, nn.Conv2d)
    size = conv.kernel_size[0]
    usual = ((size, size), (1, 1), (1, 1), (size // 2, size // 2), "zeros", 1, 1, 1)
    found = (conv.kernel_size, conv.stride, conv.dilation, conv.padding, conv.padding_mode)
    if (*found, conv.groups, conv.out_channels, size % 2) != usual:
        return None
    bias = 0.0 if conv.bias is None else conv.bias.item()
    if _is(norm, nn.Identity):
        return Convolution(conv.weight, 1.0, bias)
    if not _is(norm, nn.BatchNorm2d):
        return None
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return None
    slope = (norm.running_var.item() + norm.eps) ** -0.5 * (1.0 if norm.weight is None else norm.weight.item())
    offset = (bias - norm.running_mean.item()) * slope + (0.0 if norm.bias is None else norm.bias.item())
    return Convolution(conv.weight, slope, offset)
