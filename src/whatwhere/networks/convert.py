"""Weights files: from any layout to any other, and what is in one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec.structs import replace
from torch import Tensor

from ..attention import ATTENTION
from ..base.errors import UserError
from ..base.files import write_bytes
from ..base.words import brief, suggest
from . import weights
from .factory import create
from .recognize import in_words, names_of
from .spec import BACKBONES, OWN_NETWORKS, NetworkSpec


@dataclass(frozen=True)
class Conversion:
    """What `convert_weights` has done.

    Attributes:
        source: The file it read.
        target: The file it wrote.
        layout: The layout of the source.
        to: The layout of the target.
        network: The network that the weights are of.
        num_tensors: Number of tensors in the target.
        left_out: What the source held beside the weights, in words for each entry.
        notes: What to know of the target.
    """

    source: str
    target: str
    layout: str
    to: str
    network: NetworkSpec
    num_tensors: int
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**vars(self), **_as_json(self.network)}


@dataclass(frozen=True)
class Description:
    """What `describe_weights` has found in a file.

    Attributes:
        path: The file.
        layout: The layout of its names; None if it is no known one's.
        networks: The names of the networks it may be of.
        network: The one it is of, with its arguments; None if that is not settled.
        structure: What the shapes are of, in words.
        num_tensors: Number of tensors.
        num_values: Number of values in them.
        dtypes: Their dtypes.
        wrapper: The entry of the file that they are in.
        prefix: What all their names begin with.
        around: What else the file holds, tensors beside the network's included.
        notes: What was changed in the tensors.
        metadata: The text in a safetensors file.
        non_finite: For each tensor with NaN or infinite values, how many.
        unknown: Names that the layout lacks, by group.
        fit: How the weights fit the network; None without one.
    """

    path: str
    layout: str | None
    networks: list[str]
    network: NetworkSpec | None
    structure: str
    num_tensors: int
    num_values: int
    dtypes: list[str]
    wrapper: str
    prefix: str
    around: dict[str, str]
    notes: list[str]
    metadata: dict[str, str]
    non_finite: dict[str, int]
    unknown: dict[str, list[str]]
    fit: weights.Fit | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        fit = None if self.fit is None else self.fit.to_dict()
        return {**vars(self), **_as_json(self.network), "fit": fit}


def _as_json(network: NetworkSpec | None) -> dict[str, Any]:
    if network is None:
        return {"network": None, "create_model": None}
    return {"network": {"model": network.name, **network.arguments()}, "create_model": network.call()}


def convert_weights(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    model: str | None = None,
    attention_kwargs: Mapping[str, Any] | None = None,
    to: str = "whatwhere",
    force: bool = False,
) -> Conversion:
    """Write the weights in `source`, of any known layout, to the safetensors file `target`.

    Every tensor is accounted for: the weights must be a whole network's, key by key and shape by shape. What the
    network is built with stands in the target's metadata, as JSON, and `create_model(..., pretrained=target)` reads it.

    Args:
        source: A .safetensors file, or a .pth that is read without executing anything in it.
        target: The file to write, *.safetensors; whole or not at all.
        model: The network's name; None where the names and shapes tell it.
        attention_kwargs: What its attention was built with, as far as the shapes do not show it: `{"pools": ["avg"]}`.
        to: The layout to write: "whatwhere", "torchvision", "official", "timm", "timm-legacy", "ca-sa" or
            "ca-sa-sequential".
        force: Overwrite a `target` that exists.

    Raises:
        UserError: A file that cannot be read or written, values that are not finite, weights of no network or of
            another one, or a layout that has no place for them.
    """
    layout = weights.layout_named(to)
    path = _checked_target(source, target, force)
    file = weights.read_file(source)
    weights.check_finite(file)
    loaded = weights.from_file(file)
    network = _with_options(_network(loaded, file.path, model), loaded, attention_kwargs or {})
    fit = _fit(loaded, network)
    if fit.groups:
        raise UserError(f"the weights from {file.path!r} are not of {network.name}: {fit.sentence()}")
    attention = network.attention_name or None
    options = _attention_options(network)
    state = weights.from_ours(loaded.state, layout, attention, options, network.model_kwargs)
    description = msgspec.json.encode({"network": network, "layout": layout.name}).decode()
    write_bytes(path, weights.tensors_to_bytes(state, {"format": "pt", weights.METADATA_KEY: description}))
    assert loaded.layout is not None
    return Conversion(
        source=file.path,
        target=os.fspath(target),
        layout=loaded.layout.name,
        to=layout.name,
        network=network,
        num_tensors=len(state),
        left_out={**file.around, **file.left_out},
        notes=[*file.notes, *_notes(loaded, layout, attention, options)],
    )


def describe_weights(path: str | os.PathLike[str], model: str | None = None) -> Description:
    """Return what is in a weights file; NaN and infinite values, and keys that do not fit, are listed.

    Args:
        path: A .safetensors file, or a .pth that is read without executing anything in it.
        model: The network to compare with; None for the one that the names and shapes tell.

    Raises:
        UserError: An unknown network, or a file that cannot be read or holds no tensors.
    """
    if model is not None:
        check_own(model)
    file = weights.read_file(path)
    loaded = weights.from_file(file)
    networks = names_of(loaded)
    network = None
    if model is not None or len(networks) == 1:
        network = _spec(loaded, model or networks[0])
    layout = loaded.layout
    fit = None if network is None else _fit(loaded, network)
    unknown = [key for key in file.state if layout is None or weights.find_rule(layout, key) is None]
    return Description(
        path=file.path,
        layout=None if layout is None else layout.name,
        networks=networks,
        network=network,
        structure=in_words(loaded.state),
        num_tensors=len(file.state),
        num_values=sum(map(Tensor.numel, file.state.values())),
        dtypes=sorted({str(value.dtype).removeprefix("torch.") for value in file.state.values()}),
        wrapper=file.wrapper,
        prefix=file.prefix,
        around={**file.around, **file.left_out},
        notes=[*file.notes, *_notes_of_others(file.state)],
        metadata=file.metadata,
        non_finite=file.non_finite(),
        unknown=weights.group_keys(unknown),
        fit=fit,
    )


def _checked_target(source: str | os.PathLike[str], target: str | os.PathLike[str], force: bool) -> Path:
    path = Path(target)
    if path.suffix != ".safetensors":
        raise UserError(f"what is written is a safetensors file; name it *.safetensors, not {os.fspath(target)!r}")
    try:
        if path.is_dir():
            raise UserError(f"cannot write {str(path)!r}: it is a folder")
        exists = path.exists()
        if exists and Path(source).exists() and path.samefile(source):
            raise UserError(f"{str(path)!r} is the file to read; give another name for the one to write")
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    if exists and not force:
        raise UserError(f"{str(path)!r} exists; give --force to overwrite it, or another name")
    return path


def _network(loaded: weights.Weights, path: str, model: str | None) -> NetworkSpec:
    """Return the network that the weights are of.

    Raises:
        UserError: `model` is not the name of one that has published layouts, or without it none or several fit.
    """
    if model is not None:
        check_own(model)
        if OWN_NETWORKS[model][1] not in BACKBONES:
            raise UserError(f"{model} has layers of no standard names; name a ResNet or ResNeXt with --model")
    if loaded.layout is None:
        names = ", ".join(map(weights.shown, list(weights.group_keys(loaded.state))[:3]))
        known = ", ".join(weights.LAYOUTS)
        raise UserError(f"the names in {path!r} ({names}, ...) are of no layout known here; known: {known}")
    if model is None:
        candidates = names_of(loaded)
        if not candidates:
            raise UserError(
                f"the weights in {path!r}, {in_words(loaded.state)}, are exactly those of no network by name here; "
                "name one with --model to see what does not fit"
            )
        if len(candidates) > 1:
            raise UserError(f"the weights in {path!r} may be of {' or '.join(candidates)}; choose with --model")
        model = candidates[0]
    return _spec(loaded, model)


def check_own(name: str) -> None:
    """Raise UserError, naming the nearest ones, unless `name` is a network of this package."""
    if not isinstance(name, str) or name not in OWN_NETWORKS:
        hint = suggest(name, list(OWN_NETWORKS)) or "; `whatwhere models` names them all"
        raise UserError(f"unknown model {brief(name)}{hint}")


def _spec(loaded: weights.Weights, name: str) -> NetworkSpec:
    """Return the network `name` with the arguments that the weights need."""
    state, attention = loaded.state, OWN_NETWORKS[name][0]
    classifier, stem = state.get("fc.weight"), state.get("conv1.weight")
    kwargs: Mapping[str, Any] = {}
    if attention:
        if loaded.attention is None:
            kwargs = weights.options_of(state, attention) or {}
        elif loaded.attention == attention:  # CBAM without its spatial gate would have the shapes of SE
            kwargs = loaded.attention_kwargs
    return NetworkSpec(
        name=name,
        attention_kwargs={key: value for key, value in kwargs.items() if key != "start"},
        start=kwargs.get("start", ""),
        num_classes=classifier.shape[0] if classifier is not None and classifier.dim() == 2 else 0,
        in_channels=stem.shape[1] if stem is not None and stem.dim() == 4 else 3,
        model_kwargs=loaded.model_kwargs,
    )


def _attention_options(network: NetworkSpec) -> dict[str, Any]:
    return {**network.attention_kwargs, **({"start": network.start} if network.start else {})}


def _with_options(network: NetworkSpec, loaded: weights.Weights, given: Mapping[str, Any]) -> NetworkSpec:
    """Return `network` with the arguments `given` for its attention too."""
    if not given:
        return network
    if not network.attention_name:
        raise UserError(
            f"{network.name} has no attention to build with {brief(dict(given))}; leave out attention_kwargs"
        )
    options = loaded.options_for(ATTENTION[network.attention_name], {**_attention_options(network), **given})
    return replace(network, attention_kwargs=options, start=options.pop("start", ""))


def _fit(loaded: weights.Weights, network: NetworkSpec) -> weights.Fit:
    with torch.device("meta"):
        own = create(network, seed=0).state_dict()
    # files of PyTorch before 0.4.1 have no counters, and `load_state_dict` does without
    counters = [key for key in own if key.endswith("num_batches_tracked")]
    return weights.compare(loaded.state, own, counters)


def _notes(
    loaded: weights.Weights, layout: weights.Layout, attention: str | None, options: dict[str, Any]
) -> list[str]:
    notes = []
    own = loaded.layout is not None and loaded.layout.name == "whatwhere"
    if attention == "cbam" and own and not loaded.model and not {"maps", "pools"} <= options.keys():
        form = options.get("form", "official")
        notes.append(
            "the file does not say in which order the spatial gate takes its maps, nor its pools; taken for the "
            f"{form} form's, unless attention_kwargs say otherwise"
        )
    if attention == "bam" and own and not loaded.model and "combine" not in options:
        notes.append("the file does not say how its branches are combined; taken for added, as in the paper")
    if loaded.attention == "cbam" and loaded.layout is not None and loaded.layout.norm is None:
        notes.append(
            "names do not show what copied code computes: taken for out = ca(out) * out and out = sa(out) * out before "
            "a block's sum, ca of the average and the maximum, sa of the mean and the maximum"
        )
    if layout.norm is None and attention is not None:
        notes.append(_copied_modules(options))
    if layout.name == "timm" and attention is not None:
        notes.append(_timm_module(attention, options, loaded.state))
    if layout.name == "official" and attention == "cbam" and options.get("form") == "timm":
        notes.append("biases of zero were added to the MLPs, which the authors' code has and timm's not")
    return notes


def _copied_modules(options: Mapping[str, Any]) -> str:
    """Return how copied code has to build its two modules."""
    return (
        f"the copied code must divide the channels by {options.get('reduction', 16)} in its ChannelAttention and have "
        f"kernel_size={options.get('kernel_size', 7)} in its SpatialAttention"
    )


def _notes_of_others(state: weights.StateDict) -> list[str]:
    """Return which networks of others take weights that none of ours does."""
    if any(key.endswith("_blocks.0._depthwise_conv.weight") for key in state):
        return [
            "names of the package efficientnet_pytorch: timm:tf_efficientnet_b0 to b8 take them as pretrained weights"
        ]
    return []


def _timm_module(attention: str, options: dict[str, Any], state: weights.StateDict) -> str:
    """Return how timm is told to build `attention`."""
    module, room = ("CbamModule", "timm.layers.cbam") if attention == "cbam" else ("SEModule", "timm.layers")
    arguments = []
    if "reduction" in options:
        arguments.append(f"rd_ratio={1 / options['reduction']!r}")
    if attention == "se" and not weights.fits_options(state, attention, {**options, "form": "timm"}):
        arguments.append("rd_divisor=1")
    if attention == "cbam" and any(key.endswith(".attention.what.fc1.bias") for key in state):
        arguments.append("mlp_bias=True")
    if "kernel_size" in options:
        arguments.append(f"spatial_kernel_size={options['kernel_size']}")
    built = f"functools.partial({module}, {', '.join(arguments)})" if arguments else module
    return f"timm builds the network with block_args=dict(attn_layer={built}), {module} from {room}"
