"""The names of the package efficientnet_pytorch, and those of timm's networks for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)\.\w+")
_ELSEWHERE = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
_SQUEEZE = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
_EXPANDED = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    **_SQUEEZE,
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}
# of the first stage, whose blocks keep their width
_PLAIN = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", **_SQUEEZE, "conv_pw": "_project_conv", "bn2": "_bn2"}


def is_of_efficientnet_pytorch(state: Iterable[str]) -> bool:
    """Return whether the names in `state` are those of the package efficientnet_pytorch."""
    return {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight"} <= set(state)


def efficientnet_names(own: Iterable[str]) -> Mapping[str, str]:
    """Return timm's names of an EfficientNet's tensors, by those that efficientnet_pytorch gives them.

    It counts the blocks through, where timm counts them within each stage.

    Args:
        own: The names in a network of timm; of one that is no EfficientNet, none has another.
    """
    own = list(own)
    found = {key: match for key, match in zip(own, map(_BLOCK.fullmatch, own), strict=True) if match}
    blocks = sorted({(int(match[1]), int(match[2])) for match in found.values()})
    expanded = {(int(match[1]), int(match[2])) for match in found.values() if match[3] == "conv_pwl"}
    names: dict[str, str] = {}
    for key in own:
        module, _, tensor = key.rpartition(".")
        theirs = _ELSEWHERE.get(module)
        if key in found:
            block = int(found[key][1]), int(found[key][2])
            layer = (_EXPANDED if block in expanded else _PLAIN).get(found[key][3])
            theirs = None if layer is None else f"_blocks.{blocks.index(block)}.{layer}"
        if theirs is not None:
            names[f"{theirs}.{tensor}"] = key
    return names
