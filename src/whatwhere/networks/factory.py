"""The one factory of networks: `create` builds what a `NetworkSpec` describes; `create_model` is its short form."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from msgspec.structs import replace
from torch import nn

from ..attention import ATTENTION, attention_builder, starting_as_identity
from ..attention.builder import is_own
from ..attention.gate import Start, unwrapped
from ..attention.static import Static
from ..base.errors import UserError, check_factor
from ..base.randomness import seeded
from ..base.words import brief, cause, short, suggest
from ..insert.attend import attend
from ..insert.attending import renamed
from ..models.article import ARTICLE_NETWORKS, ArticleResNeXt
from ..models.initialization import resolve_seed
from ..models.resnet import RESNETS, ResNet
from . import libraries
from .spec import MAX_WIDTH_FACTOR, STATIC, NetworkSpec, is_import_path
from .weights.files import torchvision_state_dict
from .weights.fit import load_pretrained
from .weights.translate import Weights, read_weights, to_ours

Builder = Callable[..., nn.Module]
Pretrained = bool | str | os.PathLike[str] | Weights | None


def checked(spec: NetworkSpec, *, pretrained: Pretrained = False) -> NetworkSpec:
    """Return `spec` with the network's full name and `start` out of the attention's arguments.

    Raises:
        UserError: A part is wrong, or parts exclude each other, as far as can be told without building the network.
    """
    spec = replace(spec, name=libraries.full_name(spec.name))
    if not isinstance(cast(object, spec.attention_kwargs), Mapping):
        kind = type(spec.attention_kwargs).__name__
        raise UserError(f"attention_kwargs must be a dict of keyword arguments, got a {kind}")
    start = spec.attention_kwargs.get("start", "")
    if spec.start and start and start != spec.start:
        raise UserError(f"start is {spec.start}, and {brief(start)} among the attention_kwargs; give one of them")
    spec = spec.with_attention_options(spec.attention_kwargs)
    if spec.attention and not is_import_path(spec.attention):
        attention_builder(spec.attention)
    if (spec.at or spec.replace) and not spec.attention:
        raise UserError("at and replace tell where attention stands; give an attention too")
    check_factor("width_factor", spec.width_factor, MAX_WIDTH_FACTOR)
    if not spec.is_own:
        if spec.width_factor != 1:
            raise UserError(f"the width of {spec.name} is fixed; width_factor is for networks of whatwhere")
        return spec
    backbone = spec.backbone
    if spec.attention and spec.name != backbone:
        raise UserError(f"{spec.name} has its attention in its name; for another, take the plain network {backbone}")
    from_weights = pretrained is not False and pretrained is not None
    if backbone not in RESNETS:
        if spec.attention or spec.width_factor != 1:
            option = "attention" if spec.attention else "width"
            raise UserError(f"the {option} of {spec.name} is fixed, as in its article; take a ResNet or ResNeXt")
        if from_weights:
            raise UserError(f"{spec.name} has no published weights and no standard tensor names; use pretrained=False")
    if spec.width_factor != 1 and from_weights:
        raise UserError(f"pretrained weights need width_factor=1, got {spec.width_factor:g}")
    return spec


def create(
    spec: NetworkSpec,
    *,
    pretrained: Pretrained = False,
    seed: int | None = None,
    attention: Builder | None = None,
    network: type[ResNet] = ResNet,
) -> nn.Module:
    """Build the network that `spec` describes.

    Args:
        spec: The description.
        pretrained: True for published weights, a weights file, or the result of `read_pretrained`. Options that the
            weights need are set where the spec leaves them open (`settled`).
        seed: The initial weights are a function of it; None draws one from torch's default generator.
        attention: The callable, from a channel count to a module, that `spec.attention` names as MODULE:NAME. It is
            never imported here.
        network: The class that builds a ResNet of this package.

    Raises:
        UserError: The name is unknown, an option is impossible, there is no place for the attention, or the weights
            cannot be read or do not fit.
    """
    loaded = pretrained if isinstance(pretrained, Weights) else read_pretrained(spec, pretrained)
    spec = settled(spec, loaded, attention)
    seed = resolve_seed(seed)
    builder = _builder(spec, attention)
    inside = spec.is_own and not spec.at and not spec.replace
    model = _backbone(spec, builder if inside else None, seed, network)
    if builder is None or inside:
        return _load(model, spec, loaded)
    begins: Start = "identity" if spec.start == "identity" else "paper"
    # weights without attention fit the network as it is now; others fit it after `attend`
    first = loaded if loaded is not None and not loaded.has_attention else None
    model = attend(
        _load(model, spec, first),
        builder,
        at=spec.at or None,
        start=begins,
        replace=spec.replace or None,
        attention_kwargs=spec.attention_kwargs,
        seed=seed,
    )
    return model if first is not None else _load(model, spec, loaded)


def read_pretrained(spec: NetworkSpec, pretrained: Pretrained) -> Weights | None:
    """Read the pretrained weights of the network `spec`, under its names; None for none.

    A warning tells if the file names another network: equal shapes do not mean that both compute the same.

    Raises:
        UserError: The weights cannot be read or downloaded, or hold NaN or infinite values.
    """
    spec = checked(spec, pretrained=pretrained)
    if pretrained is None or isinstance(pretrained, (bool, Weights)):
        if pretrained is not True:
            return pretrained or None
        if not spec.is_own:
            state = libraries.published(spec.name)
            network = NetworkSpec(name=spec.name, as_published=True)
            return Weights(state, None, network, spec.name, frozenset(state))
        if spec.model_kwargs.get("stride_in_1x1"):
            raise UserError("torchvision's weights were trained with the stride in the 3x3; leave out stride_in_1x1")
        source = f"torchvision's {spec.backbone}"
        return to_ours(torchvision_state_dict(spec.backbone), source)
    if not isinstance(pretrained, (str, os.PathLike)):
        raise UserError(f"pretrained must be True, False or the path of a weights file, got {brief(pretrained)}")
    if spec.is_own:
        loaded = read_weights(pretrained)
    else:
        own = skeleton(NetworkSpec(name=spec.name)).state_dict()
        loaded = libraries.read_weights(spec.name, os.fspath(pretrained), own)
    told = loaded.network.backbone.rpartition(":")[2]
    if told and told != spec.backbone.rpartition(":")[2]:
        warnings.warn(
            f"the weights in {os.fspath(pretrained)!r} were saved from {short(loaded.network.name, 80)}, which may "
            f"compute something else than {spec.name} with the same shapes",
            stacklevel=3,
        )
    return loaded


def settled(spec: NetworkSpec, loaded: Weights | None, attention: Builder | None = None) -> NetworkSpec:
    """Return `spec` with the options that the weights `loaded` need: the complete description, to be saved.

    Raises:
        UserError: With the options in the spec the shapes may fit, but the network would compute something else.
    """
    spec = checked(spec, pretrained=loaded)
    if loaded is None:
        return spec
    spec = replace(
        spec,
        model_kwargs={**loaded.model_kwargs, **spec.model_kwargs},
        # of the same network only: it is a setting of some classes
        as_published=spec.as_published or (loaded.network.as_published and loaded.network.name == spec.name),
    )
    builder = _builder(spec, attention)
    if builder is None:
        return spec
    spec = spec.with_attention_options(loaded.options_for(builder, spec.attention_kwargs))
    return replace(spec, start=spec.start or ("identity" if loaded.starts_as_identity else ""))


def _builder(spec: NetworkSpec, attention: Builder | None) -> Builder | None:
    """Return the callable that builds the attention of `spec`; None for a network without attention."""
    if attention is not None:
        return attention_builder(attention)
    if is_import_path(spec.attention):
        raise UserError(f"{brief(spec.attention)} names code; import it and give the callable as `attention`")
    return attention_builder(spec.attention_name) if spec.attention_name else None


def _backbone(spec: NetworkSpec, builder: Builder | None, seed: int, network: type[ResNet]) -> nn.Module:
    """Build the network, with its attention if that stands in its own place."""
    if not spec.is_own:
        return libraries.create(
            spec.name, num_classes=spec.num_classes, in_channels=spec.in_channels, seed=seed, **spec.model_kwargs
        )
    build: Callable[..., nn.Module]
    if spec.backbone in RESNETS:
        build = functools.partial(network, **RESNETS[spec.backbone])
        options = {"in_channels": spec.in_channels, **_attention_arguments(spec, builder), **spec.model_kwargs}
        if spec.width_factor != 1:
            if "widths" in options:
                raise UserError("width_factor and widths exclude each other; give one of them")
            usual = RESNETS[spec.backbone].get("widths", inspect.signature(ResNet).parameters["widths"].default)
            options["widths"] = tuple(max(1, round(planes * spec.width_factor)) for planes in usual)
    else:
        layers = ARTICLE_NETWORKS[spec.backbone]
        build = functools.partial(ArticleResNeXt, layers, cbam=spec.name != spec.backbone)
        options = {**({} if spec.in_channels == 3 else {"in_channels": spec.in_channels}), **spec.model_kwargs}
        options |= {"attention_kwargs": spec.attention_kwargs} if spec.attention_kwargs else {}
    if network is ResNet:  # other classes check their own arguments
        known = [name for name in inspect.signature(build).parameters if name not in ("block", "layers", "cbam")]
        check_arguments(spec.name, known, options)
    # torch's layers draw values at construction; `initialize` replaces them
    try:
        with seeded(seed, "construction"):
            return build(num_classes=spec.num_classes, seed=seed, **options)
    except UserError:
        raise
    # torch reports impossible sizes in these ways
    except (MemoryError, OverflowError, RuntimeError, ValueError) as error:
        raise UserError(f"the network cannot be built: {cause(error)}") from error


def _attention_arguments(spec: NetworkSpec, builder: Builder | None) -> dict[str, Any]:
    """Return the arguments of `ResNet` for the attention in its blocks or between its stages."""
    if builder is None:
        # ResNet refuses them without an attention
        return {"attention_kwargs": spec.attention_kwargs} if spec.attention_kwargs and not spec.attention else {}
    if is_own(builder):
        return {"attention": builder, "attention_kwargs": spec.attention_options}
    if spec.start != "identity":
        return {"attention": builder, "attention_kwargs": spec.attention_kwargs}

    def build(channels: int, **kwargs: Any) -> nn.Module:
        return starting_as_identity(builder(channels, **kwargs), channels)

    return {"attention": build, "attention_kwargs": spec.attention_kwargs}


def _load(model: nn.Module, spec: NetworkSpec, loaded: Weights | None) -> nn.Module:
    """Load the weights into `model` and return it."""
    if loaded is not None:
        state = renamed(model, loaded.state)
        load = load_pretrained if spec.is_own else functools.partial(libraries.load, spec.name)
        load(model, state, loaded.source)
    if spec.as_published:
        libraries.as_published(model, spec.name)
    return model


def check_arguments(name: str, known: list[str], kwargs: Iterable[str], listed: str = "") -> None:
    """Raise UserError unless the network `name` takes every argument in `kwargs`.

    `listed` replaces the list of `known` arguments in the message where that would be too long.
    """
    for argument in kwargs:
        if argument not in known:
            hint = suggest(argument, known)
            raise UserError(f"{name} takes no argument {brief(argument, 40)}, only {listed or ', '.join(known)}{hint}")


def skeleton(spec: NetworkSpec) -> nn.Module:
    """Build a network for its names and shapes alone: on the meta device, without memory.

    Networks of other libraries that cannot be built there are built in memory, and so are those in which `attend`
    follows an image to the places of the attention. Attention by import path is refused.
    """
    if spec.at or spec.replace:
        return create(spec, seed=0)
    try:
        with torch.device("meta"):
            return create(spec, seed=0)
    except (UserError, RuntimeError):
        if spec.is_own:
            raise
        return create(spec, seed=0)


def num_params(spec: NetworkSpec) -> int:
    """Return the number of parameters of a network without code of the user."""
    return sum(parameter.numel() for parameter in skeleton(spec).parameters())


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    pretrained: bool | str | os.PathLike[str] | None = False,
    attention: str | Builder | None = None,
    attention_kwargs: dict[str, Any] | None = None,
    width_factor: float = 1.0,
    in_channels: int = 3,
    seed: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a network by name.

    Args:
        name: `{backbone}` or `{attention}_{backbone}`, for example "resnext50_32x4d" or "cbam_resnext50_32x4d"; see
            `list_models`. `torchvision:NAME` and `timm:NAME` are networks of these libraries.
        num_classes: Width of the classifier; 0 leaves it out.
        pretrained: True for torchvision's published weights of the backbone (downloaded, or from torch's cache), or a
            weights file (.safetensors, or .pth read without executing anything in it) for this network or for its
            backbone. The file may have the tensor names of whatwhere, torchvision, timm, the CBAM authors or copied
            code (`ca`, `sa`), below any modules and in any entry. Options that the weights need (`attention_kwargs`,
            `ceil_pool`, `stride_in_1x1`) are set where you do not give them. Attention that the weights lack starts as
            the identity, so the network first computes what the weights were trained for. A classifier that is missing
            or has another number of classes keeps its random start; a first convolution for another number of input
            channels gets the RGB weights summed or repeated.
        attention: For a plain backbone, a name in ATTENTION or a callable from a channel count to a module.
        attention_kwargs: Keyword arguments for the attention, for example `{"reduction": 8, "form": "timm"}`;
            `{"zero_init_norm": True}` starts CBAM as the authors' networks do; `{"start": "paper"}` keeps the random
            start with pretrained weights too.
        width_factor: Each stage has max(1, round(width_factor * planes)) planes, the stem its usual channels; above 0,
            at most 16. Not for the article's networks, nor with `pretrained`.
        in_channels: Channels of the images.
        seed: The initial weights are a function of it; None draws one from torch's default generator.
        **kwargs: Further arguments of `ResNet`: `stride_in_1x1`, `replace_stride_with_dilation`, `ceil_pool`,
            `drop_rate`, `drop_path_rate`, `norm_layer`, `zero_init_residual`. The article's networks take none.

    Raises:
        UserError: The name is unknown, an option is impossible, or the weights cannot be read or do not fit.

    Example:
        >>> import torch
        >>> from whatwhere import create_model
        >>> model = create_model("cbam_resnet18", num_classes=10, in_channels=1, seed=0)
        >>> model(torch.randn(2, 1, 64, 64)).shape
        torch.Size([2, 10])
    """
    builder = attention if callable(attention) else None
    spec = NetworkSpec(
        name=name,
        attention=name_of(attention) if attention is not None else "",
        attention_kwargs=attention_kwargs or {},
        width_factor=width_factor,
        num_classes=num_classes,
        in_channels=in_channels,
        model_kwargs=kwargs,
    )
    return create(spec, pretrained=pretrained, seed=seed, attention=builder)


def name_of(attention: str | Builder) -> str:
    """Return the name of an attention in a spec: a name as it is, for a callable its name in ATTENTION or its path."""
    builder = attention_builder(attention)
    if isinstance(attention, str):
        return attention
    if isinstance(builder, Static):
        return f"{STATIC}{name_of(builder.builder)}"
    name = next((name for name, known in ATTENTION.items() if known is builder), None)
    named: Any = unwrapped(builder)
    return name or f"{getattr(named, '__module__', '')}:{getattr(named, '__qualname__', type(named).__name__)}"
