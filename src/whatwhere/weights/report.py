"""Whether weights fit a network: every key accounted for, those that do not by group, with the likely cause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import brief

# of `models.resnet`, and of `insert`: layer1.0.attention, layer1_attention, attention2
ATTENTION_KEY = re.compile(r"(^|[._])attention\d*\.")
_BLOCK = re.compile(r"^(layer\d+)\.\d+(?=\.)")
_NUMBERED = re.compile(r"^layer\d+(\.\d+)?(?=\.)")
_NUM_SHOWN = 3


@dataclass(frozen=True)
class Group:
    """Keys of the same place in different blocks.

    Attributes:
        kind: "missing", "unexpected" or "of another shape or kind".
        pattern: What the keys have in common, for example "layer*.*.conv3.weight"; a single key as it is.
        keys: The keys, in the order of the network or file.
        detail: Of mismatched ones, the first one's shapes.
    """

    kind: str
    pattern: str
    keys: tuple[str, ...]
    detail: str = ""


@dataclass(frozen=True)
class Fit:
    """How a state dict fits a network.

    Attributes:
        groups: The keys that do not fit; empty if all do.
        cause: The likely cause in words, or "".
        num_fitting: Number of tensors that do fit.
        num_expected: Number of tensors that the network has.
    """

    groups: list[Group] = field(default_factory=list)
    cause: str = ""
    num_fitting: int = 0
    num_expected: int = 0

    def sentence(self) -> str:
        """Return what does not fit in one line, without a full stop; empty if all does."""
        parts = []
        for kind in dict.fromkeys(group.kind for group in self.groups):
            groups = [group for group in self.groups if group.kind == kind]
            names = ", ".join(shown(group.pattern) for group in groups[:_NUM_SHOWN])
            more = ", ..." if len(groups) > _NUM_SHOWN else ""
            parts.append(f"{sum(len(group.keys) for group in groups)} {kind} ({names}{more})")
        return "; ".join(parts) + (f"; {self.cause}" if self.groups and self.cause else "")

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        groups = [
            {"kind": group.kind, "pattern": group.pattern, "keys": list(group.keys), "detail": group.detail}
            for group in self.groups
        ]
        return {
            "num_fitting": self.num_fitting,
            "num_expected": self.num_expected,
            "groups": groups,
            "cause": self.cause,
        }


def compare(state: Mapping[str, Tensor], own: Mapping[str, Tensor], optional: Iterable[str] = ()) -> Fit:
    """Return how `state` fits the network whose state dict is `own`; the keys `optional` may be missing."""
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
    cause = next(_causes(state, own, missing, unexpected, mismatched), "") if groups else ""
    return Fit(groups, cause, num_fitting, len(own))


def pattern_of(key: str) -> str:
    """Return what `key` has in common with the same place in other blocks: "layer*.*.conv1.weight"."""
    return _NUMBERED.sub(lambda match: "layer*" if match[1] is None else "layer*.*", key)


def group_keys(keys: Iterable[str]) -> dict[str, list[str]]:
    """Return `keys` by `pattern_of`; a group of one key under the key itself."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(pattern_of(key), []).append(key)
    return {pattern if len(group) > 1 else group[0]: group for pattern, group in groups.items()}


def shown(key: str) -> str:
    """Return `key`, which can be anything, as it may stand in a sentence."""
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


def _causes(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    mismatched: list[str],
) -> Iterator[str]:
    """Yield what may be the cause, the likeliest first."""
    if not state.keys() & own.keys():
        yield "no name is one of this network's: the file is of another kind of network"
    if any(re.match(r"conv1\.\d", key) for key in unexpected):
        yield "the file's network has a stem of several convolutions, as timm's c, d, s and t networks have"
    if _has_conv3(state) != _has_conv3(own):
        yield "one network is made of bottlenecks and the other of basic blocks"
    theirs, ours = _depths(state), _depths(own)
    keys = [*missing, *unexpected, *mismatched]
    if keys == missing and all(map(ATTENTION_KEY.search, keys)) and not any(map(ATTENTION_KEY.search, state)):
        yield "the file has no attention and this network has; take the plain network"
    if not unexpected and not mismatched:
        if all(key.endswith("bias") and ATTENTION_KEY.search(key) for key in missing):
            yield 'the file\'s attention has no biases; `attention_kwargs={"form": "timm"}` builds CBAM without'
        yield f"the file is incomplete, it holds {len(state)} of {len(own)} tensors, or of a smaller network"
    if theirs != ours:
        yield f"the file's network has {_in_words(theirs)} blocks in its stages and this one {_in_words(ours)}"
    if all(map(ATTENTION_KEY.search, keys)):
        if not any(map(ATTENTION_KEY.search, own)):
            yield "the file has attention and this network none; take a network with it, such as cbam_resnet50"
        if len(mismatched) == len(keys):
            yield "the attention is built otherwise, perhaps with another reduction; give attention_kwargs"
        yield "the file's attention is of another kind, or built with other attention_kwargs"
    if all(key.startswith("fc.") for key in keys):
        yield "the classifier takes other features"
    if len(keys) > 1 and 2 * len(mismatched) > len(keys):
        yield "the file's network has layers of another width or number of groups"


def _depths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return how many blocks each stage has."""
    blocks = {match[0]: match[1] for match in map(_BLOCK.match, state) if match}
    stages = list(blocks.values())
    return tuple(stages.count(stage) for stage in sorted(set(stages)))


def _has_conv3(state: Mapping[str, Tensor]) -> bool:
    return any(key.endswith(".conv3.weight") for key in state)


def _in_words(depths: tuple[int, ...]) -> str:
    return "-".join(map(str, depths)) or "no"
