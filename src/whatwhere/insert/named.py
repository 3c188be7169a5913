"""Networks by name, with attention: ours, and those of torchvision and timm."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import weights
from ..attention import attention_builder
from ..attention.gate import Start
from ..errors import UserError
from ..models import create_model
from ..models.others import create_other, full_name, is_other, load_other, published
from ..models.registry import MODELS, check_options, identity_start, paper_start
from .attending import attend

Attention = str | Callable[..., nn.Module] | None


def check_network(
    name: str,
    *,
    attention: Attention = None,
    at: str = "",
    width_factor: float = 1.0,
    pretrained: bool | str | os.PathLike[str] | None = False,
) -> str:
    """Return the full name of a network; raise UserError unless `create_network` takes these together.

    As far as that can be said without building.
    """
    name = full_name(name)
    if at and attention is None:
        raise UserError("at says where attention is to stand; give an attention too")
    if not is_other(name):
        check_options(name, attention=attention, width_factor=width_factor, pretrained=pretrained)
        return name
    if attention is not None:
        attention_builder(attention)
    if width_factor != 1:
        raise UserError(f"{name} has the width that its library gives it; width_factor is for our own networks")
    return name


def create_network(
    name: str,
    *,
    num_classes: int = 1000,
    pretrained: bool | str = False,
    attention: Attention = None,
    at: str = "",
    start: Start | None = None,
    width_factor: float = 1.0,
    seed: int | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """Build a network by name, with attention or without.

    Args:
        name: As `create_model` knows it, or of torchvision or timm (`models.others.full_name`).
        num_classes: Width of the classifier.
        pretrained: True for published weights, or a weights file, with or without those of the attention.
        attention: A name in ATTENTION, or a callable from a channel count to a module.
        at: Where it stands (`attend`); "" for its own place.
        start: "identity" or "paper"; None takes the identity behind weights that have no attention, else the paper's.
        width_factor: As of `create_model`; for our own networks.
        seed: As of `create_model`.
        drop_rate: Dropout before the classifier; not for torchvision's.
        drop_path_rate: Stochastic depth; not for torchvision's.

    Raises:
        UserError: An unknown name, an impossible option, no place for attention, or weights that do not fit.
    """
    name = check_network(name, attention=attention, at=at, width_factor=width_factor, pretrained=pretrained)
    rates: dict[str, Any] = {
        key: rate for key, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)) if rate
    }
    if not is_other(name) and not at:
        chosen = attention or MODELS[name].attention
        begins_so: dict[str, Any] = {}
        if start is not None and chosen is not None:
            begins_so = identity_start(chosen, {}) if start == "identity" else paper_start(chosen)
        return create_model(
            name,
            num_classes=num_classes,
            pretrained=pretrained,
            width_factor=width_factor,
            seed=seed,
            **rates,
            **{"attention": attention, **begins_so},
        )
    if is_other(name):
        model = create_other(name, num_classes=num_classes, seed=seed, **rates)
    else:
        model = create_model(name, num_classes=num_classes, width_factor=width_factor, seed=seed, **rates)
    state = _weights(name, pretrained) if pretrained else None
    load = load_other if is_other(name) else weights.load_pretrained
    if attention is None:
        if state is not None:
            load(model, *state)
    elif state is None:
        attend(model, attention, at=at or None, start=start or "paper", seed=seed)
    elif weights.has_attention(state[0]):
        # saved from such a network
        begins: Start = "identity" if weights.starts_as_identity(state[0]) else "paper"
        load(attend(model, attention, at=at or None, start=start or begins, seed=seed), *state)
    else:
        load(model, *state)
        attend(model, attention, at=at or None, start=start or "identity", seed=seed)
    return model


def _weights(name: str, pretrained: bool | str) -> tuple[weights.StateDict, str]:
    """Return the weights, and whose they are."""
    if pretrained is not True:
        return weights.read_state_dict(str(pretrained)), str(pretrained)
    return (
        (published(name), name) if is_other(name) else (weights.torchvision_state_dict(name), f"torchvision's {name}")
    )


def has_attention(name: str, attention: Attention) -> bool:
    """Return whether a network has attention, given for it or in its name."""
    return attention is not None or (name in MODELS and MODELS[name].attention is not None)


def backbone_of(name: str) -> str:
    """Return the network without the attention that is in its name."""
    return MODELS[name].backbone if name in MODELS else name


def num_params(name: str, num_classes: int) -> int:
    """Return how many parameters a plain network has."""
    with torch.device("meta"):
        model = create_network(name, num_classes=num_classes, seed=0)
    return sum(parameter.numel() for parameter in model.parameters())
