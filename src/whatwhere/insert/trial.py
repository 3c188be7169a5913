"""A forward pass to learn from: with what the user gives, or with what most networks take."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import UserError
from ..base.words import cause
from .flow import Flow, record

_SIZES = (224, 256, 299, 64, 32, 28)


class Trial:
    """Runs a network on one example.

    Args:
        model: The network.
        example: What it is called with: a tensor, or a tuple of arguments; None for a batch of one image, of the first
            size with which the network runs.

    Raises:
        UserError: The network does not run, or is not one that can be changed.
    """

    def __init__(self, model: nn.Module, example: Any = None) -> None:
        _check(model)
        self.model = model
        given = example if isinstance(example, tuple) or example is None else (example,)
        candidates = _candidates(model) if given is None else [given]
        if not candidates:
            raise UserError("the network has no 2-d convolution; attention is for convolutional networks")
        first: Exception | None = None
        for arguments in candidates:
            try:
                self.flow: Flow = record(model, functools.partial(model, *arguments))
            except Exception as error:  # a stranger's network may raise anything at a size that it does not take
                first = first or error
                continue
            self.arguments = arguments
            return
        hint = "give another example" if given is not None else "give example, what the network is called with"
        raise UserError(f"the network does not run: {cause(first)}; {hint}") from first


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"attend takes a torch.nn.Module, got a {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("a TorchScript model cannot be changed; attend the model that it was made from")
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(model, wrappers) or hasattr(model, "_orig_mod"):
        inside = "_orig_mod" if hasattr(model, "_orig_mod") else "module"
        raise UserError(f"attend the model before it is compiled or wrapped: {inside} of this {type(model).__name__}")
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise UserError(f"{name} has no shape yet; run the network once before attend")
        if parameter.is_meta:
            raise UserError(f"{name} is on the meta device; load the network first")


def _candidates(model: nn.Module) -> list[tuple[Any, ...]]:
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if convolution is None:
        return []
    sizes = [(size, size) for size in _SIZES]
    # timm's networks say what they take
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and len(config.get("input_size") or ()) == 3:
        sizes.insert(0, tuple(config["input_size"][1:]))
    images = [_image(convolution, size) for size in sizes]
    # torchvision's detectors take a list of images
    return [(image,) for image in images] + [([image[0]],) for image in images[:1]]


def _image(convolution: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    weight = convolution.weight
    values = torch.linspace(-2, 2, convolution.in_channels * size[0] * size[1], device="cpu")
    mixed = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0), device="cpu")]
    image = mixed.view(1, convolution.in_channels, *size)
    return image.to(weight.device, weight.dtype if weight.is_floating_point() else torch.float32)
