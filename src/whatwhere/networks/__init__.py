"""Networks by name, of this package, torchvision and timm, and the weights that fit them."""

from .convert import convert_weights, describe_weights
from .create import create_model, list_models

__all__ = ["convert_weights", "create_model", "describe_weights", "list_models"]
