from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .gate import Device, ScalingAttention, SharedMLP, Start, channels_into, check_choice, check_reduction, described

Combine = Literal["add", "max"]


class SpatialChannelSE(ScalingAttention):
    """scSE, arXiv 1803.02579: squeeze-and-excitation over channels and over pixels, side by side.

    With C = `channels` and r = `reduction`::

        s = sigmoid(W2 relu(W1 mean over H x W of x + b1) + b2)     cSE    W1 (C/r, C), W2 (C, C/r); (N, C, 1, 1)
        q = sigmoid(w . x + b)                                      sSE    w (C,), at each pixel; (N, 1, H, W)
        y = x * s + x * q                                           combine = "add"
        y = max(x * s, x * q)                                       combine = "max"

    Args:
        channels: Channels C of the input.
        reduction: r, 2 as in the paper; the hidden width is max(1, C // r).
        combine: "add" as in the paper, or "max", the max-out of the authors' journal article (arXiv 1808.08127) and of
            their code.
        start: "paper", or "identity" for y = x at the start (see `ScalingAttention`).
        device, dtype: Of the parameters; None for the current defaults.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any H and W.

    Dtype:
        Any floating dtype; computed and returned in that of the input.

    Raises:
        UserError: An impossible option, or an input of another rank or channel count.

    Note:
        The biases are the authors' code's; the paper's formulas have none. Where the maximum is of two equal products,
        one gate has the whole gradient, where torch's would be halved. With hidden width h: 2 * C * h + h + C
        parameters of cSE and C + 1 of sSE.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: float = 2,
        combine: Combine = "add",
        start: Start = "paper",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, start=start)
        check_reduction(reduction)
        check_choice("combine", combine, get_args(Combine))
        self.combine = combine
        self.channel = SharedMLP(channels, max(1, int(channels // reduction)))
        self.spatial = nn.Conv2d(channels, 1, 1)
        self.to(device=device, dtype=dtype)

    @property
    def channels(self) -> int | None:
        return channels_into(self.spatial)

    def gates(self, x: Tensor) -> Tensor:
        s = self.channel(x.mean((2, 3)))[:, :, None, None]
        q = torch.sigmoid(self.spatial(x))
        if self.combine == "add":
            sum_of_gates: Tensor = s + q
            return sum_of_gates
        # of a negative x the smaller gate makes the larger product
        return torch.where((x < 0) == (s < q), s, q)

    def extra_repr(self) -> str:
        return described(self.channels, self.mix, f"combine={self.combine!r}")
