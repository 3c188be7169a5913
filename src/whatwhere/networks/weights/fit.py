"""Compare weights with a network, tell why they do not fit, and load them completely or not at all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...base.errors import UserError
from ...base.words import brief, short

# in `models.resnet` and from `attend`: layer1.0.attention, layer1_attention, attention2
ATTENTION_KEY = re.compile(r"(^|[._])attention\d*\.")
_IDENTITY_KEY = re.compile(r"(^|[._])attention\d*\.mix$")  # the scalar of the identity start
# in a block, or in the attention behind a stage
_IN_BLOCK = re.compile(r"(?P<block>(?P<stage>layer\d+)(\.\d+)?)\.(?P<name>(conv\d|bn\d|downsample\.\d|attention)\..+)")
_NUMBERED = re.compile(r"^layer\d+(\.\d+)?(?=\.)")
_NUM_SHOWN = 3


@dataclass(frozen=True)
class Group:
    """Keys with the same place in different blocks."""

    kind: str  # "missing", "unexpected" or "of another shape or kind"
    pattern: str  # the keys as one pattern, such as "layer*.*.conv3.weight"; a single key as it is
    keys: tuple[str, ...]  # the keys, in the order of the network or file
    detail: str = ""  # the shapes of the first key, where shapes differ


@dataclass(frozen=True)
class Fit:
    """How a state dict fits a network."""

    groups: list[Group] = field(default_factory=list)  # the keys that do not fit; empty if all do
    cause: str = ""  # the reason in words, where it explains every key that does not fit; else ""
    num_fitting: int = 0  # number of tensors that fit
    num_expected: int = 0  # number of tensors that the network has

    def sentence(self) -> str:
        """Describe what does not fit in one line without a full stop; "" if all fits."""
        parts = []
        for kind in dict.fromkeys(group.kind for group in self.groups):
            groups = [group for group in self.groups if group.kind == kind]
            names = ", ".join(shown(group.pattern) for group in groups[:_NUM_SHOWN])
            more = ", ..." if len(groups) > _NUM_SHOWN else ""
            parts.append(f"{sum(len(group.keys) for group in groups)} {kind} ({names}{more})")
        return "; ".join(parts) + (f"; {self.cause}" if self.groups and self.cause else "")

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        groups = [{**vars(group), "keys": list(group.keys)} for group in self.groups]
        return {
            "num_fitting": self.num_fitting,
            "num_expected": self.num_expected,
            "groups": groups,
            "cause": self.cause,
        }


def compare(state: Mapping[str, Tensor], own: Mapping[str, Tensor], optional: Iterable[str] = ()) -> Fit:
    """Compare `state` with the state dict `own` of a network; the keys `optional` may be missing."""
    optional = set(optional)
    missing = [key for key in own if key not in state and key not in optional]
    unexpected = [key for key in state if key not in own]
    mismatched = [key for key in own if key in state and not _fits(state[key], own[key])]
    details = {key: f"{_kind(state[key])} instead of {_kind(own[key])}" for key in mismatched}
    groups = [
        *_grouped("missing", missing),
        *_grouped("unexpected", unexpected),
        *_grouped("of another shape or kind", mismatched, details),
    ]
    num_fitting = len(own.keys() & state.keys()) - len(mismatched)
    return Fit(groups, _cause(_Difference(state, own, missing, unexpected, mismatched)), num_fitting, len(own))


def is_attention_key(key: str) -> bool:
    """Return whether `key` names a tensor of an attention module."""
    return bool(ATTENTION_KEY.search(key))


def has_attention(state: Iterable[str]) -> bool:
    """Return whether `state` (or its names) has tensors of attention modules."""
    return any(map(is_attention_key, state))


def starts_as_identity(state: dict[str, Tensor]) -> bool:
    """Return whether the network for `state` needs attention that starts as the identity.

    True where `state` has no attention, which is then new, and where it was saved from such a network.
    """
    return not has_attention(state) or any(map(_IDENTITY_KEY.search, state))


def load_pretrained(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state` into `model`, all of it or nothing.

    A classifier for another number of classes is skipped; a first convolution for another number of input channels is
    adapted. The classifier and the attention may be missing as a whole.

    Raises:
        UserError: Another key is missing, unexpected or of another shape; the model stays as it was.
    """
    own = model.state_dict()
    state = dict(state)
    if "conv1.weight" in own and "conv1.weight" in state:
        state["conv1.weight"] = _adapt_input(state["conv1.weight"], own["conv1.weight"].shape)
    classifier = {"fc.weight", "fc.bias"}
    if _is_other_classifier(state, own):
        state = {key: value for key, value in state.items() if key not in classifier}
    optional = set() if classifier & state.keys() else classifier
    if not has_attention(state):
        optional |= set(filter(is_attention_key, own))
    optional |= {key for key in own if key.endswith("num_batches_tracked")}
    fit = compare(state, own, optional)
    if fit.groups:
        raise UserError(f"the weights from {source!r} do not fit this network: {fit.sentence()}")
    model.load_state_dict({**own, **state})


def _is_other_classifier(state: dict[str, Tensor], own: dict[str, Tensor]) -> bool:
    """Return whether `state` has a classifier for another number of classes, on as many features as that of `own`."""
    theirs, ours = state.get("fc.weight"), own.get("fc.weight")
    if theirs is None or theirs.dim() != 2:
        return False
    return ours is None or (theirs.shape[0] != ours.shape[0] and theirs.shape[1] == ours.shape[1])


def _adapt_input(weight: Tensor, shape: torch.Size) -> Tensor:
    """Adapt an RGB convolution to other input channels as timm does: summed for one, else repeated and scaled."""
    in_channels = shape[1]
    if weight.dim() != 4 or weight.shape[1] != 3 or in_channels == 3:
        return weight
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-in_channels // 3)
    return weight.repeat(1, repeats, 1, 1)[:, :in_channels] * (3 / in_channels)


def group_keys(keys: Iterable[str]) -> dict[str, list[str]]:
    """Group `keys` that differ in stage and block alone, as "layer*.*.conv1.weight"; a single key goes by its name."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        pattern = _NUMBERED.sub(lambda match: "layer*" if match[1] is None else "layer*.*", key)
        groups.setdefault(pattern, []).append(key)
    return {pattern if len(group) > 1 else group[0]: group for pattern, group in groups.items()}


def shown(key: str) -> str:
    """Return `key`, which can be any text, shortened and safe to print."""
    return brief(key)[1:-1]


def _grouped(kind: str, keys: list[str], details: Mapping[str, str] | None = None) -> list[Group]:
    return [
        Group(kind, pattern, tuple(group), "" if details is None else details[group[0]])
        for pattern, group in group_keys(keys).items()
    ]


def _fits(value: Tensor, target: Tensor) -> bool:
    return value.shape == target.shape and value.is_floating_point() == target.is_floating_point()


def _kind(value: Tensor) -> str:
    return f"{'x'.join(map(str, value.shape)) or 'a scalar'} {str(value.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class _Difference:
    """The tensors of a file, those of a network, and the names that do not fit."""

    state: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    @property
    def faults(self) -> set[str]:
        return {*self.missing, *self.unexpected, *self.mismatched}


def _cause(difference: _Difference) -> str:
    """Return the reason in words, if the tensors show one that explains every key that does not fit; else ""."""
    left, sentences = difference.faults, []
    for fact in _FACTS:
        sentence, keys = fact(difference)
        if sentence and left & keys:
            sentences.append(sentence)
            left -= keys
    return "" if left else "; ".join(sentences)


Fact = tuple[str, set[str]]  # a sentence, and the keys that it explains
_NO_FACT: Fact = ("", set())


def _nothing_in_common(of: _Difference) -> Fact:
    return _NO_FACT if of.state.keys() & of.own.keys() else ("none of its names occurs in this network", of.faults)


def _kinds_of_blocks(of: _Difference) -> Fact:
    theirs, ours = _kind_of_blocks(of.state), _kind_of_blocks(of.own)
    if not theirs or not ours or theirs == ours:
        return _NO_FACT
    keys = {key for key in of.faults if _IN_BLOCK.match(key) and not _is_of_one_attention(key, of)}
    keys |= _features_of_classifier(of)
    return f"the file's network consists of {theirs} and this one of {ours}", keys


def _is_of_one_attention(key: str, of: _Difference) -> bool:
    """Return whether `key` belongs to attention that only the file or only the network has."""
    return is_attention_key(key) and not (has_attention(of.state) and has_attention(of.own))


def _kind_of_blocks(state: Mapping[str, Tensor]) -> str:
    """Return the kind of the blocks; "" if they are not all of one kind."""
    kinds = set()
    for block in _blocks(state):
        first, last = state[f"{block}.conv1.weight"], f"{block}.conv3.weight" in state
        if first.dim() != 4 or f"{block}.conv2.weight" not in state or last != (first.shape[-1] == 1):
            return ""
        kinds.add("bottlenecks" if last else "basic blocks")
    return kinds.pop() if len(kinds) == 1 else ""


def _deep_stem(of: _Difference) -> Fact:
    convolutions = [key for key in of.unexpected if re.match(r"conv1\.\d+\.weight", key) and of.state[key].dim() == 4]
    if len(convolutions) < 2 or "conv1.weight" not in of.missing:
        return _NO_FACT
    keys = {key for key in of.faults if key.startswith("conv1.")}
    # timm's d networks also pool in their shortcuts, where the convolution is then the second layer
    shortcuts = {key for key in of.state if key.endswith(".downsample.1.weight")}
    if shortcuts and all(of.state[key].dim() == 4 for key in shortcuts):
        keys |= {key for key in of.faults if ".downsample." in key}
    return "the file's network has a stem of several convolutions, as timm's c, d, s and t networks have", keys


def _input_channels(of: _Difference) -> Fact:
    if "conv1.weight" not in of.mismatched:
        return _NO_FACT
    theirs, ours = of.state["conv1.weight"].shape, of.own["conv1.weight"].shape
    if len(theirs) != 4 or len(ours) != 4 or (theirs[0], *theirs[2:]) != (ours[0], *ours[2:]):
        return _NO_FACT
    return f"conv1 takes {theirs[1]} channels in the file and {ours[1]} in this network", {"conv1.weight"}


def _no_floats(of: _Difference) -> Fact:
    keys = {key for key in of.mismatched if of.state[key].shape == of.own[key].shape}
    theirs, ours = (sorted({str(state[key].dtype)[6:] for key in keys}) for state in (of.state, of.own))
    return (f"the file has {', '.join(theirs)} where the network has {', '.join(ours)}", keys) if keys else _NO_FACT


def _widths(of: _Difference) -> Fact:
    """Recognize a network of another width or number of groups: its layers fit each other, nothing else differs."""
    keys = {key for key in of.mismatched if _IN_BLOCK.match(key) and not is_attention_key(key)}
    pairs = [(of.state[key].shape, of.own[key].shape) for key in keys]
    if not keys or any(len(a) != len(b) or a[2:] != b[2:] for a, b in pairs) or not _is_consistent(of.state):
        return _NO_FACT
    # a block of another output width has another shortcut and other attention, in the block or behind its stage
    ends = {key.rpartition(".bn")[0] for key in keys if key.endswith((".bn2.weight", ".bn3.weight"))}
    ends |= {end.partition(".")[0] for end in ends}
    for key in of.faults:
        match = _IN_BLOCK.match(key)
        if match and match["block"] in ends and match["name"].startswith(("downsample", "attention")):
            keys |= set() if _is_of_one_attention(key, of) else {key}
    if ends:
        keys |= _features_of_classifier(of)
    return "the file's network has layers of another width or number of groups", keys


def _is_consistent(state: Mapping[str, Tensor]) -> bool:
    """Return whether each layer in the blocks takes the channels of the layer before, with one number of groups."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    channels, num_groups = (shapes.get("conv1.weight") or (0,))[0], set()
    for block in sorted(_blocks(state), key=lambda block: tuple(map(int, block[5:].split(".")))):
        before = channels
        for position in (1, 2, 3):
            shape = shapes.get(f"{block}.conv{position}.weight", ())
            norms = {shapes.get(f"{block}.bn{position}.{name}") for name in ("weight", "bias", "running_mean")}
            if position == 3 and not shape:
                break
            if len(shape) != 4 or not shape[1] or channels % shape[1] or norms != {shape[:1]}:
                return False
            num_groups.add((position == 2, channels // shape[1]))
            channels = shape[0]
        shortcut = shapes.get(f"{block}.downsample.0.weight", (channels, before))
        if shortcut[:2] != (channels, before):
            return False
    return len(num_groups) == 2 and (False, 1) in num_groups


def _classifier(of: _Difference) -> Fact:
    keys = _features_of_classifier(of)
    if not keys:
        return _NO_FACT
    theirs, ours = of.state["fc.weight"].shape[1], of.own["fc.weight"].shape[1]
    return f"fc takes {theirs} features in the file and {ours} in this network", keys


def _features_of_classifier(of: _Difference) -> set[str]:
    """Return the classifier's keys that do not fit, if its number of features differs; else none."""
    if "fc.weight" not in of.mismatched:
        return set()
    theirs, ours = of.state["fc.weight"], of.own["fc.weight"]
    if theirs.dim() != 2 or theirs.shape[1] == ours.shape[1]:
        return set()
    return {"fc.weight", "fc.bias"} & of.faults


def _depths(of: _Difference) -> Fact:
    theirs, ours = _blocks(of.state), _blocks(of.own)
    other = (set(theirs) ^ set(ours)) | (set(theirs.values()) ^ set(ours.values()))
    # if keys are only missing, the file may also be incomplete
    if not other or not (of.unexpected or of.mismatched):
        return _NO_FACT
    keys = {key for key in of.faults for match in [_IN_BLOCK.match(key)] if match and match["block"] in other}
    return f"the file has {_in_words(theirs)} blocks in its stages and this network {_in_words(ours)}", keys


def _blocks(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return each block's stage."""
    found = [_IN_BLOCK.match(key) for key in state if key.endswith(".conv1.weight")]
    return {match["block"]: match["stage"] for match in found if match and match["block"] != match["stage"]}


def _in_words(blocks: Mapping[str, str]) -> str:
    counts = Counter(blocks.values())
    return short("-".join(str(counts[stage]) for stage in sorted(counts))) or "no"


def _attention(of: _Difference) -> Fact:
    keys = set(filter(is_attention_key, of.faults))
    if has_attention(of.state) and not has_attention(of.own):
        return "the file has attention and this network has none; take a network with attention", keys
    if has_attention(of.own) and not has_attention(of.state):
        return "the file has no attention and this network has some; take the plain network", keys
    return _NO_FACT


def _kinds_of_attention(of: _Difference) -> Fact:
    keys = set(filter(is_attention_key, of.faults))
    modules = {_module(key): set[str]() for key in filter(is_attention_key, (*of.state, *of.own))}
    for key in keys:
        modules[_module(key)].add(key.removeprefix(_module(key)))
    differing = next(iter(modules.values()), set())
    # if modules differ from each other, the file is damaged
    if not differing or any(names != differing for names in modules.values()):
        return _NO_FACT
    is_full = [any(key.endswith(".what.fc.weight") for key in group) for group in (of.unexpected, of.missing)]
    if any(is_full):
        form = "form='ultralytics'"
        told = f"is of {form}; give it in" if is_full[0] else f"is of another form; leave {form} out of"
        return f"the file's CBAM {told} attention_kwargs", keys
    if keys <= set(of.missing):
        sentence = "the file's attention has no biases in its MLP; attention_kwargs can leave them out"
        return (sentence, keys) if differing == {"what.fc1.bias", "what.fc2.bias"} else _NO_FACT
    if keys <= set(of.mismatched) and _other_hidden_width(of, modules):
        return "the attention has another number of hidden channels; give its reduction in attention_kwargs", keys
    return "the file's attention is of another kind, built with other attention_kwargs, or has other names", keys


def _module(key: str) -> str:
    match = ATTENTION_KEY.search(key)
    assert match is not None
    return key[: match.end()]


def _other_hidden_width(of: _Difference, modules: Collection[str]) -> bool:
    pairs = [(of.state.get(f"{name}what.fc1.weight"), of.own.get(f"{name}what.fc1.weight")) for name in modules]
    names = {name for name in of.mismatched if is_attention_key(name) and _module(name) in modules}
    return all(".what.fc" in name for name in names) and all(
        theirs is not None and ours is not None and theirs.dim() == 2 and theirs.shape[1] == ours.shape[1]
        for theirs, ours in pairs
    )


def _incomplete(of: _Difference) -> Fact:
    if of.unexpected or of.mismatched:
        return _NO_FACT
    held = len(of.state)
    return f"the file is incomplete, it holds {held} of {len(of.own)} tensors, or of a smaller network", of.faults


# each explains keys that those before it have not explained
_FACTS: tuple[Callable[[_Difference], Fact], ...] = (
    _nothing_in_common,
    _kinds_of_blocks,
    _deep_stem,
    _no_floats,
    _input_channels,
    _widths,
    _classifier,
    _depths,
    _attention,
    _kinds_of_attention,
    _incomplete,
)
