"""The plain formulation of a gate: eager PyTorch, any dtype and device, float64 included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
import torch.fx
from torch import Tensor

Arrangement = Literal["channel_first", "spatial_first", "parallel"]


class ChannelGate(Protocol):
    """`what` to look at: pooled features, one (N, C) tensor per name in `pools`, to a channel gate (N, C)."""

    pools: tuple[str, ...]

    def __call__(self, *pooled: Tensor) -> Tensor: ...


class SpatialGate(Protocol):
    """`where` to look: pooled maps (N, k, H, W), one per name in `maps`, to a spatial gate (N, 1, H, W)."""

    maps: tuple[str, ...]

    def __call__(self, maps: Tensor, /) -> Tensor: ...


@torch.fx.wrap
def _max(x: Tensor, dim: int) -> Tensor:
    """Return the maximum over `dim`, whose gradient goes to one index, the first of the largest."""
    # max(dim) finds that index; amax, several times faster on a CPU, would spread the gradient over equal maxima
    wants_gradient = (torch.is_grad_enabled() and x.requires_grad) or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return x.max(dim).values if wants_gradient else x.amax(dim)


# The l2 norm has gradient 0 at an all-zero plane, where sqrt(sum(x**2)) would give NaN.
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: _max(x.flatten(2), 2),
    "lp": lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
    "lse": lambda x: torch.logsumexp(x, (2, 3)),
}
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda x: _max(x, 1)[:, None],
    "mean": lambda x: x.mean(1, keepdim=True),
}


def gate(
    x: Tensor,
    what: ChannelGate | None = None,
    where: SpatialGate | None = None,
    *,
    arrangement: Arrangement = "channel_first",
    mix: Tensor | None = None,
) -> Tensor:
    """Scale `x` by a channel gate s and a spatial gate m.

    With s = what(pooled x) and m = where(pooled maps), a gate that is absent being 1::

        channel_first   s from x,      m from x * s     y = x * s * m
        spatial_first   m from x,      s from x * m     y = x * m * s
        parallel        s from x,      m from x         y = x * s * m

    and with identity mixing `mix` = a, y = x * (1 - a + a * s * m): x itself at a = 0, the line above at a = 1.

    Args:
        x: Features.
        what: Channel gate; its attribute `pools` names the pooled features it takes, in order: "avg", "max", "lp"
            (the l2 norm) and "lse" (log-sum-exp), each over H x W.
        where: Spatial gate; its attribute `maps` names the pooled maps it takes, in order: "max" and "mean", over C.
        arrangement: Which gate sees the output of the other.
        mix: The scalar a, a 0-dimensional tensor.

    Shape:
        x (N, C, H, W) -> (N, C, H, W).

    Dtype:
        Any floating dtype; computed and returned in that of `x`.
    """

    def channel(features: Tensor) -> Tensor | None:
        return None if what is None else what(*(POOLS[pool](features) for pool in what.pools))[:, :, None, None]

    def spatial(features: Tensor) -> Tensor | None:
        return None if where is None else where(torch.cat([MAPS[name](features) for name in where.maps], 1))

    if arrangement == "spatial_first":
        first = spatial(x)
        second = channel(_scale(x, first))
    else:
        first = channel(x)
        second = spatial(x if arrangement == "parallel" else _scale(x, first))

    if mix is None:
        return _scale(_scale(x, first), second)
    gates = _scale(first, second) if first is not None else second
    return x if gates is None else x * (1 - mix + mix * gates)


def _scale(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor
