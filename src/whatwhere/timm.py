"""Importing this registers with timm the networks that timm lacks: `timm.create_model("cbam_resnext50_32x4d")`.

No name of timm's own is overwritten; `REGISTERED` lists what was added.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import timm.models
import torch
from timm.layers import create_classifier
from timm.models import checkpoint_seq, register_model, resolve_pretrained_cfg
from torch import Tensor, nn

from . import weights
from .attention import ATTENTION
from .models.initialization import initialize, resolve_seed
from .models.resnet import RESNETS, ResNet, check_head

_IMAGENET = {
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
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
        **kwargs: As of `ResNet`.
    """

    def __init__(self, *args: Any, in_chans: int = 3, global_pool: str = "avg", **kwargs: Any) -> None:
        super().__init__(*args, in_channels=in_chans, **kwargs)
        del self.avgpool
        self.in_chans = in_chans
        self.grad_checkpointing = False
        self._set_head(self.num_classes, global_pool, kwargs.get("seed"))
        stem_reduction = self.conv1.stride[0]
        self.feature_info = [{"num_chs": self.conv1.out_channels, "reduction": stem_reduction, "module": "relu"}]
        reduction = stem_reduction * (2 if isinstance(self.maxpool, nn.MaxPool2d) else 1)
        for index, (name, channels) in enumerate(zip(self.stage_names, self.stage_channels, strict=True)):
            self.feature_info.append({"num_chs": channels, "reduction": reduction << index, "module": name})

    def _set_head(self, num_classes: int, global_pool: str, seed: int | None) -> None:
        check_head(num_classes, self.in_channels)
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        initialize(nn.ModuleDict({"fc": self.fc}), resolve_seed(seed))
        self.fc.to(self.conv1.weight.device, self.conv1.weight.dtype)

    def reset_classifier(  # type: ignore[override]  # timm's second argument is the pooling
        self, num_classes: int, global_pool: str | None = None, seed: int | None = None
    ) -> None:
        """Replace the classifier, and with `global_pool` the pooling; `num_classes=0` leaves the classifier out."""
        self._set_head(num_classes, self.global_pool.pool_type if global_pool is None else global_pool, seed)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """Return the classifier, or its name."""
        return "fc" if name_only else self.fc

    def forward_stage(self, name: str, x: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint_seq(getattr(self, name), x)
            return out
        return super().forward_stage(name, x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.dropout(self.global_pool(x))
        logits: Tensor = x if pre_logits else self.fc(x)
        return logits

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns by which timm groups parameters for layer-wise learning rates."""
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


def _build(
    name: str,
    backbone: str,
    own_attention: str | None,
    pretrained: bool | str | os.PathLike[str] = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a registered network the way timm does; `pretrained=True` without a source takes torchvision's weights."""
    config = RESNETS[backbone]
    overlay = dict(pretrained_cfg_overlay or {})
    if isinstance(pretrained, (str, os.PathLike)):
        overlay["file"], pretrained = os.fspath(pretrained), True
    if pretrained:
        overlay["state_dict"] = state = _pretrained_state(name, backbone, pretrained_cfg, overlay)
        if state is not None and "fc.weight" in state:
            # without it timm would take the file's classifier for one of 1000 classes and drop any other
            overlay["num_classes"] = state["fc.weight"].shape[0]
        if own_attention is not None and (state is None or weights.starts_as_identity(state)):
            kwargs["attention_kwargs"] = {"start": "identity", **kwargs.get("attention_kwargs", {})}
    if own_attention is not None:
        kwargs["attention"] = own_attention
    model: Any = timm.models.build_model_with_cfg(
        functools.partial(TimmResNet, **config),
        name,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=_keep_new_attention,
        feature_cfg={"out_indices": tuple(range(len(config["layers"]) + 1))},
        **kwargs,
    )
    model.pretrained_cfg.pop("state_dict", None)  # the model holds these weights now
    network: nn.Module = model
    return network


def _pretrained_state(
    name: str, backbone: str, pretrained_cfg: Any, overlay: dict[str, Any]
) -> weights.StateDict | None:
    """Return the state dict to load, or None where only timm can fetch it (a URL or a hub)."""
    resolved = resolve_pretrained_cfg(name, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=overlay)
    if resolved.state_dict:
        return dict(resolved.state_dict)
    if resolved.file:
        return weights.read_state_dict(resolved.file)
    if resolved.url or resolved.hf_hub_id:
        return None
    return weights.torchvision_state_dict(backbone)


def _keep_new_attention(state: weights.StateDict, model: nn.Module) -> weights.StateDict:
    if weights.has_attention(state):
        return state
    return {**{key: value for key, value in model.state_dict().items() if weights.is_attention_key(key)}, **state}


def _register(name: str, backbone: str, attention: str | None) -> None:
    def entrypoint(pretrained: bool | str | os.PathLike[str] = False, **kwargs: Any) -> nn.Module:
        return _build(name, backbone, attention, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    register_model(entrypoint)


def _lacking() -> dict[str, tuple[str, str | None]]:
    prefixes: dict[str, str | None] = {"": None, **{f"{attention}_": attention for attention in ATTENTION}}
    names = {prefix + backbone: (backbone, value) for prefix, value in prefixes.items() for backbone in RESNETS}
    return {name: parts for name, parts in names.items() if not timm.models.is_model(name)}


_NEW = _lacking()
default_cfgs: dict[str, Any] = timm.models.generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "first_conv": "conv1",
            "classifier": "fc",
            "license": "apache-2.0",
            **(_CIFAR if RESNETS[backbone].get("stem") == "cifar" else _IMAGENET),
        }
        for name, (backbone, _) in _NEW.items()
    }
)
__all__: list[str] = ["REGISTERED", "TimmResNet"]
for _name, _parts in _NEW.items():
    _register(_name, *_parts)
REGISTERED: tuple[str, ...] = tuple(_NEW)
