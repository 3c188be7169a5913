"""The backward pass of the lean gates: three passes over x, the small functions' own graphs between them.

(The pools "std", "l2", "lp" and "lse" take further ones, by autograd on each piece.)

In the notation of `lean.py`, with g = dL/dy and, behind a norm, z = w * xh + b, xh = (x - mean) / sqrt(var + eps)::

    dv = g, or g where y > 0                                  dshortcut = dv
    dm = a * f * sum over C of dv * u                         first pass; then where's graph gives dmaps
    du = a * f * m * dv + dmaps, each spread over C (mean) or put at its index (max)
    ds = sum over H x W of du * z                             second pass; then what's graph gives dpools
    dz = s * du + (1 - a) * f * dv + dpools, each spread over H x W or put at its index
    da = sum over all of f * dv * z * (s * m - 1)
    db = sum of dz, dw = sum of dz * xh                       over N, H and W, from the sums of the second pass
    dx = w / sqrt(var + eps) * (dz - db / M - xh * dw / M)    third pass; M = N * H * W

In evaluation the last two terms of dx are absent. Nothing is divided by w, which may be 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .call import Call
from .layout import View, accumulation_dtype, pieces_of
from .reference import POOLS


@dataclass
class Small:
    """The small tensors of one call: both ends of the small functions' graphs, and where the maxima are.

    Attributes:
        pooled: The inputs of `what`, (N, C) each.
        s: Its output, (N, C).
        maps: The input of `where`, (N, k, H, W).
        m: Its output, (N, 1, H, W).
        indices: The index of each maximum: over H x W under the name of its pool, (N, C); over C as "maps", (N, P).
    """

    pooled: tuple[Tensor, ...] = ()
    s: Tensor | None = None
    maps: Tensor | None = None
    m: Tensor | None = None
    indices: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class _Sums:
    """Sums over H x W, (N, C): of a gradient, and of the gradient times xh."""

    plain: Tensor
    by_xh: Tensor

    @staticmethod
    def joined(pieces: list[_Sums]) -> _Sums:
        return _Sums(torch.cat([sums.plain for sums in pieces]), torch.cat([sums.by_xh for sums in pieces]))

    def scaled(self, factor: Tensor | float) -> _Sums:
        return _Sums(self.plain * factor, self.by_xh * factor)

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.plain + other.plain, self.by_xh + other.by_xh)


class Backward:
    """One backward pass; `gradients` runs it."""

    def __init__(self, ctx: Any, dy: Tensor) -> None:
        self.call: Call = ctx.call
        self.view: View = ctx.view
        self.kept: Small = ctx.kept
        self.parameters: tuple[Tensor, ...] = ctx.parameters
        (
            self.needs_x,
            self.needs_shortcut,
            _,
            self.needs_weight,
            self.needs_bias,
            self.needs_mix,
        ) = ctx.needs_input_grad[2:8]
        self.from_batch: bool = ctx.from_batch
        self.x: Tensor
        self.x, y, factor, weight, bias, mix, mean, invstd, *indices = ctx.saved_tensors
        self.indices: dict[str, Tensor] = dict(zip(ctx.index_names, indices, strict=True))
        self.weight, self.bias, self.mix = weight, bias, mix

        dtype: torch.dtype = accumulation_dtype(self.x.dtype)
        self.dtype = dtype
        self.flat = self.view.flat(self.x)
        self.pieces = list(pieces_of(self.flat))
        self.s = None if self.kept.s is None else self.kept.s.detach().to(dtype)
        self.m = None if self.kept.m is None else self.kept.m.detach().flatten(1).to(dtype)
        # how much of z goes through the gates, and how much past them: a * f and (1 - a) * f, (N, 1)
        self.f: Tensor = self.x.new_ones(len(self.x), 1, dtype=dtype) if factor is None else factor.to(dtype)[:, None]
        self.through = self.f if mix is None else mix.to(dtype) * self.f
        self.past = None if mix is None else self.f - self.through
        # z = w * xh + b and xh = x * invstd - mean * invstd, as (C,); without a norm z = xh = x
        one = self.x.new_ones(self.x.shape[1], dtype=dtype)
        self.w = one if weight is None else weight.to(dtype)
        self.b = torch.zeros_like(one) if bias is None else bias.to(dtype)
        self.invstd = one if invstd is None else invstd.to(dtype)
        self.mean = torch.zeros_like(one) if mean is None else mean.to(dtype)
        self.rooms: list[Tensor] = []

        dy = self.view.dense(dy)
        self.dv4: Tensor = dy if y is None else torch.empty_like(self.x)
        self.dv: Tensor = self.view.flat(self.dv4)
        # dy and y as long as dv is not there yet
        self.relu = None if y is None else (self.view.flat(dy), self.view.flat(y))

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, shortcut, factor, weight, bias, mix and the small functions' parameters."""
        of_parameters: list[Tensor | None] = [None] * len(self.parameters)
        dx4 = torch.empty_like(self.x) if self.needs_x else None
        dx = None if dx4 is None else self.view.flat(dx4)
        of_norm = self.needs_x or self.needs_weight or self.needs_bias
        dm = dmix = dweight = dbias = None
        dmaps: dict[str, Tensor] = {}
        if self.m is not None and (self.needs_mix or _requires_grad(self.kept.m)):
            dm = self._first_pass(dx)
            dmaps = self._through_where(dm, of_parameters)
        if of_norm or self.needs_mix or _requires_grad(self.kept.s):
            of_u, of_v = self._second_pass(dmaps, dx)
            dpools = self._through_what(of_u, of_parameters)
            if self.needs_mix:
                dmix = self._mix_gradient(dm, of_v)
            sums = self._sums_of_dz(of_u, of_v, dpools) if of_norm and self._wants_sums() else None
            if sums is not None:
                dweight, dbias = sums.by_xh.sum(0), sums.plain.sum(0)
            if dx is not None:
                self._third_pass(dx, dpools, sums)
        elif self.relu is not None:
            for piece in self.pieces:
                self._dv(piece)
        return (
            dx4,
            self.dv4 if self.needs_shortcut else None,
            None,
            None if dweight is None or not self.needs_weight else dweight.to(self.weight.dtype),
            None if dbias is None or not self.needs_bias else dbias.to(self.bias.dtype),
            None if dmix is None else dmix.to(self.mix.dtype),
            *of_parameters,
        )

    def _wants_sums(self) -> bool:
        """Return whether the norm wants the sums of dz: for its own parameters, or because x moved its statistics."""
        return self.call.norm is not None and bool(self.from_batch or self.needs_weight or self.needs_bias)

    def _room(self, piece: slice, index: int = 0) -> Tensor:
        """Return one of the rooms for a piece in the dtype of accumulation."""
        while len(self.rooms) <= index:
            self.rooms.append(torch.empty_like(self.flat[self.pieces[0]], dtype=self.dtype))
        return self.rooms[index][: len(self.flat[piece])]

    def _dv(self, piece: slice) -> Tensor:
        """Return dv of a piece, which the first pass to come here computes."""
        if self.relu is not None:
            dy, y = self.relu
            torch.ops.aten.threshold_backward.grad_input(dy[piece], y[piece], 0.0, grad_input=self.dv[piece])
        return self.dv[piece]

    def _centred(self, piece: slice) -> Tensor:
        """Return x - mean of a piece: in the first room, or x itself where there is no norm."""
        x: Tensor = self.flat[piece]
        if self.call.norm is None:
            return x if x.dtype == self.dtype else x.to(self.dtype)
        return torch.sub(x, self.view.over_pixels(self.mean[None]), out=self._room(piece))

    def _first_pass(self, dx: Tensor | None) -> Tensor:
        """Return the sum over C of dv * u, (N, P); what stands in `dx`, which is yet to come, may be overwritten."""
        s = self.f.new_ones(len(self.x), 1) if self.s is None else self.s
        scale = self.w * self.invstd
        scale, shift = scale * s, (self.b - scale * self.mean) * s
        sums = []
        for piece in self.pieces:
            x = self.flat[piece]
            room = self._room(piece) if dx is None or dx.dtype != self.dtype else dx[piece]
            if self.call.norm is not None:
                u = self.view.affine(x, scale[piece], shift[piece], room)
            elif self.s is None:
                u = x.to(self.dtype)
            else:
                u = torch.mul(x, self.view.over_pixels(self.s[piece]), out=room)
            sums.append(torch.mul(u, self._dv(piece), out=room).sum(self.view.c))
        self.relu = None
        return torch.cat(sums)

    def _through_where(self, dm: Tensor, of_parameters: list[Tensor | None]) -> dict[str, Tensor]:
        """Send the gradient of m through `where`; return that of the maps, (N, P) by name."""
        assert self.kept.m is not None
        assert self.kept.maps is not None
        assert self.call.where is not None
        (dmaps,) = _small_gradients(self.kept.m, (self.kept.maps,), dm * self.through, self.parameters, of_parameters)
        if dmaps is None:
            return {}
        return dict(zip(self.call.where.maps, dmaps.flatten(2).to(self.dtype).unbind(1), strict=True))

    def _second_pass(self, dmaps: dict[str, Tensor], dx: Tensor | None) -> tuple[_Sums, _Sums | None]:
        """Return the sums of du, and those of dv where the mix wants them; leave du in `dx` if there is an m."""
        of_u: list[_Sums] = []
        of_v: list[_Sums] = []
        sums_of_xh: list[Tensor] = []
        for piece in self.pieces:
            dv, centred = self._dv(piece), self._centred(piece)
            if self._wants_sums() and self.call.what is not None and "avg" in self.call.what.pools:
                sums_of_xh.append(centred.sum(self.view.p) * self.invstd)
            if self.m is None:
                of_u.append(self._sums(dv, centred, self._room(piece)))
                continue
            du = self._du(piece, dmaps, self._room(piece, 1) if dx is None else dx[piece])
            if self.mix is not None:
                of_v.append(self._sums(dv, centred, self._room(piece, 2)))
            of_u.append(self._sums(du, centred, self._room(piece)))
        self.relu = None
        self.sum_xh = torch.cat(sums_of_xh) if sums_of_xh else None
        u = _Sums.joined(of_u)
        if self.m is not None:
            return u, _Sums.joined(of_v) if of_v else None
        # without a spatial gate du is dv, but for the factor and the mix
        return u.scaled(self.through), u

    def _sums(self, gradient: Tensor, centred: Tensor, room: Tensor) -> _Sums:
        product = torch.mul(gradient, centred, out=room)
        return _Sums(gradient.sum(self.view.p, dtype=self.dtype), product.sum(self.view.p).mul_(self.invstd))

    def _du(self, piece: slice, dmaps: dict[str, Tensor], out: Tensor) -> Tensor:
        """Write the gradient of u, through m and through the maps, to `out`."""
        assert self.m is not None
        pixels = self.view.over_channels
        gate = pixels(self.m[piece] * self.through[piece])
        if "mean" not in dmaps:
            torch.mul(self.dv[piece], gate, out=out)
        elif out.dtype == self.dtype:
            torch.addcmul(pixels(dmaps["mean"][piece] / self.x.shape[1]), self.dv[piece], gate, out=out)
        else:
            out.copy_(self.dv[piece] * gate + pixels(dmaps["mean"][piece] / self.x.shape[1]))
        if "max" in dmaps:
            _add_at(out, self.view.c, pixels(self.indices["maps"][piece]), pixels(dmaps["max"][piece]))
        return out

    def _through_what(self, of_u: _Sums, of_parameters: list[Tensor | None]) -> dict[str, Tensor]:
        """Send the gradient of s through `what`; return that of the pools, (N, C) by name."""
        if self.call.what is None:
            return {}
        assert self.kept.s is not None
        ds = self.w * of_u.by_xh + self.b * of_u.plain
        dpools = _small_gradients(self.kept.s, self.kept.pooled, ds, self.parameters, of_parameters)
        pairs = zip(self.call.what.pools, dpools, strict=True)
        return {name: dpool.to(self.dtype) for name, dpool in pairs if dpool is not None}

    def _mix_gradient(self, dm: Tensor | None, of_v: _Sums | None) -> Tensor:
        assert of_v is not None
        dv_by_z = self.w * of_v.by_xh + self.b * of_v.plain
        gated: Tensor
        if self.m is None:
            assert self.s is not None
            gated = (dv_by_z * self.s).sum(1)
        else:
            assert dm is not None
            gated = (dm * self.m).sum(1)
        return (self.f[:, 0] * (gated - dv_by_z.sum(1))).sum()

    def _sums_of_dz(self, of_u: _Sums, of_v: _Sums | None, dpools: dict[str, Tensor]) -> _Sums:
        """Return the sums of dz, from those of its parts."""
        sums = of_u if self.s is None else of_u.scaled(self.s)
        if self.past is not None:
            assert of_v is not None
            sums += of_v.scaled(self.past)
        for name, dpool in dpools.items():
            if name == "avg":
                assert self.sum_xh is not None
                sums += _Sums(dpool, dpool * self.sum_xh / self.flat.shape[self.view.p])
            elif name in self.indices:
                index = self.view.over_pixels(self.indices[name].long())
                x = self.flat.gather(self.view.p, index).squeeze(self.view.p)
                sums += _Sums(dpool, dpool * (x - self.mean) * self.invstd)
            else:
                sums += _Sums.joined(
                    [
                        self._sums(
                            self._pool_gradient(name, piece, dpool[piece]), self._centred(piece), self._room(piece)
                        )
                        for piece in self.pieces
                    ]
                )
        return sums

    def _third_pass(self, dx: Tensor, dpools: dict[str, Tensor], sums: _Sums | None) -> None:
        """Write the gradient of x to `dx`, where du stands if there is an m."""
        scale = self.w * self.invstd
        shift = torch.zeros_like(self.f.expand(-1, len(scale)))
        if "avg" in dpools:
            shift = scale * dpools["avg"] / self.flat.shape[self.view.p]
        of_x = None
        if sums is not None and self.from_batch:
            num = self.flat.numel() / len(scale)
            of_x = -scale * self.invstd * sums.by_xh.sum(0) / num
            shift = shift - scale * sums.plain.sum(0) / num
        gate = self.f.new_ones(len(self.x), 1) if self.s is None else self.s
        if self.m is None:
            gate = gate * self.through + (0 if self.past is None else self.past)
        gate = scale * gate
        # the last pieces are still in a CPU's cache
        for piece in reversed(self.pieces):
            source = self.dv[piece] if self.m is None else dx[piece]
            out = dx[piece] if dx.dtype == self.dtype else self._room(piece, 1)
            self.view.affine(source, gate[piece], shift[piece], out)
            if self.past is not None and self.m is not None:
                out.add_(self.dv[piece] * self.view.over_pixels(scale * self.past[piece]))
            if of_x is not None:
                centred = self._centred(piece)
                if self.view.c == 2:
                    out.addcmul_(centred, of_x)
                else:
                    out.add_(centred.mul_(self.view.over_pixels(of_x[None])))
            for name, dpool in dpools.items():
                if name in self.indices:
                    index = self.view.over_pixels(self.indices[name][piece])
                    _add_at(out, self.view.p, index, self.view.over_pixels(scale * dpool[piece]))
                elif name != "avg":
                    out.add_(self._pool_gradient(name, piece, dpool[piece]) * self.view.over_pixels(scale[None]))
            if out.dtype != dx.dtype:
                dx[piece].copy_(out)

    def _pool_gradient(self, name: str, piece: slice, dpool: Tensor) -> Tensor:
        """Return the gradient that a pool without a formula here sends back to z, by autograd on the piece alone."""
        scale, shift = self.view.over_pixels((self.w * self.invstd)[None]), self.view.over_pixels(self.b[None])
        z = (self._centred(piece) * scale + shift).requires_grad_()
        with torch.enable_grad():
            pooled = POOLS[name](self.view.image(z, *self.x.shape[2:]))
        (dz,) = torch.autograd.grad(pooled, z, dpool)
        return dz


def _requires_grad(output: Tensor | None) -> bool:
    return output is not None and output.requires_grad


def _small_gradients(
    output: Tensor,
    inputs: tuple[Tensor, ...],
    gradient: Tensor,
    parameters: tuple[Tensor, ...],
    of_parameters: list[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Send `gradient` back through a small graph; add to `of_parameters` and return what the inputs get."""
    wanted = [tensor for tensor in (*inputs, *parameters) if tensor.requires_grad]
    if not output.requires_grad or not wanted:
        return (None,) * len(inputs)
    # kept, because the pass around it may come a second time (retain_graph)
    gradient = gradient if output.dim() == 2 else gradient.view(len(output), 1, *inputs[0].shape[2:])
    gradient = gradient.sum_to_size(output.shape).to(output.dtype)
    found = torch.autograd.grad(output, wanted, gradient, retain_graph=True, allow_unused=True)
    by_tensor = {id(tensor): value for tensor, value in zip(wanted, found, strict=True)}
    for index, parameter in enumerate(parameters):
        value, so_far = by_tensor.get(id(parameter)), of_parameters[index]
        if value is not None:
            of_parameters[index] = value if so_far is None else so_far + value
    return tuple(by_tensor.get(id(tensor)) for tensor in inputs)


def _add_at(target: Tensor, dim: int, index: Tensor, values: Tensor) -> None:
    """Add `values` to `target` at `index` along `dim`, one place each: deterministic on every device."""
    index = index.long()
    target.scatter_(dim, index, target.gather(dim, index) + values.to(target.dtype))
