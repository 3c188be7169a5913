"""The gates in plain PyTorch with the least memory: what is kept for backward is x and small tensors.

Everything of the size of x (normalised, gated and gradient tensors) is recomputed from x in the backward pass, piece by
piece of the batch, so that a piece stays in a CPU's cache from one operator to the next. The small functions `what` and
`where` run as ordinary autograd graphs on their own, between the passes, so that any of them works.

With z = norm(x), or x where there is no norm, s = what(pools of z), u = z * s, m = where(maps of u), the identity mixing
a and the factor f of each sample::

    v = f * z * (1 - a + a * s * m)           y = v, or relu(v + shortcut)

    dv = dy, or dy where y > 0                dshortcut = dv
    dm = a * f * sum over C of dv * u         -> where's backward -> gradients of the maps
    du = a * f * m * dv + gradients of the maps, each spread over C (mean) or put at its index (max)
    ds = sum over H x W of du * z             -> what's backward -> gradients of the pools
    dz = s * du + (1 - a) * f * dv + gradients of the pools, spread over H x W or put at their index
    da = sum of dv * f * z * (s * m - 1)

Views (N, P, C) of channels_last and (N, C, P) of contiguous tensors, P = H * W, serve both memory formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .reference import POOLS, ChannelGate, SpatialGate, small

# What a piece of the batch may take: on a CPU about a core's cache, elsewhere enough to fill the device.
_PIECE_BYTES_CPU = 2**20
_PIECE_BYTES = 2**26


@dataclass(frozen=True)
class _View:
    """How a 4-dimensional tensor is laid out, and its view with H and W as one dimension."""

    memory_format: torch.memory_format
    c: int
    p: int

    @staticmethod
    def of(x: Tensor) -> _View:
        if x.is_contiguous() or x.stride(1) != 1:
            return _View(torch.contiguous_format, c=1, p=2)
        return _View(torch.channels_last, c=2, p=1)

    def dense(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self.memory_format)

    def flat(self, x: Tensor) -> Tensor:
        """Return the view (N, P, C) or (N, C, P) of a dense tensor."""
        if self.c == 1:
            return x.view(x.shape[0], x.shape[1], -1)
        return x.permute(0, 2, 3, 1).view(x.shape[0], -1, x.shape[1])

    def over_pixels(self, channels: Tensor) -> Tensor:
        """Return (n, C) as something that multiplies a view."""
        return channels.unsqueeze(self.p)

    def over_channels(self, pixels: Tensor) -> Tensor:
        """Return (n, P) as something that multiplies a view."""
        return pixels.unsqueeze(self.c)

    def image(self, flat: Tensor, height: int, width: int) -> Tensor:
        """Return a view back as (n, C, H, W)."""
        return flat.transpose(1, self.c).unflatten(2, (height, width))


def _pieces(x: Tensor) -> Iterator[slice]:
    budget = _PIECE_BYTES_CPU if x.device.type == "cpu" else _PIECE_BYTES
    step = max(1, budget // max(1, x[0].numel() * max(4, x.element_size())))
    for start in range(0, x.shape[0], step):
        yield slice(start, start + step)


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Extreme:
    """The largest (or smallest) values along one dimension of a view, and the first index of each.

    `max` with indices reads slowly on a CPU. There, each piece only gives the maxima of blocks along the dimension; the
    index is looked for afterwards, in the one block that has it.
    """

    def __init__(self, flat: Tensor, dim: int, largest: bool) -> None:
        self.dim = dim
        self.largest = largest
        self.in_blocks = flat.device.type == "cpu"
        self.block = _block(flat.shape[dim], innermost=dim == 2) if self.in_blocks else 1
        self.parts: list[Tensor] = []
        self.indices: list[Tensor] = []

    def add(self, piece: Tensor) -> Tensor:
        """Take in a piece of the batch and return its values."""
        if not self.in_blocks:
            values, indices = piece.max(self.dim) if self.largest else piece.min(self.dim)
            self.indices.append(indices)
            return values
        blocks = piece.unflatten(self.dim, (-1, self.block))
        part = blocks.amax(self.dim + 1) if self.largest else blocks.amin(self.dim + 1)
        self.parts.append(part)
        return part.amax(self.dim) if self.largest else part.amin(self.dim)

    def locate(self, flat: Tensor) -> Tensor:
        """Return the first index of each value, `flat` being the whole that was taken in."""
        if not self.in_blocks:
            return torch.cat(self.indices)
        parts = torch.cat(self.parts)
        first = (parts.max(self.dim) if self.largest else parts.min(self.dim)).indices
        blocks = flat.unflatten(self.dim, (-1, self.block))
        shape = list(blocks.shape)
        shape[self.dim] = 1
        inside = blocks.gather(self.dim, first.unsqueeze(self.dim).unsqueeze(self.dim).expand(shape)).squeeze(self.dim)
        return first * self.block + (inside.max(self.dim) if self.largest else inside.min(self.dim)).indices


def _block(size: int, innermost: bool) -> int:
    """Return the divisor of `size` that makes quick blocks: some vectors long where memory runs along them."""
    wanted = 96 if innermost else 16
    divisors = [k for k in range(1, size + 1) if size % k == 0 and k > 1] or [1]
    return min(divisors, key=lambda k: max(k / wanted, wanted / k))


@dataclass(frozen=True)
class Call:
    """What one call computes, without its tensors."""

    what: ChannelGate | None
    where: SpatialGate | None
    norm: nn.BatchNorm2d | None
    relu: bool

    def parameters(self) -> tuple[Tensor, ...]:
        """Return what of the two small functions takes gradients."""
        functions = [f for f in (self.what, self.where) if isinstance(f, nn.Module)]
        tensors = chain.from_iterable(chain(f.parameters(), f.buffers()) for f in functions)
        return tuple(tensor for tensor in tensors if tensor.requires_grad)


@dataclass
class _Small:
    """The small tensors of one call: the gates with their graphs, and where the maxima are."""

    pooled: tuple[Tensor, ...] = ()
    s: Tensor | None = None
    maps: Tensor | None = None
    m: Tensor | None = None
    pool_indices: tuple[Tensor | None, ...] = ()
    map_index: Tensor | None = None


def run(call: Call, x: Tensor, shortcut: Tensor | None, mix: Tensor | None, factor: Tensor | None) -> Tensor:
    """Return y; through autograd where somebody wants a gradient."""
    weight, bias = (None, None) if call.norm is None else (call.norm.weight, call.norm.bias)
    view = _View.of(x)
    x = view.dense(x)
    shortcut = None if shortcut is None else view.dense(shortcut)
    parameters = call.parameters()
    tensors = (x, shortcut, weight, bias, mix, *parameters)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        y: Tensor = _Lean.apply(call, view, x, shortcut, factor, weight, bias, mix, *parameters)  # type: ignore[no-untyped-call]
        return y
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        z, _ = _normed(call.norm, x)
        return _forward(call, view, z, shortcut, factor, mix, small_dtype=_small_dtype(x))[0]


def _small_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if torch.is_autocast_enabled(x.device.type) else x.dtype


def _normed(norm: nn.BatchNorm2d | None, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Return what `norm` makes of x, its running statistics updated, and mean and variance or their inverse root.

    The inverse root of the variance where they were computed from x, the variance where they are the running ones.
    """
    if norm is None:
        return x, None
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1 / float(norm.num_batches_tracked)
    mean, var = norm.running_mean, norm.running_var
    from_batch = _from_batch(norm)
    z, batch_mean, batch_invstd = torch.native_batch_norm(
        x, norm.weight, norm.bias, mean, var, from_batch, momentum, norm.eps
    )
    if from_batch:
        return z, (batch_mean, batch_invstd)
    assert mean is not None
    assert var is not None
    # a copy, because the running statistics may move on before the backward pass
    return z, (mean.clone(), var.clone())


def _from_batch(norm: nn.BatchNorm2d) -> bool:
    return norm.training or norm.running_mean is None


def _forward(
    call: Call,
    view: _View,
    z: Tensor,
    shortcut: Tensor | None,
    factor: Tensor | None,
    mix: Tensor | None,
    small_dtype: torch.dtype,
    graph: bool = False,
    needs_z: bool = False,
) -> tuple[Tensor, _Small]:
    """Return y and the small tensors, for the backward pass too with `graph`; z is overwritten if it is not x."""
    kept = _Small()
    flat, height, width = view.flat(z), z.shape[2], z.shape[3]
    accumulation = _accumulation(z.dtype)
    pieces = list(_pieces(z))
    s = m = None
    if call.what is not None:
        pooled, kept.pool_indices = _pool(call.what.pools, view, flat, height, width, graph)
        kept.pooled = tuple(value.to(small_dtype).requires_grad_(needs_z) for value in pooled)
        with torch.set_grad_enabled(graph):
            kept.s = call.what(*kept.pooled)
        s = kept.s.detach().to(z.dtype)

    # y takes the place of z where z is nobody else's and is not needed any more
    y = z if call.norm is not None and (mix is None or call.where is None) else torch.empty_like(z)
    out = view.flat(y)
    if call.where is not None:
        largest = _Extreme(flat, view.c, largest=True)
        maps: list[list[Tensor]] = [[] for _ in call.where.maps]
        for piece in pieces:
            u = flat[piece]
            if s is not None:
                u = torch.mul(u, view.over_pixels(s[piece]), out=out[piece])
            for name, parts in zip(call.where.maps, maps, strict=True):
                parts.append(u.mean(view.c, dtype=accumulation) if name == "mean" else largest.add(u))
        stacked = torch.stack([torch.cat(parts) for parts in maps], 1).unflatten(2, (height, width))
        kept.maps = stacked.to(small_dtype).requires_grad_(needs_z or (kept.s is not None and kept.s.requires_grad))
        if graph and "max" in call.where.maps:
            kept.map_index = largest.locate(flat if s is None else out).to(
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
    names: tuple[str, ...], view: _View, flat: Tensor, height: int, width: int, graph: bool
) -> tuple[list[Tensor], tuple[Tensor | None, ...]]:
    """Return the pooled features (N, C) by name, and with `graph` the indices of the maxima and minima among them."""
    extremes = {name: _Extreme(flat, view.p, name == "max") for name in names if name in ("max", "min")}
    parts: list[list[Tensor]] = [[] for _ in names]
    for piece in _pieces(flat):
        for name, values in zip(names, parts, strict=True):
            if name == "avg":
                values.append(flat[piece].mean(view.p, dtype=_accumulation(flat.dtype)))
            elif name in extremes:
                values.append(extremes[name].add(flat[piece]))
            else:
                values.append(POOLS[name](view.image(flat[piece], height, width)))
    indices = [extremes[name].locate(flat).int() if graph and name in extremes else None for name in names]
    return [torch.cat(values) for values in parts], tuple(indices)


def _apply(
    call: Call,
    view: _View,
    z: Tensor,
    out: Tensor,
    mix: Tensor | None,
    s: Tensor | None,
    m: Tensor | None,
    factor: Tensor | None,
    shortcut: Tensor | None,
) -> None:
    """Write y of a piece into `out`, where u stands if there are both gates; all are this piece's views."""
    channels = None if s is None else view.over_pixels(s)
    pixels = None if m is None else view.over_channels(m)
    if mix is not None:
        gates = channels if pixels is None else pixels if channels is None else channels * pixels
        torch.mul(z, 1 - mix + mix * gates, out=out)
    elif pixels is None:
        torch.mul(z, channels, out=out)
    else:
        torch.mul(z if channels is None else out, pixels, out=out)
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
        view: _View,
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
            z, statistics = _normed(call.norm, x)
            y, ctx.small = _forward(call, view, z, shortcut, factor, mix, small_dtype, graph=True, needs_z=needs_z)
        ctx.call, ctx.view, ctx.parameters, ctx.needs_z = call, view, parameters, needs_z
        ctx.from_batch = call.norm is not None and _from_batch(call.norm)
        ctx.save_for_backward(x, y if call.relu else None, factor, weight, bias, mix, *(statistics or (None, None)))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(dy.device.type, enabled=False):
            return None, None, *_Backward(ctx, dy).gradients()


class _Backward:
    """The backward pass of one call: passes over pieces of the batch, and the small graphs between them."""

    def __init__(self, ctx: Any, dy: Tensor) -> None:
        self.call: Call = ctx.call
        self.view: _View = ctx.view
        self.small: _Small = ctx.small
        self.parameters: tuple[Tensor, ...] = ctx.parameters
        self.needs_z: bool = ctx.needs_z
        self.needs: tuple[bool, ...] = ctx.needs_input_grad[2:]
        self.from_batch: bool = ctx.from_batch
        self.x, y, factor, self.weight, self.bias, mix, self.mean, self.spread = ctx.saved_tensors
        self.dtype = _accumulation(self.x.dtype)
        self.flat = self.view.flat(self.x)
        self.pieces = list(_pieces(self.flat))
        self.s = None if self.small.s is None else self.small.s.detach().to(self.dtype)
        self.m = None if self.small.m is None else self.small.m.detach().flatten(1).to(self.dtype)
        # how much of v comes through the gates, and how much past them: a * f and (1 - a) * f, each (N, 1)
        f = torch.ones(len(self.x), 1, dtype=self.dtype, device=self.x.device)
        f = f if factor is None else factor.to(self.dtype)[:, None]
        self.through, self.past = (f, None) if mix is None else (mix.to(self.dtype) * f, (1 - mix.to(self.dtype)) * f)
        self.f = f
        if self.call.norm is not None:
            invstd = self.spread if self.from_batch else torch.rsqrt(self.spread + self.call.norm.eps)
            scale = invstd if self.weight is None else self.weight.to(self.dtype) * invstd
            shift = -self.mean * scale
            self.scale, self.shift = scale, shift if self.bias is None else shift + self.bias.to(self.dtype)
        self.room = torch.empty_like(self.flat[self.pieces[0]], dtype=self.dtype)
        self.dv4 = self._through_relu(self.view.dense(dy), y)
        self.dv = self.view.flat(self.dv4)

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, shortcut, factor, weight, bias, mix and the small functions' parameters."""
        dmix = None
        gradients: list[Tensor | None] = [None] * len(self.parameters)
        dmaps: dict[str, Tensor] = {}
        dx4 = torch.empty_like(self.x)
        dx = self.view.flat(dx4)
        if self.m is not None:
            dm, dmix = self._spatial_sums()
            dmaps = self._maps_gradient(dm * self.through, gradients)
        dpools: tuple[Tensor | None, ...] = ()
        if self.s is not None:
            ds, channel_dmix = self._channel_sums(dmaps, dx)
            dmix = channel_dmix if dmix is None else dmix
            dpools = self._pools_gradient(ds, gradients)
        dshortcut = self.dv4 if self.needs[1] else None
        if not self.needs_z:
            return None, dshortcut, None, None, None, dmix, *gradients
        for piece in self.pieces:
            self._input_gradient(piece, dx[piece], dmaps, dpools)
        dx4, dweight, dbias = self._through_norm(dx4, dx)
        return dx4, dshortcut, None, dweight, dbias, dmix, *gradients

    def _through_relu(self, dy: Tensor, y: Tensor | None) -> Tensor:
        if y is None:
            return dy
        dv = torch.empty_like(self.x)
        pieces = list(_pieces(dv))
        for piece in pieces:
            torch.ops.aten.threshold_backward.grad_input(dy[piece], y[piece], 0.0, grad_input=dv[piece])
        return dv

    def _z(self, piece: slice) -> Tensor:
        """Return z of a piece, computed again; it may lie in `room`, and must not be written to."""
        x = self.flat[piece]
        if self.call.norm is None:
            return x.to(self.dtype)
        room = self.room[: len(x)]
        if self.view.c == 2 and x.dtype == self.dtype:
            return torch.addcmul(self.shift, x, self.scale, out=room)
        channels = self.view.over_pixels
        return torch.mul(x, channels(self.scale[None]), out=room).add_(channels(self.shift[None]))

    def _spatial_sums(self) -> tuple[Tensor, Tensor | None]:
        """Return sum over C of dv * u, (N, P), and the gradient of the mix."""
        sums, totals = [], []
        for piece in self.pieces:
            product = torch.mul(self._z(piece), self.dv[piece], out=self.room[: len(self.dv[piece])])
            if self.needs[5]:
                totals.append(product.sum((1, 2)))
            if self.s is not None:
                product.mul_(self.view.over_pixels(self.s[piece]))
            sums.append(product.sum(self.view.c))
        dm = torch.cat(sums)
        if not totals:
            return dm, None
        assert self.m is not None
        return dm, (self.f[:, 0] * ((dm * self.m).sum(1) - torch.cat(totals))).sum()

    def _maps_gradient(self, dm: Tensor, gradients: list[Tensor | None]) -> dict[str, Tensor]:
        """Send the gradient of m through `where`; return that of the maps, (N, P) by name."""
        small = self.small
        assert small.m is not None
        assert small.maps is not None
        assert self.call.where is not None
        (dmaps,) = _small_gradients(small.m, (small.maps,), dm, self.parameters, gradients)
        if dmaps is None:
            return {}
        return dict(zip(self.call.where.maps, dmaps.flatten(2).to(self.dtype).unbind(1), strict=True))

    def _channel_sums(self, dmaps: dict[str, Tensor], dx: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return sum over H x W of du * z, (N, C), and, of a channel gate alone, the gradient of the mix.

        Behind a spatial gate du is kept in `dx`, for `_input_gradient`.
        """
        sums = []
        for piece in self.pieces:
            du = self.dv[piece] if self.m is None else self._du(piece, dmaps, dx[piece])
            product = torch.mul(self._z(piece), du, out=self.room[: len(du)])
            sums.append(product.sum(self.view.p))
        ds = torch.cat(sums)
        if self.m is not None:
            return ds, None
        assert self.s is not None
        dmix = (self.f * ds * (self.s - 1)).sum() if self.needs[5] else None
        return ds * self.through, dmix

    def _du(self, piece: slice, dmaps: dict[str, Tensor], out: Tensor) -> Tensor:
        """Write the gradient of u, through the gate m and through the maps, to `out`."""
        assert self.m is not None
        pixels = self.view.over_channels
        gate = pixels(self.m[piece] * self.through[piece])
        if "mean" in dmaps:
            mean = pixels(dmaps["mean"][piece] / self.x.shape[1])
            if out.dtype == self.dtype:
                torch.addcmul(mean, self.dv[piece], gate, out=out)
            else:
                torch.mul(self.dv[piece], gate, out=out).add_(mean)
        else:
            torch.mul(self.dv[piece], gate, out=out)
        if "max" in dmaps:
            assert self.small.map_index is not None
            _add_at(out, self.view.c, pixels(self.small.map_index[piece]), pixels(dmaps["max"][piece]))
        return out

    def _pools_gradient(self, ds: Tensor, gradients: list[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Send the gradient of s through `what`; return that of each pool, (N, C)."""
        assert self.small.s is not None
        return _small_gradients(self.small.s, self.small.pooled, ds, self.parameters, gradients)

    def _input_gradient(
        self, piece: slice, dz: Tensor, dmaps: dict[str, Tensor], dpools: tuple[Tensor | None, ...]
    ) -> None:
        """Write the gradient of z of a piece to `dz`, where du stands if there are both gates."""
        channels = self.view.over_pixels
        if self.m is None:
            assert self.s is not None
            gate = self.s[piece] * self.through[piece]
            torch.mul(self.dv[piece], channels(gate if self.past is None else gate + self.past[piece]), out=dz)
        else:
            if self.s is None:
                self._du(piece, dmaps, dz)
            else:
                dz.mul_(channels(self.s[piece]))
            if self.past is not None:
                dz.add_(self.dv[piece] * self.past[piece][:, :, None])
        names = () if self.call.what is None else self.call.what.pools
        for name, index, dpool in zip(names, self.small.pool_indices, dpools, strict=True):
            if dpool is None:
                continue
            dpool = dpool[piece].to(self.dtype)
            if name == "avg":
                dz.add_(channels(dpool / self.flat.shape[self.view.p]))
            elif index is not None:
                _add_at(dz, self.view.p, channels(index[piece]), channels(dpool))
            else:
                dz.add_(self._pool_gradient(name, piece, dpool))

    def _pool_gradient(self, name: str, piece: slice, dpool: Tensor) -> Tensor:
        """Return the gradient that any other pool sends back to z, by autograd on the piece alone."""
        height, width = self.x.shape[2:]
        z = self._z(piece).detach().requires_grad_()
        with torch.enable_grad():
            pooled = POOLS[name](self.view.image(z, height, width))
        (dz,) = torch.autograd.grad(pooled, z, dpool)
        return dz

    def _through_norm(self, dz4: Tensor, dz: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        norm, (needs_x, _, _, needs_weight, needs_bias, *_) = self.call.norm, self.needs
        if norm is None:
            return dz4, None, None
        running = (None, None) if self.from_batch else (self.mean, self.spread)
        saved = (self.mean, self.spread) if self.from_batch else (None, None)
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            dz4, self.x, self.weight, *running, *saved, self.from_batch, norm.eps, [needs_x, needs_weight, needs_bias]
        )
        return dx if needs_x else None, dweight if needs_weight else None, dbias if needs_bias else None


def _small_gradients(
    output: Tensor,
    inputs: tuple[Tensor, ...],
    gradient: Tensor,
    parameters: tuple[Tensor, ...],
    gradients: list[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Send `gradient` back through a small graph; add what its parameters get to `gradients`, return what inputs get."""
    wanted = [tensor for tensor in (*inputs, *parameters) if tensor.requires_grad]
    if not output.requires_grad or not wanted:
        return (None,) * len(inputs)
    # kept, because the pass around it may come a second time (retain_graph)
    found = torch.autograd.grad(
        output, wanted, gradient.view_as(output).to(output.dtype), retain_graph=True, allow_unused=True
    )
    by_tensor = {id(tensor): value for tensor, value in zip(wanted, found, strict=True)}
    for index, parameter in enumerate(parameters):
        value, so_far = by_tensor.get(id(parameter)), gradients[index]
        if value is not None:
            gradients[index] = value if so_far is None else so_far + value
    return tuple(by_tensor.get(id(tensor)) for tensor in inputs)


def _add_at(target: Tensor, dim: int, index: Tensor, values: Tensor) -> None:
    """Add `values` to `target` at `index` along `dim`, one place each: deterministic on every device."""
    index = index.long()
    target.scatter_(dim, index, target.gather(dim, index) + values.to(target.dtype))
