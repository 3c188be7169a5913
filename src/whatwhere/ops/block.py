"""A whole call as one C++ operator, and its backward pass as another: for the small functions that have a form.

The results are those of the passes one by one (`cpp.py`) but for rounding: here all that is small is float32. What is
saved: x, behind a ReLU y, the weights, and small tensors in one run of memory, the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .batch_norm import momentum_of, takes_batch_statistics
from .call import Call
from .forms import Layers, form_of
from .lean import Forward
from .lean_backward import Inputs, Saved


class Arguments(NamedTuple):
    """The small tensors of a call, in the order of the operators."""

    # the norm; mean and variance where it does not take those of the batch
    weight: Tensor | None = None
    bias: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    # as in forms.Layers
    w1: Tensor | None = None
    b1: Tensor | None = None
    w2: Tensor | None = None
    b2: Tensor | None = None
    # as in forms.Convolution, with its norm as above
    kernel: Tensor | None = None
    offset: Tensor | None = None
    where_weight: Tensor | None = None
    where_bias: Tensor | None = None
    where_mean: Tensor | None = None
    where_var: Tensor | None = None
    # (N,), and one value
    factor: Tensor | None = None
    mix: Tensor | None = None


STATISTICS = ("mean", "var", "where_mean", "where_var")
# those for which the backward pass has a gradient, in its order
LEARNED = tuple(name for name in Arguments._fields if name not in (*STATISTICS, "factor"))
# of these `lean` saves the values, and returns the gradient
_INPUTS = ("weight", "bias", "factor", "mix")
# the values of these may change before the backward pass, as in PyTorch
_COPIED = ("b1", "b2", "offset", "where_bias")


class Flags(NamedTuple):
    """What else the operators are told, in their order."""

    has_norm: bool
    average: bool  # the pools of `what`
    maximum: bool
    max_map: int  # the place of each map of `where`; -1 where it is not there
    mean_map: int
    has_where_norm: bool
    z_in_y: bool  # y holds z already


@dataclass(frozen=True)
class Block:
    """A call in the words of the operators."""

    arguments: Arguments
    numbers: list[float]  # eps of both norms
    flags: Flags
    norm: nn.BatchNorm2d | None
    where_norm: nn.BatchNorm2d | None

    @staticmethod
    def of(call: Call, x: Tensor, factor: Tensor | None, mix: Tensor | None, small_dtype: torch.dtype) -> Block | None:
        """Return the call; None where a function has no form, or torch's own error must be seen.

        `small_dtype` is that in which `what` and `where` get their pools and maps.
        """
        what, where, norm = form_of(call.what), form_of(call.where), call.batch_norm
        if (what is None) != (call.what is None) or (where is None) != (call.where is None):
            return None
        pools: tuple[str, ...] = () if call.what is None else call.what.pools
        maps: tuple[str, ...] = () if call.where is None else call.where.maps
        where_norm = None if where is None else where.norm
        of_what = what or (None,) * 4
        of_where = (None, None) if where is None else (where.kernel, where.bias)
        arguments = Arguments._make((*_of_norm(norm), *of_what, *of_where, *_of_norm(where_norm), factor, mix))
        of_what_dtype = torch.float32 if getattr(call.what, "in_float32", False) else small_dtype
        fits = (
            {"avg", "max"}.issuperset(pools)
            and (what is None or (_fit_together(what, x.shape[1]) and _are(of_what_dtype, what)))
            and (where is None or (where.kernel.shape[1] == len(maps) and _are(small_dtype, where[:2])))
            and (where_norm is None or _are(small_dtype, (where_norm.weight, where_norm.bias)))
            and not (takes_batch_statistics(where_norm) and x.numel() == x.shape[1])
            and all(value is None or value.dtype in (torch.float32, x.dtype) for value in arguments)
            and _may_be_moved(norm)
            and _may_be_moved(where_norm)
        )
        if not fits:
            return None
        numbers = [0.0 if one is None else one.eps for one in (norm, where_norm)]
        max_map, mean_map = (maps.index(name) if name in maps else -1 for name in ("max", "mean"))
        in_y = norm is not None and mix is not None
        is_there = norm is not None, where_norm is not None
        flags = Flags(is_there[0], "avg" in pools, "max" in pools, max_map, mean_map, is_there[1], in_y)
        return Block(arguments, numbers, flags, norm, where_norm)


def _of_norm(norm: nn.BatchNorm2d | None) -> tuple[Tensor | None, ...]:
    if norm is None:
        return (None,) * 4
    statistics = (None, None) if takes_batch_statistics(norm) else (norm.running_mean, norm.running_var)
    return norm.weight, norm.bias, *statistics


def _fit_together(layers: Layers, channels: int) -> bool:
    """Return whether the layers map C values to C; one that maps to a single value is a gate that broadcasts."""
    if layers.w1.dim() == 3:
        return True
    last = layers.w1 if layers.w2 is None else layers.w2
    return layers.w1.shape[1] == channels == last.shape[0] and (last is layers.w1 or last.shape[1] == len(layers.w1))


def _are(dtype: torch.dtype, values: Sequence[Tensor | None]) -> bool:
    return all(value is None or value.dtype is dtype for value in values)


def _may_be_moved(norm: nn.BatchNorm2d | None) -> bool:
    """Return whether the operator can move the running statistics, which it writes to as they are."""
    running = () if norm is None or not norm.training else (norm.running_mean, norm.running_var)
    return all(value is None or _is_plain(value) for value in running)


def _is_plain(value: Tensor) -> bool:
    return value.dtype is torch.float32 and value.is_contiguous()


def plain(values: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the values as the operators read them: float32 and contiguous."""
    return [value if value is None or _is_plain(value) else value.float().contiguous() for value in values]


def forward(of: Forward) -> Tensor | None:
    """Return y by one operator, or None where it cannot be; leave in `of` what the backward pass needs."""
    call, x, norm = of.call, of.x, of.call.batch_norm
    block = Block.of(call, x, of.factor, of.mix, of.small_dtype)
    if block is None:
        return None
    if block.flags.z_in_y:
        # the norm itself: at a = 0 the result is then, bit for bit, that of the block without attention
        assert norm is not None
        y = of.view.dense(norm(x))
    else:
        y = x if of.overwrite else torch.empty_like(x)
    running: list[Tensor] = []
    momenta = [-1.0, -1.0]
    # where z is in y the norm has moved its statistics itself
    for place, one in enumerate((None if block.flags.z_in_y else norm, block.where_norm)):
        momentum = None if one is None else momentum_of(one)
        if one is not None and momentum is not None:
            assert one.running_mean is not None
            assert one.running_var is not None
            momenta[place] = momentum
            running += [one.running_mean, one.running_var]
    state, indices = torch.ops.whatwhere.block(
        x, plain(block.arguments), block.numbers, block.flags, of.shortcut, call.relu, of.graph, y, running, momenta
    )
    if of.graph:
        for name, value in zip(Arguments._fields, block.arguments, strict=True):
            if value is not None and name not in (*STATISTICS, *_INPUTS):
                of.small.tensors[name] = value.clone() if name in _COPIED else value
        of.small.tensors.update(state=state, indices=indices)
        of.gradients = partial(_gradients, _Kept.of(block, call))
    return y


def statistics(flags: Flags, x: Tensor, state: Tensor) -> Sequence[Tensor]:
    """Return the mean and variance of the norm and of that in `where`, without which they are empty."""
    of_norm, of_where = x.shape[1] * int(flags.has_norm), int(flags.has_where_norm)
    ends = (of_norm, of_norm, of_where, of_where)
    return torch.split_with_sizes(state[: sum(ends)], ends)


@dataclass(frozen=True)
class _Kept:
    """What the backward pass needs besides tensors."""

    numbers: list[float]
    flags: Flags
    where_from_batch: bool  # true without a norm, too
    places: dict[str, int]  # of the small functions' parameters, in Call.parameters

    @staticmethod
    def of(block: Block, call: Call) -> _Kept:
        by_id = {id(parameter): index for index, parameter in enumerate(call.parameters)}
        named = {name: getattr(block.arguments, name) for name in LEARNED if name not in _INPUTS}
        places = {name: by_id[id(value)] for name, value in named.items() if id(value) in by_id}
        from_batch = block.where_norm is None or takes_batch_statistics(block.where_norm)
        return _Kept(block.numbers, block.flags, from_batch, places)


def _gradients(kept: _Kept, saved: Saved, dy: Tensor) -> tuple[Inputs, list[Tensor | None]]:
    """Return what `lean_backward.gradients` returns."""
    view, inputs, needs = saved.view, saved.inputs, saved.needs
    # hooks on saved tensors may have changed how they lie in memory
    x, y = view.dense(inputs.x), None if saved.y is None else view.dense(saved.y)
    tensors = dict(saved.small.tensors)
    state, indices = tensors.pop("state").contiguous(), tensors.pop("indices").contiguous()
    # the operator is only told whether they come from the batch: it has the values
    running = dict(zip(STATISTICS, statistics(kept.flags, x, state), strict=True))
    for name, from_batch in (("", saved.from_batch or not kept.flags.has_norm), ("where_", kept.where_from_batch)):
        if not from_batch:
            tensors.update({name + part: running[name + part] for part in ("mean", "var")})
    arguments = Arguments(weight=inputs.weight, bias=inputs.bias, factor=inputs.factor, mix=inputs.mix, **tensors)
    dy = view.dense(dy)
    dv, dx = None if y is None else torch.empty_like(x), torch.empty_like(x) if needs.x else None
    values = torch.ops.whatwhere.block_backward(
        dy, y, x, plain(arguments), kept.numbers, kept.flags, state, indices, dv, dx
    )
    found = {
        name: value.to(getattr(arguments, name).dtype)
        for name, value in zip(LEARNED, values, strict=True)
        if getattr(arguments, name) is not None
    }
    of_parameters: list[Tensor | None] = [None] * len(saved.call.parameters)
    for name, index in kept.places.items():
        so_far = of_parameters[index]
        of_parameters[index] = found[name] if so_far is None else so_far + found[name]
    of_norm = (found.get(name) if getattr(needs, name) else None for name in ("weight", "bias", "mix"))
    return Inputs(dx, dv if needs.shortcut else None, None, *of_norm), of_parameters


def state_size(x: Tensor, tensors: Sequence[Tensor | None], flags: Sequence[int]) -> tuple[int, int]:
    """Return how many float32 and int32 values the operator keeps: those of `State` in csrc/block.h."""
    # no bool: torch 2.10 cannot multiply a symbolic size by one
    small, told = Arguments(*tensors), Flags._make(map(int, flags))
    num, channels, pixels = x.shape[0], x.shape[1], x.shape[0] * x.shape[2] * x.shape[3]
    values = 2 * channels * told.has_norm + 2 * told.has_where_norm
    if small.w1 is not None:
        rows = channels if small.w2 is None else len(small.w1)
        values += num * ((told.average + told.maximum) * (channels + rows) + channels)
    if small.kernel is not None:
        values += pixels * (1 + small.kernel.shape[1])
    return values, num * channels * told.maximum + pixels * int(told.max_map >= 0)


def empty_gradients(x: Tensor, tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Return tensors like the gradients of `LEARNED`: float32, and empty where there is no such tensor."""
    learned = (getattr(Arguments(*tensors), name) for name in LEARNED)
    return [x.new_empty((0,) if value is None else value.shape, dtype=torch.float32) for value in learned]
