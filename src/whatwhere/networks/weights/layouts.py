"""Tensor names in each known checkpoint layout: one table, read in both directions."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from ...attention.cbam import Form
from ...base.errors import UserError
from ...base.words import brief
from .files import StateDict

LayoutName = Literal[
    "whatwhere", "torchvision", "official", "timm", "timm-legacy", "ca-sa", "ca-sa-sequential", "ultralytics"
]

_PLACEHOLDERS = {
    "{block}": r"(?P<block>layer\d+\.\d+)",
    "{stage}": r"(?P<stage>layer\d+)",
    "{n}": r"(?P<n>\d+)",
    "{name}": r"(?P<name>\w+)",
    "{p}": r"(?P<p>weight|bias)",
    "{norm}": r"(?P<norm>weight|bias|running_mean|running_var|num_batches_tracked)",
    "{rest}": r"(?P<rest>.+)",
}


@dataclass(frozen=True)
class Rule:
    """A tensor's name in another layout and in this package; a placeholder stands for the same text in both."""

    theirs: str  # the name in the other layout
    ours: str  # the name in this package
    # the name in ATTENTION of the module that the tensor belongs to; None for the backbone
    attention: str | None = None
    is_1x1: bool = False  # whether the layer is a 1x1 convolution in the other layout, and linear in this package


@dataclass(frozen=True)
class Layout:
    """The tensor names of one library or publication, and what its networks compute differently."""

    name: LayoutName  # its short name
    origin: str  # the library or publication, in words
    rules: tuple[Rule, ...]  # a rule for each tensor name
    maps: tuple[str, ...] = ("max", "mean")  # order of the maps that the convolution of CBAM's spatial gate takes
    norm: Literal["batch"] | None = "batch"  # the argument `norm` of CBAM's spatial gate
    biased: tuple[str, ...] = ("cbam", "se")  # the attention modules with biases in their MLP
    form: Form = "official"  # the argument `form` of the attention
    ceil_pool: bool = False  # whether the stem's max-pool rounds its output size up
    stride_in_1x1: bool = False  # whether bottlenecks without groups have their stride in the first 1x1 convolution
    basic_blocks: bool = True  # whether the basic blocks compute what those of this package do


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
_ULTRALYTICS_CBAM = tuple(
    rule
    for module in ("cbam", "{name}")  # the first is written, any name is read
    for rule in (
        Rule(f"{{block}}.{module}.channel_attention.fc.{{p}}", "{block}.attention.what.fc.{p}", "cbam", is_1x1=True),
        Rule(f"{{block}}.{module}.spatial_attention.cv1.weight", "{block}.attention.where.conv.weight", "cbam"),
    )
)
_LEGACY = (
    Rule("layer0.conv1.weight", "conv1.weight"),
    Rule("layer0.bn1.{norm}", "bn1.{norm}"),
    *_BLOCKS,
    Rule("{block}.se_module.fc{n}.{p}", "{block}.attention.what.fc{n}.{p}", "se", is_1x1=True),
    Rule("last_linear.{p}", "fc.{p}"),
)

# where several layouts know equally many names of a file, the first one is taken
LAYOUTS: dict[LayoutName, Layout] = {
    layout.name: layout
    for layout in (
        Layout("torchvision", "torchvision", _BACKBONE),
        # before whatwhere, whose rules fit all names in a block's `attention`
        Layout(
            "ultralytics",
            "code with Ultralytics' CBAM in its blocks",
            (*_BACKBONE, *_ULTRALYTICS_CBAM),
            maps=("mean", "max"),
            norm=None,
            biased=("cbam",),
            form="ultralytics",
        ),
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
        # its basic blocks have a ReLU between the last norm and SE
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
        UserError: It is no known layout.
    """
    if name not in get_args(LayoutName):
        raise UserError(f"unknown layout {brief(name)}; known: {', '.join(get_args(LayoutName))}")
    return LAYOUTS[name]  # type: ignore[index] # the check above does not narrow a str


def recognize(state: Iterable[str]) -> Layout | None:
    """Return the layout that knows most of the names in `state`; None if no layout knows more than half."""
    keys = list(state)
    known = {name: sum(find_rule(layout, key) is not None for key in keys) for name, layout in LAYOUTS.items()}
    best = max(known, key=lambda name: known[name])
    return LAYOUTS[best] if 2 * known[best] > len(keys) else None


def find_rule(layout: Layout, theirs: str) -> tuple[Rule, str] | None:
    """Return the rule for the name `theirs` in `layout`, and the name in this package; None if there is no rule."""
    for rule in layout.rules:
        match = _pattern(rule.theirs).fullmatch(theirs)
        if match is not None:
            return rule, _filled(rule.ours, match)
    return None


def find_rule_back(layout: Layout, ours: str, attention: str | None) -> tuple[Rule, str] | None:
    """Return the rule for this package's name `ours`, in a network with `attention`, and the name in `layout`."""
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
    """Return whether the blocks in `state` are bottlenecks."""
    return "layer1.0.conv3.weight" in state


def is_grouped(state: StateDict) -> bool:
    """Return whether the 3x3 convolutions in `state` have several groups."""
    middle = state.get("layer1.0.conv2.weight")
    return middle is not None and middle.dim() == 4 and middle.shape[0] != middle.shape[1]


# timm's networks for weights with the names of the package efficientnet_pytorch: with SE, and without
EFFICIENTNETS = {
    "b": "tf_efficientnet_b0 to tf_efficientnet_b8",
    "lite": "tf_efficientnet_lite0 to tf_efficientnet_lite4",
}
# the names of that package, by those of timm
_EFFICIENTNET_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)\.\w+")
_ELSEWHERE = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
_SQUEEZE = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
_EXPANDED = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    **_SQUEEZE,
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}
# blocks of the first stage do not expand
_PLAIN = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", **_SQUEEZE, "conv_pw": "_project_conv", "bn2": "_bn2"}


def is_of_efficientnet_pytorch(state: Iterable[str]) -> bool:
    """Return whether `state` has the names of the package efficientnet_pytorch."""
    return {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight"} <= set(state)


def lacks_squeeze(state: Iterable[str]) -> bool:
    """Return whether a network under the names of efficientnet_pytorch has no SE, as the lite ones."""
    return not any("._se_reduce." in key for key in state)


def efficientnet_names(own: Iterable[str]) -> Mapping[str, str]:
    """Return timm's tensor names of an EfficientNet by those of efficientnet_pytorch.

    efficientnet_pytorch numbers the blocks of all stages, timm those within each stage.

    Args:
        own: The names in a network of timm; empty for a network that is no EfficientNet.
    """
    own = list(own)
    found = {key: match for key, match in zip(own, map(_EFFICIENTNET_BLOCK.fullmatch, own), strict=True) if match}
    blocks = sorted({(int(match[1]), int(match[2])) for match in found.values()})
    expanded = {(int(match[1]), int(match[2])) for match in found.values() if match[3] == "conv_pwl"}
    names: dict[str, str] = {}
    for key in own:
        module, _, tensor = key.rpartition(".")
        theirs = _ELSEWHERE.get(module)
        if key in found:
            block = int(found[key][1]), int(found[key][2])
            layer = (_EXPANDED if block in expanded else _PLAIN).get(found[key][3])
            theirs = None if layer is None else f"_blocks.{blocks.index(block)}.{layer}"
        if theirs is not None:
            names[f"{theirs}.{tensor}"] = key
    return names
