"""What one call of `gate` computes, and the rules that say in words why no backend can fuse it, or "" if one may.

`ops.why_not_fused` asks `why_looked_into`, and then the rule `why_unfit` of each backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

Arrangement = Literal["channel_first", "spatial_first", "parallel"]


class ChannelGate(Protocol):
    """`what` to look at: turns pooled features, one (N, C) tensor per name in `pools`, into a channel gate (N, C).

    The features come in the dtype of x, or in float32 at least if an attribute `in_float32` is true. An attribute
    `channels`, if there is one, is the number of channels C that the weights are for; a `Gate` refuses others.
    """

    pools: tuple[str, ...]

    def __call__(self, *pooled: Tensor) -> Tensor: ...


class SpatialGate(Protocol):
    """`where` to look: turns pooled maps (N, k, H, W), one per name in `maps`, into a spatial gate (N, 1, H, W)."""

    maps: tuple[str, ...]

    def __call__(self, maps: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Call:
    """What one call of `gate` computes, without its tensors."""

    what: ChannelGate | None = None
    where: SpatialGate | None = None
    norm: nn.Module | None = None
    relu: bool = False
    arrangement: Arrangement = "channel_first"

    @cached_property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors of `what` and `where` that require a gradient; each once, although the two may share some."""
        found: dict[int, Tensor] = {}
        for module in _all_inside(self.what, self.where):
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and tensor.requires_grad:
                    found[id(tensor)] = tensor
        return tuple(found.values())

    @property
    def batch_norm(self) -> nn.BatchNorm2d | None:
        """The norm, which is a BatchNorm2d in every call that is fused."""
        assert self.norm is None or isinstance(self.norm, nn.BatchNorm2d)
        return self.norm


def why_apart(*parts: tuple[nn.Module, tuple[type[nn.Module], ...]]) -> str:
    """Return why modules must be called one by one rather than computed by one `gate`; "" if they need not be.

    Each module comes with the classes that `gate` can stand for: its `forward` must be that of one of them, and no hook
    may hang on the module itself. `why_not_fused` looks for hooks on the modules inside it.
    """
    for module, classes in parts:
        if type(module).forward not in [known.forward for known in classes]:
            return f"{type(module).__name__} has a forward of its own"
        if has_hooks(module, inside=False):
            return f"a hook hangs on {type(module).__name__}"
    return ""


def why_looked_into(call: Call, x: Tensor | None = None) -> str:
    """Return why plain operators and module calls must be seen, under any `backend`; "" if they need not be."""
    if x is not None and looked_into(x):
        return "a tracer, a transform or a dispatch mode must see plain operators"
    if has_hooks(call.norm, call.what, call.where):
        return "a hook, or a forward that was replaced, must run"
    # A hook on a parameter would run in the small graph as well. A parameter computed from another would get its
    # gradient twice.
    if torch.is_grad_enabled() and any(
        parameter._backward_hooks or not parameter.is_leaf for parameter in call.parameters
    ):
        return "a parameter has a hook or was computed from another tensor"
    return ""


def looked_into(x: Tensor) -> bool:
    """Return whether a compiler, a tracer, a torch.func transform or a dispatch mode must see plain operators on x."""
    return bool(
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, nn.Parameter)
        or x.is_meta
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch.utils._python_dispatch._get_current_dispatch_mode() is not None
    )


def is_compiled() -> bool:
    """Return whether torch.compile traces plain autograd, whose backward pass it compiles too.

    An exported graph keeps operators alone, not how a gradient is computed; torch.func differentiates them itself.
    """
    # not torch.compiler.is_exporting(): under torch.compile of torch 2.10 it is always true
    if not torch.compiler.is_dynamo_compiling() or getattr(torch.compiler, "_is_exporting_flag", True):
        return False
    return not torch._C._are_functorch_transforms_active()


def has_hooks(*modules: object, inside: bool = True) -> bool:
    """Return whether a hook or a replaced `forward` hangs on one of `modules` or, with `inside`, on a module in it.

    A tensor that requires a gradient but is a plain attribute counts too, because `parameters()` does not return it:
    `nn.DataParallel` makes its replicas so, and FSDP its flat parameters.
    """
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return True
    found = _all_inside(*modules) if inside else [module for module in modules if isinstance(module, nn.Module)]
    return any(map(_is_hooked, found))


def _all_inside(*modules: object) -> list[nn.Module]:
    """Return each of `modules` that is one, and the modules in it; several times faster than their `modules()`."""
    found = {id(module): module for module in modules if isinstance(module, nn.Module)}
    left = list(found.values())
    for module in left:
        for child in module._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                left.append(child)
    return left


def _is_hooked(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    if hooks or "forward" in module.__dict__:
        return True
    # a compiler sees plain operators whatever the answer, and may be unable to read vars(module)
    for value in () if torch.compiler.is_compiling() else vars(module).values():
        if isinstance(value, Tensor) and value.requires_grad:
            return True
    return False
