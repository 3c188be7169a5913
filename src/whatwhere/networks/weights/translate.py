"""Weights of other programs brought to the names and conventions of this package, and back."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from ...attention import ATTENTION, attention_builder
from ...attention.cbam import CONVENTIONS, Convention, Form
from ...base.documents import parse_json
from ...base.errors import UserError
from ...base.words import brief
from ..spec import OWN_NETWORKS, STATIC, Arguments, ModelOptions, NetworkSpec, read_spec
from .files import StateDict, WeightsFile, check_finite, find_weights, read_file, warn_of_left_out
from .fit import group_keys, has_attention, is_attention_key, shown, starts_as_identity
from .layouts import Layout, Rule, find_rule, find_rule_back, has_bottlenecks, is_grouped, recognize

METADATA_KEY = "whatwhere"
UNKNOWN = NetworkSpec(name="")
# the only values that other layouts can hold
_USUAL: dict[str, dict[str, Any]] = {
    "cbam": {"arrangement": "channel_first"},
    "bam": {"combine": "multiply", "dilation": 4},
}
_NEEDED = ("stride_in_1x1", "ceil_pool", "replace_stride_with_dilation")  # they change what the network computes
# of copied code behind a stem or a stage, and of Ultralytics' CBAM in another place than a block's
_OUTSIDE = re.compile(r"^(ca|sa)\d*\.(fc|conv1)|(^|\.)(channel_attention\.fc|spatial_attention\.cv1)\.")
_MOST_BUILT = 1 << 16  # channels, where an attention is built on the meta device for its shapes


@dataclass(frozen=True)
class Weights:
    """Weights under the names of this package, and what is known of their network."""

    state: StateDict  # the tensors
    layout: Layout | None  # the layout that they came in; None for an unknown one
    # what the file or its layout tells about the network; its name is "" where they do not tell it
    network: NetworkSpec = UNKNOWN
    source: str = ""  # the file or library that the weights come from
    backbone_keys: frozenset[str] = frozenset()  # names of the plain network that look like names of attention

    @property
    def has_attention(self) -> bool:
        """Whether some of the tensors belong to attention modules."""
        # after replace="se" the attention has the names of the module that it replaced
        return bool(self.network.attention) or has_attention(key for key in self.state if key not in self.backbone_keys)

    @property
    def starts_as_identity(self) -> bool:
        """Whether the network for these weights needs attention that starts as the identity.

        True where they have no attention, which is then new, and where they were saved from such a network.
        """
        if self.has_attention and self.network.attention_name:
            return self.network.start == "identity"
        return not self.has_attention or starts_as_identity(self.state)

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of `ResNet` that the weights need and no shape shows; dropout is not among them."""
        return {name: value for name, value in self.network.model_kwargs.items() if name in _NEEDED}

    def options_for(self, builder: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the attention that `builder` builds: `given` ones, and those that the weights need.

        Raises:
            UserError: With `given` the shapes may fit, but the network would compute something else.
        """
        attention = self.network.attention_name
        if attention not in ATTENTION or ATTENTION[attention] is not builder:
            return dict(given)
        options = {**self.network.attention_options, **given}
        if self.layout is None or self.layout.name in ("whatwhere", "torchvision"):
            return options
        for option, usual in _usual(self.layout, attention).items():
            if option in given and not _is_usual(_value(attention, options, option), usual):
                only = " or ".join(map(repr, usual)) if isinstance(usual, tuple) else repr(usual)
                raise UserError(
                    f"the weights come from {self.layout.origin}, where {option} is {only}; leave out "
                    f"{option}={brief(given[option])}"
                )
        # without form and maps, the tensors say whether the weights fit
        if attention == "cbam" and options.keys() & {"form", "maps"}:
            maps = _maps(options)
            if maps != self.layout.maps:
                raise UserError(
                    f"the weights come from {self.layout.origin}, where the spatial gate takes its maps in the order "
                    f"{', '.join(self.layout.maps)}; leave out form and maps, which say {', '.join(maps)}"
                )
        return options


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read a weights file in any known layout, under the names of this package.

    A warning names tensors that do not belong to the network; they are left out.

    Raises:
        UserError: As `read_file` and `to_ours`, or a tensor holds NaN or infinite values.
    """
    return _accepted(read_file(path))


def weights_in(content: Mapping[str, Any], source: str) -> Weights:
    """Return the weights in `content`, the content of a file from `source`, as `read_weights` does."""
    return _accepted(find_weights(content, source))


def _accepted(file: WeightsFile) -> Weights:
    check_finite(file)
    warn_of_left_out(file)
    return from_file(file)


def from_file(file: WeightsFile) -> Weights:
    """Return the weights in `file` under the names of this package."""
    return to_ours(file.state, file.path, file.metadata.get(METADATA_KEY, ""))


def to_ours(state: Mapping[str, Tensor], source: str, description: str = "") -> Weights:
    """Rename the tensors in `state` from their layout to the names of this package.

    Args:
        state: Names to tensors, in one of the layouts; names of no layout stay as they are.
        source: Where they come from, for error messages.
        description: JSON that `whatwhere weights convert`, or a training, wrote into the file; used for this package's
            own layout only.

    Raises:
        UserError: Two tensors get the same name, or the layout's network computes something that no network here
            does.
    """
    layout = recognize(state)
    if layout is None:
        return Weights(dict(state), None, source=source)
    outside = [key for key in state if _OUTSIDE.search(key) and find_rule(layout, key) is None]
    if outside:
        raise UserError(
            f"{source!r} holds attention that is no child of a block ({', '.join(map(shown, outside[:3]))}, ...); "
            "whatwhere has no such network"
        )
    renamed: StateDict = {}
    attention = ""
    for key, tensor in state.items():
        rule, name = find_rule(layout, key) or (Rule(key, key), key)
        if name in renamed:
            raise UserError(f"{source!r} holds two tensors for {brief(name)}, one of them as {brief(key)}")
        attention = rule.attention or attention
        renamed[name] = tensor[:, :, 0, 0] if rule.is_1x1 and tensor.shape[2:] == (1, 1) else tensor
    if layout.name in ("whatwhere", "torchvision"):
        return Weights(renamed, layout, described(renamed, description), source)
    _check_blocks(renamed, layout)
    network = NetworkSpec(name="", attention=attention, model_kwargs=_model_kwargs(layout, renamed))
    options = options_of(renamed, attention, layout) if attention else None
    if options is None and attention == "cbam" and layout.form == "ultralytics":
        options = {"form": layout.form}  # the comparison with this form tells which shape is wrong
    return Weights(renamed, layout, network.with_attention_options(options or {}), source)


class _Description(msgspec.Struct):
    """What a file tells about its network: a spec, or the fields that whatwhere 0.1 wrote."""

    network: Any = None
    model: str | None = None
    attention: str | None = None
    attention_kwargs: Arguments = {}
    model_kwargs: ModelOptions = ModelOptions()


def described(state: StateDict, description: str) -> NetworkSpec:
    """Return the network that a file describes; without a name where it does not, or where it cannot be true.

    Args:
        state: The weights in the file, under this package's names.
        description: JSON from anywhere: a spec under "network", or the fields that whatwhere 0.1 wrote.
    """
    try:
        told = parse_json(description or "{}", _Description)
        network = None if told.network is None else read_spec(told.network)
    # not written by whatwhere, so it tells nothing
    except ValueError:
        return UNKNOWN
    is_true: Callable[..., bool] = is_affordable
    if network is None:
        name, attention, is_true = told.model or "", told.attention or "", fits_options
        network = NetworkSpec(
            name=name,
            attention="" if OWN_NETWORKS.get(name, ("", ""))[0] == attention else attention,
            model_kwargs=msgspec.to_builtins(told.model_kwargs),
        ).with_attention_options(told.attention_kwargs)
    attention = network.attention_name
    if attention.removeprefix(STATIC) in ATTENTION and not is_true(state, attention, network.attention_options):
        return UNKNOWN
    return network


def is_affordable(state: StateDict, attention: str, options: Mapping[str, Any]) -> bool:
    """Return whether one `attention` with `options` is no larger than all weights in `state`.

    So a file of a few bytes cannot ask for any amount of memory or time.
    """
    if isinstance(options.get("num_convs"), int) and options["num_convs"] > len(state):
        return False
    for channels in (64, 256, 1024, 4096):  # not every number can be divided into the groups that are asked for
        with contextlib.suppress(UserError, TypeError, RuntimeError, OverflowError), torch.device("meta"):
            module = attention_builder(attention)(channels, **options)
            return sum(map(Tensor.numel, module.parameters())) <= sum(map(Tensor.numel, state.values()))
    return False


def _check_blocks(state: StateDict, layout: Layout) -> None:
    """Raise UserError if the blocks in `state` compute something else in the networks of `layout`."""
    if not layout.basic_blocks and not has_bottlenecks(state) and "layer1.0.conv2.weight" in state:
        raise UserError(
            f"the basic blocks of {layout.origin} have a ReLU before their SE, which whatwhere has not; networks with "
            "bottlenecks (legacy_seresnet50 and larger) can be converted"
        )


def _model_kwargs(layout: Layout, state: StateDict) -> dict[str, Any]:
    """Return the arguments of `ResNet` that the networks of `layout` need."""
    stride_in_1x1 = layout.stride_in_1x1 and has_bottlenecks(state) and not is_grouped(state)
    options = {"stride_in_1x1": stride_in_1x1, "ceil_pool": layout.ceil_pool}
    return {name: value for name, value in options.items() if value}


def options_of(state: StateDict, attention: str, layout: Layout | None = None) -> dict[str, Any] | None:
    """Return the fewest arguments with which `attention` has the shapes in `state`; None if no arguments do.

    Args:
        state: Weights under this package's names.
        attention: A name in ATTENTION.
        layout: Where they came from, which tells the form; None tries those that the names allow.
    """
    start = {"start": "identity"} if starts_as_identity(state) else {}
    for candidate in _candidates(attention, _modules(state), layout):
        if fits_options(state, attention, {**candidate, **start}):
            return {**candidate, **start}
    return None


def fits_options(state: StateDict, attention: str, options: dict[str, Any]) -> bool:
    """Return whether the attention modules in `state` have the shapes of `attention` built with `options`."""
    modules = _modules(state)
    for channels, module in modules.items():
        # each one is a layer to build
        if options.get("num_convs", 0) > sum(key.startswith("spatial.dilated") for key in module):
            return False
        try:
            with torch.device("meta"):
                own = ATTENTION[attention](channels, **options).state_dict()
        # the arguments can come from a file
        except (UserError, TypeError, RuntimeError, OverflowError):
            return False
        # files of PyTorch before 0.4.1 have no counters
        shapes = {k: v.shape for k, v in own.items() if k in module or not k.endswith("num_batches_tracked")}
        if shapes != {key: value.shape for key, value in module.items()}:
            return False
    return bool(modules)


def _modules(state: StateDict) -> dict[int, StateDict]:
    """Return the tensors of one attention module for each number of channels."""
    blocks: dict[str, StateDict] = {}
    for key, tensor in state.items():
        block, found, name = key.partition(".attention.")
        if found:
            blocks.setdefault(block, {})[name] = tensor
    modules: dict[int, StateDict] = {}
    for block, module in blocks.items():
        # attention behind a stage has as many channels as the blocks of the stage
        last = block if "." in block else f"{block}.0"
        norms = [state[key] for key in (f"{last}.bn3.weight", f"{last}.bn2.weight") if key in state]
        if norms and norms[0].dim() == 1 and norms[0].shape[0] < _MOST_BUILT:
            modules.setdefault(norms[0].shape[0], module)
    return modules


def _candidates(attention: str, modules: dict[int, StateDict], layout: Layout | None) -> list[dict[str, Any]]:
    """Return arguments of `attention` to try, in the order of preference."""
    module = modules[max(modules)] if modules else {}
    choices = {"cbam": _cbam_choices, "se": _se_choices, "bam": _bam_choices}
    if attention not in choices:
        return [{}]
    foreign = layout if layout is not None and layout.name != "whatwhere" else None
    combined = itertools.product(*choices[attention](module, foreign))
    return [dict(itertools.chain.from_iterable(map(dict.items, choice))) for choice in combined]


def _cbam_choices(module: StateDict, layout: Layout | None) -> list[list[dict[str, Any]]]:
    shape: dict[str, Any] = {}
    form: Form = "ultralytics" if "what.fc.weight" in module else "official"
    convolution = module.get("where.conv.weight")
    if convolution is None:
        shape["spatial"] = False
    else:
        norm, has_bias = "batch" if "where.norm.weight" in module else None, "where.conv.bias" in module
        if norm != CONVENTIONS[form].norm:
            shape["norm"] = norm
        usually_has_bias = CONVENTIONS[form].spatial_bias
        if has_bias != (norm is None if usually_has_bias is None else usually_has_bias):
            shape["spatial_bias"] = has_bias
    if (
        convolution is not None
        and convolution.dim() == 4
        and convolution.shape[-1] % 2
        and 7 != convolution.shape[-1] < 64
    ):
        shape["kernel_size"] = convolution.shape[-1]
    biases: list[dict[str, Any]] = [{}, {"mlp_bias": not {"what.fc1.bias", "what.fc.bias"}.isdisjoint(module)}]
    forms = _forms(layout) if form == "official" else [{"form": form}]
    return [biases, _reductions(module.get("what.fc1.weight")), forms, [shape]]


def _se_choices(module: StateDict, layout: Layout | None) -> list[list[dict[str, Any]]]:
    return [[{}, {"bias": False}], _reductions(module.get("what.fc1.weight")), [{}, {"form": "timm"}]]


def _bam_choices(module: StateDict, layout: Layout | None) -> list[list[dict[str, Any]]]:
    num_convs = sum(key.startswith("spatial.dilated") and key.endswith("conv.weight") for key in module)
    shape = {} if num_convs == 2 else {"num_convs": num_convs}
    # the authors' code multiplies what their paper adds
    combine = {} if layout is None else {"combine": "multiply"}
    return [_reductions(module.get("channel.fc1.weight")), [combine], [shape]]


def _forms(layout: Layout | None) -> list[dict[str, Any]]:
    """Return the arguments of CBAM that set the order of its maps, which no shape shows."""
    if layout is None:
        return [{}, {"form": "timm"}]
    form = {} if layout.form == "official" else {"form": layout.form}
    return [form if _maps(form) == layout.maps else {**form, "maps": list(layout.maps)}]


def _reductions(first: Tensor | None) -> list[dict[str, Any]]:
    if first is None or first.dim() != 2 or not first.numel():
        return [{}]
    ratio = first.shape[1] / first.shape[0]
    return [{}, {"reduction": int(ratio) if ratio.is_integer() else ratio}]


def from_ours(
    state: StateDict,
    layout: Layout,
    attention: str | None = None,
    attention_kwargs: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> StateDict:
    """Rename all weights of a network from this package's names to those of `layout`; the inverse of `to_ours`.

    Args:
        state: The weights.
        layout: The layout to write.
        attention: The name in ATTENTION of the network's attention; None for none.
        attention_kwargs: The arguments of the attention.
        model_kwargs: Arguments of `ResNet` that no shape shows.

    Raises:
        UserError: The layout has no place for a tensor, or its networks compute something else.
    """
    options, kwargs = dict(attention_kwargs or {}), dict(model_kwargs or {})
    if layout.name != "whatwhere":
        _check_blocks(state, layout)
        wanted = _model_kwargs(layout, state)
        for option in _NEEDED:
            if kwargs.get(option, False) != wanted.get(option, False):
                raise UserError(
                    f"{layout.origin} cannot hold these weights: its network has {option}={wanted.get(option, False)}, "
                    f"theirs {option}={kwargs.get(option, False)}"
                )
        _check_usual(layout, attention, options)
        state = _in_convention(state, layout, attention, options)
    renamed: StateDict = {}
    left_over = []
    for key, tensor in state.items():
        found = find_rule_back(layout, key, attention)
        if found is None:
            left_over.append(key)
            continue
        rule, name = found
        renamed[name] = tensor[:, :, None, None] if rule.is_1x1 and tensor.dim() == 2 else tensor
    if left_over:
        patterns = list(group_keys(left_over))
        named = f"{', '.join(map(shown, patterns[:3]))}{', ...' if len(patterns) > 3 else ''}"
        why = ""
        if any(key.endswith("attention.mix") for key in left_over):
            why = ": the attention starts as the identity, y = x (1 - a + a gates), which only whatwhere has"
        elif all(map(is_attention_key, left_over)):
            why = ": it has no such attention"
        raise UserError(f"{layout.origin} has no place for {len(left_over)} tensors ({named}){why}")
    return renamed


def _check_usual(layout: Layout, attention: str | None, options: Mapping[str, Any]) -> None:
    """Raise UserError if attention built with `options` computes something else than that of `layout`."""
    if attention is None or not any(rule.attention == attention for rule in layout.rules):
        return  # there is no place for it, as `from_ours` will find
    for option, usual in _usual(layout, attention).items():
        value = _value(attention, options, option)
        if not _is_usual(value, usual):
            raise UserError(f"{layout.origin} cannot hold these weights: its attention has no {option}={brief(value)}")
    if attention == "cbam" and set(_maps(options)) != set(layout.maps):
        raise UserError(
            f"{layout.origin} cannot hold these weights: its spatial gate takes {' and '.join(layout.maps)}"
        )


def _usual(layout: Layout, attention: str | None) -> dict[str, Any]:
    """Return the arguments of `attention` that have a fixed value in `layout`."""
    usual = dict(_USUAL.get(attention or "", {}))
    if attention == "cbam":
        # tuples name the values that are possible
        full = layout.form == "ultralytics"
        usual = {"form": ("ultralytics",) if full else ("official", "timm"), **usual}
        usual |= {"pools": list(CONVENTIONS[layout.form].pools), "norm": layout.norm}
        if full:
            usual["kernel_size"] = (3, 7)
        if layout.name != "official":
            usual["spatial"] = True
    return usual


def _value(attention: str, options: Mapping[str, Any], name: str) -> Any:
    """Return the value of an argument of the attention: the one in `options`, or by the rule of CBAM's form."""
    default = inspect.signature(ATTENTION[attention]).parameters[name].default
    value = options.get(name, default)
    return getattr(_convention(options), name, default) if attention == "cbam" and value == default else value


def _convention(options: Mapping[str, Any]) -> Convention:
    form = options.get("form")
    return next((rules for name, rules in CONVENTIONS.items() if name == form), CONVENTIONS["official"])


def _is_usual(value: Any, usual: Any) -> bool:
    if isinstance(usual, tuple):
        return value in usual
    if isinstance(usual, list):  # pools are summed, so their order does not count
        return isinstance(value, (list, tuple)) and sorted(map(str, value)) == sorted(usual)
    return bool(value == usual)


def _in_convention(state: StateDict, layout: Layout, attention: str | None, options: Mapping[str, Any]) -> StateDict:
    """Return `state` with CBAM's maps in the order of `layout`, and zero biases where it always has biases."""
    converted: StateDict = {}
    flips = attention == "cbam" and _maps(options) != layout.maps
    for key, tensor in state.items():
        converted[key] = tensor.flip(1) if flips and key.endswith(".attention.where.conv.weight") else tensor
        bias = key.removesuffix("weight") + "bias"
        is_layer = key.endswith(tuple(f".attention.what.{name}.weight" for name in ("fc1", "fc2", "fc")))
        if is_layer and bias not in state and attention in layout.biased:
            converted[bias] = tensor.new_zeros(tensor.shape[0])
    return converted


def _maps(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the order of the maps of CBAM built with `options`."""
    return tuple(_value("cbam", options, "maps"))
