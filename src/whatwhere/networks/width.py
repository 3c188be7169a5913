"""The width at which a network has a given number of parameters."""

from __future__ import annotations

import bisect

from ..base.errors import UserError, check_integer
from .factory import num_params as params_of
from .spec import MAX_WIDTH_FACTOR, NetworkSpec

_STEPS = 10_000  # per 1 of the factor: four decimals


def width_factor_for(name: str, num_params: int, *, num_classes: int = 1000) -> float:
    """Return the `width_factor`, to 4 decimals, that brings the network `name` nearest to `num_params` parameters.

    Of two that are equally near, the smaller one. The planes of a stage grow in steps of 1, those of a ResNeXt in steps
    of 64 / width_per_group (16 in resnext50_32x4d); so a difference remains. Networks are built without memory.

    Args:
        name: A ResNet or ResNeXt, as `create_model` takes it; usually a plain one.
        num_params: Parameters to reach, for example those of the network with attention.
        num_classes: Width of the classifier.

    Raises:
        UserError: The network has more parameters at its usual width, or fewer even at 16 times that, or its width is
            fixed.
    """
    check_integer("num_params", num_params)

    def count(step: int) -> int:
        return params_of(NetworkSpec(name=name, num_classes=num_classes, width_factor=step / _STEPS))

    least, most = _STEPS, int(MAX_WIDTH_FACTOR * _STEPS)
    if (usual := count(least)) > num_params:
        raise UserError(
            f"{name} has {usual:,} parameters at its usual width, more than {num_params:,}; take a smaller network"
        )
    if count(most) < num_params:
        raise UserError(f"{name} has fewer than {num_params:,} parameters at {MAX_WIDTH_FACTOR:g} times its width")
    # the first step with at least as many parameters, or the one before it
    reached = least + bisect.bisect_left(range(least, most), num_params, key=count)
    below = max(least, reached - 1)
    return (below if num_params - count(below) <= count(reached) - num_params else reached) / _STEPS
