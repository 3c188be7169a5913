"""ResNet, ResNeXt, Wide ResNet and the article's network, plain and with attention."""

from .registry import create_model, list_models
from .resnet import BasicBlock, Bottleneck, ResNet

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "create_model", "list_models"]
