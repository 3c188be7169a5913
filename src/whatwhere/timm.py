"""Importing this module adds the networks of whatwhere to timm: `timm.create_model("cbam_resnext50_32x4d")`.

No name that timm has is overwritten; `REGISTERED` lists the added names.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm.models
import torch
import torchvision
from msgspec.structs import replace
from timm.layers import create_classifier, get_norm_layer, is_scriptable
from timm.models import checkpoint_seq, register_model, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import Tensor, nn

from .attention import ATTENTION
from .base.errors import UserError
from .base.modules import refuse_scripting
from .base.randomness import seeded
from .base.words import brief, cause
from .models.initialization import initialize, resolve_seed
from .models.resnet import RESNETS, ResNet, check_head
from .networks.factory import check_arguments, create, name_of, read_pretrained
from .networks.spec import NetworkSpec
from .networks.weights.files import state_dict_from_url
from .networks.weights.translate import Weights, read_weights, weights_in

_IMAGENET = {
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
_CIFAR = {
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
}


class TimmResNet(ResNet):
    """`ResNet` with the arguments and methods that timm's training and feature code calls.

    Args:
        in_chans: Channels of the images.
        global_pool: timm's pooling: "avg", "max", "avgmax", "catavgmax", or "" for none.
        norm_layer: As in `ResNet`, or timm's name of a norm.
        zero_init_last: timm's name for `zero_init_residual`.
        seed: As in `ResNet`.
        **kwargs: As in `ResNet`.
    """

    def __init__(
        self,
        *args: Any,
        in_chans: int = 3,
        global_pool: str = "avg",
        norm_layer: Any = None,
        zero_init_last: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(norm_layer, str):
            try:
                norm_layer = get_norm_layer(norm_layer)
            except KeyError:
                raise UserError(
                    "norm_layer must build a norm, or be timm's name of one, such as groupnorm; "
                    f"got {brief(norm_layer)}"
                ) from None
        seed = resolve_seed(seed)
        kwargs = {"in_channels": in_chans, "zero_init_residual": zero_init_last, **kwargs}
        super().__init__(*args, norm_layer=norm_layer, seed=seed, **kwargs)
        del self.avgpool
        self.in_chans = self.in_channels
        self.grad_checkpointing = False
        self._set_head(self.num_classes, global_pool, seed)
        stem_reduction = self.conv1.stride[0]
        self.feature_info = [{"num_chs": self.conv1.out_channels, "reduction": stem_reduction, "module": "relu"}]
        reduction = stem_reduction * (2 if isinstance(self.maxpool, nn.MaxPool2d) else 1)
        dilated = self.replace_stride_with_dilation or (False,) * (len(self.stage_names) - 1)
        next_dilated = (*dilated, True)  # no stage follows the last one
        for name, channels, is_next_dilated in zip(self.stage_names, self.stage_channels, next_dilated, strict=True):
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": name})
            reduction *= 1 if is_next_dilated else 2

    def _set_head(self, num_classes: int, global_pool: str, seed: int | None) -> None:
        check_head(num_classes, self.in_channels)
        self.num_classes = num_classes
        seed = resolve_seed(seed)
        with seeded(seed, "construction"):
            try:
                self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
            except AssertionError as error:
                raise UserError(f"timm has no such global_pool: {cause(error)}") from error
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        initialize(nn.ModuleDict({"fc": self.fc}), seed)
        self.fc.to(self.conv1.weight.device, self.conv1.weight.dtype)

    def reset_classifier(  # type: ignore[override]  # timm's second argument is the pooling
        self, num_classes: int, global_pool: str | None = None, seed: int | None = None
    ) -> None:
        """Replace the classifier, and the pooling if `global_pool` is given; `num_classes=0` removes the classifier."""
        self._set_head(num_classes, self.global_pool.pool_type if global_pool is None else global_pool, seed)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """Return the classifier, or its name."""
        return "fc" if name_only else self.fc

    def forward_stage(self, name: str, x: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint_seq(getattr(self, name), x)
            return out
        return super().forward_stage(name, x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last features and a list of the features after the stem (0) and each stage (1, 2, ...).

        Args:
            x: Images.
            indices: The features to list; an integer for that many last ones, None for all.
            norm: No effect, as in timm's ResNet.
            stop_early: Skip the stages behind the last one in `indices`.
            output_fmt: "NCHW", the only format.
            intermediates_only: Return only the list.
        """
        if output_fmt != "NCHW":
            raise UserError(f'output_fmt must be "NCHW", got {brief(output_fmt)}')
        taken, last = feature_take_indices(len(self.feature_info), indices)
        x = self.forward_stem(x)
        intermediates = [x] if 0 in taken else []
        x = self.maxpool(x)
        for index, name in enumerate(self.stage_names[:last] if stop_early else self.stage_names, start=1):
            x = self.forward_stage(name, x)
            if index in taken:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages behind the last of `indices`, and with `prune_head` the head; return the indices."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        for name in self.stage_names[last:]:
            setattr(self, name, nn.Sequential())
        if last < len(self.stage_names):
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or last < len(self.stage_names):
            self.reset_classifier(0, "")
        kept: list[int] = taken
        return kept

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.dropout(self.global_pool(x))
        logits: Tensor = x if pre_logits else self.fc(x)
        return logits

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm groups parameters for layer-wise learning rates."""
        # attention behind a stage belongs to the last block of the stage
        fine = [(r"^layer(\d+)\.(\d+)", None), (r"^layer(\d+)\.attention", MATCH_PREV_GROUP)]
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else fine}


# arguments of timm's `create_model` and `build_model_with_cfg`, and timm's names for arguments of `ResNet`
_OF_TIMM = ("in_chans", "global_pool", "output_stride", "features_only", "out_indices", "feature_cls")
_RENAMED = {"cardinality": "groups", "base_width": "width_per_group", "zero_init_last": "zero_init_residual"}
_OURS = [key for key in inspect.signature(ResNet).parameters if key not in ("block", "layers", "in_channels")]


def _in_our_words(config: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Translate timm's arguments of the network `config` into those of `ResNet`."""
    arguments = dict(kwargs)
    for theirs, ours in _RENAMED.items():
        if theirs in arguments:
            if ours in arguments:
                raise UserError(f"{theirs} is timm's name for {ours}; give one of them")
            arguments[ours] = arguments.pop(theirs)
    if "output_stride" in arguments:
        if "replace_stride_with_dilation" in arguments:
            raise UserError("output_stride is timm's name for replace_stride_with_dilation; give one of them")
        stem = arguments.get("stem", config.get("stem", "imagenet"))
        strides = [(4 if stem == "imagenet" else 1) << stage for stage in range(len(config["layers"]))]
        wanted = arguments.pop("output_stride")
        if wanted not in strides:
            raise UserError(f"output_stride must be one of {', '.join(map(str, strides))}; got {brief(wanted)}")
        arguments["replace_stride_with_dilation"] = [stride > wanted for stride in strides[1:]]
    return arguments


def _build(
    name: str,
    backbone: str,
    own_attention: str | None,
    pretrained: bool | str | os.PathLike[str] = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a registered network as timm does; `pretrained=True` without a source takes torchvision's weights."""
    if is_scriptable():
        refuse_scripting()
    taken = [key for key in (*_OURS, *_OF_TIMM, *_RENAMED) if own_attention is None or key != "attention"]
    # in_channels is timm's in_chans; a name with attention takes no other attention
    check_arguments(name, taken, kwargs, f"{', '.join(('num_classes', *_OF_TIMM, *_RENAMED))} and most of ResNet's")
    config = RESNETS[backbone]
    kwargs = _in_our_words(config, kwargs)
    attention = kwargs.pop("attention", None)
    spec = NetworkSpec(
        name=name,
        attention="" if attention is None else name_of(attention),
        attention_kwargs=kwargs.pop("attention_kwargs", None) or {},
    )
    overlay = dict(pretrained_cfg_overlay or {})
    if isinstance(pretrained, (str, os.PathLike)):
        overlay["file"], pretrained = os.fspath(pretrained), True
    loaded = None
    if pretrained:
        loaded = _pretrained_weights(replace(spec, model_kwargs=kwargs), pretrained_cfg, overlay, cache_dir)

    def construct(seed: int | None = None, num_classes: int = 1000, **arguments: Any) -> nn.Module:
        in_channels = arguments.pop("in_chans", 3)
        built = replace(spec, num_classes=num_classes, in_channels=in_channels, model_kwargs=arguments)
        # weights are loaded here, because timm ignores missing keys where the number of classes differs
        builder = attention if callable(attention) else None
        return create(built, pretrained=loaded, seed=seed, attention=builder, network=TimmResNet)

    model: nn.Module = timm.models.build_model_with_cfg(
        construct,
        name,
        pretrained=False,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=overlay,
        feature_cfg={"out_indices": tuple(range(len(config["layers"]) + 1))},
        **kwargs,
    )
    return model


def _pretrained_weights(
    spec: NetworkSpec, pretrained_cfg: Any, overlay: dict[str, Any], cache_dir: str | os.PathLike[str] | None
) -> Weights | None:
    """Return the weights that timm's configuration names, by default those of torchvision."""
    resolved = resolve_pretrained_cfg(spec.name, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=overlay)
    if resolved.state_dict:
        return weights_in(resolved.state_dict, "pretrained_cfg")
    if resolved.file:
        folder = Path(resolved.file)  # a folder for local-dir:, else the file itself
        found = [file for file in (folder / "model.safetensors", folder / "pytorch_model.bin") if file.exists()]
        path = found[0] if found else folder
        return read_weights(path)
    if resolved.hf_hub_id:
        filename = (resolved.hf_hub_filename,) if resolved.hf_hub_filename else ()
        cache = {} if cache_dir is None else {"cache_dir": cache_dir}
        state = timm.models.load_state_dict_from_hf(resolved.hf_hub_id, *filename, weights_only=True, **cache)
        return weights_in(state, resolved.hf_hub_id)
    if cache_dir is not None:
        raise UserError("cache_dir is for weights of the Hugging Face hub; these are kept in torch's cache, TORCH_HOME")
    if resolved.url:
        state = state_dict_from_url(resolved.url)
        return weights_in(state, resolved.url)
    return read_pretrained(spec, True)


def _register(name: str, backbone: str, attention: str | None) -> None:
    def entrypoint(pretrained: bool | str | os.PathLike[str] = False, **kwargs: Any) -> nn.Module:
        return _build(name, backbone, attention, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    register_model(entrypoint)


def _missing_in_timm() -> dict[str, tuple[str, str | None]]:
    prefixes: dict[str, str | None] = {"": None, **{f"{attention}_": attention for attention in ATTENTION}}
    names = {prefix + backbone: (backbone, value) for prefix, value in prefixes.items() for backbone in RESNETS}
    return {name: parts for name, parts in names.items() if not timm.models.is_model(name)}


def _crop_pct(backbone: str) -> float:
    """Return the share of the resized image that torchvision crops to evaluate its best weights of `backbone`."""
    if backbone not in torchvision.models.list_models(torchvision.models):
        return 0.875
    preset = torchvision.models.get_model_weights(backbone).DEFAULT.transforms()
    # rounded down, so that timm's floor(crop / crop_pct) gives the size again
    crop_pct: float = math.floor(1000 * preset.crop_size[0] / preset.resize_size[0]) / 1000
    return crop_pct


_NEW = _missing_in_timm()
default_cfgs: dict[str, Any] = timm.models.generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "first_conv": "conv1",
            "classifier": "fc",
            "license": "apache-2.0",
            **(_CIFAR if RESNETS[backbone].get("stem") == "cifar" else _IMAGENET | {"crop_pct": _crop_pct(backbone)}),
        }
        for name, (backbone, _) in _NEW.items()
    }
)
__all__: list[str] = ["REGISTERED", "TimmResNet"]
for _name, _parts in _NEW.items():
    _register(_name, *_parts)
REGISTERED: tuple[str, ...] = tuple(_NEW)
