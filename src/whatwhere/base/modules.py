"""Helpers for any torch.nn.Module: its state, its modules by name, the tensors in its output; no torch.jit.script."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .errors import UserError


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the training or evaluation mode of each module of `model` after the block; modules may differ in mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore modes, buffers and gradients of `model`, and torch's random state, after the block.

    The random state is that of the CPU and of the CUDA devices that hold parameters. At the start of the block no
    parameter has a gradient. Parameters are not copied: if a forward or backward pass changes them, they stay changed.
    """
    registered = [(module, dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = {parameter.device.index for parameter, _ in gradients if parameter.device.type == "cuda"}
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with modes_kept(model), torch.random.fork_rng(sorted(devices)):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, entries in registered:
            module._buffers.clear()
            module._buffers.update(entries)
        for buffer, value in buffers:
            if buffer.shape != value.shape:
                buffer.data = value
            # do not write to an unchanged buffer: an expanded one cannot be written to
            elif buffer.layout != torch.strided or not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples, sets, mappings, dataclasses and registered pytrees, in order."""
    tensors: list[Tensor] = []
    pending, visited = [value], set()
    while pending:
        item = pending.pop()
        if isinstance(item, Tensor):
            tensors.append(item)
        elif id(item) not in visited:
            visited.add(id(item))
            pending += reversed(_items(item))
    return tensors


def _items(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    leaves = pytree.tree_leaves(value)
    return [] if len(leaves) == 1 and leaves[0] is value else leaves


def module_at(model: nn.Module, name: str | None) -> nn.Module | None:
    """Return the module called `name`, past torch's wrappers for checkpointing and FSDP; None if there is none."""
    found: nn.Module | None = None if name is None else model
    for part in name.split(".") if name else ():
        # not only children: a wrapper passes on the attributes of the module that it wraps
        found = getattr(found, part, None)
        for wrapped in ("_checkpoint_wrapped_module", "_fsdp_wrapped_module"):
            found = getattr(found, wrapped, found)
    return found


def is_ultralytics_wrapper(model: nn.Module) -> bool:
    """Return whether a module is Ultralytics' YOLO(...) or the like: its call reads image files, and changes layers."""
    return any(base.__module__ == "ultralytics.engine.model" for base in type(model).__mro__)


def relative_name(name: str | None, parent: str) -> str | None:
    """Return a module's name inside the module called `parent`; None if it is not inside."""
    if name is None or not parent:
        return name
    return f"{name}.".removeprefix(f"{parent}.").rstrip(".") if f"{name}.".startswith(f"{parent}.") else None


def refuse_scripting() -> NoReturn:
    """Raise the UserError that says what to use instead of torch.jit.script."""
    raise UserError(
        "torch.jit.script cannot compile the attention and the networks of whatwhere; use torch.export.export, "
        "torch.compile or torch.jit.trace"
    )


class NotScriptable:
    """Base class of modules that torch.jit.script cannot compile: it then raises a UserError."""

    def __prepare_scriptable__(self) -> NoReturn:
        # torch.jit.script calls this method of each module before it compiles anything
        refuse_scripting()
