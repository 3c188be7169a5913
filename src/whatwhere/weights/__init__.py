"""Weights: read safely, brought from one layout of keys to another, loaded whole or not at all."""

from .load import has_attention, is_attention_key, load_pretrained, starts_as_identity
from .read import (
    StateDict,
    WeightsFile,
    check_finite,
    read_file,
    read_state_dict,
    state_dict_from_url,
    tensors_to_bytes,
    torchvision_state_dict,
)
from .report import Fit, Group, compare

__all__ = [
    "Fit",
    "Group",
    "StateDict",
    "WeightsFile",
    "check_finite",
    "compare",
    "has_attention",
    "is_attention_key",
    "load_pretrained",
    "read_file",
    "read_state_dict",
    "starts_as_identity",
    "state_dict_from_url",
    "tensors_to_bytes",
    "torchvision_state_dict",
]
