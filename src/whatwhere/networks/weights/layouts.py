"""Who names which tensor how: one table of layouts, read in both directions."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from ...base.errors import UserError
from ...base.words import brief
from .files import StateDict

LayoutName = Literal["whatwhere", "torchvision", "official", "timm", "timm-legacy", "ca-sa", "ca-sa-sequential"]

_PLACEHOLDERS = {
    "{block}": r"(?P<block>layer\d+\.\d+)",
    "{stage}": r"(?P<stage>layer\d+)",
    "{n}": r"(?P<n>\d+)",
    "{p}": r"(?P<p>weight|bias)",
    "{norm}": r"(?P<norm>weight|bias|running_mean|running_var|num_batches_tracked)",
    "{rest}": r"(?P<rest>.+)",
}


@dataclass(frozen=True)
class Rule:
    """A tensor's name in another layout and here, with placeholders that stand for the same text in both.

    Attributes:
        theirs: The name there.
        ours: The name here.
        attention: The name in ATTENTION of the module that the tensor belongs to; None for the backbone.
        is_1x1: Whether the linear layer here is a 1x1 convolution there.
    """

    theirs: str
    ours: str
    attention: str | None = None
    is_1x1: bool = False


@dataclass(frozen=True)
class Layout:
    """The names that one library or publication has.

    Attributes:
        name: Its short name.
        whose: The same in words.
        rules: A rule for each name.
        maps: Order of the maps that CBAM's spatial convolution takes there.
        norm: The norm of CBAM's spatial gate there, as our argument has it; copied code alone has none.
        biased: The attention whose MLP has biases there.
        form: The form of our attention that is theirs.
        ceil_pool: Whether its networks round the size of the stem's max-pool up.
        stride_in_1x1: Whether its bottlenecks without groups have their stride in the first 1x1 convolution.
        basic_blocks: Whether its basic blocks compute what ours do.
    """

    name: LayoutName
    whose: str
    rules: tuple[Rule, ...]
    maps: tuple[str, ...] = ("max", "mean")
    norm: Literal["batch"] | None = "batch"
    biased: tuple[str, ...] = ("cbam", "se")
    form: Literal["official", "timm"] = "official"
    ceil_pool: bool = False
    stride_in_1x1: bool = False
    basic_blocks: bool = True


def _same(*names: str) -> tuple[Rule, ...]:
    return tuple(Rule(name, name) for name in names)


_BLOCKS = _same(
    "{block}.conv{n}.weight",
    "{block}.bn{n}.{norm}",
    "{block}.downsample.0.weight",
    "{block}.downsample.1.{norm}",
)
_BACKBONE = (*_same("conv1.weight", "bn1.{norm}"), *_BLOCKS, *_same("fc.{p}"))
_OFFICIAL_CBAM = (
    Rule("{block}.cbam.ChannelGate.mlp.1.{p}", "{block}.attention.what.fc1.{p}", "cbam"),
    Rule("{block}.cbam.ChannelGate.mlp.3.{p}", "{block}.attention.what.fc2.{p}", "cbam"),
    Rule("{block}.cbam.SpatialGate.spatial.conv.weight", "{block}.attention.where.conv.weight", "cbam"),
    Rule("{block}.cbam.SpatialGate.spatial.bn.{norm}", "{block}.attention.where.norm.{norm}", "cbam"),
)
_MOST_DILATED = 8  # the authors' default is 2
_OFFICIAL_BAM = (
    Rule("bam{n}.channel_att.gate_c.gate_c_fc_0.{p}", "layer{n}.attention.channel.fc1.{p}", "bam"),
    Rule("bam{n}.channel_att.gate_c.gate_c_bn_1.{norm}", "layer{n}.attention.channel.norm.{norm}", "bam"),
    Rule("bam{n}.channel_att.gate_c.gate_c_fc_final.{p}", "layer{n}.attention.channel.fc2.{p}", "bam"),
    *(
        rule
        for theirs, ours in (
            ("{}_reduce0", "reduce"),
            *((f"{{}}_di_{index}", f"dilated{index + 1}") for index in range(_MOST_DILATED)),
        )
        for rule in (
            Rule(
                f"bam{{n}}.spatial_att.gate_s.gate_s_{theirs.format('conv')}.{{p}}",
                f"layer{{n}}.attention.spatial.{ours}.conv.{{p}}",
                "bam",
            ),
            Rule(
                f"bam{{n}}.spatial_att.gate_s.gate_s_{theirs.format('bn')}.{{norm}}",
                f"layer{{n}}.attention.spatial.{ours}.norm.{{norm}}",
                "bam",
            ),
        )
    ),
    Rule("bam{n}.spatial_att.gate_s.gate_s_conv_final.{p}", "layer{n}.attention.spatial.project.{p}", "bam"),
)
_TIMM_CBAM = (
    Rule("{block}.se.channel.fc{n}.{p}", "{block}.attention.what.fc{n}.{p}", "cbam", is_1x1=True),
    Rule("{block}.se.spatial.conv.conv.weight", "{block}.attention.where.conv.weight", "cbam"),
    Rule("{block}.se.spatial.conv.bn.{norm}", "{block}.attention.where.norm.{norm}", "cbam"),
)
_TIMM_SE = (Rule("{block}.se.fc{n}.{p}", "{block}.attention.what.fc{n}.{p}", "se", is_1x1=True),)
_CA_SA = (
    Rule("{block}.ca.fc1.weight", "{block}.attention.what.fc1.weight", "cbam", is_1x1=True),
    Rule("{block}.ca.fc2.weight", "{block}.attention.what.fc2.weight", "cbam", is_1x1=True),
    Rule("{block}.sa.conv1.weight", "{block}.attention.where.conv.weight", "cbam"),
)
_CA_SA_SEQUENTIAL = (
    Rule("{block}.ca.fc.0.weight", "{block}.attention.what.fc1.weight", "cbam", is_1x1=True),
    Rule("{block}.ca.fc.2.weight", "{block}.attention.what.fc2.weight", "cbam", is_1x1=True),
    _CA_SA[-1],
)
_LEGACY = (
    Rule("layer0.conv1.weight", "conv1.weight"),
    Rule("layer0.bn1.{norm}", "bn1.{norm}"),
    *_BLOCKS,
    Rule("{block}.se_module.fc{n}.{p}", "{block}.attention.what.fc{n}.{p}", "se", is_1x1=True),
    Rule("last_linear.{p}", "fc.{p}"),
)

# the first of those that know equally many names of a file is taken for its layout
LAYOUTS: dict[LayoutName, Layout] = {
    layout.name: layout
    for layout in (
        Layout("torchvision", "torchvision", _BACKBONE),
        Layout("whatwhere", "whatwhere", (*_BACKBONE, *_same("{block}.attention.{rest}", "{stage}.attention.{rest}"))),
        Layout("official", "the CBAM and BAM authors' code", (*_BACKBONE, *_OFFICIAL_CBAM, *_OFFICIAL_BAM)),
        Layout(
            "timm",
            "timm",
            (*_BACKBONE, *_TIMM_CBAM, *_TIMM_SE),
            maps=("mean", "max"),
            biased=("se",),
            form="timm",
        ),
        # with a ReLU between the last norm and SE in its basic blocks
        Layout(
            "timm-legacy",
            "timm's legacy_se networks",
            _LEGACY,
            ceil_pool=True,
            stride_in_1x1=True,
            basic_blocks=False,
        ),
        Layout(
            "ca-sa",
            "copied code with ca.fc1 and sa.conv1 in its blocks",
            (*_BACKBONE, *_CA_SA),
            maps=("mean", "max"),
            norm=None,
            biased=(),
        ),
        Layout(
            "ca-sa-sequential",
            "copied code with ca.fc.0 and sa.conv1 in its blocks",
            (*_BACKBONE, *_CA_SA_SEQUENTIAL),
            maps=("mean", "max"),
            norm=None,
            biased=(),
        ),
    )
}


def layout_named(name: str) -> Layout:
    """Return the layout `name`.

    Raises:
        UserError: There is none.
    """
    if name not in get_args(LayoutName):
        raise UserError(f"unknown layout {brief(name)}; known: {', '.join(get_args(LayoutName))}")
    return LAYOUTS[name]  # type: ignore[index] # the check above does not narrow a str


def recognize(state: Iterable[str]) -> Layout | None:
    """Return the layout that the names in `state` are of, or None if most are of none."""
    keys = list(state)
    known = {name: sum(find_rule(layout, key) is not None for key in keys) for name, layout in LAYOUTS.items()}
    best = max(known, key=lambda name: known[name])
    return LAYOUTS[best] if 2 * known[best] > len(keys) else None


def find_rule(layout: Layout, theirs: str) -> tuple[Rule, str] | None:
    """Return the rule for the name `theirs` in `layout`, and the name here."""
    for rule in layout.rules:
        match = _pattern(rule.theirs).fullmatch(theirs)
        if match is not None:
            return rule, _filled(rule.ours, match)
    return None


def find_rule_back(layout: Layout, ours: str, attention: str | None) -> tuple[Rule, str] | None:
    """Return the rule for our name `ours`, in a network with `attention`, and the name in `layout`."""
    for rule in layout.rules:
        match = _pattern(rule.ours).fullmatch(ours) if rule.attention in (None, attention) else None
        if match is not None:
            return rule, _filled(rule.theirs, match)
    return None


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    for placeholder, pattern in _PLACEHOLDERS.items():
        escaped = escaped.replace(re.escape(placeholder), pattern)
    return re.compile(escaped)


def _filled(template: str, match: re.Match[str]) -> str:
    for name, text in match.groupdict().items():
        template = template.replace(f"{{{name}}}", text)
    return template


def has_bottlenecks(state: StateDict) -> bool:
    """Return whether the blocks of `state`, under our names, are bottlenecks."""
    return "layer1.0.conv3.weight" in state


def is_grouped(state: StateDict) -> bool:
    """Return whether the 3x3 convolutions of `state`, under our names, have several groups."""
    middle = state.get("layer1.0.conv2.weight")
    return middle is not None and middle.dim() == 4 and middle.shape[0] != middle.shape[1]
