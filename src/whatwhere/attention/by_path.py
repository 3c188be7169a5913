"""Attention by import path, `MODULE:NAME`: code of the user's, which is executed."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ..base.errors import UserError
from ..base.words import brief, short

_MISSING = object()


def attention_by_path(path: str) -> Callable[..., nn.Module]:
    """Import what `MODULE:NAME` names: a callable from a channel count to a module, such as a class of modules.

    The current folder is importable meanwhile, as it is for `python -m`. Importing executes the module, so a path must
    come from whoever runs the program, never from a file.

    Raises:
        UserError: No such path, module or name, no callable, a module that is built already, an error while importing.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise UserError(f"attention {brief(path)} is no import path; give MODULE:NAME, such as my_attention:Gate")
    builder = _imported(module, name, path)
    if builder is _MISSING:
        raise UserError(f"attention {brief(path)} cannot be had: the module {brief(module)} has no {brief(name)}")
    if isinstance(builder, nn.Module):
        raise UserError(
            f"attention {brief(path)} is a module built already; give its class, or a function of the channels"
        )
    if not callable(builder):
        raise UserError(
            f"attention {brief(path)} is of type {type(builder).__name__}; give a class or a function from a channel "
            "count to a module"
        )
    result: Callable[..., nn.Module] = builder
    return result


def _imported(module: str, name: str, path: str) -> Any:
    try:
        with _current_folder_importable():
            return getattr(importlib.import_module(module), name, _MISSING)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"attention {brief(path)} cannot be had: there is no module {brief(error.name)}, neither installed nor "
                "in the current folder"
            ) from error
        raise _failed(path, error) from error
    # a stranger's module may raise anything, and a script without a guard ends the program
    except (Exception, SystemExit) as error:
        raise _failed(path, error) from error


def _failed(path: str, error: BaseException) -> UserError:
    said = short(" ".join(str(error).split()), 200)
    kind = type(error).__name__
    return UserError(f"attention {brief(path)} cannot be had: importing it raised {kind}{f': {said}' if said else ''}")


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the module may be younger than the last look into the folder
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
