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
        EfficientLocalAttention,
        EfficientMultiScaleAttention,
        IdentityStart,
        SimAM,
        SpatialAttention,
        SqueezeExcitation,
        TripletAttention,
    )
    from .cost import compare_costs, cost
    from .errors import UserError
    from .models import ResNet, create_model, list_models

__all__ = [
    "ATTENTION",
    "BAM",
    "CBAM",
    "ChannelAttention",
    "CoordinateAttention",
    "EfficientLocalAttention",
    "EfficientMultiScaleAttention",
    "IdentityStart",
    "ResNet",
    "SimAM",
    "SpatialAttention",
    "SqueezeExcitation",
    "TripletAttention",
    "UserError",
    "compare_costs",
    "cost",
    "create_model",
    "list_models",
]

_ROOM = {
    "ATTENTION": "attention",
    "BAM": "attention",
    "CBAM": "attention",
    "ChannelAttention": "attention",
    "CoordinateAttention": "attention",
    "EfficientLocalAttention": "attention",
    "EfficientMultiScaleAttention": "attention",
    "IdentityStart": "attention",
    "SimAM": "attention",
    "SpatialAttention": "attention",
    "SqueezeExcitation": "attention",
    "TripletAttention": "attention",
    "ResNet": "models",
    "create_model": "models",
    "list_models": "models",
    "UserError": "errors",
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
