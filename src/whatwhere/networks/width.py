"""The width at which a network has a given number of parameters."""

from __future__ import annotations

import bisect

import torch

from ..base.errors import UserError, check_integer
from .factory import create
from .spec import MAX_WIDTH_FACTOR, NetworkSpec

_STEPS = 10_000  # in which the factor is searched, for 1: four decimals


def width_factor_for(name: str, num_params: int, *, num_classes: int = 1000) -> float:
    """Return the `width_factor` with which the network `name` has the number of parameters nearest to `num_params`.

    Rounded to 4 decimals, of two that are equally near the smaller. How near it comes depends on the steps in which
    the planes of a stage grow: 1, and for the groups of a ResNeXt 64 / width_per_group, 16 in resnext50_32x4d. Networks
    are built on the meta device, without memory.

    Args:
        name: A ResNet or ResNeXt, as `create_model` takes it; usually a plain one.
        num_params: Parameters to reach, for example those of the same network with attention.
        num_classes: Width of the classifier.

    Raises:
        UserError: The network has more parameters at its usual width, or fewer even at 16 times that, or its width is
            fixed.
    """
    check_integer("num_params", num_params)

    def count(step: int) -> int:
        with torch.device("meta"):
            model = create(NetworkSpec(name=name, num_classes=num_classes, width_factor=step / _STEPS), seed=0)
        return sum(parameter.numel() for parameter in model.parameters())

    least, most = _STEPS, int(MAX_WIDTH_FACTOR * _STEPS)
    if (usual := count(least)) > num_params:
        raise UserError(
            f"{name} has {usual:,} parameters at its usual width, more than {num_params:,}; take a smaller network"
        )
    if count(most) < num_params:
        raise UserError(f"{name} has fewer than {num_params:,} parameters at {MAX_WIDTH_FACTOR:g} times its width")
    # the first step that has at least as many, or the one before it
    reached = least + bisect.bisect_left(range(least, most), num_params, key=count)
    below = max(least, reached - 1)
    return (below if num_params - count(below) <= count(reached) - num_params else reached) / _STEPS
