"""Small functions that C++ can compute too: what a module says of itself, believed as long as it is what it seems."""

from __future__ import annotations

from typing import Any, NamedTuple

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


def form_of(function: object) -> Any:
    """Return the form of `what` or `where`, by its method `form`; None where it has none.

    The method must stand in the class whose `forward` runs: a subclass with a `forward` of its own computes otherwise.
    """
    for base in type(function).__mro__:
        if "forward" in vars(base):
            return vars(base)["form"](function) if "form" in vars(base) else None
    return None


def layers(first: nn.Module, second: nn.Module | None = None) -> Layers | None:
    """Return the form of one linear layer, or of two with a ReLU between them; None where they are something else."""
    if type(first) is not nn.Linear or type(second) not in (nn.Linear, type(None)):
        return None
    if second is None:
        return Layers(first.weight, first.bias)
    assert isinstance(second, nn.Linear)
    return Layers(first.weight, first.bias, second.weight, second.bias)


def convolution(conv: nn.Module, norm: nn.Module) -> Convolution | None:
    """Return the form of a convolution to one channel and a norm in evaluation mode; None where they are others."""
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or conv.groups != 1 or conv.out_channels != 1:
        return None
    size = conv.kernel_size[0]
    usual = ((size, size), (1, 1), (1, 1), (size // 2, size // 2))
    if (conv.kernel_size, conv.stride, conv.dilation, conv.padding) != usual or size % 2 == 0:
        return None
    bias = 0.0 if conv.bias is None else conv.bias.item()
    if type(norm) is nn.Identity:
        return Convolution(conv.weight, 1.0, bias)
    if type(norm) is not nn.BatchNorm2d or norm.training or norm.running_mean is None or norm.running_var is None:
        return None
    slope = (norm.running_var.item() + norm.eps) ** -0.5 * (1.0 if norm.weight is None else norm.weight.item())
    offset = (bias - norm.running_mean.item()) * slope + (0.0 if norm.bias is None else norm.bias.item())
    return Convolution(conv.weight, slope, offset)
