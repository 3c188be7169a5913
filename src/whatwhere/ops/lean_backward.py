"""The backward pass of the lean backend: three passes over x, with the graphs of the small functions between them.

In the notation of `lean.py`, with g = dL/dy and, behind a norm, z = w * xh + b, xh = (x - mean) / sqrt(var + eps)::

    dv = g, or g where y > 0                                  dshortcut = dv
    dm = a * f * sum over C of dv * u                         first pass; then the graph of `where` gives dmaps
    du = a * f * m * dv + dmaps, each spread over C (mean) or put at its index (max)
    ds = sum over H x W of du * z                             second pass; then the graph of `what` gives dpools
    dz = s * du + (1 - a) * f * dv + dpools, each spread over H x W or put at its index
    da = sum over all of f * dv * z * (s * m - 1)
    db = sum of dz, dw = sum of dz * xh                       over N, H and W, from the sums of the second pass
    dx = w / sqrt(var + eps) * (dz - db / M - xh * dw / M)    third pass; M = N * H * W

In evaluation mode the last two terms of dx are absent. Nothing is divided by w, which may be 0. The pools "std", "l2",
"lp", "lse" and "dct..." have no formula here: autograd computes their gradient, piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .call import Call
from .layout import View, accumulation_dtype, pieces_of
from .reference import POOLS


class Inputs(NamedTuple):
    """The tensors that the autograd function takes, by name; also their gradients, and which of them need one."""

    x: Any = None
    shortcut: Any = None
    factor: Any = None
    weight: Any = None
    bias: Any = None
    mix: Any = None


@dataclass
class Small:
    """The small tensors of one call: both ends of the small functions' graphs, and where the maxima are."""

    pooled: tuple[Tensor, ...] = ()  # the inputs of `what`, (N, C) each
    s: Tensor | None = None  # its output, (N, C)
    maps: Tensor | None = None  # the input of `where`, (N, k, H, W)
    m: Tensor | None = None  # its output, (N, 1, H, W)
    # What autograd saves: the index of each maximum, over H x W under the name of its pool, (N, C); over C as "maps",
    # (N, P). `block.py` keeps others.
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """What a forward pass leaves for its backward pass."""

    call: Call
    view: View
    inputs: Inputs  # without the shortcut
    y: Tensor | None  # the result behind a ReLU
    mean: Tensor | None  # the mean that the norm took, (C,)
    invstd: Tensor | None  # its 1 / sqrt(var + eps), (C,)
    from_batch: bool  # whether both are statistics of the batch, through which x gets a gradient too
    small: Small
    needs: Inputs  # which inputs need a gradient


def spread_over(x: Tensor, s: Tensor | None, m: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the gates as (N, C) and (N, P), although one may be for all images, channels or pixels."""
    s = None if s is None else s.detach().flatten(1).expand(len(x), x.shape[1])
    return s, None if m is None else m.detach().flatten(1).expand(len(x), x[0, 0].numel())


class Work:
    """One backward pass under way: what was saved, in the dtype of accumulation, read piece by piece.

    A gradient's `sums` are (2, N, C): over H x W, those of the gradient, and those of the gradient times xh.

    Attributes:
        s, m: The gates, (N, C) and (N, P); None where there is none.
        f: The factor of each sample, (N, 1).
        through: a * f, how much of z goes through the gates.
        past: (1 - a) * f, how much goes past them; None without a mixing.
        weight, bias, mean, invstd: The norm, z = weight * xh + bias, (C,) each; without one z = xh = x.
        scale: weight * invstd.
        needs_sums: Whether the norm needs the sums of dz: for its own parameters, or because x moved its statistics.
        dv4, dv: The gradient of v, as (N, C, H, W) and as a view. The first pass fills it, piece by piece.
        of_parameters: The gradients of the small functions' parameters so far.
    """

    def __init__(self, saved: Saved, dy: Tensor) -> None:
        x, _, factor, weight, bias, mix = saved.inputs
        self.saved, self.view = saved, saved.view
        self.dtype = dtype = accumulation_dtype(x.dtype)
        self.flat = self.view.flat(x)
        self.pieces = list(pieces_of(self.flat))
        self.rooms: list[Tensor] = []
        s, m = saved.small.s, saved.small.m
        self.s, self.m = (None if gate is None else gate.to(dtype) for gate in spread_over(x, s, m))
        self.f: Tensor = x.new_ones(len(x), 1, dtype=dtype) if factor is None else factor.to(dtype)[:, None]
        self.through = self.f if mix is None else mix.to(dtype) * self.f
        self.past = None if mix is None else self.f - self.through
        one = x.new_ones(x.shape[1], dtype=dtype)
        self.weight, self.invstd = (one if value is None else value.to(dtype) for value in (weight, saved.invstd))
        zero = torch.zeros_like(one)
        self.bias, self.mean = (zero if value is None else value.to(dtype) for value in (bias, saved.mean))
        self.scale: Tensor = self.weight * self.invstd
        self.needs_sums = saved.call.norm is not None and (saved.from_batch or saved.needs.weight or saved.needs.bias)
        self.of_parameters: list[Tensor | None] = [None] * len(saved.call.parameters)

        dy, y = self.view.dense(dy), saved.y
        self.dv4 = dy if y is None else torch.empty_like(x)
        self.dv = self.view.flat(self.dv4)
        self._before_relu = None if y is None else (self.view.flat(dy), self.view.flat(y))

    def dv_of(self, piece: slice) -> Tensor:
        """Return dv of a piece; compute it if this is the first pass."""
        if self._before_relu is not None:
            dy, y = self._before_relu
            torch.ops.aten.threshold_backward.grad_input(dy[piece], y[piece], 0.0, grad_input=self.dv[piece])
            if piece == self.pieces[-1]:
                self._before_relu = None
        return self.dv[piece]

    def room(self, piece: slice, index: int = 0) -> Tensor:
        """Return one of the scratch tensors for a piece, in the dtype of accumulation."""
        while len(self.rooms) <= index:
            self.rooms.append(torch.empty_like(self.flat[self.pieces[0]], dtype=self.dtype))
        return self.rooms[index][: len(self.flat[piece])]

    def centred(self, piece: slice) -> Tensor:
        """Return x - mean of a piece, in the first scratch tensor; x itself without a norm."""
        x: Tensor = self.flat[piece]
        if self.saved.call.norm is None:
            return x if x.dtype == self.dtype else x.to(self.dtype)
        return torch.sub(x, self.view.over_pixels(self.mean[None]), out=self.room(piece))

    def sums(self, gradient: Tensor, centred: Tensor, room: Tensor) -> Tensor:
        by_xh = torch.mul(gradient, centred, out=room).sum(self.view.p).mul_(self.invstd)
        return torch.stack([gradient.sum(self.view.p, dtype=self.dtype), by_xh])

    def by_z(self, sums: Tensor) -> Tensor:
        """Return the sums of a gradient times z, (N, C)."""
        by_z: Tensor = self.weight * sums[1] + self.bias * sums[0]
        return by_z


class Passes:
    """The passes over x of one backward pass, in torch's operators; they fill `dx`, where x needs a gradient."""

    def __init__(self, work: Work, dx: Tensor | None) -> None:
        self.work, self.dx = work, dx

    def fill_dv(self) -> None:
        """Compute dv, which the first pass, or the second without it, does too."""
        for piece in self.work.pieces:
            self.work.dv_of(piece)

    def first(self) -> Tensor:
        """Return the sum over C of dv * u, (N, P)."""
        # what is written to dx here is written over later
        work, view, dx = self.work, self.work.view, self._flat_dx()
        s = work.f.new_ones(len(work.flat), 1) if work.s is None else work.s
        scale, shift = work.scale * s, (work.bias - work.scale * work.mean) * s
        sums = []
        for piece in work.pieces:
            x = work.flat[piece]
            room = work.room(piece) if dx is None or dx.dtype != work.dtype else dx[piece]
            if work.saved.call.norm is not None:
                u = view.affine(x, scale[piece], shift[piece], room)
            elif work.s is None:
                u = x.to(work.dtype)
            else:
                u = torch.mul(x, view.over_pixels(work.s[piece]), out=room)
            sums.append(torch.mul(u, work.dv_of(piece), out=room).sum(view.c))
        return torch.cat(sums)

    def second(self, dmaps: dict[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the sums of du; those of dv if there is a mixing; those of xh, (N, C), if the pool "avg" needs them.

        With a spatial gate du is left in `dx`.
        """
        work, dx, what = self.work, self._flat_dx(), self.work.saved.call.what
        view = work.view
        over_channels = view.over_channels
        needs_xh = work.needs_sums and what is not None and "avg" in what.pools
        of_u, of_v, of_xh = [], [], []
        for piece in work.pieces:
            dv, centred = work.dv_of(piece), work.centred(piece)
            if needs_xh:
                of_xh.append(centred.sum(view.p) * work.invstd)
            if work.m is None:
                of_u.append(work.sums(dv, centred, work.room(piece)))
                continue
            # du, through m and through the maps
            du = work.room(piece, 1) if dx is None else dx[piece]
            gate = over_channels(work.m[piece] * work.through[piece])
            if "mean" not in dmaps:
                torch.mul(dv, gate, out=du)
            else:
                dmean = over_channels(dmaps["mean"][piece] / work.flat.shape[view.c])
                if du.dtype == work.dtype:
                    torch.addcmul(dmean, dv, gate, out=du)
                else:
                    du.copy_(dv * gate + dmean)
            if "max" in dmaps:
                index = over_channels(work.saved.small.tensors["maps"][piece])
                _add_at(du, view.c, index, over_channels(dmaps["max"][piece]))
            if work.past is not None:
                of_v.append(work.sums(dv, centred, work.room(piece, 2)))
            of_u.append(work.sums(du, centred, work.room(piece)))
        sums_of_xh = torch.cat(of_xh) if of_xh else None
        u = torch.cat(of_u, 1)
        if work.m is not None:
            return u, torch.cat(of_v, 1) if of_v else None, sums_of_xh
        # without a spatial gate du is dv, but for the factor and the mixing
        return u * work.through, u, sums_of_xh

    def third(self, dx4: Tensor, dpools: dict[str, Tensor], sums: Tensor | None) -> None:
        """Write the gradient of x to `dx4`, which holds du if there is a spatial gate."""
        work, dx = self.work, self.work.view.flat(dx4)
        view, scale, past, indices = work.view, work.scale, work.past, work.saved.small.tensors
        shift = torch.zeros_like(work.f.expand(-1, len(scale)))
        if "avg" in dpools:
            shift = scale * dpools["avg"] / work.flat.shape[view.p]
        of_x = None
        if sums is not None and work.saved.from_batch:
            num = work.flat.numel() / len(scale)
            of_x = -scale * work.invstd * sums[1].sum(0) / num
            shift = shift - scale * sums[0].sum(0) / num
        gate = work.f.new_ones(len(work.flat), 1) if work.s is None else work.s
        if work.m is None:
            gate = gate * work.through + (0 if past is None else past)
        gate = scale * gate
        # in reverse: the last pieces are still in a CPU's cache
        for piece in reversed(work.pieces):
            source = work.dv[piece] if work.m is None else dx[piece]
            out = dx[piece] if dx.dtype == work.dtype else work.room(piece, 1)
            view.affine(source, gate[piece], shift[piece], out)
            if past is not None and work.m is not None:
                out.add_(work.dv[piece] * view.over_pixels(scale * past[piece]))
            if of_x is not None:
                centred = work.centred(piece)
                if view.is_channels_last:
                    out.addcmul_(centred, of_x)
                else:
                    out.add_(centred.mul_(view.over_pixels(of_x[None])))
            for name, dpool in dpools.items():
                if name in indices:
                    index = view.over_pixels(indices[name][piece])
                    _add_at(out, view.p, index, view.over_pixels(scale * dpool[piece]))
                elif name != "avg":
                    out.add_(_pool_gradient(work, name, piece, dpool) * view.over_pixels(scale[None]))
            if out.dtype != dx.dtype:
                dx[piece].copy_(out)

    def _flat_dx(self) -> Tensor | None:
        return None if self.dx is None else self.work.view.flat(self.dx)


def gradients(
    saved: Saved, dy: Tensor, passes_of: Callable[[Work, Tensor | None], Passes] = Passes
) -> tuple[Inputs, list[Tensor | None]]:
    """Return the gradients of the inputs, and those of the small functions' parameters, from that of the result."""
    work, needs, small = Work(saved, dy), saved.needs, saved.small
    what, where = saved.call.what, saved.call.where
    x, _, _, weight, bias, mix = saved.inputs
    passes = passes_of(work, torch.empty_like(x) if needs.x else None)
    needs_norm = needs.x or needs.weight or needs.bias
    dm = dmix = dweight = dbias = None
    # by the name of their map or pool, (N, P) and (N, C) each
    dmaps: dict[str, Tensor] = {}
    dpools: dict[str, Tensor] = {}
    if where is not None and small.m is not None and (needs.mix or small.m.requires_grad):
        dm = passes.first()
        assert small.maps is not None
        (of_maps,) = through_small(work, small.m, (small.maps,), dm * work.through)
        if of_maps is not None:
            dmaps = dict(zip(where.maps, of_maps.flatten(2).to(work.dtype).unbind(1), strict=True))
    if needs_norm or needs.mix or (small.s is not None and small.s.requires_grad):
        of_u, of_v, sums_of_xh = passes.second(dmaps)
        if what is not None and small.s is not None:
            found = through_small(work, small.s, small.pooled, work.by_z(of_u))
            pairs = zip(what.pools, found, strict=True)
            dpools = {name: dpool.to(work.dtype) for name, dpool in pairs if dpool is not None}
        if needs.mix:
            assert of_v is not None
            dv_by_z = work.by_z(of_v)
            gated = dv_by_z if work.s is None else dv_by_z * work.s
            if dm is not None and work.m is not None:
                gated = dm * work.m
            dmix = (work.f[:, 0] * (gated.sum(1) - dv_by_z.sum(1))).sum().to(mix.dtype)
        sums = None
        if needs_norm and work.needs_sums:
            sums = sums_of_dz(work, of_u, of_v, sums_of_xh, dpools)
            dweight = sums[1].sum(0).to(weight.dtype) if needs.weight else None
            dbias = sums[0].sum(0).to(bias.dtype) if needs.bias else None
        if passes.dx is not None:
            passes.third(passes.dx, dpools, sums)
    elif dm is None:
        passes.fill_dv()
    dshortcut = work.dv4 if needs.shortcut else None
    return Inputs(passes.dx, dshortcut, None, dweight, dbias, dmix), work.of_parameters


def through_small(
    work: Work, output: Tensor, inputs: tuple[Tensor, ...], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """Send `gradient` through the graph of a small function; return the gradients of its inputs.

    Those of the parameters are added to `work.of_parameters`.
    """
    parameters = work.saved.call.parameters
    wanted = [tensor for tensor in (*inputs, *parameters) if tensor.requires_grad]
    if not output.requires_grad or not wanted:
        return (None,) * len(inputs)
    gradient = gradient if output.dim() == 2 else gradient.view(len(inputs[0]), 1, *inputs[0].shape[2:])
    gradient = gradient.sum_to_size(output.shape).to(output.dtype)
    # the graph is kept, because the pass around it may come a second time (retain_graph)
    found = torch.autograd.grad(output, wanted, gradient, retain_graph=True, allow_unused=True)
    by_tensor = {id(tensor): value for tensor, value in zip(wanted, found, strict=True)}
    for index, parameter in enumerate(parameters):
        value, so_far = by_tensor.get(id(parameter)), work.of_parameters[index]
        if value is not None:
            work.of_parameters[index] = value if so_far is None else so_far + value
    return tuple(by_tensor.get(id(tensor)) for tensor in inputs)


def sums_of_dz(
    work: Work, of_u: Tensor, of_v: Tensor | None, sums_of_xh: Tensor | None, dpools: dict[str, Tensor]
) -> Tensor:
    """Return the sums of dz, from those of its parts."""
    view, indices = work.view, work.saved.small.tensors
    sums = of_u if work.s is None else of_u * work.s
    if work.past is not None:
        assert of_v is not None
        sums = sums + of_v * work.past
    for name, dpool in dpools.items():
        if name == "avg":
            assert sums_of_xh is not None
            of_pool = torch.stack([dpool, dpool * sums_of_xh / work.flat.shape[view.p]])
        elif name in indices:
            index = view.over_pixels(indices[name].long())
            x = work.flat.gather(view.p, index).squeeze(view.p)
            of_pool = torch.stack([dpool, dpool * (x - work.mean) * work.invstd])
        else:
            parts = (
                work.sums(_pool_gradient(work, name, piece, dpool), work.centred(piece), work.room(piece))
                for piece in work.pieces
            )
            of_pool = torch.cat(list(parts), 1)
        sums = sums + of_pool
    return sums


def _pool_gradient(work: Work, name: str, piece: slice, dpool: Tensor) -> Tensor:
    """Return the gradient of z of a piece through a pool that has no formula here, by autograd."""
    scale, bias = work.view.over_pixels(work.scale[None]), work.view.over_pixels(work.bias[None])
    z = (work.centred(piece) * scale + bias).requires_grad_()
    with torch.enable_grad():
        pooled = POOLS[name](work.view.image(z, *work.saved.inputs.x.shape[2:]))
    (dz,) = torch.autograd.grad(pooled, z, dpool[piece])
    return dz


def _add_at(target: Tensor, dim: int, index: Tensor, values: Tensor) -> None:
    """Add `values` to `target` at `index` along `dim`, one place each: deterministic on every device."""
    index = index.long()
    target.scatter_(dim, index, target.gather(dim, index) + values.to(target.dtype))
