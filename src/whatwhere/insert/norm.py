"""A BatchNorm followed by attention, in one operator where that keeps less."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch.fx
from torch import Tensor, nn

from ..attention import Gate
from ..attention.gate import check_shape_kept
from ..errors import UserError
from ..ops import has_hooks, looked_into, normed_gate

# symbolic tracing patches a function under the name by which it is called
torch.fx.wrap("check_shape_kept")

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class AttendedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d whose output is attended: y = A(norm(x)).

    What a BatchNorm2d of somebody's network becomes, in place, when attention stands right behind it: parameters, keys
    and hooks stay. The attention is a module of its owner, the block; this one only knows of it. Whatever puts another
    norm into its place (`convert_sync_batchnorm`, timm's `freeze_batch_norm_2d`, fusing it with its convolution) leaves
    the attention without effect.
    """

    def forward(self, x: Tensor) -> Tensor:
        # its owner, and what it is called there
        attention = attention_at(self, *vars(self)["_attention"])
        # a parametrization changes the class, and where the parameters come from
        is_plain = type(self) is AttendedBatchNorm2d and not looked_into(x)
        if not isinstance(attention, Gate) or not is_plain or not _is_as_built(attention):
            return attended(attention, super().forward(x))
        return normed_gate(
            x,
            _plain(self),
            attention.what,
            attention.where,
            arrangement=attention.arrangement,
            mix=attention.mixing(x),
            backend=attention.backend,
        )

    def _check_input_dim(self, input: Tensor) -> None:
        # a symbolic trace knows no shape
        if isinstance(input, Tensor):
            super()._check_input_dim(input)


def attention_at(host: nn.Module, owner: nn.Module, name: str) -> nn.Module:
    """Return the attention behind, or before, a host.

    Raises:
        UserError: The host is a copy that DataParallel made, whose attention is still that of the original.
    """
    if getattr(host, "_is_replica", False):
        raise UserError("attention put in by attend cannot work under DataParallel; use DistributedDataParallel")
    attention: nn.Module = getattr(owner, name)
    return attention


def attended(attention: nn.Module, x: Tensor) -> Tensor:
    """Return attention(x), of the shape of x."""
    out: Tensor = attention(x)
    # the checked one, which is the last of the host's in a symbolic trace
    return check_shape_kept(type(attention).__name__, x, out)


def _is_as_built(attention: Gate) -> bool:
    return type(attention).forward is Gate.forward and not has_hooks(attention, inside=False)


def _plain(norm: AttendedBatchNorm2d) -> nn.BatchNorm2d:
    """Return the norm alone, over the same parameters and statistics; hooks have been called around the whole."""
    plain = object.__new__(nn.BatchNorm2d)
    content: dict[str, Any] = {**vars(norm), **{name: OrderedDict() for name in _HOOKS}}
    vars(plain).update(content)
    return plain


def is_plain_batch_norm(module: nn.Module) -> bool:
    """Return whether a module computes what a BatchNorm2d computes; timm's with an activation that is none does."""
    if type(module) is nn.BatchNorm2d:
        return True
    is_timms = isinstance(module, nn.BatchNorm2d) and type(module).__name__ == "BatchNormAct2d"
    return is_timms and all(type(child) is nn.Identity for child in module.children())
