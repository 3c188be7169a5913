"""Attention for convolutional networks: what it costs, and whether it helps.

The public names are imported when first used, so that `import whatwhere` and the command's --help stay fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention import (
        ATTENTION,
        BAM,
        CBAM,
        ChannelAttention,
        CoordinateAttention,
        EfficientChannelAttention,
        EfficientLocalAttention,
        EfficientMultiScaleAttention,
        FrequencyChannelAttention,
        GatedChannelTransform,
        GatherExcite,
        GlobalContext,
        IdentityStart,
        SimAM,
        SpatialAttention,
        SpatialChannelSE,
        SqueezeExcitation,
        StyleRecalibration,
        TripletAttention,
        no_weight_decay,
    )
    from .base.errors import UserError
    from .cost import compare_costs, cost
    from .insert import attend, detach
    from .models import ResNet
    from .networks import create_model, list_models, optimize_for_inference

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
    "GatedChannelTransform",
    "GatherExcite",
    "GlobalContext",
    "IdentityStart",
    "ResNet",
    "SimAM",
    "SpatialAttention",
    "SpatialChannelSE",
    "SqueezeExcitation",
    "StyleRecalibration",
    "TripletAttention",
    "UserError",
    "attend",
    "compare_costs",
    "cost",
    "create_model",
    "detach",
    "list_models",
    "no_weight_decay",
    "optimize_for_inference",
]

_ROOM = {
    "ATTENTION": "attention",
    "BAM": "attention",
    "CBAM": "attention",
    "ChannelAttention": "attention",
    "CoordinateAttention": "attention",
    "EfficientChannelAttention": "attention",
    "EfficientLocalAttention": "attention",
    "EfficientMultiScaleAttention": "attention",
    "FrequencyChannelAttention": "attention",
    "GatedChannelTransform": "attention",
    "GatherExcite": "attention",
    "GlobalContext": "attention",
    "IdentityStart": "attention",
    "SimAM": "attention",
    "SpatialAttention": "attention",
    "SpatialChannelSE": "attention",
    "SqueezeExcitation": "attention",
    "StyleRecalibration": "attention",
    "TripletAttention": "attention",
    "no_weight_decay": "attention",
    "ResNet": "models",
    "create_model": "networks",
    "list_models": "networks",
    "optimize_for_inference": "networks",
    "UserError": "base.errors",
    "attend": "insert",
    "detach": "insert",
    "compare_costs": "cost",
    "cost": "cost",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("whatwhere")
    if name not in _ROOM:
        raise AttributeError(f"module 'whatwhere' has no attribute {name!r}")
    room = importlib.import_module(f".{_ROOM[name]}", __name__)
    # the room `cost` is callable and stands for its function, in whichever order the two are imported
    value = room if name == _ROOM[name] else getattr(room, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
