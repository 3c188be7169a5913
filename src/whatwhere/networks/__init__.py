"""Networks of this package, torchvision and timm by name, and their weights.

The names are imported when first used: `networks.spec` and `whatwhere models` need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .convert import convert_weights, describe_weights
    from .factory import create, create_model
    from .inference import optimize_for_inference
    from .spec import NetworkSpec, list_models

__all__ = [
    "NetworkSpec",
    "convert_weights",
    "create",
    "create_model",
    "describe_weights",
    "list_models",
    "optimize_for_inference",
]

_FILES = {
    "NetworkSpec": "spec",
    "convert_weights": "convert",
    "create": "factory",
    "create_model": "factory",
    "describe_weights": "convert",
    "list_models": "spec",
    "optimize_for_inference": "inference",
}


def __getattr__(name: str) -> object:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_FILES[name]}", __name__), name)
