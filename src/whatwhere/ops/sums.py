"""The end of a block without a gate, relu(norm(x) + shortcut): sum and ReLU in one C++ pass, bit for bit torch's.

PyTorch reads and writes its result twice for them. A NaN stays one, but maybe with other bits. The norm stays torch's
own operator, so that a network whose attention starts as the identity is equal, bit for bit, to the plain one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .call import Call
from .layout import View


def why_unfit(
    call: Call,
    x: Tensor | None = None,
    shortcut: Tensor | None = None,
    mix: Tensor | None = None,
    factor: Tensor | None = None,
) -> str:
    """Return why a call without gates is not such an end, without `x` its modules; "" if it is."""
    return next(_unfit(call, x, shortcut, factor), "")


def _unfit(call: Call, x: Tensor | None, shortcut: Tensor | None, factor: Tensor | None) -> Iterator[str]:
    if not call.relu or type(call.norm) not in (nn.BatchNorm2d, type(None)):
        yield "without a gate only the sum behind a BatchNorm2d is a pass of its own"
    if x is None:
        return
    if shortcut is None or (shortcut.shape, shortcut.dtype, shortcut.device) != (x.shape, x.dtype, x.device):
        yield "without a gate the shortcut must be as x"
        return
    if factor is not None:
        yield "without a gate there must be no factor"
    if x.dim() != 4 or x.numel() == 0 or x.layout != torch.strided or shortcut.layout != torch.strided:
        yield f"x must be dense and not empty, (N, C, H, W), got {tuple(x.shape)}"
    memory_format = View.of(x).memory_format
    if not all(value.is_contiguous(memory_format=memory_format) for value in (x, shortcut)):
        yield "without a gate x and the shortcut must lie alike in memory"


def run(call: Call, x: Tensor, shortcut: Tensor, overwrite: bool) -> Tensor:
    """Return y."""
    z = x if call.norm is None else call.norm(x)
    if torch.is_grad_enabled() and (z.requires_grad or shortcut.requires_grad):
        y: Tensor = _Sum.apply(z, shortcut, call.norm is not None)
        return y
    return _sum(z, shortcut, overwrite or call.norm is not None)


def _sum(z: Tensor, shortcut: Tensor, in_place: bool) -> Tensor:
    y = z if in_place else torch.empty_like(z)
    torch.ops.whatwhere.apply(z, None, None, None, None, shortcut, True, y)
    if in_place and not y.is_inference():
        # so that a graph that has saved it refuses to use it
        torch.autograd.graph.increment_version(y)
    return y


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, shortcut: Tensor, in_place: bool) -> Tensor:
        y = _sum(z, shortcut, in_place)
        if in_place:
            ctx.mark_dirty(z)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        (y,) = ctx.saved_tensors
        dv = torch.ops.aten.threshold_backward(dy, y, 0)
        return dv, dv, None
