"""The passes over x that all attention modules share, as functions on tensors.

Everything is one function, `gate`. A module gives it two small functions, `what` (pooled features to channel gate) and
`where` (pooled maps to spatial gate). A backend does the large work, each with the same parameters and results:

- "reference" (`reference.py`): plain PyTorch on any device and dtype; autograd keeps what it needs.
- "lean" (`lean.py`, `lean_backward.py`): plain PyTorch on any device; keeps for backward x, behind a ReLU the result
  (which the next layer keeps too), and small tensors, and computes the rest again.
- "cpp" (`cpp.py`, `csrc/`): the passes of lean in C++, for float32 and bfloat16 on a CPU; what it keeps is the same.
  The end of a block without a gate is torch's norm and one pass (`sums.py`), with the same bits as the reference.
  WHATWHERE_CPP=0 in the environment switches all of it off.
- "auto": cpp if it can, else lean if it can, else the reference. `why_not_fused` is the rule and gives the reason in
  words.

Lean cannot compute these, and `backend="lean"` raises: the arrangements "spatial_first" and "parallel"; a norm that is
not exactly a BatchNorm2d, or would take the variance of one value; a call with neither gate; functions that are not
modules, that name a pool or map twice, or that take another map than "max" and "mean"; a shortcut of another shape or
dtype; tensors on several devices; empty tensors. Nor can cpp, but for a sum without a gate, and it computes fewer: only
the pools "avg", "max" and "min", and only where its library is (`whatwhere backends` says why not).

Under any backend the reference computes a call that must show its operators: under torch.compile (but see below),
export, tracing, torch.func's transforms, forward-mode differentiation and dispatch modes (FLOP counters). So it does
for modules with a hook on them, so that every hook fires once, and for parameters that are not registered; where
gradients are recorded also for parameters that have a hook or are no leaves.
Lean gives no gradient to a tensor that `what` or `where` uses without having it as a parameter or buffer.

Under torch.compile a call that the C++ operator of a whole call can compute is that operator (`traced.py`; backend
"auto" or "cpp"). For a gradient any other call with a norm that lean could compute shows its operators in checkpoints
(`compiled.py`). So the compiler keeps as little as lean. `backend="reference"` leaves the choice to it.

A new backend is one file with the functions `run` and `why_unfit`, like `lean.py`; its name goes into `Backend` and
`FUSED`.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor, nn

from ..base.words import brief
from . import compiled, cpp, lean, reference, traced
from .batch_norm import FoldedNorm
from .call import Arrangement, Call, ChannelGate, SpatialGate, has_hooks, looked_into, why_apart, why_looked_into
from .lean import saved_for_gates

__all__ = [
    "Arrangement",
    "Backend",
    "Call",
    "ChannelGate",
    "FoldedNorm",
    "SpatialGate",
    "gate",
    "gated_tail",
    "has_hooks",
    "looked_into",
    "normed_gate",
    "saved_for_gates",
    "why_apart",
    "why_not_fused",
]

Backend = Literal["auto", "reference", "lean", "cpp"]
# name -> a file with `run`, the passes, and `why_unfit`, the rule; "auto" takes the first whose rule gives no reason
# against a call
FUSED: dict[str, Any] = {"cpp": cpp, "lean": lean}


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
    backend: Backend = "auto",
) -> Tensor:
    """Scale features by a channel gate s and a spatial gate m, after a norm and before a shortcut if they are given.

    The cases::

        gate(x, what, where)                          gate(x)                           a module by itself
        gate(x, what, where, norm=n)                  gate(n(x))                        behind a norm
        gate(x, what, where, norm=n, shortcut=r)      relu(gate(n(x)) + r)              the end of a residual block

    where gate(z), with s = what(pools of z) and m = where(maps of z), is by `arrangement`, an absent gate being 1::

        channel_first   s from z,      m from z * s     z * s * m
        spatial_first   m from z,      s from z * m     z * m * s
        parallel        s from z,      m from z         z * s * m

    With identity mixing `mix` = a it is z * (1 - a + a * s * m): z itself at a = 0, the line above at a = 1.

    Args:
        x: Features; with a norm, its input.
        what: Channel gate. Its attribute `pools` names the pooled features it takes, in order: "avg", "max", "min",
            "lp" or "l2" (the l2 norm), "lse" (log-sum-exp), "std" (unbiased, 1e-5 added to the variance) and "dct1",
            "dct2", ... "dct32" (so many components of a cosine transform, see `spectral.py`), each over H x W. They
            come in the dtype of x, clamped to its range; in float32 at least if `what.in_float32` is true.
        where: Spatial gate. Its attribute `maps` names the pooled maps it takes, in order: "max" and "mean", over C.
        norm: A module before the gate. A BatchNorm2d is fused: x alone is kept for backward, instead of x and norm(x).
            Its mode and running statistics work as usual. A `FoldedNorm` counts as none.
        shortcut: Is added behind the gate; a ReLU follows.
        arrangement: Which gate sees the output of the other.
        mix: The scalar a, a 0-dimensional tensor.
        factor: One number per sample, (N,), that multiplies the gated features (stochastic depth); gets no gradient.
        overwrite: Whether the result may be written over x, where no gradient is needed. Only for an x that nothing
            else uses.
        backend: "auto", "reference", "lean" or "cpp"; see `whatwhere.ops`.

    Shape:
        x and shortcut (N, C, H, W) -> (N, C, H, W).

    Dtype:
        Any floating dtype; the result has that of `x`. Sums over x are taken in float32 at least. Under autocast `what`
        and `where` run in float32.

    Raises:
        ValueError: A backend that does not exist or cannot compute this, with the reason.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}; got {brief(backend)}")
    if isinstance(norm, FoldedNorm) and not norm._modules and not has_hooks(norm):
        norm = None
    call = Call(what, where, norm, shortcut is not None, arrangement)
    if backend != "reference" and not why_looked_into(call, x):
        for name in FUSED if backend == "auto" else (backend,):
            reason = FUSED[name].why_unfit(call, x, shortcut, mix, factor)
            if not reason:
                y: Tensor = FUSED[name].run(call, x, shortcut, mix, factor, overwrite)
                return y
            if backend == name:
                raise ValueError(f"backend={name!r} cannot compute this: {reason}; give backend='auto' or 'reference'")
    if backend in ("auto", "cpp") and (block := traced.block_of(call, x, shortcut, mix, factor)) is not None:
        return traced.run(block, x, shortcut)
    if backend != "reference" and compiled.fits(call, x, shortcut, mix, factor):
        return compiled.run(call, x, shortcut, mix, factor)
    return reference.gate(
        x,
        what,
        where,
        norm=norm,
        shortcut=shortcut,
        arrangement=arrangement,
        mix=mix,
        factor=factor,
        overwrite=overwrite,
    )


def why_not_fused(call: Call, x: Tensor | None = None, shortcut: Tensor | None = None, *scalars: Tensor | None) -> str:
    """Return why no fused backend, but only the reference, can compute a call; "" if one can.

    Without `x` the answer is about the modules alone. Of several backends the reason is the last one's, which computes
    most.
    """
    if reason := why_looked_into(call, x):
        return reason
    reasons = [backend.why_unfit(call, x, shortcut, *scalars) for backend in FUSED.values()]
    return "" if "" in reasons else reasons[-1]


def normed_gate(
    x: Tensor, norm: nn.Module, what: ChannelGate | None = None, where: SpatialGate | None = None, **options: Any
) -> Tensor:
    """Return gate(norm(x)): `gate` with `norm`, which may also be called directly."""
    return gate(x, what, where, norm=norm, **options)


def gated_tail(
    x: Tensor, norm: nn.Module, what: ChannelGate | None, where: SpatialGate | None, shortcut: Tensor, **options: Any
) -> Tensor:
    """Return relu(gate(norm(x)) + shortcut): `gate` with `norm` and `shortcut`, which may also be called directly."""
    return gate(x, what, where, norm=norm, shortcut=shortcut, **options)
