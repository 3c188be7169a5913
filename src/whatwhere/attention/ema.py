from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.errors import check_integer
from .gate import Device, Dtype, ScalingAttention, Start, channels_into, largest_divisor


class EfficientMultiScaleAttention(ScalingAttention):
    """Efficient multi-scale attention (EMA), arXiv 2305.13563: a spatial gate for each group of channels.

    The C = `channels` are split into G = `groups` groups of c channels, which share the same layers.
    For a group u of x::

        z^H = mean over W of u, z^W = mean over H of u           eqs. 1 and 2
        h, w = F1 z^H, F1 z^W                                    F1 a 1x1 convolution (c, c)
        p = GN(u * sigmoid(h) * sigmoid(w))                      the 1x1 branch, GN with a group for each channel
        q = F3 u                                                 the 3x3 branch, a 3x3 convolution (c, c)
        m = a(p) . q + a(q) . p                                  . sums over the c channels; m (1, H, W)
        a(t) = softmax over channels of mean over H x W of t     eq. 3 and softmax
        y = u * sigmoid(m)

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Args:
        groups: Largest G; G is the largest divisor of C up to it.

    Attributes:
        groups: G.

    Note:
        The layers and the default of 32 groups are those of the authors' code (many copies of it have 8); it needs C
        divisible by G. With C <= `groups` each group is one channel, and the softmax is 1. Since GN has a group for
        each channel, the average of p is GN's bias: a(p) is learned and does not depend on x.
        10 * c * c + 4 * c parameters.
    """

    shown = ("groups",)

    def __init__(
        self, channels: int, *, groups: int = 32, start: Start = "paper", device: Device = None, dtype: Dtype = None
    ) -> None:
        super().__init__(channels, start=start)
        check_integer("groups", groups)
        self.groups = largest_divisor(channels, groups)
        group_channels = channels // self.groups
        self.conv1x1 = _SharedConv2d(self.groups, group_channels, 1)
        self.norm = _SharedGroupNorm(self.groups, group_channels)
        self.conv3x3 = _SharedConv2d(self.groups, group_channels, 3)
        self.to(device=device, dtype=dtype)

    def gates(self, x: Tensor) -> Tensor:
        (maps,) = self.parts(x).values()
        # one map for all channels of a group
        return maps.unsqueeze(2).expand(-1, -1, x.shape[1] // self.groups, -1, -1).flatten(1, 2)

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        # convolutions in groups are slow in other formats
        x = x.contiguous()
        height = x.shape[2]
        strips = torch.cat((x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)), 2)
        strips = torch.sigmoid(self.conv1x1(strips))
        p = self.norm(x * strips[:, :, :height] * strips[:, :, height:].transpose(2, 3))
        q = self.conv3x3(x)
        return {"groups": torch.sigmoid(self._weighted_sum(p, q) + self._weighted_sum(q, p))}

    def _weighted_sum(self, weighting: Tensor, features: Tensor) -> Tensor:
        """Return, for each group, the sum of its `features`, weighted by the softmax of the averages of `weighting`."""
        # keepdim: torch does not quantise a mean over one channel or pixel that drops dimensions
        averages = weighting.mean((2, 3), keepdim=True).flatten(1)
        weights = torch.softmax(torch.unflatten(averages, 1, (self.groups, -1)), 2).to(features.dtype)
        return torch.einsum("ngc,ngchw->nghw", weights, torch.unflatten(features, 1, (self.groups, -1)))

    @property
    def channels(self) -> int | None:
        group_channels = channels_into(self.conv3x3)
        return None if group_channels is None else self.groups * group_channels

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # networks pickled by version 0.1 have torch's own layers
        for layer in self.children():
            if type(layer) in (nn.Conv2d, nn.GroupNorm):
                layer.__class__ = _SharedConv2d if isinstance(layer, nn.Conv2d) else _SharedGroupNorm
                vars(layer)["num_uses"] = self.groups


class _SharedConv2d(nn.Conv2d):
    """A convolution of c channels, used for each of G groups of c channels: (N, G * c, H, W) -> (N, G * c, H, W).

    The groups stay on the axis of the channels: tools that read layers take the first axis for the images.
    """

    def __init__(self, num_uses: int, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2)
        self.num_uses = num_uses

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        weight, bias = self.weight.repeat(self.num_uses, 1, 1, 1), self.bias.repeat(self.num_uses)
        # every argument is given: torch does not quantise a shorter call
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.num_uses)


class _SharedGroupNorm(nn.GroupNorm):
    """A group norm of c channels with a group for each, used for each of G groups of c channels."""

    def __init__(self, num_uses: int, channels: int) -> None:
        super().__init__(channels, channels)
        self.num_uses = num_uses

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.repeat(self.num_uses), self.bias.repeat(self.num_uses)
        # not torch's module, which refuses a single value for each group; this makes the bias of it
        return torch.group_norm(x, self.num_uses * self.num_groups, weight, bias, self.eps)
