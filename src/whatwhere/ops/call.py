"""What one call of a gate computes, and the small tensors that it keeps."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from .reference import ChannelGate, SpatialGate


@dataclass(frozen=True)
class Call:
    """What one call computes, without its tensors."""

    what: ChannelGate | None
    where: SpatialGate | None
    norm: nn.Module | None
    relu: bool

    def parameters(self) -> tuple[Tensor, ...]:
        """Return what of the two small functions takes gradients."""
        functions: list[object] = [self.what, self.where]
        modules = [function for function in functions if isinstance(function, nn.Module)]
        tensors = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules)
        # each once, although the two may share some
        return tuple({id(tensor): tensor for tensor in tensors if tensor.requires_grad}.values())

    def batch_norm(self) -> nn.BatchNorm2d | None:
        """Return the norm as what it is once the lean backend has been chosen."""
        assert self.norm is None or isinstance(self.norm, nn.BatchNorm2d)
        return self.norm


@dataclass
class Small:
    """The small tensors of one call: both ends of the small functions' graphs, and where the maxima are.

    Attributes:
        pooled: What `what` takes, (N, C) each.
        s: What it gives, (N, C).
        maps: What `where` takes, (N, k, H, W).
        m: What it gives, (N, 1, H, W).
        indices: By the name of a pool its index over H x W, (N, C); as "maps" that of the maximum over C, (N, P).
    """

    pooled: tuple[Tensor, ...] = ()
    s: Tensor | None = None
    maps: Tensor | None = None
    m: Tensor | None = None
    indices: dict[str, Tensor] = field(default_factory=dict)


def without_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """Return a context in which autocast is off on a type of device."""
    # entering torch's own costs as much as several small operators
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()
