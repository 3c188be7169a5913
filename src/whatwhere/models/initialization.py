"""Initial weights as a function of (seed, parameter name), so that the layers two networks share start equal."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from ..base.errors import UserError
from ..base.randomness import generator
from ..base.words import brief


def resolve_seed(seed: int | None) -> int:
    """Return `seed`, or, if it is None, one drawn from torch's default generator (so `torch.manual_seed` rules it)."""
    if seed is None:
        return int(torch.randint(2**63 - 1, (), device="cpu"))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"seed must be an integer or None, got {brief(seed)}")
    return seed


@torch.no_grad()
def initialize(model: nn.Module, seed: int, keep: Collection[nn.Module] = ()) -> None:
    """Draw the weights of every convolution and linear layer of `model`, each from (seed, parameter name).

    Convolutions: normal with variance 2 / fan_out (torchvision's and timm's ResNet), but 2 / fan_in where each pixel of
    many channels becomes one number, whose fan_out of 1 would leave it to grow with their number. Linear layers,
    one-dimensional convolutions and biases: uniform within 1 / sqrt(fan_in) (torch's default). Everything else, norms,
    bare parameters and what its module has put to zero, keeps its constant start.

    Args:
        model: The network, changed in place.
        seed: Any integer.
        keep: Modules that chose their own start; nothing inside them is touched.
    """
    kept = {id(inner) for module in keep for inner in module.modules()}
    for prefix, module in model.named_modules():
        if id(module) in kept or not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            continue
        fan_in = module.weight[0].numel()
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.is_meta or not parameter.any():
                continue
            if isinstance(module, (nn.Linear, nn.Conv1d)) or parameter is module.bias:
                _draw(parameter, seed, name, bound=1 / math.sqrt(fan_in))
            else:
                fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
                _draw(parameter, seed, name, std=math.sqrt(2 / (fan_in if fan_out == 1 else fan_out)))


def _draw(parameter: Tensor, seed: int, name: str, *, std: float = 0.0, bound: float | None = None) -> None:
    # on the CPU wherever the parameter is, so that the weights do not depend on the device
    stream = generator(seed, name)
    values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
    if bound is None:
        values.normal_(0, std, generator=stream)
    else:
        values.uniform_(-bound, bound, generator=stream)
    parameter.copy_(values)
