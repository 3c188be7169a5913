"""Functions on tensors: the passes over x that all attention modules share. Imports nothing of the package.

Three forms, each a formula of two small functions, `what` (pooled features to channel gate) and `where` (pooled maps to
spatial gate), either of which may be absent::

    gate(x)          = x * s * m                       s = what(pools of x), m = where(maps of x * s)
    normed_gate(x)   = gate(norm(x))
    gated_tail(x)    = relu(gate(norm(x)) + shortcut)  the end of a residual block

Each is computed by a backend, with the same parameters and results:

- "reference": plain PyTorch, any device and dtype; autograd keeps what it likes.
- "lean": plain PyTorch too, any device; keeps for backward x, behind a ReLU the result (which the next layer keeps as
  well), and small tensors, and recomputes the rest.
- "auto": lean, except where only the reference serves: the arrangements "spatial_first" and "parallel", a norm that is
  not exactly a BatchNorm2d or would take the variance of one value, neither gate, functions that are not modules, that
  name a pool or map twice or want a map other than "max" and "mean", a shortcut of another shape or dtype, tensors on
  several devices, empty ones.

Whatever looks inside takes the reference path under any backend: torch.compile, export, tracing, torch.func's
transforms, forward-mode differentiation, dispatch modes (FLOP counters), and modules with a hook on them or on a
parameter, so that every hook fires, once. So do parameters of `what` and `where` that are not registered or not leaves.
What the two learn must be found in them: lean gives no gradient to a tensor that they only close over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..base.words import brief
from . import lean, reference
from .batch_norm import takes_batch_statistics
from .call import Call
from .hooks import has_hooks
from .reference import Arrangement, ChannelGate, SpatialGate

__all__ = [
    "Arrangement",
    "Backend",
    "ChannelGate",
    "SpatialGate",
    "gate",
    "gated_tail",
    "has_hooks",
    "looked_into",
    "normed_gate",
]

Backend = Literal["auto", "reference", "lean"]


def gate(
    x: Tensor,
    what: ChannelGate | None = None,
    where: SpatialGate | None = None,
    *,
    arrangement: Arrangement = "channel_first",
    mix: Tensor | None = None,
    factor: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Scale `x` by a channel gate s and a spatial gate m.

    With s = what(pooled x) and m = where(pooled maps), a gate that is absent being 1::

        channel_first   s from x,      m from x * s     y = x * s * m
        spatial_first   m from x,      s from x * m     y = x * m * s
        parallel        s from x,      m from x         y = x * s * m

    and with identity mixing `mix` = a, y = x * (1 - a + a * s * m): x itself at a = 0, the line above at a = 1.

    Args:
        x: Features.
        what: Channel gate; its attribute `pools` names the pooled features it takes, in order: "avg", "max", "min",
            "lp" or "l2" (the l2 norm), "lse" (log-sum-exp), "std" (unbiased, 1e-5 added to the variance) and "dct1",
            "dct2", ... "dct32" (so many components of a cosine transform, see `spectral.py`), each over H x W. It takes
            them in the dtype of x, a value beyond its range as the largest number that it holds; with an attribute
            `in_float32` that is true, in float32 at least.
        where: Spatial gate; its attribute `maps` names the pooled maps it takes, in order: "max" and "mean", over C.
        arrangement: Which gate sees the output of the other.
        mix: The scalar a, a 0-dimensional tensor.
        factor: A number (N,) for each sample by which y is multiplied (stochastic depth); takes no gradient.
        backend: Who computes it; see `whatwhere.ops`.

    Shape:
        x (N, C, H, W) -> (N, C, H, W).

    Dtype:
        Any floating dtype, returned as that of `x`. Sums over x are taken in float32 at least. Under autocast `what`
        and `where` run in float32.

    Raises:
        ValueError: A backend that is unknown or cannot do this, saying why.
    """
    call = Call(what, where, norm=None, relu=False)
    if _takes_lean(backend, call, arrangement, x, None, mix, factor):
        return lean.run(call, x, None, mix, factor)
    return reference.gate(x, what, where, arrangement=arrangement, mix=mix, factor=factor)


def normed_gate(
    x: Tensor,
    norm: nn.Module,
    what: ChannelGate | None = None,
    where: SpatialGate | None = None,
    *,
    arrangement: Arrangement = "channel_first",
    mix: Tensor | None = None,
    factor: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Return gate(norm(x)), keeping x alone where a norm and a gate would keep x and norm(x).

    Args:
        x: What the norm takes.
        norm: A BatchNorm2d, in training or evaluation mode, its running statistics updated as by itself; any other norm
            takes the reference path.
        what: As of `gate`, and so on.
        where: As of `gate`.
        arrangement: As of `gate`.
        mix: As of `gate`.
        factor: As of `gate`.
        backend: As of `gate`.

    Shape:
        x (N, C, H, W) -> (N, C, H, W).
    """
    call = Call(what, where, norm, relu=False)
    if _takes_lean(backend, call, arrangement, x, None, mix, factor):
        return lean.run(call, x, None, mix, factor)
    return reference.normed_gate(x, norm, what, where, arrangement=arrangement, mix=mix, factor=factor)


def gated_tail(
    x: Tensor,
    norm: nn.Module,
    what: ChannelGate | None,
    where: SpatialGate | None,
    shortcut: Tensor,
    *,
    arrangement: Arrangement = "channel_first",
    mix: Tensor | None = None,
    factor: Tensor | None = None,
    overwrite: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Return relu(gate(norm(x)) + shortcut), the end of a residual block from its last convolution on.

    Args:
        x: Output of the block's last convolution.
        norm: As of `normed_gate`.
        what: As of `gate`, and so on.
        where: As of `gate`.
        shortcut: What is added to the gated branch.
        arrangement: As of `gate`.
        mix: As of `gate`.
        factor: As of `gate`.
        overwrite: Whether x is the caller's alone, so that the result may take its place where no gradient is needed.
        backend: As of `gate`.

    Shape:
        x and shortcut (N, C, H, W) -> (N, C, H, W).
    """
    call = Call(what, where, norm, relu=True)
    if _takes_lean(backend, call, arrangement, x, shortcut, mix, factor):
        return lean.run(call, x, shortcut, mix, factor, overwrite)
    return reference.gated_tail(x, norm, what, where, shortcut, arrangement=arrangement, mix=mix, factor=factor)


def _takes_lean(
    backend: Backend,
    call: Call,
    arrangement: Arrangement,
    x: Tensor,
    shortcut: Tensor | None,
    *scalars: Tensor | None,
) -> bool:
    """Return whether the lean backend is to compute `call`; raise ValueError if it was asked for and cannot."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}; got {brief(backend)}")
    if backend == "reference" or looked_into(x) or has_hooks(call.norm, call.what, call.where):
        return False
    # a hook on a parameter would run in the small graph as well; one computed from another would get its gradient twice
    if any(p._backward_hooks or not p.is_leaf for p in call.parameters()):
        return False
    reason = next(_reasons_against(call, arrangement, x, shortcut, *scalars), "")
    if reason and backend == "lean":
        raise ValueError(f"backend='lean' cannot compute this: {reason}; give backend='auto' or 'reference'")
    return not reason


def looked_into(x: Tensor) -> bool:
    """Return whether x is under a transform that wants to see plain operators."""
    return bool(
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, nn.Parameter)
        or x.is_meta
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch.utils._python_dispatch._get_current_dispatch_mode() is not None
    )


def _reasons_against(
    call: Call,
    arrangement: Arrangement,
    x: Tensor,
    shortcut: Tensor | None,
    *scalars: Tensor | None,
) -> Iterator[str]:
    """Yield why the lean backend cannot compute `call`."""
    functions: tuple[object, ...] = (call.what, call.where)
    if any(function is not None and not isinstance(function, nn.Module) for function in functions):
        yield "what and where must be modules, which tell what they learn"
    if call.what is not None and len(set(call.what.pools)) != len(call.what.pools):
        yield f"the pools {call.what.pools} name one twice"
    if call.where is not None and len(set(call.where.maps)) != len(call.where.maps):
        yield f"the maps {call.where.maps} name one twice"
    if call.where is not None and not {"max", "mean"}.issuperset(call.where.maps):
        yield f"of the maps {call.where.maps} only max and mean share its passes"
    if x.dim() != 4 or not x.is_floating_point() or x.numel() == 0 or x.layout != torch.strided:
        yield f"x must be dense, non-empty and floating-point, (N, C, H, W), got {x.dtype} {tuple(x.shape)}"
    if call.what is None and call.where is None:
        yield "without a gate the plain formulation keeps no more"
    if arrangement != "channel_first":
        yield f"the arrangement {arrangement!r} does not share its passes"
    if call.norm is not None and type(call.norm) is not nn.BatchNorm2d:
        yield f"the norm must be exactly a BatchNorm2d, got a {type(call.norm).__name__}"
    elif call.norm is not None and call.norm.num_features != x.shape[1]:
        yield f"the norm has {call.norm.num_features} channels, x {x.shape[1]}"
    elif call.norm is not None and x.numel() == x.shape[1] and takes_batch_statistics(call.batch_norm()):
        yield "the norm would take the variance of one value"
    if shortcut is not None and (shortcut.shape != x.shape or shortcut.dtype != x.dtype):
        yield f"the shortcut must have the shape and dtype of x, got {shortcut.dtype} {tuple(shortcut.shape)}"
    if any(tensor is not None and tensor.device != x.device for tensor in (shortcut, *scalars)):
        yield "all tensors must be on one device"
