"""Networks by name: `create_model` and `list_models`."""

from __future__ import annotations

import fnmatch
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..attention import ATTENTION, attention_builder, starting_as_identity
from ..base.errors import UserError, check_factor
from ..base.randomness import seeded
from ..base.words import brief, cause, suggest
from ..models.article import ARTICLE_NETWORKS, ArticleResNeXt
from ..models.initialization import resolve_seed
from ..models.resnet import RESNETS, ResNet
from . import weights

MOST_WIDTH = 16.0  # some 256 times the parameters


@dataclass(frozen=True)
class Entry:
    """A network by name.

    Attributes:
        build: What builds it.
        backbone: The name of the same network without attention.
        attention: Its attention in ATTENTION; None for a plain network, and for the article's own.
    """

    build: Callable[..., nn.Module]
    backbone: str
    attention: str | None = None


MODELS: dict[str, Entry] = {
    **{name: Entry(functools.partial(ResNet, **config), name) for name, config in RESNETS.items()},
    **{
        f"{attention}_{name}": Entry(functools.partial(ResNet, attention=attention, **config), name, attention)
        for attention in ATTENTION
        for name, config in RESNETS.items()
    },
    **{name: Entry(functools.partial(ArticleResNeXt, layers), name) for name, layers in ARTICLE_NETWORKS.items()},
    **{
        f"cbam_{name}": Entry(functools.partial(ArticleResNeXt, layers, cbam=True), name)
        for name, layers in ARTICLE_NETWORKS.items()
    },
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that `create_model` knows, sorted, those that match the shell-style `pattern` (fnmatch).

    Example:
        >>> from whatwhere import list_models
        >>> list_models("*bam_resnext50*")
        ['bam_resnext50_32x4d', 'cbam_resnext50_32x4d']
    """
    if not isinstance(pattern, str):
        raise UserError(f"the pattern must be a string such as 'cbam_*', got {brief(pattern)}")
    return sorted(fnmatch.filter(MODELS, pattern))


def check_name(name: str) -> None:
    """Raise UserError, naming the nearest ones, unless `name` is a model's."""
    if not isinstance(name, str) or name not in MODELS:
        hint = suggest(name, list(MODELS)) or "; `whatwhere models` names them all"
        raise UserError(f"unknown model {brief(name)}{hint}")


def check_options(
    name: str,
    *,
    attention: str | Callable[..., nn.Module] | None = None,
    width_factor: float = 1.0,
    pretrained: bool | str | os.PathLike[str] | None = False,
) -> None:
    """Raise UserError unless `create_model` takes these together, as far as that can be said without building."""
    check_name(name)
    backbone = MODELS[name].backbone
    check_factor("width_factor", width_factor, MOST_WIDTH)
    if attention is not None:
        attention_builder(attention)
        if name != backbone:
            raise UserError(f"{name} has its attention in its name; for another, give the plain network {backbone}")
    from_weights = pretrained is not False and pretrained is not None
    if backbone not in RESNETS and (attention is not None or width_factor != 1):
        option = "width" if attention is None else "attention"
        raise UserError(f"{name} is as the article has it, its {option} cannot be chosen; take a ResNet or ResNeXt")
    if backbone not in RESNETS and from_weights:
        raise UserError(f"{name} has no published weights and its layers have no standard names; use pretrained=False")
    if width_factor != 1 and from_weights:
        raise UserError(f"pretrained weights are of the usual width; leave out width_factor {width_factor:g}, or them")


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    pretrained: bool | str | os.PathLike[str] | None = False,
    attention: str | Callable[..., nn.Module] | None = None,
    attention_kwargs: dict[str, Any] | None = None,
    width_factor: float = 1.0,
    **kwargs: Any,
) -> nn.Module:
    """Build a network by name.

    Args:
        name: `{backbone}` or `{attention}_{backbone}`, for example "resnext50_32x4d" or "cbam_resnext50_32x4d"; see
            `list_models`.
        num_classes: Width of the classifier; 0 leaves it out.
        pretrained: True for torchvision's published weights of the backbone (downloaded, or from torch's cache), or a
            weights file (.safetensors, or .pth read without executing anything in it) for this network or for its
            backbone, under our names, torchvision's, timm's, the CBAM authors' or those of copied code (`ca`, `sa`),
            below any modules and in any entry of the file. What the network needs for them (`attention_kwargs`,
            `ceil_pool`, `stride_in_1x1`) is set where you do not give it. Attention that the weights lack starts as the
            identity, so that the network computes at first what the weights were trained for. A classifier that the
            weights lack or have for another number of classes keeps its fresh start; a first convolution of another
            number of input channels gets the RGB weights summed or repeated.
        attention: For a plain backbone, a name in ATTENTION or a callable from a channel count to a module.
        attention_kwargs: Keyword arguments for the attention, for example `{"reduction": 8, "form": "timm"}`;
            `{"zero_init_norm": True}` starts CBAM as the authors' networks do; `{"start": "paper"}` keeps its random
            start behind pretrained weights too.
        width_factor: Each stage has max(1, round(width_factor * planes)) planes, the stem its usual channels; above 0,
            at most 16. Not for the article's networks, nor with `pretrained`.
        **kwargs: Further arguments of `ResNet`: `in_channels`, `stride_in_1x1`, `replace_stride_with_dilation`,
            `ceil_pool`, `drop_rate`, `drop_path_rate`, `norm_layer`, `zero_init_residual`, `seed`. The article's
            networks take `seed` only.

    Raises:
        UserError: An unknown name, an impossible option, or weights that cannot be had or do not fit.

    Example:
        >>> import torch
        >>> from whatwhere import create_model
        >>> model = create_model("cbam_resnet18", num_classes=10, in_channels=1, seed=0)
        >>> model(torch.randn(2, 1, 64, 64)).shape
        torch.Size([2, 10])
    """
    check_options(name, attention=attention, width_factor=width_factor, pretrained=pretrained)
    entry = MODELS[name]
    build, backbone = entry.build, entry.backbone
    if attention is not None:
        kwargs["attention"] = attention
    if attention_kwargs:
        kwargs["attention_kwargs"] = attention_kwargs
    _check_arguments(name, build, kwargs)
    if width_factor != 1:
        if "widths" in kwargs:
            raise UserError("width_factor and widths exclude each other; give one of them")
        kwargs["widths"] = _widened(build, width_factor)

    if pretrained is False or pretrained is None:
        return _construct(build, num_classes, kwargs)
    if pretrained is True:
        source, loaded = torchvisions(backbone, kwargs)
    elif not isinstance(pretrained, (str, os.PathLike)):
        raise UserError(f"pretrained must be True, False or the path of a weights file, got {brief(pretrained)}")
    else:
        source, loaded = os.fspath(pretrained), weights.read_weights(pretrained)
    chosen = attention if entry.attention is None else entry.attention
    model = _construct(build, num_classes, {**kwargs, **arguments_for(loaded, chosen, kwargs)})
    weights.load_pretrained(model, loaded.state, source)
    return model


def torchvisions(backbone: str, kwargs: Mapping[str, Any]) -> tuple[str, weights.Weights]:
    """Return torchvision's weights for a plain network, and what they are called.

    Raises:
        UserError: The arguments `kwargs` make a network that would compute something else with them.
    """
    if kwargs.get("stride_in_1x1"):
        raise UserError("torchvision's weights were trained with the stride in the 3x3; leave out stride_in_1x1")
    source = f"torchvision's {backbone}"
    return source, weights.to_ours(weights.torchvision_state_dict(backbone), source)


def arguments_for(
    loaded: weights.Weights, attention: str | Callable[..., nn.Module] | None, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `ResNet` that a network with `attention` needs for the weights `loaded`.

    Args:
        loaded: Weights under our names.
        attention: A name in ATTENTION, a callable from a channel count to a module, or None.
        kwargs: Arguments of `ResNet` that were given, which count before what the weights come with.
    """
    arguments = {key: value for key, value in loaded.model_kwargs.items() if key not in kwargs}
    if attention is None:
        return arguments
    options = loaded.options_for(attention_builder(attention), kwargs.get("attention_kwargs") or {})
    if options:
        arguments["attention_kwargs"] = options
    if weights.starts_as_identity(loaded.state) and "start" not in options:
        arguments.update(identity_start(attention, options))
    return arguments


def _widened(build: Callable[..., nn.Module], factor: float) -> tuple[int, ...]:
    usual = inspect.signature(build).parameters["widths"].default
    return tuple(max(1, round(planes * factor)) for planes in usual)


def _construct(build: Callable[..., nn.Module], num_classes: int, kwargs: dict[str, Any]) -> nn.Module:
    """Build the network; of torch's own generator it takes no more than the seed, if none is given."""
    seed = resolve_seed(kwargs.get("seed"))
    # torch's layers draw values at construction, which `initialize` then replaces
    try:
        with seeded(seed, "construction"):
            return build(num_classes=num_classes, **{**kwargs, "seed": seed})
    except UserError:
        raise
    # torch's own words about sizes that it cannot build
    except (MemoryError, OverflowError, RuntimeError, ValueError) as error:
        raise UserError(f"the network cannot be built: {cause(error)}") from error


def identity_start(attention: str | Callable[..., nn.Module], attention_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `ResNet` with which `attention` starts as y = x."""
    builder = attention_builder(attention)
    if builder in ATTENTION.values():
        return {"attention_kwargs": {**attention_kwargs, "start": "identity"}}

    def build(channels: int, **kwargs: Any) -> nn.Module:
        return starting_as_identity(builder(channels, **kwargs), channels)

    return {"attention": build}


def paper_start(attention: str | Callable[..., nn.Module]) -> dict[str, Any]:
    """Return the arguments of `ResNet` with which `attention` starts as published."""
    return {"attention_kwargs": {"start": "paper"}} if attention_builder(attention) in ATTENTION.values() else {}


def _check_arguments(name: str, build: Callable[..., nn.Module], kwargs: dict[str, Any]) -> None:
    known = [parameter for parameter in inspect.signature(build).parameters if parameter not in ("block", "layers")]
    check_arguments(name, known, kwargs)


def check_arguments(name: str, known: list[str], kwargs: Iterable[str], listed: str = "") -> None:
    """Raise UserError unless the network `name` takes every argument in `kwargs`.

    `listed` names those that are taken where all of `known` would be too long for a sentence.
    """
    for argument in kwargs:
        if argument not in known:
            hint = suggest(argument, known)
            listed = listed or ", ".join(known)
            raise UserError(f"{name} takes no argument {brief(argument, 40)}, only {listed}{hint}")
