"""Small functions that C++ can compute too: what a module says of itself, believed as long as it is what it seems."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn


class Layers(NamedTuple):
    """A channel gate sigmoid(sum over the pools of W2 relu(W1 pool + b1) + b2), or of W1 pool + b1."""

    w1: Tensor  # a matrix, or alone the kernel of a convolution along the channels, (1, 1, k), k odd
    b1: Tensor | None
    w2: Tensor | None = None
    b2: Tensor | None = None


class Convolution(NamedTuple):
    """A spatial gate sigmoid(norm(convolution of the maps + bias)); the norm may be missing."""

    kernel: Tensor  # (1, number of maps, k, k), k odd
    bias: Tensor | None
    norm: nn.BatchNorm2d | None


# The functions that decide what a class computes, as they were when it was made. Somebody may replace them.
_FUNCTIONS = ("forward", "mlp", "form")
_FORWARD: dict[type[nn.Module], Any] = {
    layer: layer.forward for layer in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm2d, nn.Identity)
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
    if functions is None:
        return None
    for name, before in functions.items():
        if name in function.__dict__ or getattr(type(function), name) is not before:
            return None
    return functions["form"](function)


def _is(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a layer is exactly of a kind, and its weights are plain tensors of real numbers."""
    if type(layer) is not kind or kind.forward is not _FORWARD[kind]:
        return False
    for weight in (*layer._parameters.values(), *layer._buffers.values()):
        if weight is not None and (type(weight) not in (Tensor, nn.Parameter) or weight.is_complex()):
            return False
    return True


def layers(first: nn.Module, second: nn.Module | None = None) -> Layers | None:
    """Return the form of one linear layer, or of two with a ReLU between them; None where they are something else."""
    if not _is(first, nn.Linear) or (second is not None and not _is(second, nn.Linear)):
        return None
    assert isinstance(first, nn.Linear)
    if second is None:
        return Layers(first.weight, first.bias)
    assert isinstance(second, nn.Linear)
    return Layers(first.weight, first.bias, second.weight, second.bias)


def along_channels(conv: nn.Module) -> Layers | None:
    """Return the form of a convolution along the channels, without a bias; None where it is something else."""
    if not _is(conv, nn.Conv1d):
        return None
    assert isinstance(conv, nn.Conv1d)
    size = conv.weight.shape[-1]
    usual = ((1, 1, size), (1,), (1,), (size // 2,), "zeros", 1, None, 1)
    found = (conv.weight.shape, conv.stride, conv.dilation, conv.padding, conv.padding_mode, conv.groups, conv.bias)
    return Layers(conv.weight, None) if (*found, size % 2) == usual else None


def convolution(conv: nn.Module, norm: nn.Module) -> Convolution | None:
    """Return the form of a convolution to one channel and its norm; None where they are something else."""
    if not _is(conv, nn.Conv2d):
        return None
    assert isinstance(conv, nn.Conv2d)
    size = conv.padding[0] * 2 + 1 if isinstance(conv.padding, tuple) else 0
    usual = ((size, size), (1, 1), (1, 1), (size // 2, size // 2), "zeros", 1, 1, 1)
    found = (conv.weight.shape[2:], conv.stride, conv.dilation, conv.padding, conv.padding_mode)
    if (*found, conv.groups, conv.out_channels, size % 2) != usual:
        return None
    if _is(norm, nn.Identity):
        return Convolution(conv.weight, conv.bias, None)
    if not _is(norm, nn.BatchNorm2d):
        return None
    assert isinstance(norm, nn.BatchNorm2d)
    return Convolution(conv.weight, conv.bias, norm) if norm.num_features == 1 else None
