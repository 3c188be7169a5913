from __future__ import annotations

from typing import NoReturn

from .errors import UserError


def refuse_scripting() -> NoReturn:
    """Raise the UserError that says what to use in place of torch.jit.script."""
    raise UserError(
        "torch.jit.script cannot compile the attention and the networks of whatwhere; use torch.export.export, "
        "torch.compile or torch.jit.trace"
    )


class NotScriptable:
    """Base of modules that torch.jit.script cannot compile; it then says so, wherever in a network they stand."""

    def __prepare_scriptable__(self) -> NoReturn:
        # torch.jit.script calls this of each module that has it, before it compiles anything
        refuse_scripting()
