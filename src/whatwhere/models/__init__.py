"""ResNet, ResNeXt, Wide ResNet and the article's network, plain and with attention."""

from .blocks import BasicBlock, Bottleneck
from .convert import convert_weights, describe_weights
from .registry import create_model, list_models
from .resnet import ResNet

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "convert_weights", "create_model", "describe_weights", "list_models"]
