from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.errors import UserError, check_integer
from .gate import Device, Dtype, ScalingAttention, Start, check_odd, largest_divisor


class EfficientLocalAttention(ScalingAttention):
    """Efficient local attention (ELA), arXiv 2403.01123: a gate along each axis, from a 1-D convolution of averages.

    With k = `kernel_size` and GN a group norm::

        z_h = mean over W of x                  (N, C, H)
        z_w = mean over H of x                  (N, C, W)
        y_h = sigmoid(GN(F z_h))                F a 1-D convolution of width k, along H
        y_w = sigmoid(GN(F z_w))                and along W
        y   = x * y_h * y_w

    The paper's four versions (the default is ELA-B)::

                 kernel_size    group_channels    norm_groups
        ELA-T         5               1               32
        ELA-B         7               1               16
        ELA-S         5               8               16
        ELA-L         7               8               16

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Args:
        kernel_size: k, odd.
        group_channels: Channels in a group of the convolution (1: each channel by itself); C must be a multiple.
        norm_groups: Largest number of groups of the norm; their number is the largest divisor of C up to it.
        shared: Whether both axes share the convolution and the norm; otherwise each has its own.

    Raises:
        ValueError: From torch, if a group of the norm is a single value: a batch of one with C <= `norm_groups` and a
            side of one pixel.

    Note:
        We found no repository of the authors. The paper writes F_h and F_w; the code that circulates under its name
        shares one convolution, without a bias, and one norm, which is the default here. timm's `EfficientLocalAttn`
        has one of each for either axis (`shared=False`), a norm of one group, and a SiLU in front of the sigmoid. The
        paper's group counts need C divisible by them. C * `group_channels` * k + 2 * C parameters, twice that if not
        shared.
    """

    sized_by = "along_h.0"

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        group_channels: int = 1,
        norm_groups: int = 16,
        shared: bool = True,
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(channels, start=start)
        check_odd("kernel_size", kernel_size)
        check_integer("group_channels", group_channels)
        check_integer("norm_groups", norm_groups)
        if channels % group_channels:
            raise UserError(f"group_channels must divide the {channels} channels, got {group_channels}")

        def axis() -> nn.Sequential:
            groups = channels // group_channels
            conv = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
            return nn.Sequential(conv, nn.GroupNorm(largest_divisor(channels, norm_groups), channels))

        self.along_h = axis()
        self.along_w = None if shared else axis()
        self.to(device=device, dtype=dtype)

    def gates(self, x: Tensor) -> Tensor:
        y_h, y_w = self.parts(x).values()
        return y_h * y_w

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        along_w = self.along_h if self.along_w is None else self.along_w
        y_h, y_w = torch.sigmoid(self.along_h(x.mean(3))), torch.sigmoid(along_w(x.mean(2)))
        return {"rows": y_h[:, :, :, None], "columns": y_w[:, :, None, :]}
