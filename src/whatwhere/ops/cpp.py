"""The C++ backend: the passes of lean in C++, for float32 and bfloat16 on a CPU.

Each pass reads x once and writes nothing of its size but the result (`csrc/`): 5 passes of memory forward with a norm
and a shortcut, 8 backward. Where the small functions have a form (`forms.py`), a whole call is one operator
(`block.py`). For others the passes are operators here, and all else is lean's: what is kept, the graphs of the small
functions, the formulas. Between the passes everything is float32, so that in bfloat16 only what is read and written is
rounded.

The results do not depend on the number of threads: sums are taken over tiles of one size, in their order.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from . import block, lean, native, sums
from .batch_norm import normed, normed_by_torch, takes_batch_statistics
from .call import Call, ChannelGate, SpatialGate
from .layout import clamped_to
from .lean_backward import Inputs, Passes, Saved, Work, gradients, spread_over

_POOLS = {"avg": 0, "max": 2, "min": 3}  # rows of the native values


def why_unfit(call: Call, x: Tensor | None = None, shortcut: Tensor | None = None, *scalars: Tensor | None) -> str:
    """Return why the C++ passes do not fit a call, without `x` its modules; "" if they do."""
    # first what costs nothing: on a GPU every call comes by here
    if x is not None and (x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16)):
        return f"x must be float32 or bfloat16 on a CPU, got {x.dtype} on {x.device}"
    if others := set(getattr(call.what, "pools", ())) - set(_POOLS):
        return f"of the pools only avg, max and min are there, not {sorted(others)[0]}"
    passes = sums if call.what is None and call.where is None else lean
    return native.why_missing() or passes.why_unfit(call, x, shortcut, *scalars)


def run(
    call: Call, x: Tensor, shortcut: Tensor | None, mix: Tensor | None, factor: Tensor | None, overwrite: bool
) -> Tensor:
    """Return y, as `lean.run` does."""
    if call.what is None and call.where is None:
        assert shortcut is not None
        return sums.run(call, x, shortcut, overwrite)
    return lean.run(call, x, shortcut, mix, factor, overwrite, _Forward)


def _gradients(saved: Saved, dy: Tensor) -> tuple[Inputs, list[Tensor | None]]:
    # hooks on saved tensors may have changed how they lie in memory
    dense = saved.view.dense
    inputs, y = saved.inputs._replace(x=dense(saved.inputs.x)), None if saved.y is None else dense(saved.y)
    return gradients(replace(saved, inputs=inputs, y=y), dy, partial(_Passes, dense(dy)))


class _Passes(Passes):
    """The first pass takes all sums over dv, so that the second one reads x for the maps alone."""

    def __init__(self, dy: Tensor, work: Work, dx: Tensor | None) -> None:
        super().__init__(work, dx)
        self.dy = dy
        self.m = None if work.m is None else (work.m * work.through).contiguous()
        self.mean = None if work.saved.call.norm is None else work.mean
        self.dm: Tensor | None = None
        # what the maps add to the gradient of u, (N, P) each: to every channel, and to the channel of the maximum
        self.of_mean: Tensor | None = None
        self.of_max: Tensor | None = None
        self.max_at: Tensor | None = None

    def fill_dv(self) -> None:
        self.first()

    def first(self) -> Tensor:
        work, call, y, shift = self.work, self.work.saved.call, self.work.saved.y, None
        scale = None if work.s is None else work.s.contiguous()
        if call.norm is not None:
            s = work.f.new_ones(1, 1) if work.s is None else work.s
            scale, shift = work.scale * s, (work.bias - work.scale * work.mean) * s
        self.direct = work.past is not None and self.m is not None
        of_x = work.needs_sums and call.what is not None and "avg" in call.what.pools
        dv = None if y is None else work.dv4
        operator = torch.ops.whatwhere.reduce
        dm: Tensor
        dm, sums = operator(self.dy, y, work.saved.inputs.x, scale, shift, self.m, self.mean, self.direct, of_x, dv)
        self.of_xh = sums[-1] * work.invstd if of_x else None
        sums[1:4:2] *= work.invstd
        self.of_gated, self.of_v = sums[:2], sums[2:4] if self.direct else sums[:2]
        self.dm = dm
        return dm

    def second(self, dmaps: dict[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self.dm is None:
            self.first()
        work = self.work
        of_u = self.of_gated * work.through if self.m is None else self.of_gated
        if "mean" in dmaps:
            self.of_mean = dmaps["mean"] / len(work.scale)
            of_u[0] += self.of_mean.sum(1, keepdim=True)
            of_u[1] += torch.ops.whatwhere.weighted(work.saved.inputs.x, self.of_mean, self.mean) * work.invstd
        if "max" in dmaps:
            self.of_max, at = dmaps["max"].contiguous(), work.saved.small.tensors["maps"].long()
            self.max_at = at.int()
            x = work.flat.gather(work.view.c, work.view.over_channels(at)).squeeze(work.view.c)
            of_u[0].scatter_add_(1, at, self.of_max)
            of_u[1].scatter_add_(1, at, self.of_max * (x - work.mean[at]) * work.invstd[at])
        return of_u, self.of_v, self.of_xh

    def third(self, dx: Tensor, dpools: dict[str, Tensor], sums: Tensor | None) -> None:
        work, x = self.work, self.work.saved.inputs.x
        scale, indices = work.scale, work.saved.small.tensors
        constant = slope = direct = None
        if "avg" in dpools:
            constant = scale * dpools["avg"] / x[0, 0].numel()
        if sums is not None and work.saved.from_batch:
            values = x.numel() / len(scale)
            slope = -scale * work.invstd * sums[1].sum(0) / values
            of_sum = scale * sums[0].sum(0) / values
            constant = (-of_sum).expand(len(x), -1) if constant is None else constant - of_sum
        gate = work.f.new_ones(len(x), 1) if work.s is None else work.s
        if self.m is None:
            gate = gate * work.through + (0 if work.past is None else work.past)
        elif work.past is not None:
            direct = scale * work.past
        poked = [name for name in dpools if name in indices]
        torch.ops.whatwhere.spread(
            work.dv4,
            x,
            self.m,
            self.of_mean,
            (scale * gate).contiguous(),
            direct,
            None if constant is None else constant.contiguous(),
            slope,
            None if slope is None else work.mean,
            self.of_max,
            self.max_at,
            torch.stack([scale * dpools[name] for name in poked]) if poked else None,
            torch.stack([indices[name].int() for name in poked]) if poked else None,
            dx,
        )


class _Forward(lean.Forward):
    """With the same results as its base class, by one operator or by one for each pass; u is never written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gradients = _gradients

    def run(self) -> Tensor:
        with lean.without_autocast("cpu"):
            y = block.forward(self)
            y = self._run_passes() if y is None else y
        # so that a graph that has saved y refuses to use it
        if not y.is_inference():
            torch.autograd.graph.increment_version(y)
        return y

    def _run_passes(self) -> Tensor:
        norm, what = self.call.batch_norm, self.call.what
        if norm is not None and self.mix is not None:
            # at a = 0 the result is then, bit for bit, that of the block without attention
            y, self.mean, self.invstd = normed_by_torch(norm, self.view, self.x)
            source = y
        else:
            source, y = self.x, self.x if self.overwrite else torch.empty_like(self.x)
        is_normed = norm is not None and self.mix is None
        pooled: tuple[Tensor, Tensor] | None = None
        if what is not None or (is_normed and takes_batch_statistics(norm)):
            pooled = torch.ops.whatwhere.pool(source, is_normed and takes_batch_statistics(norm))
        if norm is not None and is_normed:
            planes = None if pooled is None else (pooled[0][0], pooled[0][1])
            self.normed = normed(norm, self.view, self.x, self.x, planes)
            self.mean, self.invstd = self.normed.mean, self.normed.invstd
        if what is not None and pooled is not None:
            self._pool_natively(what, *pooled)
        scale, shift = self._affine()
        m = None
        if self.call.where is not None:
            m = self._map_natively(self.call.where, source, scale, shift)
        self._apply_natively(source, scale, shift, m, y)
        return y

    def _pool_natively(self, what: ChannelGate, values: Tensor, indices: Tensor) -> None:
        """Pool z and run `what` on it."""
        pooled: dict[str, Tensor] = {name: values[_POOLS[name]] for name in what.pools}
        at = dict(zip(("max", "min"), indices.unbind(), strict=True))
        if self.normed is not None:
            scale, shift = self.normed.scale, self.normed.shift
            # where the norm's scale is below 0 the maximum of z is the minimum of x; where it is 0 all are equal
            for name, other in (("max", 3), ("min", 2)):
                if name in pooled:
                    pooled[name] = torch.where(scale < 0, values[other], pooled[name])
                    at[name] = torch.where(scale < 0, indices[other - 2], at[name]) * (scale != 0)
            pooled = {name: torch.addcmul(shift, value, scale) for name, value in pooled.items()}
        if self.graph:
            # copies: a view would keep both
            self.small.tensors.update({name: at[name].clone() for name in what.pools if name in at})
        dtype = self.dtype if getattr(what, "in_float32", False) else self.small_dtype
        self.small.pooled = tuple(clamped_to(pooled[name], dtype).requires_grad_(self.needs_z) for name in what.pools)
        self.small.s = self._run_small(what, *self.small.pooled)

    def _affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Return scale and shift, (N or 1, C), with u = x * scale + shift, or z in the place of x where it is known."""
        s, _ = spread_over(self.x, self.small.s, None)
        s = None if s is None else s.float().contiguous()
        if self.normed is None:
            return s, None
        scale, shift = self.normed.scale[None], self.normed.shift[None]
        return (scale, shift) if s is None else (scale * s, shift * s)

    def _map_natively(self, where: SpatialGate, source: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        """Pool u over C and run `where` on it; return the spatial gate, (N, P)."""
        values, index = torch.ops.whatwhere.maps(source, scale, shift)
        if self.graph and "max" in where.maps:
            self.small.tensors["maps"] = index.to(torch.int16) if self.x.shape[1] < 2**15 else index
        needs_u = self.needs_z or (self.small.s is not None and self.small.s.requires_grad)
        maps = [clamped_to(values[("max", "mean").index(name)], self.small_dtype) for name in where.maps]
        # side by side: so the backward pass of a convolution is several times faster
        stacked = torch.stack(maps, 2).view(len(index), *self.x.shape[2:], -1).permute(0, 3, 1, 2)
        self.small.maps = stacked.requires_grad_(needs_u)
        self.small.m = self._run_small(where, self.small.maps)
        _, m = spread_over(self.x, None, self.small.m)
        assert m is not None
        return m.float().contiguous()

    def _apply_natively(
        self, source: Tensor, scale: Tensor | None, shift: Tensor | None, m: Tensor | None, y: Tensor
    ) -> None:
        f = None if self.factor is None else self.factor[:, None].float()
        past = None
        if self.mix is not None:
            through = self.mix.float() if f is None else self.mix * f
            past = (source.new_ones(len(source), dtype=self.dtype) if f is None else f[:, 0]) * (1 - self.mix.float())
            f = through.expand(len(source), 1)
            scale = source.new_ones(1, source.shape[1], dtype=self.dtype) if scale is None else scale
        if f is not None and m is not None:
            m = m * f
        elif f is not None:
            scale, shift = scale * f, None if shift is None else shift * f
        torch.ops.whatwhere.apply(source, scale, shift, m, past, self.shortcut, self.call.relu, y)
