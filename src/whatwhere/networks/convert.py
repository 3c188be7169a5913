"""Weights files: identify the network in one, describe it, and convert it from any known layout to any other."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace
from torch import Tensor

from ..attention import ATTENTION, attention_builder
from ..base.documents import parse_json
from ..base.errors import UserError
from ..base.files import check_can_write, write_bytes
from ..base.words import brief, few, short
from ..models.blocks import Bottleneck
from ..models.resnet import RESNETS, ResNet
from .factory import skeleton
from .libraries import full_name
from .spec import BACKBONES, OWN_NETWORKS, NetworkSpec, is_import_path
from .weights.files import StateDict, check_finite, read_file, tensors_to_bytes
from .weights.fit import Fit, compare, group_keys, has_attention, shown
from .weights.layouts import EFFICIENTNETS, LAYOUTS, Layout, find_rule, lacks_squeeze, layout_named
from .weights.translate import METADATA_KEY, Weights, fits_options, from_file, from_ours, options_of

_COPIED = ("ca-sa", "ca-sa-sequential")
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")
_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(ResNet).parameters.items()}


@dataclass(frozen=True)
class Conversion:
    """What `convert_weights` did.

    Attributes:
        source: The file that was read.
        target: The file that was written.
        layout: The layout of the source.
        to: The layout of the target.
        network: The network that the weights belong to.
        num_tensors: Number of tensors in the target.
        left_out: What else the source holds, in words for each entry.
        notes: What a user of the target must know.
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
    """What `describe_weights` found in a file.

    Attributes:
        path: The file.
        layout: The layout of the tensor names; None for an unknown one.
        networks: The names of the networks that the weights may belong to.
        network: The network with its arguments; None if no network, or more than one, fits.
        structure: The structure that the shapes show, in words.
        num_tensors: Number of tensors.
        num_values: Number of values in them.
        dtypes: Their dtypes.
        wrapper: The entry of the file that holds the tensors.
        prefix: The prefix of all their names.
        around: What else the file holds, other tensors included.
        notes: What was changed in the tensors.
        metadata: The metadata of a safetensors file.
        non_finite: For each tensor with NaN or infinite values, how many.
        unknown: Names that the layout does not know, by group.
        fit: How the weights fit the network; None without a network.
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
    fit: Fit | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        fit = None if self.fit is None else self.fit.to_dict()
        return {**vars(self), **_as_json(self.network), "fit": fit}


def _as_json(network: NetworkSpec | None) -> dict[str, Any]:
    if network is None:
        return {"network": None, "create_model": None}
    return {"network": {"model": network.name, **network.arguments()}, "create_model": network.call()}


def _kept(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what the weights of a run tell of the images that they were trained on."""
    with contextlib.suppress(ValueError):  # not written by whatwhere
        told = parse_json(metadata.get(METADATA_KEY, "{}"), dict[str, Any])
        return {name: told[name] for name in told.keys() & {"preprocessing"}}
    return {}


def convert_weights(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    model: str | None = None,
    attention_kwargs: Mapping[str, Any] | None = None,
    to: str = "whatwhere",
    force: bool = False,
) -> Conversion:
    """Convert a weights file from any known layout to the safetensors file `target`.

    The weights must be those of a whole network: every name and every shape is checked. The target's metadata holds
    the network's description as JSON, which `create_model(..., pretrained=target)` reads.

    Args:
        source: A .safetensors file, or a .pth that is read without executing anything in it.
        target: The file to write, *.safetensors; whole or not at all.
        model: The network's name; None identifies it by names and shapes.
        attention_kwargs: Arguments of its attention that no shape shows, such as `{"pools": ["avg"]}`.
        to: The layout to write: "whatwhere", "torchvision", "official", "timm", "timm-legacy", "ca-sa",
            "ca-sa-sequential" or "ultralytics".
        force: Overwrite a `target` that exists.

    Raises:
        UserError: A file cannot be read or written, a value is not finite, the weights belong to no network or to
            another one, or the layout has no place for them.
    """
    layout = layout_named(to)
    path = _checked_target(source, target, force)
    file = read_file(source)
    check_finite(file)
    loaded = from_file(file)
    network = _with_options(_network(loaded, file.path, model), loaded, attention_kwargs or {})
    fit = _fit(loaded, network)
    if fit.groups:
        raise UserError(f"the weights from {file.path!r} do not fit {network.name}: {fit.sentence()}")
    attention = network.attention_name or None
    options = network.attention_options
    state = from_ours(loaded.state, layout, attention, options, network.model_kwargs)
    description = msgspec.json.encode({"network": network, "layout": layout.name, **_kept(file.metadata)}).decode()
    write_bytes(path, tensors_to_bytes(state, {"format": "pt", METADATA_KEY: description}))
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
    """Describe a weights file, with its NaN and infinite values and the tensors that do not fit.

    Args:
        path: A .safetensors file, or a .pth that is read without executing anything in it.
        model: The network to compare with; None identifies it by names and shapes.

    Raises:
        UserError: The network is unknown, or the file cannot be read or holds no tensors.
    """
    if model is not None:
        _own_name(model)
    file = read_file(path)
    loaded = from_file(file)
    networks = names_of(loaded)
    network = None
    if model is not None or len(networks) == 1:
        network = _spec(loaded, model or networks[0])
    layout = loaded.layout
    fit = None if network is None else _fit(loaded, network)
    unknown = [key for key in file.state if layout is None or find_rule(layout, key) is None]
    notes = list(file.notes)
    if any(key.endswith("_blocks.0._depthwise_conv.weight") for key in file.state):
        theirs = EFFICIENTNETS["lite" if lacks_squeeze(file.state) else "b"]
        notes.append(f"names of the package efficientnet_pytorch: timm's {theirs} take these as pretrained weights")
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
        notes=notes,
        metadata=file.metadata,
        non_finite=file.non_finite(),
        unknown=group_keys(unknown),
        fit=fit,
    )


def _checked_target(source: str | os.PathLike[str], target: str | os.PathLike[str], force: bool) -> Path:
    path = Path(target)
    if path.suffix != ".safetensors":
        raise UserError(f"the file to write is a safetensors file; name it *.safetensors, not {os.fspath(target)!r}")
    try:
        if path.is_dir():
            raise UserError(f"cannot write {str(path)!r}: it is a folder")
        exists = path.exists()
        if exists and Path(source).exists() and path.samefile(source):
            raise UserError(f"{str(path)!r} is the file to read; give another name for the file to write")
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    if exists and not force:
        raise UserError(f"{str(path)!r} exists; give --force to overwrite it, or another name")
    check_can_write(path)
    return path


def _network(loaded: Weights, path: str, model: str | None) -> NetworkSpec:
    """Return the network that the weights belong to.

    Raises:
        UserError: `model` is no network with standard tensor names; or without it, no network or several fit.
    """
    if model is not None and OWN_NETWORKS[_own_name(model)][1] not in BACKBONES:
        raise UserError(f"{model} has no standard tensor names; name a ResNet or ResNeXt with --model")
    if loaded.layout is None:
        names = ", ".join(map(shown, list(group_keys(loaded.state))[:3]))
        known = ", ".join(LAYOUTS)
        raise UserError(f"the tensor names in {path!r} ({names}, ...) belong to no known layout; known: {known}")
    if model is None:
        candidates = names_of(loaded)
        if not candidates:
            raise UserError(
                f"the weights in {path!r}, {in_words(loaded.state)}, fit no network of whatwhere exactly; "
                "name one with --model to see what does not fit"
            )
        if len(candidates) > 1:
            raise UserError(f"the weights in {path!r} fit {' and '.join(candidates)}; choose one with --model")
        model = candidates[0]
    return _spec(loaded, model)


def _own_name(name: str) -> str:
    """Return `name`; raise UserError unless it is a network of this package."""
    if full_name(name) not in OWN_NETWORKS:
        raise UserError(f"{name} is not a network of whatwhere; `whatwhere models` lists them")
    return name


def _spec(loaded: Weights, name: str) -> NetworkSpec:
    """Return the network `name` with the arguments that the weights need."""
    state, told, attention = loaded.state, loaded.network, OWN_NETWORKS[name][0]
    classifier, stem = state.get("fc.weight"), state.get("conv1.weight")
    if name == told.name and _is_by_name(told):
        network = told
    else:
        options: Mapping[str, Any] | None = {}
        if attention and not told.attention_name:
            options = options_of(state, attention)
        elif attention == told.attention_name:  # CBAM without its spatial gate has the shapes of SE
            options = told.attention_options
        network = NetworkSpec(name=name, model_kwargs=loaded.model_kwargs).with_attention_options(options or {})
    return replace(
        network,
        num_classes=classifier.shape[0] if classifier is not None and classifier.dim() == 2 else 0,
        in_channels=stem.shape[1] if stem is not None and stem.dim() == 4 else 3,
    )


def _with_options(network: NetworkSpec, loaded: Weights, given: Mapping[str, Any]) -> NetworkSpec:
    """Return `network` with the arguments `given` for its attention too."""
    if not given:
        return network
    if not network.attention_name:
        raise UserError(f"{network.name} has no attention that could take {brief(dict(given))}; drop attention_kwargs")
    options = loaded.options_for(attention_builder(network.attention_name), {**network.attention_options, **given})
    return replace(network, start="").with_attention_options(options)


def _fit(loaded: Weights, network: NetworkSpec) -> Fit:
    own = skeleton(network).state_dict()
    # files of PyTorch before 0.4.1 have no counters, and `load_state_dict` does not need them
    counters = [key for key in own if key.endswith("num_batches_tracked")]
    return compare(loaded.state, own, counters)


def _notes(loaded: Weights, layout: Layout, attention: str | None, options: dict[str, Any]) -> list[str]:
    notes = []
    own = loaded.layout is not None and loaded.layout.name == "whatwhere"
    if attention == "cbam" and own and not loaded.network.name and not {"maps", "pools"} <= options.keys():
        form = options.get("form", "official")
        notes.append(
            "the file does not tell the order of the spatial gate's maps, nor the pools; assumed as in the "
            f"{form} form, unless attention_kwargs tell otherwise"
        )
    if attention == "bam" and own and not loaded.network.name and "combine" not in options:
        notes.append("the file does not tell how the branches are combined; assumed as added, as in the paper")
    if loaded.network.attention_name == "cbam" and loaded.layout is not None and loaded.layout.name in _COPIED:
        notes.append(
            "names do not show what copied code computes; assumed: out = ca(out) * out and out = sa(out) * out before "
            "the sum of a block, ca takes the average and the maximum, sa the mean and the maximum"
        )
    if loaded.network.attention_name == "cbam" and loaded.layout is not None and loaded.layout.name == "ultralytics":
        notes.append("names do not show where a block calls its CBAM; assumed: before the sum")
    if layout.name == "ultralytics" and attention is not None:
        kernel_size = f", {options['kernel_size']}" if "kernel_size" in options else ""
        notes.append(
            f"each block must have `self.cbam = CBAM(channels{kernel_size})`, CBAM from ultralytics.nn.modules"
        )
    if layout.name in _COPIED and attention is not None:
        notes.append(
            f"the copied code must divide the channels by {options.get('reduction', 16)} in its ChannelAttention and "
            f"have kernel_size={options.get('kernel_size', 7)} in its SpatialAttention"
        )
    if layout.name == "timm" and attention is not None:
        notes.append(_timm_module(attention, options, loaded.state))
    if layout.name == "official" and attention == "cbam" and options.get("form") == "timm":
        notes.append("biases of zero were added to the MLPs, which the authors' code has and timm has not")
    return notes


def _timm_module(attention: str, options: dict[str, Any], state: StateDict) -> str:
    """Say how timm builds `attention`."""
    module, room = ("CbamModule", "timm.layers.cbam") if attention == "cbam" else ("SEModule", "timm.layers")
    arguments = []
    if "reduction" in options:
        arguments.append(f"rd_ratio={1 / options['reduction']!r}")
    if attention == "se" and not fits_options(state, attention, {**options, "form": "timm"}):
        arguments.append("rd_divisor=1")
    if attention == "cbam" and any(key.endswith(".attention.what.fc1.bias") for key in state):
        arguments.append("mlp_bias=True")
    if "kernel_size" in options:
        arguments.append(f"spatial_kernel_size={options['kernel_size']}")
    built = f"functools.partial({module}, {', '.join(arguments)})" if arguments else module
    return f"timm builds the network with block_args=dict(attn_layer={built}), {module} from {room}"


def structure(state: StateDict) -> dict[str, Any] | None:
    """Return the arguments of `ResNet` that the shapes in `state` show; None if they are not those of a ResNet."""
    blocks = {(int(match[1]), int(match[2])) for match in map(_BLOCK.match, state) if match}
    depths = Counter(stage for stage, _ in blocks)
    stages = sorted(depths)
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
            "layers": tuple(depths[stage] for stage in stages),
            "widths": tuple(planes),
            "groups": groups,
            "width_per_group": middle.shape[0] * 64 // (planes[0] * groups),
            "stem": "imagenet" if stem.shape[-1] == 7 else "cifar",
            "stem_channels": stem.shape[0],
        }
    # shapes can be anything
    except (KeyError, IndexError, ZeroDivisionError):
        return None


def _is_by_name(told: NetworkSpec) -> bool:
    """Return whether `create_model` builds what a file describes: a network of this package, attention at its place."""
    return told.is_own and not told.at and not told.replace and not is_import_path(told.attention)


def backbones_of(state: StateDict) -> list[str]:
    """Return the names of the plain networks with the structure of `state`."""
    found = structure(state)
    return [name for name, config in RESNETS.items() if _full(config) == found]


def _full(config: dict[str, Any]) -> dict[str, Any]:
    options = ("layers", "widths", "groups", "width_per_group", "stem", "stem_channels")
    block = "Bottleneck" if config["block"] is Bottleneck else "BasicBlock"
    return {"block": block, **{name: config.get(name, _DEFAULTS[name]) for name in options}}


def names_of(loaded: Weights) -> list[str]:
    """Identify the network that a state dict belongs to: return the names of all that it fits."""
    told = loaded.network
    if _is_by_name(told):
        return [told.name]
    backbones = backbones_of(loaded.state)
    if not has_attention(loaded.state):
        return backbones
    if told.attention_name and not told.name:
        attention = [told.attention_name]
    else:
        fitting = {name: options_of(loaded.state, name) for name in ATTENTION}
        # CBAM without its spatial gate has the shapes of SE: take the one that needs the fewest arguments
        fewest = min((len(options) for options in fitting.values() if options is not None), default=0)
        attention = [name for name, options in fitting.items() if options is not None and len(options) == fewest]
    return [f"{name}_{backbone}" for backbone in backbones for name in attention]


def in_words(state: StateDict) -> str:
    """Describe the structure of `state` in a few words."""
    found = structure(state)
    if found is None:
        return "not a whole ResNet with a stem of one convolution"
    blocks, widths = short("-".join(map(str, found["layers"]))), few(list(map(str, found["widths"])), 10)
    kind = "bottlenecks" if found["block"] == "Bottleneck" else "basic blocks"
    groups = f" with {found['groups']} groups" if found["groups"] != 1 else ""
    return f"a ResNet of {blocks} {kind}{groups} and {widths} planes"
