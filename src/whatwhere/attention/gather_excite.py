from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.errors import UserError, check_integer
from ..base.words import brief
from .gate import Device, Dtype, Gate, ScalingAttention, Start, channels_into, check_choice, hidden_width, leave_a_mark

Variant = Literal["theta-minus", "theta", "theta-plus"]


class AverageGate(nn.Module):
    """Channel gate sigmoid(average), without parameters.

    Shape:
        (N, C) -> (N, C).
    """

    pools = ("avg",)

    def __init__(self) -> None:
        super().__init__()
        leave_a_mark(self)

    def forward(self, averages: Tensor) -> Tensor:
        return torch.sigmoid(averages)


class GatherExcite(Gate):
    """Gather-excite without parameters, GE-theta-minus with global extent, arXiv 1810.12348, section 3.

    ::

        g = mean over H x W of x      gather
        y = sigmoid(g) * x            excite

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Note:
        This is the paper's form without parameters that fits any size of the map. The paper's main claim is that a
        ResNet-50 with it does better than a ResNet-101. `LocalGatherExcite` has the other forms, among them the paper's
        best, GE-theta-plus with global extent. With a bottleneck after the average this is SE. Behind a BatchNorm with
        bias 0, every gate is near 0.5 at first. No parameters; an empty buffer `mark` shows in a state dict that the
        module is there.
    """

    def __init__(self, channels: int, *, start: Start = "paper", device: Device = None, dtype: Dtype = None) -> None:
        check_integer("channels", channels)
        # y = x * what(mean of x)
        super().__init__(channels, AverageGate(), start=start, device=device, dtype=dtype)


class LocalGatherExcite(ScalingAttention):
    """Gather-excite, arXiv 1810.12348, section 3: gates from the surroundings of each pixel, or from the whole map.

    With e = `extent`, each channel by itself::

        g = averages of 2 e - 1 pixels square, e apart                      gather, theta-minus
        g = log2(e) depthwise 3x3 convolutions of stride 2, BatchNorm after each, ReLU between
            (with `size` one depthwise convolution as large as the map)     gather, theta and theta-plus
        y = sigmoid(interp(g)) * x                                          excite, theta-minus and theta
        y = sigmoid(interp(W2 relu(W1 relu(g) + b1) + b2)) * x              excite, theta-plus; W1 (C/r, C), 1x1

    where interp repeats the nearest value up to H x W, C = `channels` and r = `reduction`.

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Args:
        variant: "theta-minus", "theta" or "theta-plus".
        extent: e, a power of two from 2 on; None for the whole map.
        size: Height and width of the map, for the learned gathering of a whole map only.
        reduction: r; the hidden width of theta-plus is max(1, C // r).

    Shape:
        (N, C, H, W) -> (N, C, H, W); with `size`, H and W must be those.

    Raises:
        ValueError: From torch, in training, if a BatchNorm sees one value for each channel: a batch of one that is
            gathered into one pixel.

    Note:
        The averages leave out what is beyond the edge. As in the authors' Caffe networks, the gathering convolutions
        have no bias and theta-plus has a ReLU before its bottleneck (timm's `GatherExcite` has none). Their initial
        values are not copied. With n = log2(e) convolutions 11 * C * n parameters (with `size`, C * H * W
        + 2 * C), and in theta-plus with hidden width h another 2 * C * h + h + C.
    """

    shown = ("variant", "extent")

    def __init__(
        self,
        channels: int,
        *,
        variant: Variant = "theta-plus",
        extent: int | None = 8,
        size: tuple[int, int] | None = None,
        reduction: float = 16,
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(channels, start=start)
        check_choice("variant", variant, get_args(Variant))
        hidden = hidden_width(channels, reduction)
        if extent is not None:
            check_integer("extent", extent)
            if extent < 2 or extent & (extent - 1):
                raise UserError(f"extent must be a power of two from 2 on, or None for the whole map, got {extent}")
        if size is not None:
            if not isinstance(size, (tuple, list)) or len(size) != 2:
                raise UserError(f"size must be a height and a width, got {brief(size)}")
            for value in size:
                check_integer("each of size", value)
            size = size[0], size[1]
        if (size is not None) != (extent is None and variant != "theta-minus"):
            raise UserError(
                "size is for the learned gathering of a whole map (extent=None, theta or theta-plus), which needs it; "
                f"got variant {brief(variant)}, extent {brief(extent)}, size {brief(size)}"
            )
        self.variant, self.extent, self.size = variant, extent, size
        self.gather = _gathering(channels, variant, extent, size)
        self.excite: nn.Module = nn.Identity()
        if variant == "theta-minus":
            leave_a_mark(self)
        if variant == "theta-plus":
            bottleneck = nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1)
            self.excite = nn.Sequential(nn.ReLU(), *bottleneck)
        self.to(device=device, dtype=dtype)

    @property
    def channels(self) -> int | None:
        return None if self.variant == "theta-minus" else channels_into(self.gather.get_submodule("0"))

    def gates(self, x: Tensor) -> Tensor:
        if self.size is not None:
            _check_size(type(self).__name__, x, self.size)
        gathered = self.gather(x)
        if self.size is not None:
            # fails where a trace, which forgets the check, meets another size
            gathered = gathered.reshape(x.shape[0], x.shape[1], 1, 1)
        gates = torch.sigmoid(self.excite(gathered))
        # one value serves all pixels by broadcasting
        return gates if self.extent is None else F.interpolate(gates, size=x.shape[2:])


def _gathering(channels: int, variant: Variant, extent: int | None, size: tuple[int, int] | None) -> nn.Module:
    if variant == "theta-minus":
        if extent is None:
            return nn.AdaptiveAvgPool2d(1)
        return nn.AvgPool2d(2 * extent - 1, extent, padding=extent - 1, count_include_pad=False)
    if extent is None:
        assert size is not None
        return nn.Sequential(nn.Conv2d(channels, channels, size, groups=channels, bias=False), nn.BatchNorm2d(channels))
    layers: list[nn.Module] = []
    for _ in range(extent.bit_length() - 1):
        convolution = nn.Conv2d(channels, channels, 3, 2, padding=1, groups=channels, bias=False)
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.fx.wrap
def _check_size(name: str, x: Tensor, size: tuple[int, int]) -> None:
    if tuple(x.shape[2:]) != size:
        raise UserError(f"{name} was built for maps of {size[0]}x{size[1]}, got {x.shape[2]}x{x.shape[3]}")
