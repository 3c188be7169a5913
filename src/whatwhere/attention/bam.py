from __future__ import annotations

from collections import OrderedDict
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..base.errors import check_integer
from .gate import Device, Dtype, Place, ScalingAttention, Start, check_choice, hidden_width

Combine = Literal["add", "multiply"]


class BAM(ScalingAttention):
    """Bottleneck attention module, arXiv 1807.06514: a channel and a spatial branch, side by side, between stages.

    With F = x, C = `channels`, r = `reduction` and d = `dilation`::

        F'   = F + F * M                                         the output y, eq. 1
        M    = sigmoid(M_c + M_s)                                eq. 2, M_c (N, C, 1, 1) and M_s (N, 1, H, W) broadcast
        M_c  = W1 relu(BN(W0 mean over H x W of F + b0)) + b1    eq. 3, W0 (C/r, C), W1 (C, C/r)
        M_s  = f3(f2(f1(f0(F))))                                 eq. 4, f0 1x1 to C/r channels; f1, f2 3x3, dilated by
                                                                 d; each with BN and ReLU; f3 1x1 to one channel

    A `ResNet` has it at the end of each stage but the last, as the paper does (its section 3, "bottleneck").

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Args:
        reduction: r; the hidden width of both branches is max(1, C // r).
        dilation: d of the 3x3 convolutions; they are padded, so that H and W stay.
        num_convs: Number of these convolutions, 2 in the paper.
        combine: "add" for the paper's M_c + M_s, "multiply" for M_c * M_s, which the authors' code computes.

    Raises:
        ValueError: From torch, in training with a batch of one: the BatchNorm of M_c sees one value for each channel.

    Note:
        The authors' code computes 1 + sigmoid(M_c * M_s) where the paper adds: `combine="multiply"` is their code.
        With both, the layers are those of their code, parameter for parameter: a BatchNorm behind each hidden layer and
        none behind the last (eqs. 3 and 4 have one at the end of each branch). Their code also has the biases in front
        of a BatchNorm; in training the norm removes them again, so their gradient is rounding noise. Their average pool
        is over H x H, right for square maps only. The hidden width is at least 1; in their code it could be 0.
        With hidden width h and n = `num_convs`: 3 * C * h + 7 * h + C + 1 + n * (9 * h * h + 3 * h) parameters.
    """

    place: Place = "stage"
    sized_by = "channel.fc1"
    shown = ("combine",)
    bounds = (1.0, 2.0)

    def __init__(
        self,
        channels: int,
        *,
        reduction: float = 16,
        dilation: int = 4,
        num_convs: int = 2,
        combine: Combine = "add",
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(channels, start=start)
        hidden = hidden_width(channels, reduction)
        check_integer("dilation", dilation)
        check_integer("num_convs", num_convs)
        check_choice("combine", combine, get_args(Combine))
        self.combine = combine
        self.channel = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(channels, hidden),
                norm=nn.BatchNorm1d(hidden),
                relu=nn.ReLU(),
                fc2=nn.Linear(hidden, channels),
            )
        )
        self.spatial = nn.Sequential(OrderedDict(reduce=_conv_norm(channels, hidden, 1)))
        for index in range(num_convs):
            self.spatial.add_module(f"dilated{index + 1}", _conv_norm(hidden, hidden, 3, dilation))
        self.spatial.add_module("project", nn.Conv2d(hidden, 1, 1))
        self.to(device=device, dtype=dtype)

    def gates(self, x: Tensor) -> Tensor:
        channel, spatial = self.channel(x.mean((2, 3)))[:, :, None, None], self.spatial(x)
        return 1 + torch.sigmoid(channel + spatial if self.combine == "add" else channel * spatial)


def _conv_norm(in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation),
            norm=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(),
        )
    )
