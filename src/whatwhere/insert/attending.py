"""What networks and state dicts saved by version 0.1 need in order to load. Pickles look for these names in this file.

Version 0.1 kept a record of modules (`_Record`) where this version keeps an `Inserted` of names, and attention behind a
norm was the norm's child.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from ..base.modules import module_at

KEPT = "_attended"  # the attribute that lists what was inserted


@dataclass(eq=False)
class _Record:
    owner: nn.Module
    name: str
    host: nn.Module | None
    before: type[nn.Module] | nn.Module | None

    def upgraded(self) -> dict[str, Any]:
        """Return the arguments of the `Inserted` that replaces this record; the owner is its keeper."""
        if isinstance(self.before, nn.Module):
            return {"owner": "", "name": self.name, "kind": "instead of", "replaced": self.before}
        assert self.host is not None
        if isinstance(self.before, type):
            vars(self.host)["_plain_class"] = self.before
        is_before = any(getattr(hook, "owner", None) is self.owner for hook in self.host._forward_pre_hooks.values())
        host = next(name for name, module in self.owner.named_modules() if module is self.host)
        return {"owner": "", "name": self.name, "kind": "before" if is_before else "behind", "host": host}


def load_old_keys(keeper: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the keys of attention behind a norm, a pre-hook of `load_state_dict`."""
    for inserted in vars(keeper).get(KEPT, ()):
        old = f"{prefix}{inserted.host}.attention."
        new = ".".join(filter(None, [prefix.removesuffix("."), inserted.owner, inserted.name, ""])) + "."
        has_own = hasattr(module_at(keeper, inserted.host), "attention")
        if inserted.kind == "behind" and old != new and not has_own:
            for key in [key for key in state if key.startswith(old)]:
                state[new + key.removeprefix(old)] = state.pop(key)


def renamed(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with the keys of `model` where version 0.1 used others."""
    result = dict(state)
    for name, keeper in model.named_modules():
        load_old_keys(keeper, result, f"{name}." if name else "")
    return result


def __getattr__(name: str) -> object:
    if name in ("_Behind", "_Before"):
        return getattr(import_module("whatwhere.insert.host"), name[1:])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
