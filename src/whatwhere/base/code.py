"""Code of the user by import path, MODULE:NAME."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from .errors import UserError
from .words import brief, short

_MISSING = object()


def imported(path: str, what: str, such_as: str) -> Any:
    """Import MODULE:NAME and return it.

    Importing runs the user's code, so a path must come from the person who runs the program, never from a file. The
    current folder is importable meanwhile, as for `python -m`.

    Args:
        path: The path.
        what: What it names, for messages: "attention".
        such_as: A path as it should be, for messages.

    Raises:
        UserError: No such path, module or name, or an error while importing.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise UserError(f"{what} {brief(path)} is no import path; give MODULE:NAME, such as {such_as}")
    failed = f"cannot import {what} {brief(path)}"
    with told(f"{failed}: importing it"):
        try:
            found = getattr(importlib.import_module(module), name, _MISSING)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f"{failed}: there is no module {brief(error.name)}, neither installed nor in the current folder"
            ) from error
    if found is _MISSING:
        raise UserError(f"{failed}: the module {brief(module)} has no {brief(name)}")
    return found


def raised(error: BaseException) -> str:
    """Return the type of an exception and its message, in one short line."""
    message = short(" ".join(str(error).split()), 200)
    return f"{type(error).__name__}{f': {message}' if message else ''}"


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Import or call code of the user, which finds modules in the current folder and prints to standard error alone.

    Args:
        what: What is done, for the message: "calling it".

    Raises:
        UserError: The code raised anything, such as SystemExit of a script without a guard. UserError and Ctrl-C pass.
    """
    try:
        with current_folder_importable(), contextlib.redirect_stdout(sys.stderr):
            yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserError(f"{what} raised {raised(error)}") from error


@contextlib.contextmanager
def held_apart(what: str) -> Iterator[None]:
    """Run code of the user, such as a network's forward: it cannot end the program or print to standard output.

    Args:
        what: What the code is, for the message: "the network".

    Raises:
        UserError: As `outlived`.
    """
    with outlived(what), contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def outlived(what: str) -> Iterator[None]:
    """Run code of the user, or what calls it: it cannot end the program in silence.

    Raises:
        UserError: The code raised SystemExit or another exception that is no `Exception`. Ctrl-C passes.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise UserError(f"{what} raised {raised(error)}, which ends a program; take that out of its code") from error


@contextlib.contextmanager
def current_folder_importable() -> Iterator[None]:
    """Let `import` find modules in the current folder, before all others, during the block."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # it was removed
        folder = ""
    if not folder or folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the module may be younger than the last search of the folder
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
