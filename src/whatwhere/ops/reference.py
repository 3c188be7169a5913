"""The reference backend: the gates in plain PyTorch, any device and dtype.

All tests compare with it in float64. Export and tracing see it; torch.compile does where neither `traced.py` nor
`compiled.py` can compute a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from .call import Arrangement, ChannelGate, SpatialGate, has_hooks, is_compiled
from .layout import narrowed, widened
from .spectral import NUM_COMPONENTS, spectral_pool

# symbolic tracing patches a function under the name by which it is called
torch.fx.wrap("narrowed")
torch.fx.wrap("spectral_pool")
torch.fx.wrap("widened")


@torch.fx.wrap
def _extreme(x: Tensor, dim: int, largest: bool) -> Tensor:
    """Return the maximum or minimum over `dim`. Its gradient goes to the first index of several equal values."""
    # max(dim) finds that index. amax is several times faster on a CPU, but spreads the gradient over equal values.
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    needs_gradient = torch.is_grad_enabled() and x.requires_grad
    # in bfloat16, and on a GPU, the compiler may round one side of its comparison and not the other
    if needs_gradient and is_compiled() and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        extreme: Tensor = _Extreme.apply(x, dim, largest)
        return extreme
    if needs_gradient or tracing:
        return torch.max(x, dim)[0] if largest else torch.min(x, dim)[0]
    return x.amax(dim) if largest else x.amin(dim)


class _Extreme(torch.autograd.Function):
    """amax or amin, whose gradient goes to the first index: for torch.compile, which fuses all of it.

    max(dim) and the scattering of its gradient are loops without vector instructions in what it makes for a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, largest: bool) -> Tensor:
        extreme = x.amax(dim) if largest else x.amin(dim)
        # not the extreme: a gate may write to it
        ctx.save_for_backward(x)
        ctx.dim, ctx.largest = dim, largest
        return extreme

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        dim, num = ctx.dim, x.shape[ctx.dim]
        extreme = x.amax(dim) if ctx.largest else x.amin(dim)
        index = torch.arange(num, dtype=torch.int32, device=x.device).view(num, *[1] * (x.dim() - dim - 1))
        # a NaN is the extreme of its row
        found = (x == extreme.unsqueeze(dim)) | x.isnan()
        first = torch.where(found, index, num).amin(dim, keepdim=True)
        return torch.where(index == first, gradient.unsqueeze(dim), 0), None, None


@torch.fx.wrap
def bessel(x: Tensor) -> Tensor:
    """Return n / (n - 1) for the n = H * W pixels of x, or 1 for a single pixel, as a 0-dimensional tensor.

    It is a tensor, because a tracer would keep a number from the size at which it traced.
    """
    num_pixels = x.new_ones(x.shape[2:], dtype=torch.promote_types(x.dtype, torch.float32)).sum()
    return num_pixels / (num_pixels - 1).clamp_min(1)


def _std(x: Tensor) -> Tensor:
    # 1e-5, because the gradient of sqrt is infinite at 0, the variance of a constant plane
    return torch.sqrt(widened(x).var((2, 3), correction=0) * bessel(x) + 1e-5)


def _spectral(num_components: int) -> Callable[[Tensor], Tensor]:
    return lambda x: spectral_pool(x, num_components)


def _l2(x: Tensor) -> Tensor:
    # its gradient is 0 at an all-zero plane, that of sqrt(sum(x**2)) NaN
    norm: Tensor = torch.linalg.vector_norm(widened(x), dim=(2, 3))
    return norm


# over H x W: (N, C, H, W) -> (N, C), in the dtype of x, or in float32 at least where the values may overflow
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: _extreme(x.flatten(2), 2, True),
    "lp": _l2,
    "lse": lambda x: torch.logsumexp(widened(x), (2, 3)),
    "min": lambda x: _extreme(x.flatten(2), 2, False),
    "std": _std,
    "l2": _l2,
    **{f"dct{num}": _spectral(num) for num in NUM_COMPONENTS},
}
# over C: (N, C, H, W) -> (N, 1, H, W)
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda x: _extreme(x, 1, True)[:, None],
    "mean": lambda x: x.mean(1, keepdim=True),
}


def small(function: Callable[..., Tensor], x: Tensor, *inputs: Tensor, narrow: bool = False) -> Tensor:
    """Run `what` or `where` on pooled features or maps of x; return its result in the dtype of x.

    It runs in float32 under autocast, in float32 at least if it has a true attribute `in_float32`, else in the dtype of
    x. `narrow` says that the inputs may have another dtype and must be brought to that of x.
    """
    # a symbolic trace has no device
    device = x.device.type if isinstance(x, Tensor) else "cpu"
    if device != "meta" and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return function(*(value.float() for value in inputs)).to(x.dtype)
    if getattr(function, "in_float32", False):
        return narrowed(function(*(widened(value) for value in inputs)), x)
    return function(*(narrowed(value, x) for value in inputs)) if narrow else function(*inputs)


def gate(
    x: Tensor,
    what: ChannelGate | None = None,
    where: SpatialGate | None = None,
    *,
    norm: nn.Module | None = None,
    shortcut: Tensor | None = None,
    arrangement: Arrangement = "channel_first",
    mix: Tensor | None = None,
    factor: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Scale features by a channel gate and a spatial gate; see `whatwhere.ops.gate`."""
    z = x if norm is None else norm(x)
    is_plain = what is None and where is None and factor is None
    # nothing else uses the output of this norm, or, where its caller says so, x
    is_free = type(norm) is nn.BatchNorm2d and not has_hooks(norm)
    if shortcut is not None and norm is None and overwrite and not torch.is_grad_enabled():
        is_free = x.dtype is shortcut.dtype and x.shape == shortcut.shape
    if shortcut is not None and is_plain and is_free:
        return torch.relu_(z.add_(shortcut))

    def channel(features: Tensor) -> Tensor | None:
        if what is None:
            return None
        pooled = pools_of(features, what.pools, in_float32=getattr(what, "in_float32", False))
        narrow = not {"avg", "max", "min"}.issuperset(what.pools)
        return small(what, features, *pooled, narrow=narrow)[:, :, None, None]

    def spatial(features: Tensor) -> Tensor | None:
        return None if where is None else small(where, features, maps_of(features, where.maps))

    if arrangement == "spatial_first":
        first = spatial(z)
        second = channel(_scale(z, first))
    else:
        first = channel(z)
        second = spatial(z if arrangement == "parallel" else _scale(z, first))

    if mix is None:
        y = _scale(_scale(z, first), second)
    else:
        gates = _scale(first, second) if first is not None else second
        y = z if gates is None else z * (1 - mix + mix * gates)
    if factor is not None:
        y = y * factor[:, None, None, None]
    return y if shortcut is None else torch.relu_(y + shortcut)


def pools_of(x: Tensor, names: Sequence[str], *, in_float32: bool) -> tuple[Tensor, ...]:
    """Return the pools of x by name, (N, C) each; `in_float32` says not to round them to the dtype of x in between."""
    source = widened(x) if in_float32 else x
    return tuple(POOLS[name](source) for name in names)


def maps_of(x: Tensor, names: Sequence[str]) -> Tensor:
    """Return the maps of x by name, (N, k, H, W)."""
    return torch.cat([MAPS[name](x) for name in names], 1)


def _scale(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else x * gate
