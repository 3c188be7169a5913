"""From another layout of keys to ours and back, tensors and conventions alike."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import Tensor

from ...attention import ATTENTION
from ...base.errors import UserError
from ...base.words import brief
from ..spec import Arguments, ModelOptions, read_spec
from .files import StateDict, WeightsFile, check_finite, find_weights, read_file, warn_of_left_out
from .fit import group_keys, shown
from .layouts import LAYOUTS, Layout, Rule, find_rule, find_rule_back, has_bottlenecks, is_grouped, recognize
from .load import has_attention, is_attention_key, starts_as_identity

METADATA_KEY = "whatwhere"
# options that other layouts have in one form alone
_USUAL: dict[str, dict[str, Any]] = {
    "cbam": {"pools": ["avg", "max"], "arrangement": "channel_first"},
    "bam": {"combine": "multiply", "dilation": 4},
}
_MODEL_OPTIONS = ("stride_in_1x1", "ceil_pool", "replace_stride_with_dilation")
_OUTSIDE = re.compile(r"(ca|sa)\d*\.(fc|conv1)")  # of copied code: behind a stem or a stage
_MOST_BUILT = 1 << 16  # channels of an attention that is built, without memory, to look at its shapes


@dataclass(frozen=True)
class Weights:
    """Weights under this package's names, and how the network for them is built.

    Attributes:
        state: The tensors.
        layout: The layout that they came in; None if it is nobody's.
        attention: The name in ATTENTION of their attention, where the layout tells it.
        attention_kwargs: What that attention is built with.
        model_kwargs: Arguments of `ResNet` that the shapes do not show, such as `stride_in_1x1`.
        model: The network's name, where the file tells it.
        source: The file or library that they come from.
        backbone_keys: Names that look like those of attention and are the plain network's own.
        as_published: Whether they are published ones, which set more than weights (`NetworkSpec.as_published`).
    """

    state: StateDict
    layout: Layout | None
    attention: str | None = None
    attention_kwargs: dict[str, Any] = field(default_factory=dict)
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    source: str = ""
    backbone_keys: frozenset[str] = frozenset()
    as_published: bool = False

    @property
    def has_attention(self) -> bool:
        """Whether some of the tensors are those of attention modules."""
        return has_attention(key for key in self.state if key not in self.backbone_keys)

    @property
    def starts_as_identity(self) -> bool:
        """Whether a network for them needs attention with the identity start.

        It does where they have no attention, which is then new, and where they were saved from such a network.
        """
        return not self.has_attention or starts_as_identity(self.state)

    def options_for(self, builder: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the attention that `builder` builds: `given` ones, and those these weights need.

        Raises:
            UserError: With `given` the shapes might fit, and the network compute something else.
        """
        if self.attention is None or ATTENTION[self.attention] is not builder:
            return dict(given)
        options = {**self.attention_kwargs, **given}
        if self.layout is None or self.layout.name in ("whatwhere", "torchvision"):
            return options
        for option, usual in _usual(self.layout, self.attention).items():
            if option in given and not _is_usual(given[option], usual):
                raise UserError(
                    f"the weights are of {self.layout.whose}, where {option} is {usual!r}; leave out "
                    f"{option}={brief(given[option])}"
                )
        # where neither is given, the tensors say whether the weights fit
        if self.attention == "cbam" and options.keys() & {"form", "maps"}:
            maps = _maps(options)
            if maps != self.layout.maps:
                raise UserError(
                    f"the weights are of {self.layout.whose}, where the spatial gate takes its maps in the order "
                    f"{', '.join(self.layout.maps)}; leave out form and maps, which say {', '.join(maps)}"
                )
        return options


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read a file in any of the layouts, every value of it finite, and bring it to ours.

    A warning names tensors that stand beside the network's and are left out.

    Raises:
        UserError: As `read_file` and `to_ours`, or a tensor holds NaN or infinite values.
    """
    return _accepted(read_file(path))


def weights_in(content: Mapping[str, Any], source: str) -> Weights:
    """Return what `content`, as of a file from `source`, holds, as `read_weights` does."""
    return _accepted(find_weights(content, source))


def _accepted(file: WeightsFile) -> Weights:
    check_finite(file)
    warn_of_left_out(file)
    return from_file(file)


def from_file(file: WeightsFile) -> Weights:
    """Return what `file` holds in our layout."""
    return to_ours(file.state, file.path, file.metadata.get(METADATA_KEY, ""))


def to_ours(state: Mapping[str, Tensor], source: str, description: str = "") -> Weights:
    """Return `state` under our names, names of no layout as they are.

    Args:
        state: Names to tensors, in one of the layouts.
        source: Where they are from, for the error's sentence.
        description: What `whatwhere weights convert`, or a training, wrote about a file, JSON; it counts for our own
            layout.

    Raises:
        UserError: Two names are the same one here, or the layout's network computes something that no network here
            does.
    """
    return dataclasses.replace(_to_ours(state, source, description), source=source)


def _to_ours(state: Mapping[str, Tensor], source: str, description: str) -> Weights:
    layout = recognize(state)
    if layout is None:
        return Weights(dict(state), None)
    _check_outside(state, source)
    renamed: StateDict = {}
    attention = None
    for key, tensor in state.items():
        rule, name = find_rule(layout, key) or (Rule(key, key), key)
        if name in renamed:
            raise UserError(f"{source!r} holds two tensors for {brief(name)}, one of them as {brief(key)}")
        attention = rule.attention or attention
        renamed[name] = tensor[:, :, 0, 0] if rule.is_1x1 and tensor.shape[2:] == (1, 1) else tensor
    if layout.name in ("whatwhere", "torchvision"):
        return described(renamed, layout, description)
    _check_blocks(renamed, layout)
    model_kwargs = _model_kwargs(layout, renamed)
    attention_kwargs = {} if attention is None else options_of(renamed, attention, layout) or {}
    return Weights(renamed, layout, attention, attention_kwargs, model_kwargs)


class _Said(msgspec.Struct):
    """What a file says of its network: a spec, or the fields that files written before 0.2 have."""

    network: Any = None
    model: str | None = None
    attention: str | None = None
    attention_kwargs: Arguments = {}
    model_kwargs: ModelOptions = ModelOptions()


def described(state: StateDict, layout: Layout | None, description: str) -> Weights:
    """Return `state` with what its file says of its network, as far as that can be true.

    Args:
        state: Weights under this package's names.
        layout: Their layout.
        description: JSON from anywhere: a spec under "network", or the fields of a file written before.
    """
    try:
        said = msgspec.json.decode(description or "{}", type=_Said)
        spec = None if said.network is None else read_spec(said.network)
    # not ours, so it says nothing
    except (ValueError, RecursionError):
        return Weights(state, layout)
    is_true: Callable[..., bool]
    if spec is not None:
        model, attention = spec.name if spec.is_own else None, spec.attention_name
        kwargs = {**spec.attention_kwargs, **({"start": spec.start} if spec.start else {})}
        model_kwargs, is_true = spec.model_kwargs, is_affordable
    else:
        model, attention = said.model, said.attention or ""
        kwargs, model_kwargs = dict(said.attention_kwargs), msgspec.to_builtins(said.model_kwargs)
        is_true = fits_options
    if attention not in ATTENTION:
        return Weights(state, layout, None, {}, model_kwargs, model)
    if not is_true(state, attention, kwargs):
        return Weights(state, layout)
    return Weights(state, layout, attention, kwargs, model_kwargs, model)


def is_affordable(state: StateDict, attention: str, options: Mapping[str, Any]) -> bool:
    """Return whether one `attention` with `options` is no larger than all weights in `state`.

    So that no file of a few bytes asks for any amount of memory or time.
    """
    if isinstance(options.get("num_convs"), int) and options["num_convs"] > len(state):
        return False
    try:
        with torch.device("meta"):
            module = ATTENTION[attention](64, **options)
    except (UserError, TypeError, RuntimeError, OverflowError):
        return False
    return sum(map(Tensor.numel, module.parameters())) <= sum(map(Tensor.numel, state.values()))


def _check_outside(state: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError if `state` has the attention of copied code elsewhere than in its blocks."""
    outside = [key for key in state if _OUTSIDE.match(key)]
    if outside:
        raise UserError(
            f"{source!r} holds attention outside the network's blocks ({', '.join(map(shown, outside[:3]))}, ...), "
            "where no network here has it"
        )


def _check_blocks(state: StateDict, layout: Layout) -> None:
    """Raise UserError if blocks as those of `state` compute something else in the networks of `layout`."""
    if not layout.basic_blocks and not has_bottlenecks(state) and "layer1.0.conv2.weight" in state:
        raise UserError(
            f"the basic blocks of {layout.whose} have a ReLU before their SE, which no network here has; those of "
            "bottlenecks (legacy_seresnet50 and larger) can be converted"
        )


def _model_kwargs(layout: Layout, state: StateDict) -> dict[str, Any]:
    """Return what networks of `layout` have and ours have on request only."""
    stride_in_1x1 = layout.stride_in_1x1 and has_bottlenecks(state) and not is_grouped(state)
    options = {"stride_in_1x1": stride_in_1x1, "ceil_pool": layout.ceil_pool}
    return {name: value for name, value in options.items() if value}


def options_of(state: StateDict, attention: str, layout: Layout | None = None) -> dict[str, Any] | None:
    """Return arguments with which `attention` has the shapes in `state`, as few as can be; None if none give them.

    Args:
        state: Weights under our names.
        attention: A name in ATTENTION.
        layout: Where they came from, which settles the form; our own tries both.
    """
    start = {"start": "identity"} if starts_as_identity(state) else {}
    for candidate in _candidates(attention, _modules(state), layout):
        if fits_options(state, attention, {**candidate, **start}):
            return {**candidate, **start}
    return None


def fits_options(state: StateDict, attention: str, options: dict[str, Any]) -> bool:
    """Return whether the attention in `state`, under our names, has the shapes of `attention` built with `options`."""
    modules = _modules(state)
    return bool(modules) and all(
        _has_shapes(attention, channels, options, module) for channels, module in modules.items()
    )


def _modules(state: StateDict) -> dict[int, StateDict]:
    """Return the tensors of one attention module for each number of channels."""
    blocks: dict[str, StateDict] = {}
    for key, tensor in state.items():
        block, found, name = key.partition(".attention.")
        if found:
            blocks.setdefault(block, {})[name] = tensor
    modules: dict[int, StateDict] = {}
    for block, module in blocks.items():
        # one between stages has the channels of its stage's blocks
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
    convolution = module.get("where.conv.weight")
    if convolution is None:
        shape["spatial"] = False
    elif "where.norm.weight" not in module:
        shape["norm"] = None
        if "where.conv.bias" not in module:
            shape["spatial_bias"] = False
    if (
        convolution is not None
        and convolution.dim() == 4
        and convolution.shape[-1] % 2
        and 7 != convolution.shape[-1] < 64
    ):
        shape["kernel_size"] = convolution.shape[-1]
    biases: list[dict[str, Any]] = [{}, {"mlp_bias": "what.fc1.bias" in module}]
    return [biases, _reductions(module.get("what.fc1.weight")), _forms(layout), [shape]]


def _se_choices(module: StateDict, layout: Layout | None) -> list[list[dict[str, Any]]]:
    return [[{}, {"bias": False}], _reductions(module.get("what.fc1.weight")), [{}, {"form": "timm"}]]


def _bam_choices(module: StateDict, layout: Layout | None) -> list[list[dict[str, Any]]]:
    num_convs = sum(key.startswith("spatial.dilated") and key.endswith("conv.weight") for key in module)
    shape = {} if num_convs == 2 else {"num_convs": num_convs}
    # the authors' code multiplies what their paper adds
    combine = {} if layout is None else {"combine": "multiply"}
    return [_reductions(module.get("channel.fc1.weight")), [combine], [shape]]


def _forms(layout: Layout | None) -> list[dict[str, Any]]:
    """Return arguments of CBAM for the order of its maps, which no shape shows."""
    if layout is None:
        return [{}, {"form": "timm"}]
    form = {} if layout.form == "official" else {"form": layout.form}
    return [form if _maps(form) == layout.maps else {**form, "maps": list(layout.maps)}]


def _reductions(first: Tensor | None) -> list[dict[str, Any]]:
    if first is None or first.dim() != 2 or not first.numel():
        return [{}]
    ratio = first.shape[1] / first.shape[0]
    return [{}, {"reduction": int(ratio) if ratio.is_integer() else ratio}]


def _has_shapes(attention: str, channels: int, options: dict[str, Any], module: StateDict) -> bool:
    # each is a layer to be built
    if options.get("num_convs", 0) > sum(key.startswith("spatial.dilated") for key in module):
        return False
    try:
        with torch.device("meta"):
            own = ATTENTION[attention](channels, **options).state_dict()
    # arguments can come from a file
    except (UserError, TypeError, RuntimeError, OverflowError):
        return False
    # files of PyTorch before 0.4.1 have no counters
    own = {key: value for key, value in own.items() if key in module or not key.endswith("num_batches_tracked")}
    return {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in module.items()}


def from_ours(
    state: StateDict,
    layout: Layout,
    attention: str | None = None,
    attention_kwargs: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> StateDict:
    """Return `state`, under our names, as `layout` has it.

    Args:
        state: All weights of a network.
        layout: The layout to bring them to.
        attention: The name in ATTENTION of the network's attention.
        attention_kwargs: What it is built with.
        model_kwargs: Arguments of `ResNet` that the shapes do not show.

    Raises:
        UserError: The layout has no place for a tensor, or its networks compute otherwise.
    """
    options, kwargs = dict(attention_kwargs or {}), dict(model_kwargs or {})
    if layout.name != "whatwhere":
        _check_blocks(state, layout)
        wanted = _model_kwargs(layout, state)
        for option in _MODEL_OPTIONS:
            if kwargs.get(option, False) != wanted.get(option, False):
                raise UserError(
                    f"{layout.whose} cannot hold these weights: its network has {option}={wanted.get(option, False)}, "
                    f"theirs {option}={kwargs.get(option, False)}"
                )
        _check_usual(layout, attention, options)
        state = _in_convention(state, layout, attention, options)
    renamed: StateDict = {}
    homeless = []
    for key, tensor in state.items():
        found = find_rule_back(layout, key, attention)
        if found is None:
            homeless.append(key)
            continue
        rule, name = found
        renamed[name] = tensor[:, :, None, None] if rule.is_1x1 and tensor.dim() == 2 else tensor
    if homeless:
        raise UserError(f"{layout.whose} has no place for {_listed(homeless)}{_why_homeless(homeless)}")
    return renamed


def _check_usual(layout: Layout, attention: str | None, options: Mapping[str, Any]) -> None:
    """Raise UserError if the attention of `layout` computes something else than one built with `options`."""
    defaults = inspect.signature(ATTENTION[attention]).parameters if attention else {}
    for option, usual in _usual(layout, attention).items():
        value = options.get(option, defaults[option].default)
        if not _is_usual(value, usual):
            raise UserError(f"{layout.whose} cannot hold these weights: its attention has no {option}={brief(value)}")
    if attention == "cbam" and set(_maps(options)) != set(layout.maps):
        raise UserError(f"{layout.whose} cannot hold these weights: its spatial gate takes {' and '.join(layout.maps)}")


def _usual(layout: Layout, attention: str | None) -> dict[str, Any]:
    """Return the options of `attention` that are always the same in `layout`."""
    usual = dict(_USUAL.get(attention or "", {}))
    if attention == "cbam":
        usual["norm"] = layout.norm
        if layout.name != "official":
            usual["spatial"] = True
    return usual


def _is_usual(value: Any, usual: Any) -> bool:
    if isinstance(usual, list):  # pools, whose sum has no order
        return isinstance(value, (list, tuple)) and sorted(map(str, value)) == sorted(usual)
    return bool(value == usual)


def _in_convention(state: StateDict, layout: Layout, attention: str | None, options: Mapping[str, Any]) -> StateDict:
    """Return `state` with the maps in the order of `layout`, and biases of zero where it always has biases."""
    converted: StateDict = {}
    flips = attention == "cbam" and _maps(options) != layout.maps
    for key, tensor in state.items():
        converted[key] = tensor.flip(1) if flips and key.endswith(".attention.where.conv.weight") else tensor
        bias = key.removesuffix("weight") + "bias"
        is_mlp = key.endswith((".attention.what.fc1.weight", ".attention.what.fc2.weight"))
        if is_mlp and bias not in state and attention in layout.biased:
            converted[bias] = tensor.new_zeros(tensor.shape[0])
    return converted


def _maps(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the order of the maps of CBAM built with `options`."""
    return tuple(options.get("maps") or LAYOUTS["timm" if options.get("form") == "timm" else "official"].maps)


def _why_homeless(keys: list[str]) -> str:
    if any(key.endswith("attention.mix") for key in keys):
        return ": the attention starts as the identity, y = x (1 - a + a gates), which is this package's alone"
    if all(map(is_attention_key, keys)):
        return ": that attention is not among its own"
    return ""


def _listed(keys: list[str]) -> str:
    patterns = list(group_keys(keys))
    return f"{len(keys)} tensors ({', '.join(map(shown, patterns[:3]))}{', ...' if len(patterns) > 3 else ''})"
