"""The attention modules by name, and what builds an attention: a name, an import path or a callable."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ..base.errors import UserError
from ..base.words import brief, short, suggest
from .bam import BAM
from .cbam import CBAM
from .coordinate import CoordinateAttention
from .eca import EfficientChannelAttention
from .ela import EfficientLocalAttention
from .ema import EfficientMultiScaleAttention
from .fca import FrequencyChannelAttention
from .gather_excite import GatherExcite
from .gct import GatedChannelTransform
from .global_context import GlobalContext
from .scse import SpatialChannelSE
from .simam import SimAM
from .squeeze_excitation import SqueezeExcitation
from .srm import StyleRecalibration
from .triplet import TripletAttention

Builder = Callable[..., nn.Module]

ATTENTION: dict[str, Builder] = {
    "cbam": CBAM,
    "se": SqueezeExcitation,
    "eca": EfficientChannelAttention,
    "srm": StyleRecalibration,
    "gct": GatedChannelTransform,
    "ge": GatherExcite,
    "scse": SpatialChannelSE,
    "gc": GlobalContext,
    "fca": FrequencyChannelAttention,
    "bam": BAM,
    "coord": CoordinateAttention,
    "ela": EfficientLocalAttention,
    "ema": EfficientMultiScaleAttention,
    "simam": SimAM,
    "triplet": TripletAttention,
}

_MISSING = object()


def attention_builder(attention: str | Builder) -> Builder:
    """Return the callable that builds an attention from a channel count: from a name in ATTENTION, or that callable.

    Raises:
        UserError: An unknown name, an import path (`attention_by_path` takes those), or no callable.
    """
    if not isinstance(attention, str):
        return _checked(attention, "attention")
    if ":" in attention:
        raise UserError(f"attention {brief(attention)} names code; import it and give the class or function instead")
    if attention not in ATTENTION:
        names = ", ".join(ATTENTION)
        raise UserError(f"unknown attention {brief(attention)}{suggest(attention, list(ATTENTION))}; known: {names}")
    return ATTENTION[attention]


def attention_by_path(path: str) -> Builder:
    """Import MODULE:NAME and return it: a callable from a channel count to a module, such as a class of modules.

    Importing runs the user's code, so a path must come from the person who runs the program, never from a file. The
    current folder is importable meanwhile, as for `python -m`.

    Raises:
        UserError: No such path, module or name, an error while importing, or no callable.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise UserError(f"attention {brief(path)} is no import path; give MODULE:NAME, such as my_attention:Gate")
    failed = f"cannot import attention {brief(path)}"
    try:
        with _current_folder_importable():
            found = getattr(importlib.import_module(module), name, _MISSING)
    # a user's module may raise anything, and a script without a guard ends the program
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            raise UserError(
                f"{failed}: there is no module {brief(missing)}, neither installed nor in the current folder"
            ) from error
        message, kind = short(" ".join(str(error).split()), 200), type(error).__name__
        raise UserError(f"{failed}: importing it raised {kind}{f': {message}' if message else ''}") from error
    if found is _MISSING:
        raise UserError(f"{failed}: the module {brief(module)} has no {brief(name)}")
    return _checked(found, f"attention {brief(path)}")


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
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


def _checked(builder: Any, label: str) -> Builder:
    if isinstance(builder, nn.Module):
        raise UserError(f"{label} is a module that is built already; give its class, or a function of the channels")
    if not callable(builder):
        kind = type(builder).__name__
        raise UserError(f"{label} is of type {kind}; give a class or a function from a channel count to a module")
    result: Builder = builder
    return result
