"""ResNet, ResNeXt and Wide ResNet with one slot for attention, under torchvision's state-dict keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.fx
from torch import Tensor, nn

from ..attention import ATTENTION, attention_builder, no_weight_decay
from ..attention.builder import unknown_argument
from ..attention.gate import Place, check_shape_kept, place_of
from ..base.errors import UserError, check_integer
from ..base.modules import NotScriptable
from ..base.randomness import seeded
from ..base.words import brief, cause
from .blocks import BasicBlock, Bottleneck, Norm, StochasticDepth
from .initialization import initialize, resolve_seed

# symbolic tracing patches a function under the name by which it is called
torch.fx.wrap("check_shape_kept")

Stem = Literal["imagenet", "cifar"]


class AttentiveStage(nn.Sequential):
    """Residual blocks, and behind them an attention, the last child."""

    def forward(self, x: Tensor) -> Tensor:
        *blocks, attention = self
        for block in blocks:
            x = block(x)
        attended: Tensor = attention(x)
        check_shape_kept(type(attention).__name__, x, attended)
        return attended


class ResNet(NotScriptable, nn.Module):
    """ResNet (arXiv 1512.03385), ResNeXt (1611.05431) and Wide ResNet (1605.07146) with attention in their blocks.

    The logits of a linear layer on globally averaged features; no softmax. The keys of the state dict are
    torchvision's, those of the attention modules beside them (`layer1.0.attention. ...`, or `layer1.attention. ...`).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: Number of blocks in each stage.
        num_classes: Width of the classifier; 0 leaves it out, and the network returns the pooled features.
        in_channels: Channels of the images.
        widths: Planes of each stage; a stage has `planes * block.expansion` output channels.
        groups: Groups of the 3x3 convolution (the cardinality of ResNeXt).
        width_per_group: Width of one group in a stage of 64 planes.
        stem: "imagenet" (7x7 stride 2, max-pool) or "cifar" (3x3 stride 1).
        stem_channels: Output channels of the stem.
        attention: A name in ATTENTION, a callable from a channel count to a module, or None. The module stands in each
            block, after its last norm, before the sum; one whose attribute `place` is "stage" (BAM) stands at the end
            of each stage but the last instead.
        attention_kwargs: Keyword arguments for it.
        stride_in_1x1: Stride in a bottleneck's first 1x1 convolution, as in the papers, instead of in its 3x3.
        replace_stride_with_dilation: For each stage but the first, whether to dilate its 3x3 convolutions instead of
            halving the image, as torchvision has it; None for none. Weights fit with and without. The first 3x3 of a
            stage has the dilation of the stage before, as in torchvision's and timm's dilated networks.
        ceil_pool: The stem's max-pool rounds its size up instead of padding, as in networks that come from Caffe.
        norm_layer: Builds a norm from a channel count; None for BatchNorm2d.
        zero_init_residual: Start the last norm of each block at weight 0.
        drop_rate: Dropout before the classifier, in [0, 1).
        drop_path_rate: Stochastic depth of the last block, in [0, 1), rising linearly from 0 in the first.
        seed: The initial weights are a function of (seed, parameter name); None draws a seed from torch's default
            generator. An attention module that is not in ATTENTION initialises itself, its random numbers being a
            function of (seed, its name).

    Shape:
        (N, in_channels, H, W) -> (N, num_classes), any H and W.

    Dtype:
        Any floating dtype.

    Raises:
        UserError: An impossible option, or an input of another rank or channel count.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        groups: int = 1,
        width_per_group: int = 64,
        stem: Stem = "imagenet",
        stem_channels: int = 64,
        attention: str | Callable[..., nn.Module] | None = None,
        attention_kwargs: Mapping[str, Any] | None = None,
        stride_in_1x1: bool = False,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        ceil_pool: bool = False,
        norm_layer: Norm | None = None,
        zero_init_residual: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_head(num_classes, in_channels)
        _check_sizes(layers, widths, groups, width_per_group, stem_channels)
        for option, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
            if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
                raise UserError(f"{option} must be at least 0 and below 1, got {brief(rate)}")
        if stem not in ("imagenet", "cifar"):
            raise UserError(f"stem must be imagenet or cifar, got {brief(stem)}")
        dilated = _check_dilated(replace_stride_with_dilation, len(layers))
        seed = resolve_seed(seed)
        norm_layer = _checked_norm(norm_layer)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.stride_in_1x1, self.ceil_pool = stride_in_1x1, ceil_pool
        self.replace_stride_with_dilation = dilated if any(dilated) else None
        self.num_features = widths[-1] * block.expansion

        # in the order of the forward pass, on which feature extractors (timm's features_only) rely
        kernel_size, stem_stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, stem_channels, kernel_size, stem_stride, kernel_size // 2, bias=False)
        self.bn1 = norm_layer(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        pool = nn.MaxPool2d(3, 2, ceil_mode=True) if ceil_pool else nn.MaxPool2d(3, 2, padding=1)
        self.maxpool = pool if stem == "imagenet" else nn.Identity()

        slot = _AttentionSlot(attention, attention_kwargs, seed)
        num_blocks = sum(layers)
        previous, index, dilation = stem_channels, 0, 1
        self.stage_names = tuple(f"layer{stage + 1}" for stage in range(len(layers)))
        self.stage_channels = tuple(planes * block.expansion for planes in widths)
        for stage, (name, depth, planes) in enumerate(zip(self.stage_names, layers, widths, strict=True)):
            blocks: list[nn.Module] = []
            dilates = stage > 0 and dilated[stage - 1]
            first_dilation, dilation = dilation, dilation * (2 if dilates else 1)
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 and not dilates else 1
                out_channels = planes * block.expansion
                attention_inside = slot.build("block", f"{name}.{position}.attention", out_channels)
                blocks.append(
                    block(
                        previous,
                        planes,
                        stride=stride,
                        downsample=_projection(previous, out_channels, stride, norm_layer),
                        width=planes * width_per_group // 64 * groups,
                        groups=groups,
                        first_dilation=dilation if position else first_dilation,
                        dilation=dilation,
                        stride_in_1x1=stride_in_1x1,
                        norm_layer=norm_layer,
                        attention=nn.Identity() if attention_inside is None else attention_inside,
                        drop_path=_drop_path(drop_path_rate * index / max(1, num_blocks - 1)),
                    )
                )
                previous, index = out_channels, index + 1
            is_last = stage == len(layers) - 1
            attention_behind = None if is_last else slot.build("stage", f"{name}.attention", previous)
            self.add_module(name, _stage(blocks, attention_behind))
        slot.check_stands(len(layers))

        self.avgpool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(drop_rate)
        self.fc = _classifier(self.num_features, num_classes)
        initialize(self, seed, keep=slot.self_initialized)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, (BasicBlock, Bottleneck)):
                    last_norm = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                    if not isinstance(getattr(last_norm, "weight", None), Tensor):
                        raise UserError(f"zero_init_residual needs norms with a weight; {last_norm} has none")
                    nn.init.zeros_(last_norm.get_parameter("weight"))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the features of the last stage, (N, num_features, h, w)."""
        x = self.maxpool(self.forward_stem(x))
        for name in self.stage_names:
            x = self.forward_stage(name, x)
        return x

    def forward_stem(self, x: Tensor) -> Tensor:
        """Return the output of the first convolution, its norm and ReLU."""
        _check_images(x, self.in_channels)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        return out

    def forward_stage(self, name: str, x: Tensor) -> Tensor:
        """Return the output of one stage, by its name in `stage_names`."""
        out: Tensor = self.get_submodule(name)(x)
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of `forward_features`' output, or with `pre_logits` what the classifier takes."""
        x = self.dropout(torch.flatten(self.avgpool(x), 1))
        logits: Tensor = x if pre_logits else self.fc(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def no_weight_decay(self) -> set[str]:
        """Return `whatwhere.no_weight_decay(self)`; timm's `create_optimizer_v2` asks for it."""
        return no_weight_decay(self)

    def reset_classifier(self, num_classes: int, seed: int | None = None) -> None:
        """Replace the classifier by a fresh one, or with `num_classes=0` leave it out."""
        check_head(num_classes, self.in_channels)
        self.num_classes = num_classes
        seed, reference = resolve_seed(seed), self.conv1.weight
        with seeded(seed, "construction"):
            self.fc = _classifier(self.num_features, num_classes).to(reference.device, reference.dtype)
        initialize(nn.ModuleDict({"fc": self.fc}), seed)


class _AttentionSlot:
    """Builds the attentions where they stand; remembers which modules chose their own initial values."""

    def __init__(
        self, attention: str | Callable[..., nn.Module] | None, kwargs: Mapping[str, Any] | None, seed: int
    ) -> None:
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise UserError(f"attention_kwargs must be a dict of keyword arguments, got a {type(kwargs).__name__}")
        if attention is None and kwargs:
            raise UserError(f"attention_kwargs {brief(dict(kwargs))} without an attention to pass them to")
        self.builder = None if attention is None else attention_builder(attention)
        self.kwargs = dict(kwargs or {})
        self.seed = seed
        self.place: Place | None = None  # where they stand, as the first one built says
        self.self_initialized: list[nn.Module] = []

    def build(self, place: Place, name: str, channels: int) -> nn.Module | None:
        """Return the attention called `name`, or None if none stands at such a place."""
        if self.builder is None or self.place not in (None, place):
            return None
        with seeded(self.seed, name):
            try:
                module = self.builder(channels, **self.kwargs)
            except TypeError as error:
                raise UserError(
                    f"the attention cannot be built from {channels} channels and the attention_kwargs "
                    f"{brief(self.kwargs)}: {cause(error)}{unknown_argument(self.builder, self.kwargs)}"
                ) from error
        if not isinstance(module, nn.Module):
            raise UserError(
                f"attention must build a torch.nn.Module from a channel count, got a {type(module).__name__}"
            )
        if self.place is None:
            self.place = place_of(self.builder, module)
            if self.place != place:
                return None
        if type(module) not in ATTENTION.values():
            self.self_initialized.append(module)
        return module

    def check_stands(self, num_stages: int) -> None:
        if self.place == "stage" and num_stages == 1:
            raise UserError("this attention stands between stages, and the network has one stage; give it more")


def _stage(blocks: Sequence[nn.Module], attention: nn.Module | None) -> nn.Sequential:
    if attention is None:
        return nn.Sequential(*blocks)
    stage = AttentiveStage(*blocks)
    stage.add_module("attention", attention)
    return stage


def check_head(num_classes: int, in_channels: int) -> None:
    """Raise UserError unless both counts are possible."""
    check_integer("num_classes", num_classes, least=0)
    check_integer("in_channels", in_channels)


def _check_sizes(
    layers: Sequence[int], widths: Sequence[int], groups: int, width_per_group: int, stem_channels: int
) -> None:
    for option, values in (("layers", layers), ("widths", widths)):
        if not isinstance(values, Sequence) or not values:
            raise UserError(f"{option} must be a sequence with an integer for each stage, got {brief(values)}")
        for value in values:
            check_integer(f"each entry of {option}", value)
    if len(widths) != len(layers):
        raise UserError(
            f"widths {brief(tuple(widths))} and layers {brief(tuple(layers))} must name the same number of stages"
        )
    for option, value in (("groups", groups), ("width_per_group", width_per_group), ("stem_channels", stem_channels)):
        check_integer(option, value)
    if min(widths) * width_per_group < 64:
        raise UserError(
            f"width_per_group {width_per_group} leaves no channel in a stage of {min(widths)} planes: a group has "
            "planes * width_per_group / 64"
        )


def _check_dilated(dilated: Sequence[bool] | None, num_stages: int) -> tuple[bool, ...]:
    if dilated is None:
        return (False,) * (num_stages - 1)
    is_fit = isinstance(dilated, Sequence) and len(dilated) == num_stages - 1
    if not is_fit or not all(isinstance(value, bool) for value in dilated):
        raise UserError(
            f"replace_stride_with_dilation must be {num_stages - 1} times True or False, for each stage but the first, "
            f"got {brief(dilated)}"
        )
    return tuple(dilated)


@torch.fx.wrap
def _check_images(x: Tensor, in_channels: int) -> None:
    if x.dim() != 4 or x.shape[1] != in_channels:
        raise UserError(f"conv1, the first layer, takes images of shape (N, {in_channels}, H, W), got {tuple(x.shape)}")


def _checked_norm(norm_layer: Norm | None) -> Norm:
    """Return what builds a norm and raises UserError where it cannot."""
    if norm_layer is None:
        return nn.BatchNorm2d
    if not callable(norm_layer):
        raise UserError(f"norm_layer must build a norm from a channel count, got {brief(norm_layer)}")

    def build(num_features: int) -> nn.Module:
        try:
            norm = norm_layer(num_features)
        except (TypeError, ValueError) as error:
            raise UserError(f"norm_layer cannot build a norm of {num_features} channels: {cause(error)}") from error
        if not isinstance(norm, nn.Module):
            raise UserError(f"norm_layer must build a torch.nn.Module, got a {type(norm).__name__}")
        return norm

    return build


def _projection(in_channels: int, out_channels: int, stride: int, norm_layer: Norm) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm_layer(out_channels))


def _drop_path(rate: float) -> nn.Module:
    return StochasticDepth(rate) if rate > 0 else nn.Identity()


def _classifier(num_features: int, num_classes: int) -> nn.Module:
    return nn.Linear(num_features, num_classes) if num_classes > 0 else nn.Identity()


_DEPTH_50, _DEPTH_101, _DEPTH_152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
_CIFAR: dict[str, Any] = {"block": BasicBlock, "widths": (16, 32, 64), "stem": "cifar", "stem_channels": 16}
_CIFAR_29: dict[str, Any] = {"block": Bottleneck, "layers": (3, 3, 3), "widths": (64, 128, 256), "stem": "cifar"}

RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"block": BasicBlock, "layers": (2, 2, 2, 2)},
    "resnet34": {"block": BasicBlock, "layers": _DEPTH_50},
    "resnet50": {"block": Bottleneck, "layers": _DEPTH_50},
    "resnet101": {"block": Bottleneck, "layers": _DEPTH_101},
    "resnet152": {"block": Bottleneck, "layers": _DEPTH_152},
    # The widened ResNet-18 of the CBAM paper's Table 4; its stem keeps 64 channels.
    "wide_resnet18_1_5": {"block": BasicBlock, "layers": (2, 2, 2, 2), "widths": (96, 192, 384, 768)},
    "wide_resnet18_2": {"block": BasicBlock, "layers": (2, 2, 2, 2), "widths": (128, 256, 512, 1024)},
    "wide_resnet50_2": {"block": Bottleneck, "layers": _DEPTH_50, "width_per_group": 128},
    "resnext50_32x4d": {"block": Bottleneck, "layers": _DEPTH_50, "groups": 32, "width_per_group": 4},
    "resnext101_32x4d": {"block": Bottleneck, "layers": _DEPTH_101, "groups": 32, "width_per_group": 4},
    "resnext101_32x8d": {"block": Bottleneck, "layers": _DEPTH_101, "groups": 32, "width_per_group": 8},
    "resnext101_64x4d": {"block": Bottleneck, "layers": _DEPTH_101, "groups": 64, "width_per_group": 4},
    "resnext152_32x4d": {"block": Bottleneck, "layers": _DEPTH_152, "groups": 32, "width_per_group": 4},
    # For images of about 32 pixels: arXiv 1512.03385, section 4.2, with 1x1 projections as shortcuts (its option B).
    "resnet8": {**_CIFAR, "layers": (1, 1, 1)},
    "resnet20": {**_CIFAR, "layers": (3, 3, 3)},
    # arXiv 1611.05431, section 5.2.
    "resnext29_8x64d": {**_CIFAR_29, "groups": 8, "width_per_group": 64},
    "resnext29_16x64d": {**_CIFAR_29, "groups": 16, "width_per_group": 64},
    "resnext29_32x4d": {**_CIFAR_29, "groups": 32, "width_per_group": 4},
    # One block a stage and half the planes: trains in under a minute on a CPU.
    "resnext11_8x8d": {
        "block": Bottleneck,
        "layers": (1, 1, 1),
        "widths": (32, 64, 128),
        "stem": "cifar",
        "stem_channels": 32,
        "groups": 8,
        "width_per_group": 8,
    },
}
