"""Attention modules, one paper a file. `ATTENTION` names them (`builder.py`); `gate.py` has what they share."""

from __future__ import annotations

from .bam import BAM
from .builder import ATTENTION, attention_builder, attention_by_path
from .cbam import CBAM, ChannelAttention, SpatialAttention
from .coordinate import CoordinateAttention
from .eca import EfficientChannelAttention
from .ela import EfficientLocalAttention
from .ema import EfficientMultiScaleAttention
from .fca import FrequencyChannelAttention
from .gate import Attention, Gate, IdentityStart, ScalingAttention, starting_as_identity
from .gather_excite import GatherExcite, LocalGatherExcite
from .gct import GatedChannelTransform
from .global_context import GlobalContext
from .scse import SpatialChannelSE
from .simam import SimAM
from .squeeze_excitation import SqueezeExcitation
from .srm import StyleRecalibration
from .triplet import TripletAttention
from .weight_decay import no_weight_decay

__all__ = [
    "ATTENTION",
    "BAM",
    "CBAM",
    "Attention",
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
    "no_weight_decay",
    "starting_as_identity",
]
