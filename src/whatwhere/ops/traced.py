"""The C++ operator of a whole call for torch.compile: without side effects, and with its gradient.

A compiler may keep and move what has no side effects. So the operator returns all that it computes, the running
statistics are moved outside, and the backward pass is an operator too. Of the size of x the compiler keeps x and,
behind a ReLU, y.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import cpp
from .batch_norm import takes_batch_statistics, update_running
from .block import LEARNED, Arguments, Block, Flags, empty_gradients, plain, state_size, statistics
from .call import Call, has_hooks, is_compiled
from .layout import View
from .lean import TWICE

_TENSORS = ", ".join(f"Tensor? {name}" for name in Arguments._fields)
_CALL = f"float[] numbers, int[] flags, {_TENSORS}"


def block_of(call: Call, x: Tensor, shortcut: Tensor | None, mix: Tensor | None, factor: Tensor | None) -> Block | None:
    """Return the call, where torch.compile is tracing and the operator can compute it; else None."""
    if not is_compiled() or has_hooks(call.norm, call.what, call.where):
        return None
    # without a gate the compiler joins the norm, the sum and the ReLU with what stands beside them
    if (call.what is None and call.where is None) or cpp.why_unfit(call, x, shortcut, mix, factor):
        return None
    small_dtype = torch.float32 if torch.is_autocast_enabled("cpu") else x.dtype
    block = Block.of(call, x, factor, mix, small_dtype)
    norms = () if block is None else (block.norm, block.where_norm)
    # a mean over all batches needs their number in Python
    return None if any(norm is not None and norm.momentum is None for norm in norms) else block


def run(block: Block, x: Tensor, shortcut: Tensor | None) -> Tensor:
    """Return y."""
    view, norm, where_norm = View.of(x), block.norm, block.where_norm
    x, shortcut = view.dense(x), None if shortcut is None else view.dense(shortcut)
    flags = [int(flag) for flag in block.flags]
    trained = takes_batch_statistics(norm), takes_batch_statistics(where_norm)
    keep = torch.is_grad_enabled() or any(trained)
    y, state, _ = torch.ops.whatwhere.traced(x, shortcut, keep, block.numbers, flags, *plain(block.arguments))
    if any(trained):
        mean, var, where_mean, where_var = statistics(block.flags, x, state)
        with torch.no_grad():
            if norm is not None and trained[0]:
                update_running(norm, mean, var, x.numel() // x.shape[1])
            if where_norm is not None and trained[1]:
                update_running(where_norm, where_mean, where_var, x.numel() // x.shape[1])
    result: Tensor = y
    return result


def _traced(
    x: Tensor, shortcut: Tensor | None, keep: bool, numbers: list[float], flags: list[int], *tensors: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and the state and the indices of the operator `block`, which are empty unless `keep`."""
    given, y = Arguments(*tensors), torch.empty_like(x)
    if Flags._make(flags).z_in_y:
        # given float32 statistics, even if only to be thrown away, the norm computes in float32
        channels = x.new_zeros(x.shape[1], dtype=torch.float32)
        mean, var = (channels, channels + 1) if given.mean is None else (given.mean, given.var)
        trained = given.mean is None
        z, _, _ = torch.native_batch_norm(x, given.weight, given.bias, mean, var, trained, 0.0, numbers[0])
        y = View.of(x).dense(z)
    kept = torch.ops.whatwhere.block(
        x, tensors, numbers, flags, shortcut, shortcut is not None, keep, y, [], [-1.0, -1.0]
    )
    return y, *kept


def _shapes(
    x: Tensor, shortcut: Tensor | None, keep: bool, numbers: list[float], flags: list[int], *tensors: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    values, indices = state_size(x, tensors, flags) if keep else (0, 0)
    return torch.empty_like(x), x.new_empty(values, dtype=torch.float32), x.new_empty(indices, dtype=torch.int32)


def _backward(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    state: Tensor,
    indices: Tensor,
    numbers: list[float],
    flags: list[int],
    *tensors: Tensor | None,
) -> list[Tensor]:
    """Return the gradients of x, of the shortcut (nothing where there is none), and those of `LEARNED`."""
    dx, dv = torch.empty_like(x), None if y is None else torch.empty_like(x)
    found = torch.ops.whatwhere.block_backward(dy, y, x, tensors, numbers, flags, state, indices, dv, dx)
    return [dx, x.new_empty(0) if dv is None else dv, *found]


def _shapes_of_backward(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    state: Tensor,
    indices: Tensor,
    numbers: list[float],
    flags: list[int],
    *tensors: Tensor | None,
) -> list[Tensor]:
    return [torch.empty_like(x), x.new_empty(0) if y is None else torch.empty_like(x), *empty_gradients(x, tensors)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, shortcut, _, ctx.numbers, ctx.flags, *tensors = inputs
    y, state, indices = output
    ctx.save_for_backward(x, None if shortcut is None else y, state, indices, *tensors)
    ctx.mark_non_differentiable(state, indices)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, *_: object) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * (5 + len(Arguments._fields))
    x, y, state, indices, *tensors = ctx.saved_tensors
    dy = View.of(x).dense(dy)
    dx, dv, *found = torch.ops.whatwhere.traced_backward(dy, y, x, state, indices, ctx.numbers, ctx.flags, *tensors)
    gradients = dict(zip(LEARNED, found, strict=True))
    named = zip(Arguments._fields, tensors, strict=True)
    of_tensors = (None if value is None else gradients.get(name) for name, value in named)
    return dx, None if y is None else dv, None, None, None, *of_tensors


def _refuse(ctx: Any, *_: Any) -> None:
    raise RuntimeError(TWICE)


for _name, _schema, _function, _fake in (
    ("traced", f"(Tensor x, Tensor? shortcut, bool keep, {_CALL}) -> (Tensor, Tensor, Tensor)", _traced, _shapes),
    (
        "traced_backward",
        f"(Tensor dy, Tensor? y, Tensor x, Tensor state, Tensor indices, {_CALL}) -> Tensor[]",
        _backward,
        _shapes_of_backward,
    ),
):
    torch.library.define(f"whatwhere::{_name}", _schema)
    torch.library.impl(f"whatwhere::{_name}", "CPU", _function)
    torch.library.register_fake(f"whatwhere::{_name}", _fake)
torch.library.register_autograd("whatwhere::traced", _gradients, setup_context=_keep)
torch.library.register_autograd("whatwhere::traced_backward", _refuse)
