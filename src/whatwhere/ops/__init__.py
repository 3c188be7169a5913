"""Functions on tensors: the passes over x that all attention modules share. Imports nothing of the package.

Three forms, each a formula of two small functions, `what` (pooled features to channel gate) and `where` (pooled maps to
spatial gate), either of which may be absent::

    gate(x)          = x * s * m                       s = what(pools of x), m = where(maps of x * s)
    normed_gate(x)   = gate(norm(x))
    gated_tail(x)    = relu(gate(norm(x)) + shortcut)  the end of a residual block

Each is computed by a backend, with the same parameters and results:

- "reference": plain PyTorch, any device and dtype; autograd keeps what it likes.
- "lean": plain PyTorch too, any device; keeps x and small tensors for backward and recomputes the rest.
- "auto": lean, except where only the reference serves: the arrangements "spatial_first" and "parallel", a norm that is
  not exactly a BatchNorm2d, another pool or map than the reference's, neither gate, tensors of different dtypes or
  devices, complex or integer tensors, empty ones.

Whatever looks inside takes the reference path under any backend: torch.compile, export, tracing, torch.func's
transforms, dispatch modes (FLOP counters), and modules with a hook, so that every hook fires.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from . import reference
from .reference import MAPS, POOLS, Arrangement, ChannelGate, SpatialGate

__all__ = ["Arrangement", "Backend", "ChannelGate", "SpatialGate", "gate", "gated_tail", "has_hooks", "normed_gate"]

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
            "lp" or "l2" (the l2 norm), "lse" (log-sum-exp) and "std" (unbiased, 1e-5 added to the variance), each over
            H x W.
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
    if _lean(backend, x, None, what, where, arrangement, (mix, factor)):
        from . import lean

        return lean.run(lean.Call(what, where, norm=None, relu=False), x, None, mix, factor)
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
    if _lean(backend, x, norm, what, where, arrangement, (mix, factor)):
        from . import lean

        assert isinstance(norm, nn.BatchNorm2d)
        return lean.run(lean.Call(what, where, norm, relu=False), x, None, mix, factor)
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
        backend: As of `gate`.

    Shape:
        x and shortcut (N, C, H, W) -> (N, C, H, W).
    """
    if _lean(backend, x, norm, what, where, arrangement, (mix, factor), shortcut):
        from . import lean

        assert isinstance(norm, nn.BatchNorm2d)
        return lean.run(lean.Call(what, where, norm, relu=True), x, shortcut, mix, factor)
    return reference.gated_tail(x, norm, what, where, shortcut, arrangement=arrangement, mix=mix, factor=factor)


def has_hooks(*modules: object) -> bool:
    """Return whether a hook, or a replaced `forward`, hangs on one of `modules` or a module inside it."""
    if nn.modules.module._has_any_global_hook():
        return True
    return any(_is_hooked(inner) for module in modules if isinstance(module, nn.Module) for inner in module.modules())


def _is_hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def _lean(
    backend: Backend,
    x: Tensor,
    norm: nn.Module | None,
    what: ChannelGate | None,
    where: SpatialGate | None,
    arrangement: Arrangement,
    scalars: tuple[Tensor | None, ...],
    shortcut: Tensor | None = None,
) -> bool:
    """Return whether the lean backend is to compute this; raise ValueError if it was asked for and cannot."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}; got {backend!r}")
    if backend == "reference" or _is_looked_into(x) or has_hooks(norm, what, where):
        return False
    reason = _reason_against(x, norm, what, where, arrangement, scalars, shortcut)
    if reason and backend == "lean":
        raise ValueError(f"backend='lean' cannot compute this: {reason}; give backend='auto' or 'reference'")
    return not reason


def _is_looked_into(x: Tensor) -> bool:
    """Return whether x is under a transform that wants to see plain operators."""
    return (
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, nn.Parameter)
        or x.is_meta
        or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
        or torch._C._are_functorch_transforms_active()
        or torch.utils._python_dispatch._get_current_dispatch_mode() is not None
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def _reason_against(
    x: Tensor,
    norm: nn.Module | None,
    what: ChannelGate | None,
    where: SpatialGate | None,
    arrangement: Arrangement,
    scalars: tuple[Tensor | None, ...],
    shortcut: Tensor | None,
) -> str:
    """Return why the lean backend cannot compute this, "" if it can."""
    others = [tensor for tensor in (shortcut, *scalars) if tensor is not None]
    if x.dim() != 4 or not x.is_floating_point() or x.numel() == 0 or x.layout != torch.strided:
        return f"x must be a dense, non-empty floating-point tensor (N, C, H, W), got {x.dtype} {tuple(x.shape)}"
    if what is None and where is None:
        return "without a gate there is nothing to save"
    if arrangement != "channel_first":
        return f"the arrangement {arrangement!r} has no shared passes"
    if not set(() if what is None else what.pools) <= set(POOLS) or not set(() if where is None else where.maps) <= set(
        MAPS
    ):
        return "a pool or map is unknown"
    if norm is not None and type(norm) is not nn.BatchNorm2d:
        return f"the norm must be exactly a BatchNorm2d, got a {type(norm).__name__}"
    if isinstance(norm, nn.BatchNorm2d) and norm.num_features != x.shape[1]:
        return f"the norm has {norm.num_features} channels, x {x.shape[1]}"
    if isinstance(norm, nn.BatchNorm2d) and x.numel() == x.shape[1]:
        return "the norm has one value per channel alone"
    if shortcut is not None and (shortcut.shape != x.shape or shortcut.dtype != x.dtype):
        return f"the shortcut must have shape and dtype of x, got {shortcut.dtype} {tuple(shortcut.shape)}"
    if any(tensor.device != x.device for tensor in others):
        return "all tensors must be on one device"
    return ""
