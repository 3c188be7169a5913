from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base.errors import UserError, check_factor, check_integer, is_number
from ..base.words import brief
from ..ops.forms import Layers, along_channels, known
from .gate import Device, Dtype, Gate, Start, check_odd


@known
class ChannelConv(nn.Module):
    """Channel gate sigmoid(k-wide convolution, without a bias, of the averages along the channels).

    Shape:
        (N, C) -> (N, C).
    """

    pools = ("avg",)

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, averages: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(averages[:, None])[:, 0])

    def form(self) -> Layers | None:
        """What C++ computes; see `whatwhere.ops.forms`."""
        return along_channels(self.conv)


class EfficientChannelAttention(Gate):
    """ECA, arXiv 1910.03151: a channel gate from each channel's average and those of its neighbours.

    With C = `channels` and k = `kernel_size`::

        g = mean over H x W of x                                     (N, C)
        k = |log2(C) / gamma + b / gamma|_odd                        the nearest odd number, of two the larger
        w = sigmoid(conv of width k along the channels of g)         C1D_k, zeros beyond both ends
        y = w * x

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Args:
        kernel_size: k, odd; None for the k of the formula.
        gamma: Number of doublings of C that make k larger by 1; above 0.
        b: Added to log2(C).

    Note:
        The authors' networks take k from the command line, one for each stage: 3 everywhere unless given, "3557" for
        their published ResNet-50. By the formula it is 5, 5, 5, 7. timm's `EcaModule` has the formula too, with k at
        least 3, which differs below 8 channels. k parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int | None = None,
        gamma: float = 2,
        b: float = 1,
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        check_integer("channels", channels)
        if kernel_size is None:
            check_factor("gamma", gamma)
            if not is_number(b) or not -math.inf < b < math.inf:
                raise UserError(f"b must be a number, got {brief(b)}")
            whole = int(abs((math.log2(channels) + b) / gamma))
            kernel_size = whole if whole % 2 else whole + 1
        check_odd("kernel_size", kernel_size)
        # y = x * what(mean of x)
        super().__init__(channels, ChannelConv(kernel_size), start=start, device=device, dtype=dtype)
