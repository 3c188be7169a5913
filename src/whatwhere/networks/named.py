"""Networks by name, with attention: ours, and those of torchvision and timm."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..attention import attention_builder
from ..attention.gate import Start
from ..base.errors import UserError
from ..insert.attend import attend
from ..insert.host import renamed
from . import weights
from .create import MODELS, check_options, create_model, identity_start, paper_start
from .libraries import as_published, create_other, full_name, is_other, load_other, published, read_other

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
    model_kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network by name, with attention or without.

    Args:
        name: As `create_model` knows it, or of torchvision or timm (`models.others.full_name`).
        num_classes: Width of the classifier.
        pretrained: True for published weights, or a weights file, with or without those of the attention; for timm's
            tf_efficientnet_b0 to b8 one of the package efficientnet_pytorch too.
        attention: A name in ATTENTION, or a callable from a channel count to a module.
        at: Where it stands (`attend`); "" for its own place.
        start: "identity" or "paper"; None takes the identity behind weights that have no attention, else the paper's.
        width_factor: As of `create_model`; for our own networks.
        seed: As of `create_model`.
        drop_rate: Dropout before the classifier; not for torchvision's.
        drop_path_rate: Stochastic depth; not for torchvision's.
        model_kwargs: Further arguments of `create_model`; for our own networks.

    Raises:
        UserError: An unknown name, an impossible option, no place for attention, or weights that do not fit.
    """
    name = check_network(name, attention=attention, at=at, width_factor=width_factor, pretrained=pretrained)
    options: dict[str, Any] = {"num_classes": num_classes, "seed": seed}
    options |= {key: rate for key, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)) if rate}
    if not is_other(name):
        options |= {"width_factor": width_factor, **(model_kwargs or {})}
        if not at:
            return create_model(name, pretrained=pretrained, **options, **_in_its_own_place(name, attention, start))
    if is_other(name):
        model = create_other(name, **options)
        loaded = _weights_of_other(model, name, pretrained) if pretrained else None
    else:
        loaded = _weights(name, pretrained) if pretrained else None
        model = create_model(name, **{**({} if loaded is None else loaded.model_kwargs), **options})
    own = model.state_dict().keys()  # some networks have attention themselves
    has_attention = loaded is not None and weights.has_attention({key for key in loaded.state if key not in own})
    if attention is None or loaded is None or not has_attention:
        if loaded is not None:
            _load(model, name, loaded, pretrained)
        begins: Start = "paper" if loaded is None else "identity"
        return model if attention is None else attend(model, attention, at=at or None, start=start or begins, seed=seed)
    return _load(_attend_as_saved(model, attention, at, start, seed, loaded), name, loaded, pretrained)


def _attend_as_saved(
    model: nn.Module,
    attention: str | Callable[..., nn.Module],
    at: str,
    start: Start | None,
    seed: int | None,
    loaded: weights.Weights,
) -> nn.Module:
    """Put attention that can take the one in `loaded` into `model`, and return the model."""
    kwargs = loaded.options_for(attention_builder(attention), {})
    kwargs.pop("start", None)
    begins: Start = "identity" if weights.starts_as_identity(loaded.state) else "paper"
    return attend(model, attention, at=at or None, start=start or begins, attention_kwargs=kwargs, seed=seed)


def _in_its_own_place(name: str, attention: Attention, start: Start | None) -> dict[str, Any]:
    """Return the arguments of `create_model` for attention that starts so."""
    chosen = attention or MODELS[name].attention
    if start is None or chosen is None:
        return {"attention": attention}
    return {"attention": attention, **(identity_start(chosen, {}) if start == "identity" else paper_start(chosen))}


def _weights(name: str, pretrained: bool | str) -> weights.Weights:
    """Return published weights or those of a file, and how our network for them is built."""
    if pretrained is True:
        return weights.to_ours(weights.torchvision_state_dict(name), _source(name, pretrained))
    return weights.read_weights(str(pretrained))


def _weights_of_other(model: nn.Module, name: str, pretrained: bool | str) -> weights.Weights:
    """Return published weights or those of a file for `model`, a network of another library."""
    return weights.Weights(published(name) if pretrained is True else read_other(model, name, str(pretrained)), None)


def _source(name: str, pretrained: bool | str) -> str:
    """Return whose the weights are, in words."""
    if pretrained is True:
        return name if is_other(name) else f"torchvision's {name}"
    return str(pretrained)


def _load(model: nn.Module, name: str, loaded: weights.Weights, pretrained: bool | str) -> nn.Module:
    """Load the weights into `model`, and return it."""
    source, state = _source(name, pretrained), renamed(model, loaded.state)
    if not is_other(name):
        weights.load_pretrained(model, state, source)
        return model
    load_other(model, name, state, source)
    if pretrained is True:
        as_published(model, name)
    return model


def is_attentive(name: str, attention: Attention) -> bool:
    """Return whether a network has attention, given for it or in its name."""
    return attention is not None or (name in MODELS and MODELS[name].attention is not None)


def backbone_of(name: str) -> str:
    """Return the network without the attention that is in its name."""
    return MODELS[name].backbone if name in MODELS else name
