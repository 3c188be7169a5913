from __future__ import annotations

import torch
from torch import Tensor, nn


def has_hooks(*modules: object, inside: bool = True) -> bool:
    """Return whether a hook, or a replaced `forward`, hangs on one of `modules` or, with `inside`, a module in it.

    What takes gradients and is not registered, so that nobody can ask the module for it, counts too: the parameters of
    replicas (`nn.DataParallel`) and of FSDP's flat form are plain attributes.
    """
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return True
    found = (module for module in modules if isinstance(module, nn.Module))
    if inside:
        return any(_is_hooked(inner) for module in found for inner in module.modules())
    return any(map(_is_hooked, found))


def _is_hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _keeps_back_what_it_learns(module)
    )


def _keeps_back_what_it_learns(module: nn.Module) -> bool:
    # a compiler sees plain operators whatever the answer, and may not be able to look into the module
    if torch.compiler.is_compiling():
        return False
    return any(isinstance(value, Tensor) and value.requires_grad for value in vars(module).values())
