"""The gates behind a norm as torch.compile traces them in training, so that it keeps as little as the lean backend.

torch.compile sees plain operators and decides itself what it keeps; left alone it keeps z and z * s, as eager PyTorch
does. So the passes over x stand in checkpoints here (`torch.utils.checkpoint`), which it takes as marks on operators:
to be computed again from x. What is small is computed once, outside: the norm's statistics, `what` and `where`. In the
notation of `lean.py`, each line a checkpoint::

    pools of z      z = x * scale + shift                       then s = what(pools)
    maps of u       u = x * (scale * s) + shift * s             then m = where(maps)
    y               u = ((x - mean) * scale + bias) * s         its gradient goes to the u of the maps

The formulas differ on purpose: what stands in two places torch.compile computes once, and would keep. They are pure
functions, and modules are called outside: where torch.compile gives up, torch runs a checkpoint itself, and what is
inside runs twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import lean
from .batch_norm import takes_batch_statistics, update_running
from .call import Call, has_hooks, is_compiled
from .layout import accumulation_dtype
from .reference import maps_of, pools_of, small


def fits(call: Call, x: Tensor, shortcut: Tensor | None, *scalars: Tensor | None) -> bool:
    """Return whether torch.compile is tracing for a gradient, and these passes can compute the call, as lean would."""
    if not (is_compiled() and torch.is_grad_enabled()) or has_hooks(call.norm):
        return False
    # without a norm both formulas of u would be one, which would be kept
    if call.norm is None or lean.why_unfit(call, x, shortcut, *scalars):
        return False
    # a mean over all batches needs their number in Python
    return call.batch_norm is not None and call.batch_norm.momentum is not None


def run(call: Call, x: Tensor, shortcut: Tensor | None, mix: Tensor | None, factor: Tensor | None) -> Tensor:
    """Return y."""
    assert call.batch_norm is not None
    norm, s, m, u = _affine(call.batch_norm, x), None, None, None
    if call.what is not None:
        in_float32 = bool(getattr(call.what, "in_float32", False))
        pooled = _again(_pools, x, norm, tuple(call.what.pools), in_float32)
        s = small(call.what, x, *pooled, narrow=True).to(accumulation_dtype(x.dtype))[:, :, None, None]
    if call.where is not None:
        maps, u = _again(_maps, x, norm, s, tuple(call.where.maps))
        m = small(call.where, x, maps)
    y: Tensor = _again(_result, x, norm, s, m, u, shortcut, mix, factor)
    return y


def _again(function: Callable[..., Any], *args: object) -> Any:
    """Call a function so that the backward pass computes again what is inside it."""
    return checkpoint(function, *args, use_reentrant=False)


class _Affine(NamedTuple):
    """A norm applied to one x, z = (x - mean) * scale + bias = x * scale + shift: (C, 1, 1), in float32 at least."""

    mean: Tensor
    scale: Tensor
    bias: Tensor
    shift: Tensor


def _affine(norm: nn.BatchNorm2d, x: Tensor) -> _Affine:
    """Return what a norm does to x; move its running statistics."""
    dtype = accumulation_dtype(x.dtype)
    if takes_batch_statistics(norm):
        var, mean = torch.var_mean(x.to(dtype), (0, 2, 3), correction=0)
        with torch.no_grad():
            update_running(norm, mean, var, x.numel() // x.shape[1])
    else:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, var = norm.running_mean.to(dtype), norm.running_var.to(dtype)
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.to(dtype)
    bias = torch.zeros_like(scale) if norm.bias is None else norm.bias.to(dtype)
    return _Affine(*(value[:, None, None] for value in (mean, scale, bias, bias - mean * scale)))


def _pools(x: Tensor, norm: _Affine, names: Sequence[str], in_float32: bool) -> tuple[Tensor, ...]:
    return pools_of((x * norm.scale + norm.shift).to(x.dtype), names, in_float32=in_float32)


def _maps(x: Tensor, norm: _Affine, s: Tensor | None, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the maps of u, and u, whose gradient the result sends here."""
    u = _scaled(x, norm, s)
    return maps_of(u.to(x.dtype), names), u


def _scaled(x: Tensor, norm: _Affine, s: Tensor | None) -> Tensor:
    """Return u."""
    return x * norm.scale + norm.shift if s is None else x * (norm.scale * s) + norm.shift * s


def _result(
    x: Tensor,
    norm: _Affine,
    s: Tensor | None,
    m: Tensor | None,
    u: Tensor | None,
    shortcut: Tensor | None,
    mix: Tensor | None,
    factor: Tensor | None,
) -> Tensor:
    if m is None and mix is None:
        y = _scaled(x, norm, s)
    else:
        y = (x - norm.mean) * norm.scale + norm.bias
        if mix is not None:
            gates = m if s is None else s if m is None else s * m
            assert gates is not None
            y = y * (1 - mix + mix * gates)
        else:
            assert m is not None
            y = _Elsewhere.apply(y if s is None else y * s, u) * m
    if factor is not None:
        y = y * factor[:, None, None, None]
    if shortcut is not None:
        y = torch.relu(y + shortcut)
    return y.to(x.dtype)


class _Elsewhere(torch.autograd.Function):
    """Returns `value`; its gradient goes to `source` alone, the same value by another formula, which need not be kept.

    So the gradient of u is one sum in one place, from the maps and the result.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, source: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient
