"""The attention modules by name, and what builds an attention: a name, an import path or a callable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ..base.code import imported
from ..base.errors import UserError
from ..base.words import brief, listed, suggest
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
from .static import PREFIX, Static
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


def is_own(builder: Any) -> bool:
    """Return whether a callable builds an attention of ATTENTION, or the placebo of one."""
    return (builder.builder if isinstance(builder, Static) else builder) in ATTENTION.values()


def unknown_argument(builder: Any, given: Iterable[str]) -> str:
    """Return which of `given` an attention of ATTENTION does not take, and what it takes; "" where there is none.

    What a class of a user takes, its own error says.
    """
    inner = builder.builder if isinstance(builder, Static) else builder
    if inner not in ATTENTION.values():
        return ""
    known = [name for name in inspect.signature(inner).parameters if name != "channels"]
    wrong = next((name for name in given if name not in known), None)
    return "" if wrong is None else f"; {wrong} is none of its arguments{suggest(wrong, known) or f': {listed(known)}'}"


def attention_builder(attention: str | Builder) -> Builder:
    """Return the callable that builds an attention from a channel count: from a name in ATTENTION, or that callable.

    "static:NAME" is the placebo of an attention (see `Static`).

    Raises:
        UserError: An unknown name, an import path (`attention_by_path` takes those), or no callable.
    """
    if not isinstance(attention, str):
        return _checked(attention, "attention")
    if attention.startswith(PREFIX):
        return Static(attention_builder(attention.removeprefix(PREFIX)))
    if ":" in attention:
        raise UserError(f"attention {brief(attention)} names code; import it and give the class or function instead")
    if "," in attention:
        raise UserError(
            f"{brief(attention)} is more than one attention; put one in at a time, each with its own places: call "
            "attend again, or give whatwhere.ultralytics.trainer a list of dicts"
        )
    if attention == "none":
        raise UserError("none is no attention: leave the attention out, and name a plain network, such as resnet20")
    if attention not in ATTENTION:
        names = ", ".join(ATTENTION)
        raise UserError(
            f"unknown attention {brief(attention)}{suggest(attention, list(ATTENTION))}; known: {names}; or give your "
            "own, as a class in Python or as MODULE:NAME on the command line"
        )
    return ATTENTION[attention]


def attention_by_path(path: str) -> Builder:
    """Import MODULE:NAME and return it: a callable from a channel count to a module, such as a class of modules.

    Importing runs the user's code (see `imported`).

    Raises:
        UserError: No such path, module or name, an error while importing, or no callable.
    """
    return _checked(imported(path, "attention", "my_attention:Gate"), f"attention {brief(path)}")


def _checked(builder: Any, label: str) -> Builder:
    if isinstance(builder, nn.Module):
        raise UserError(f"{label} is a module that is built already; give its class, or a function of the channels")
    if not callable(builder):
        kind = type(builder).__name__
        raise UserError(f"{label} is of type {kind}; give a class or a function from a channel count to a module")
    result: Builder = builder
    return result
