"""Weights: read safely, brought from one layout of keys to another, loaded whole or not at all."""

from .convert import METADATA_KEY, Weights, fits_options, from_file, from_ours, options_of, read_weights, to_ours
from .efficientnet import efficientnet_names, is_of_efficientnet_pytorch
from .layouts import LAYOUTS, Layout, LayoutName, find_rule, layout_named, recognize
from .load import has_attention, is_attention_key, load_pretrained, starts_as_identity
from .read import (
    StateDict,
    Wanted,
    WeightsFile,
    check_finite,
    find_weights,
    read_file,
    read_state_dict,
    state_dict_from_url,
    tensors_to_bytes,
    torchvision_state_dict,
    warn_of_left_out,
)
from .report import Fit, Group, compare, group_keys, shown

__all__ = [
    "LAYOUTS",
    "METADATA_KEY",
    "Fit",
    "Group",
    "Layout",
    "LayoutName",
    "StateDict",
    "Wanted",
    "Weights",
    "WeightsFile",
    "check_finite",
    "compare",
    "efficientnet_names",
    "find_rule",
    "find_weights",
    "fits_options",
    "from_file",
    "from_ours",
    "group_keys",
    "has_attention",
    "is_attention_key",
    "is_of_efficientnet_pytorch",
    "layout_named",
    "load_pretrained",
    "options_of",
    "read_file",
    "read_state_dict",
    "read_weights",
    "recognize",
    "shown",
    "starts_as_identity",
    "state_dict_from_url",
    "tensors_to_bytes",
    "to_ours",
    "torchvision_state_dict",
    "warn_of_left_out",
]
