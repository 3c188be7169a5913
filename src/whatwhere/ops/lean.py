"""The lean backend: the gates in plain PyTorch with the least memory kept for the backward pass.

It keeps x, behind a ReLU y, and small tensors. The backward pass (`lean_backward.py`) computes everything else of the
size of x again. The passes go over the batch in pieces, so that a piece stays in a CPU's cache from one operator to the
next. The small functions `what` and `where` run between the passes as autograd graphs of their own, so that any module
works.

With z = norm(x), or x without a norm, the identity mixing a and the factor f of each sample::

    s = what(pools of z)      u = z * s      m = where(maps of u)
    v = f * z * (1 - a + a * s * m)          y = v, or relu(v + shortcut)

The norm is one multiplication and one addition, which the passes do as they read x. Only with a mixing does the norm
itself compute z: at a = 0 the result is then, bit for bit, that of the block without attention.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .batch_norm import Normed, normed, normed_by_torch, takes_batch_statistics
from .call import Call, ChannelGate, SpatialGate
from .layout import View, accumulation_dtype, clamped_to, extreme, pieces_of
from .lean_backward import Inputs, Saved, Small, gradients, spread_over
from .reference import POOLS


def why_unfit(call: Call, x: Tensor | None = None, shortcut: Tensor | None = None, *scalars: Tensor | None) -> str:
    """Return why the passes of the lean backend do not fit a call, without `x` its modules; "" if they do."""
    return next(_unfit(call, x, shortcut, *scalars), "")


def _unfit(call: Call, x: Tensor | None, shortcut: Tensor | None, *scalars: Tensor | None) -> Iterator[str]:
    functions: tuple[object, ...] = (call.what, call.where)
    if any(function is not None and not isinstance(function, nn.Module) for function in functions):
        yield "what and where must be modules, so that their parameters can be found"
    listed = (getattr(call.what, "pools", ()), getattr(call.where, "maps", ()))
    if twice := [names for names in listed if len(set(names)) != len(names)]:
        yield f"the pools or maps {twice[0]} name one twice"
    if call.where is not None and not {"max", "mean"}.issuperset(call.where.maps):
        yield f"of the maps {call.where.maps} only max and mean share its passes"
    if call.what is None and call.where is None:
        yield "without a gate the reference keeps no more"
    if call.arrangement != "channel_first":
        yield f"the arrangement {call.arrangement!r} does not share its passes"
    if call.norm is not None and type(call.norm) is not nn.BatchNorm2d:
        yield f"the norm must be exactly a BatchNorm2d, got a {type(call.norm).__name__}"
    if x is None:
        return
    if x.dim() != 4 or not x.is_floating_point() or x.numel() == 0 or x.layout != torch.strided:
        yield f"x must be dense, non-empty and floating-point, (N, C, H, W), got {x.dtype} {tuple(x.shape)}"
    norm = call.batch_norm
    if norm is not None and norm.num_features != x.shape[1]:
        yield f"the norm has {norm.num_features} channels, x {x.shape[1]}"
    if norm is not None and x.numel() == x.shape[1] and takes_batch_statistics(norm):
        yield "the norm would take the variance of one value"
    if shortcut is not None and (shortcut.shape != x.shape or shortcut.dtype != x.dtype):
        yield f"the shortcut must have the shape and dtype of x, got {shortcut.dtype} {tuple(shortcut.shape)}"
    if any(tensor is not None and tensor.device != x.device for tensor in (shortcut, *scalars)):
        yield "all tensors must be on one device"


def run(
    call: Call,
    x: Tensor,
    shortcut: Tensor | None,
    mix: Tensor | None,
    factor: Tensor | None,
    overwrite: bool,
    forward: type[Forward] | None = None,
) -> Tensor:
    """Return y: by an autograd function if a gradient is needed, else written over x if `overwrite` allows it.

    `forward` has other passes than those here, with the same results.
    """
    forward = forward or Forward
    norm = call.batch_norm
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    view = View.of(x)
    inputs = Inputs(view.dense(x), None if shortcut is None else view.dense(shortcut), factor, weight, bias, mix)
    if torch.is_grad_enabled():
        learned = (*inputs._replace(factor=None), *call.parameters)
        if any(tensor is not None and tensor.requires_grad for tensor in learned):
            y: Tensor = _Lean.apply(forward, call, view, *inputs, *call.parameters)
            return y
    with torch.no_grad():
        return forward(call, view, inputs, overwrite=overwrite).run()


def without_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """Return a context in which autocast is off on a type of device."""
    # entering torch's own costs as much as several small operators
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


@dataclass(eq=False)
class Forward:
    """One forward pass; `run` runs it."""

    call: Call
    view: View  # the layout of x and shortcut, which are dense in it
    inputs: Inputs
    graph: bool = False  # whether a backward pass follows: then the small graphs and the indices of maxima are kept
    needs_z: bool = False  # whether z needs a gradient
    overwrite: bool = False  # whether y may be written over x

    def __post_init__(self) -> None:
        # the backward pass
        self.gradients: Callable[[Saved, Tensor], tuple[Inputs, list[Tensor | None]]] = gradients
        self.x, self.shortcut, self.factor, _, _, self.mix = self.inputs
        self.dtype = accumulation_dtype(self.x.dtype)
        self.small_dtype = torch.float32 if torch.is_autocast_enabled(self.x.device.type) else self.x.dtype
        self.small = Small()
        # the mean that the norm took and its 1 / sqrt(var + eps), (C,)
        self.mean: Tensor | None = None
        self.invstd: Tensor | None = None
        # The passes read `flat`. It is z, or x as long as `normed` is not None: then z = x * scale + shift.
        self.normed: Normed | None = None
        self.room: Tensor | None = None

    def run(self) -> Tensor:
        with without_autocast(self.x.device.type):
            norm = self.call.batch_norm
            y: Tensor
            if norm is not None and self.mix is not None:
                # y is written over z, which nothing else uses
                y, self.mean, self.invstd = normed_by_torch(norm, self.view, self.x)
                self.flat = self.out = self.view.flat(y)
            else:
                y = self.x if self.overwrite else torch.empty_like(self.x)
                self.flat, self.out = self.view.flat(self.x), self.view.flat(y)
                if norm is not None:
                    self.normed = normed(norm, self.view, self.x, room=y)
                    self.mean, self.invstd = self.normed.mean, self.normed.invstd
            self.pieces = list(pieces_of(self.flat))
            if self.call.what is not None:
                self._run_what(self.call.what)
            if self.call.where is not None:
                self._run_where(self.call.where)
            self._apply()
        return y

    @property
    def gate_dtype(self) -> torch.dtype:
        """The dtype of the gates: that of z, or that of accumulation as long as the passes read x."""
        return self.x.dtype if self.normed is None else self.dtype

    def _room(self, piece: slice) -> Tensor:
        """Return the scratch tensor for a piece of z, u or the gates; there is only one."""
        if self.room is None:
            self.room = torch.empty_like(self.flat[self.pieces[0]], dtype=self.gate_dtype)
        return self.room[: len(self.flat[piece])]

    def _gated_norm(self, gate: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return scale and shift with x * scale + shift = z * gate, or z without a gate: (N or 1, C) each."""
        assert self.normed is not None
        scale, shift = self.normed.scale[None], self.normed.shift[None]
        return (scale, shift) if gate is None else (scale * gate, shift * gate)

    def _normed_piece(self, piece: slice, scale: Tensor, shift: Tensor) -> Tensor:
        """Return x * scale + shift of a piece, written to `out` if that has the dtype of accumulation."""
        if len(scale) > 1:
            scale, shift = scale[piece], shift[piece]
        room = self.out[piece] if self.out.dtype == self.dtype else self._room(piece)
        return self.view.affine(self.flat[piece], scale, shift, room)

    def _run_what(self, what: ChannelGate) -> None:
        """Pool z and run `what` on it."""
        normed, names = self.normed, set(what.pools)
        if normed is None:
            pooled = self._pool(names)
        elif names == {"avg"} or (names <= {"avg", "max", "min"} and normed.keeps_order()):
            of_x = self._pool(names if normed.plane_means is None else names - {"avg"})
            if normed.plane_means is not None and "avg" in names:
                of_x["avg"] = normed.plane_means
            pooled = {
                name: torch.addcmul(normed.shift, values.to(self.dtype), normed.scale) for name, values in of_x.items()
            }
        else:
            pooled = self._pool(names, normalize=True)
            if self.out.dtype == self.dtype:
                # z has been written there
                self.flat, self.normed = self.out, None
        dtype = self.dtype if getattr(what, "in_float32", False) else self.small_dtype
        self.small.pooled = tuple(clamped_to(pooled[name], dtype).requires_grad_(self.needs_z) for name in what.pools)
        self.small.s = self._run_small(what, *self.small.pooled)

    def _pool(self, names: set[str], *, normalize: bool = False) -> dict[str, Tensor]:
        """Return pools of `flat`, or of z with `normalize`, (N, C) each; keep the indices of the maxima."""
        pooled: dict[str, list[Tensor]] = {name: [] for name in names}
        indices: dict[str, list[Tensor]] = {}
        for piece in self.pieces if names else ():
            z = self._normed_piece(piece, *self._gated_norm(None)) if normalize else self.flat[piece]
            for name, parts in pooled.items():
                if name == "avg":
                    parts.append(z.mean(self.view.p, dtype=self.dtype))
                elif name in ("max", "min"):
                    values, index = extreme(z, self.view.p, largest=name == "max", with_index=self.graph)
                    parts.append(values)
                    if index is not None:
                        indices.setdefault(name, []).append(index.int())
                else:
                    parts.append(POOLS[name](self.view.image(z, *self.x.shape[2:])))
        self.small.tensors.update({name: torch.cat(parts) for name, parts in indices.items()})
        return {name: torch.cat(parts) for name, parts in pooled.items()}

    def _run_where(self, where: SpatialGate) -> None:
        """Pool u over C and run `where` on it. u is left in `out`, unless it is z or z is needed again."""
        maps: dict[str, list[Tensor]] = {name: [] for name in where.maps}
        indices: list[Tensor] = []
        s, _ = self._gates()
        norm = None if self.normed is None else self._gated_norm(s)
        for piece in self.pieces:
            u, out = self.flat[piece], self.out[piece]
            if norm is not None:
                u = self._normed_piece(piece, *norm)
                if u.dtype != out.dtype:
                    out.copy_(u)
            elif s is not None:
                u = torch.mul(u, self.view.over_pixels(s[piece]), out=out if self.mix is None else self._room(piece))
            for name, parts in maps.items():
                if name == "mean":
                    parts.append(u.mean(self.view.c, dtype=self.dtype))
                    continue
                values, index = extreme(u, self.view.c, largest=True, with_index=self.graph)
                parts.append(values)
                if index is not None:
                    indices.append(index.to(torch.int16 if self.x.shape[1] < 2**15 else torch.int32))
        if indices:
            self.small.tensors["maps"] = torch.cat(indices)
        needs_u = self.needs_z or (self.small.s is not None and self.small.s.requires_grad)
        whole = [torch.cat(parts).to(self.small_dtype).view(-1, *self.x.shape[2:]) for parts in maps.values()]
        # On a CPU the backward pass of a convolution of two channels is several times faster if they lie side by side;
        # but BatchNorm on that layout overflows in float16.
        side_by_side = self.x.device.type == "cpu" and self.small_dtype != torch.float16
        stacked = torch.stack(whole, 3).permute(0, 3, 1, 2) if side_by_side else torch.stack(whole, 1)
        self.small.maps = stacked.requires_grad_(needs_u)
        self.small.m = self._run_small(where, self.small.maps)

    def _run_small(self, function: ChannelGate | SpatialGate, *inputs: Tensor) -> Tensor:
        if not self.graph:
            return function(*inputs)
        # Hooks on saved tensors set outside must not reach this graph: checkpointing would run the block again for it.
        # Saved tensors are detached, because a node that holds its own result is never freed.
        # The functions get copies, because they may write to them, and nothing may write to a leaf.
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda saved: saved):
            return function(*(value.clone() for value in inputs))

    def _gates(self) -> list[Tensor | None]:
        """Return the gates without their graphs, (N, C) and (N, P), in the dtype in which they multiply."""
        gates = spread_over(self.x, self.small.s, self.small.m)
        return [None if gate is None else gate.to(self.gate_dtype) for gate in gates]

    def _apply(self) -> None:
        """Write y to `out`."""
        s, m = self._gates()
        f = None if self.factor is None else self.factor[:, None].to(self.gate_dtype)
        last = m if m is not None else s
        assert last is not None
        if self.mix is None and f is not None:
            last = last * f
        shortcut = None if self.shortcut is None else self.view.flat(self.shortcut)
        norm = self._gated_norm(last) if self.normed is not None and m is None else None
        # in reverse: the last pieces are still in a CPU's cache
        for piece in reversed(self.pieces):
            z, out = self.flat[piece], self.out[piece]
            added = None if shortcut is None else shortcut[piece]
            if self.mix is not None:
                torch.mul(z, self._mixed_gates(piece, self.mix, s, m), out=out)
                if f is not None:
                    out.mul_(self.view.over_pixels(f[piece]))
                if added is not None:
                    out.add_(added)
            elif norm is not None:
                v = self._normed_piece(piece, *norm)
                if added is not None:
                    torch.add(v, added, out=out)
                elif v.dtype != out.dtype:
                    out.copy_(v)
            else:
                # u is in `out` only if `_run_where` has computed it
                u = z if (s is None and self.normed is None) or m is None else out
                gate = self.view.over_pixels(last[piece]) if m is None else self.view.over_channels(last[piece])
                torch.mul(u, gate, out=out) if added is None else torch.addcmul(added, u, gate, out=out)
            if self.call.relu:
                torch.relu_(out)

    def _mixed_gates(self, piece: slice, mix: Tensor, s: Tensor | None, m: Tensor | None) -> Tensor:
        """Return 1 - a + a * s * m for a piece, in the reference's order of operations."""
        gates = [] if s is None else [self.view.over_pixels(s[piece])]
        gates += [] if m is None else [self.view.over_channels(m[piece])]
        if len(gates) == 1:
            return 1 - mix + mix * gates[0]
        return torch.mul(*gates, out=self._room(piece)).mul_(mix).add_(1 - mix)


_NUM_INPUTS = len(Inputs._fields)
TWICE = "lean gates cannot be differentiated twice; set `backend = 'reference'` on the attention modules to do so"


class _Lean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: type[Forward], call: Call, view: View, *tensors: Any) -> Tensor:
        """Compute y from the fields of `Inputs`, followed by the parameters of the small functions."""
        inputs, needs = Inputs(*tensors[:_NUM_INPUTS]), Inputs(*ctx.needs_input_grad[3 : 3 + _NUM_INPUTS])
        forward = kind(call, view, inputs, graph=True, needs_z=needs.x or needs.weight or needs.bias)
        y = forward.run()
        ctx.gradients, ctx.call, ctx.view, ctx.needs, ctx.kept = forward.gradients, call, view, needs, forward.small
        ctx.from_batch = takes_batch_statistics(call.batch_norm)
        # autograd checks that nothing writes to these before the backward pass
        small, forward.small.tensors = forward.small.tensors, {}
        ctx.names = tuple(small)
        of_norm = (forward.mean, forward.invstd)
        ctx.save_for_backward(*inputs._replace(shortcut=None), y if call.relu else None, *of_norm, *small.values())
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        # read first: the inner autograd.grad clears this flag
        keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)()
        tensors = ctx.saved_tensors
        inputs, (y, mean, invstd, *rest) = Inputs(*tensors[:_NUM_INPUTS]), tensors[_NUM_INPUTS:]
        small = replace(ctx.kept, tensors=dict(zip(ctx.names, rest, strict=True)))
        saved = Saved(ctx.call, ctx.view, inputs, y, mean, invstd, ctx.from_batch, small, ctx.needs)
        with torch.no_grad(), without_autocast(dy.device.type):
            of_inputs, of_parameters = ctx.gradients(saved, dy)
        found = (*of_inputs, *of_parameters)
        if not keeps_graph:
            # as with saved tensors, which refuse a second backward pass before it comes to this
            ctx.kept = None
        if torch.is_grad_enabled():
            sources = (dy, *inputs._replace(factor=None), *ctx.call.parameters)
            found = tuple(None if value is None else _Final.apply(value, *sources) for value in found)
        return None, None, None, *found


def saved_for_gates(node: Any) -> tuple[list[nn.Module], Sequence[Any]]:
    """Return the small functions of a node of the graph, and what autograd has saved for them.

    The saved are torch's `SavedTensor`, as saved-tensor hooks left them. In C++ they hold the norm's statistics too.
    Another node has neither.
    """
    of_gates: Any = _Lean._backward_cls
    if not isinstance(node, of_gates):
        return [], ()
    saved = node._raw_saved_tensors
    functions = [one for one in (node.call.what, node.call.where) if isinstance(one, nn.Module)]
    return functions, saved[len(saved) - len(node.names) :]


class _Final(torch.autograd.Function):
    """Returns a gradient that cannot be differentiated again, and raises when it is.

    It depends on its `sources`, so that a derivative with respect to any of them comes by here.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor | None) -> Tensor:
        # not a view, which could not be detached in place
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        raise RuntimeError(TWICE)
