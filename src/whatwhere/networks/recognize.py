"""Which of the networks by name weights are of."""

from __future__ import annotations

import inspect
import re
from typing import Any

from ..attention import ATTENTION
from ..base.words import few, short
from ..models.blocks import Bottleneck
from ..models.resnet import RESNETS, ResNet
from . import weights
from .spec import OWN_NETWORKS

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")
_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(ResNet).parameters.items()}


def structure(state: weights.StateDict) -> dict[str, Any] | None:
    """Return the arguments of `ResNet` that the shapes in `state`, under our names, show; None if it is no ResNet's."""
    blocks = {(int(match[1]), int(match[2])) for match in map(_BLOCK.match, state) if match}
    stages = sorted({stage for stage, _ in blocks})
    try:
        stem, is_bottleneck = state["conv1.weight"], "layer1.0.conv3.weight" in state
        middle = state["layer1.0.conv2.weight"]
        groups = middle.shape[0] // middle.shape[1]
        planes = [
            state[f"layer{stage}.0.conv{3 if is_bottleneck else 1}.weight"].shape[0] // (4 if is_bottleneck else 1)
            for stage in stages
        ]
        return {
            "block": "Bottleneck" if is_bottleneck else "BasicBlock",
            "layers": tuple(sum(stage == other for other, _ in blocks) for stage in stages),
            "widths": tuple(planes),
            "groups": groups,
            "width_per_group": middle.shape[0] * 64 // (planes[0] * groups),
            "stem": "imagenet" if stem.shape[-1] == 7 else "cifar",
            "stem_channels": stem.shape[0],
        }
    # shapes can be anything
    except (KeyError, IndexError, ZeroDivisionError):
        return None


def backbones_of(state: weights.StateDict) -> list[str]:
    """Return the names of the plain networks of the structure of `state`."""
    found = structure(state)
    if found is None:
        return []
    return [name for name, config in RESNETS.items() if _full(config) == found]


def _full(config: dict[str, Any]) -> dict[str, Any]:
    options = ("layers", "widths", "groups", "width_per_group", "stem", "stem_channels")
    block = "Bottleneck" if config["block"] is Bottleneck else "BasicBlock"
    return {"block": block, **{name: config.get(name, _DEFAULTS[name]) for name in options}}


def names_of(loaded: weights.Weights) -> list[str]:
    """Return the names of the networks that `loaded` may be of."""
    if loaded.model in OWN_NETWORKS:
        return [loaded.model]
    backbones = backbones_of(loaded.state)
    if not weights.has_attention(loaded.state):
        return backbones
    if loaded.attention is not None:
        attention = [loaded.attention]
    else:
        fitting = {name: weights.options_of(loaded.state, name) for name in ATTENTION}
        # CBAM without its spatial gate has the shapes of SE: the plainest one is meant
        fewest = min((len(options) for options in fitting.values() if options is not None), default=0)
        attention = [name for name, options in fitting.items() if options is not None and len(options) == fewest]
    return [f"{name}_{backbone}" for backbone in backbones for name in attention]


def in_words(state: weights.StateDict) -> str:
    """Return the structure of `state` in a few words."""
    found = structure(state)
    if found is None:
        return "not a whole ResNet with a stem of one convolution"
    blocks, widths = short("-".join(map(str, found["layers"]))), few(list(map(str, found["widths"])), 10)
    kind = "bottlenecks" if found["block"] == "Bottleneck" else "basic blocks"
    groups = f" with {found['groups']} groups" if found["groups"] != 1 else ""
    return f"a ResNet of {blocks} {kind}{groups} and {widths} planes"
