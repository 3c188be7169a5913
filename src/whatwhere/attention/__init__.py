"""Attention modules, one paper a file, and the dict that names them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..base.errors import UserError
from ..base.words import brief, suggest
from .bam import BAM
from .by_path import attention_by_path
from .cbam import CBAM, ChannelAttention, SpatialAttention
from .coordinate import CoordinateAttention
from .eca import EfficientChannelAttention
from .ela import EfficientLocalAttention
from .ema import EfficientMultiScaleAttention
from .fca import FrequencyChannelAttention
from .gate import Gate, IdentityStart, ScalingAttention, starting_as_identity
from .gather_excite import GatherExcite, LocalGatherExcite
from .gct import GatedChannelTransform
from .global_context import GlobalContext
from .scse import SpatialChannelSE
from .simam import SimAM
from .squeeze_excitation import SqueezeExcitation
from .srm import StyleRecalibration
from .triplet import TripletAttention

__all__ = [
    "ATTENTION",
    "BAM",
    "CBAM",
    "ChannelAttention",
    "CoordinateAttention",
    "EfficientChannelAttention",
    "EfficientLocalAttention",
    "EfficientMultiScaleAttention",
    "FrequencyChannelAttention",
    "Gate",
    "GatedChannelTransform",
    "GatherExcite",
    "GlobalContext",
    "IdentityStart",
    "LocalGatherExcite",
    "ScalingAttention",
    "SimAM",
    "SpatialAttention",
    "SpatialChannelSE",
    "SqueezeExcitation",
    "StyleRecalibration",
    "TripletAttention",
    "attention_builder",
    "attention_by_path",
    "starting_as_identity",
]

ATTENTION: dict[str, Callable[..., nn.Module]] = {
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


def attention_builder(attention: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Return what builds `attention` from a channel count: an entry of ATTENTION by name, or the callable itself.

    Raises:
        UserError: An unknown name, or neither a name nor a callable.
    """
    if isinstance(attention, str):
        if attention not in ATTENTION:
            raise UserError(
                f"unknown attention {brief(attention)}{suggest(attention, list(ATTENTION))}; known: "
                f"{', '.join(ATTENTION)}"
            )
        return ATTENTION[attention]
    if not callable(attention) or isinstance(attention, nn.Module):
        raise UserError(
            f"attention must be a name or a callable from channels to a module, got a {type(attention).__name__}"
        )
    return attention
