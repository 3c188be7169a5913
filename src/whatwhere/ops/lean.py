"""The gates in plain PyTorch with the least memory: what is kept for backward is x and small tensors.

Everything else of the size of x is recomputed from x in the backward pass (`gradients.py` has its formulas), piece by
piece of the batch, so that a piece stays in a CPU's cache from one operator to the next. The small functions `what` and
`where` run as ordinary autograd graphs of their own, between the passes, so that any of them works.

With z = norm(x), or x where there is no norm, the identity mixing a and the factor f of each sample::

    s = what(pools of z)      u = z * s      m = where(maps of u)
    v = f * z * (1 - a + a * s * m)          y = v, or relu(v + shortcut)
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from .call import Call, Small
from .gradients import Backward
from .layout import Extreme, View, accumulation_dtype, pieces_of
from .reference import POOLS


def run(call: Call, x: Tensor, shortcut: Tensor | None, mix: Tensor | None, factor: Tensor | None) -> Tensor:
    """Return y; through autograd where somebody wants a gradient."""
    norm = call.batch_norm()
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    view = View.of(x)
    x = view.dense(x)
    shortcut = None if shortcut is None else view.dense(shortcut)
    parameters = call.parameters()
    tensors = (x, shortcut, weight, bias, mix, *parameters)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        y: Tensor = _Lean.apply(call, view, x, shortcut, factor, weight, bias, mix, *parameters)
        return y
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        z, _ = _normed(norm, x)
        return _forward(call, view, z, shortcut, factor, mix, small_dtype=_small_dtype(x))[0]


def _small_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if torch.is_autocast_enabled(x.device.type) else x.dtype


def _normed(norm: nn.BatchNorm2d | None, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Return what `norm` makes of x, its running statistics updated, and the mean and 1 / sqrt(var + eps) it took."""
    if norm is None:
        return x, None
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1 / float(norm.num_batches_tracked)
    mean, var = norm.running_mean, norm.running_var
    from_batch = norm.training or mean is None
    z, batch_mean, batch_invstd = torch.native_batch_norm(
        x, norm.weight, norm.bias, mean, var, from_batch, momentum, norm.eps
    )
    if from_batch:
        return z, (batch_mean, batch_invstd)
    assert mean is not None
    assert var is not None
    # a copy, because the running statistics may move on before the backward pass
    return z, (mean.clone(), torch.rsqrt(var + norm.eps))


def _forward(
    call: Call,
    view: View,
    z: Tensor,
    shortcut: Tensor | None,
    factor: Tensor | None,
    mix: Tensor | None,
    small_dtype: torch.dtype,
    graph: bool = False,
    needs_z: bool = False,
) -> tuple[Tensor, Small]:
    """Return y and the small tensors, for the backward pass too with `graph`; z is overwritten if it is not x."""
    kept = Small()
    flat, height, width = view.flat(z), z.shape[2], z.shape[3]
    accumulation = accumulation_dtype(z.dtype)
    pieces = list(pieces_of(z))
    s = m = None
    if call.what is not None:
        pooled = _pool(call.what.pools, view, flat, height, width, kept.indices if graph else None)
        kept.pooled = tuple(value.to(small_dtype).requires_grad_(needs_z) for value in pooled)
        with torch.set_grad_enabled(graph):
            kept.s = call.what(*kept.pooled)
        s = kept.s.detach().to(z.dtype)

    # y takes the place of z where z is nobody else's and is not needed any more
    y = z if call.norm is not None and (mix is None or call.where is None) else torch.empty_like(z)
    out = view.flat(y)
    if call.where is not None:
        largest = Extreme(flat, view.c, largest=True)
        maps: list[list[Tensor]] = [[] for _ in call.where.maps]
        for piece in pieces:
            u = flat[piece]
            if s is not None:
                u = torch.mul(u, view.over_pixels(s[piece]), out=out[piece])
            for name, parts in zip(call.where.maps, maps, strict=True):
                parts.append(u.mean(view.c, dtype=accumulation) if name == "mean" else largest.add(u))
        stacked = torch.stack([torch.cat(parts) for parts in maps], 1).view(len(z), -1, height, width)
        kept.maps = stacked.to(small_dtype).requires_grad_(needs_z or (kept.s is not None and kept.s.requires_grad))
        if graph and "max" in call.where.maps:
            kept.indices["maps"] = largest.locate(flat if s is None else out).to(
                torch.int16 if z.shape[1] < 2**15 else torch.int32
            )
        with torch.set_grad_enabled(graph):
            kept.m = call.where(kept.maps)
        m = kept.m.detach().flatten(1).to(z.dtype)

    shortcuts = None if shortcut is None else view.flat(shortcut)
    for piece in pieces:
        of_piece = (None if tensor is None else tensor[piece] for tensor in (s, m, factor, shortcuts))
        _apply(call, view, flat[piece], out[piece], mix, *of_piece)
    return y, kept


def _pool(
    names: tuple[str, ...], view: View, flat: Tensor, height: int, width: int, indices: dict[str, Tensor] | None
) -> list[Tensor]:
    """Return the pooled features (N, C) by name, and write where the maxima and minima are into `indices`."""
    extremes = {name: Extreme(flat, view.p, name == "max") for name in names if name in ("max", "min")}
    parts: list[list[Tensor]] = [[] for _ in names]
    for piece in pieces_of(flat):
        for name, values in zip(names, parts, strict=True):
            if name == "avg":
                values.append(flat[piece].mean(view.p, dtype=accumulation_dtype(flat.dtype)))
            elif name in extremes:
                values.append(extremes[name].add(flat[piece]))
            else:
                values.append(POOLS[name](view.image(flat[piece], height, width)))
    if indices is not None:
        indices.update({name: extreme.locate(flat).int() for name, extreme in extremes.items()})
    return [torch.cat(values) for values in parts]


def _apply(
    call: Call,
    view: View,
    z: Tensor,
    out: Tensor,
    mix: Tensor | None,
    s: Tensor | None,
    m: Tensor | None,
    factor: Tensor | None,
    shortcut: Tensor | None,
) -> None:
    """Write y of a piece into `out`, where u stands if there are both gates; all are this piece's views."""
    gates = [] if s is None else [view.over_pixels(s)]
    gates += [] if m is None else [view.over_channels(m)]
    if mix is not None:
        torch.mul(z, 1 - mix + mix * functools.reduce(torch.mul, gates), out=out)
    else:
        torch.mul(out if len(gates) == 2 else z, gates[-1], out=out)
    if factor is not None:
        out.mul_(factor[:, None, None])
    if shortcut is not None:
        out.add_(shortcut)
    if call.relu:
        torch.relu_(out)


class _Lean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        view: View,
        x: Tensor,
        shortcut: Tensor | None,
        factor: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mix: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        needs_z = any(ctx.needs_input_grad[index] for index in (2, 5, 6))
        small_dtype = _small_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            z, statistics = _normed(call.batch_norm(), x)
            y, kept = _forward(call, view, z, shortcut, factor, mix, small_dtype, graph=True, needs_z=needs_z)
        mean, invstd = statistics or (None, None)
        ctx.call, ctx.view, ctx.from_batch, ctx.parameters, ctx.kept = (
            call,
            view,
            call.normalizes_by_batch,
            parameters,
            kept,
        )
        ctx.index_names = tuple(kept.indices)
        tensors = (x, y if call.relu else None, factor, weight, bias, mix, mean, invstd, *kept.indices.values())
        kept.indices = {}
        ctx.save_for_backward(*tensors)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(dy.device.type, enabled=False):
            return None, None, *Backward(ctx, dy).gradients()
