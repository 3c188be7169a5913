"""ResNet, ResNeXt, Wide ResNet and the article's network, plain and with attention."""

from __future__ import annotations

from .blocks import BasicBlock, Bottleneck
from .resnet import ResNet

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "convert_weights", "create_model", "describe_weights", "list_models"]


def __getattr__(name: str) -> object:
    # these moved to `networks`, which is built on this package
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("whatwhere.networks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
