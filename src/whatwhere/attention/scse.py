from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .gate import Device, Dtype, ScalingAttention, Start, check_choice, hidden_width
from .squeeze_excitation import Excitation

Combine = Literal["add", "max"]


class SpatialChannelSE(ScalingAttention):
    """scSE, arXiv 1803.02579: squeeze-and-excitation over channels and over pixels, side by side.

    With C = `channels` and r = `reduction`::

        s = sigmoid(W2 relu(W1 mean over H x W of x + b1) + b2)     cSE    W1 (C/r, C), W2 (C, C/r); (N, C, 1, 1)
        q = sigmoid(w . x + b)                                      sSE    w (C,), at each pixel; (N, 1, H, W)
        y = x * s + x * q                                           combine = "add"
        y = max(x * s, x * q)                                       combine = "max"

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Args:
        reduction: r, 2 as in the paper; the hidden width is max(1, C // r).
        combine: "add" as in the paper, or "max", the max-out of the authors' journal article (arXiv 1808.08127) and of
            their code.

    Note:
        The biases are those of the authors' code; the paper's formulas have none. Where both products are equal, one
        gate has the whole gradient; torch's maximum would halve it. With hidden width h: 2 * C * h + h + C parameters
        of cSE and C + 1 of sSE.
    """

    shown = ("combine",)
    sized_by = "spatial"

    def __init__(
        self,
        channels: int,
        *,
        reduction: float = 2,
        combine: Combine = "add",
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(channels, start=start)
        check_choice("combine", combine, get_args(Combine))
        self.combine = combine
        self.channel = Excitation(channels, hidden_width(channels, reduction))
        self.spatial = nn.Conv2d(channels, 1, 1)
        self.to(device=device, dtype=dtype)

    def gates(self, x: Tensor) -> Tensor:
        s, q = self.parts(x).values()
        if self.combine == "add":
            sum_of_gates: Tensor = s + q
            return sum_of_gates
        # for a negative x the smaller gate makes the larger product
        return torch.where((x < 0) == (s < q), s, q)

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        s = self.channel(x.mean((2, 3)))[:, :, None, None]
        return {"channel": s, "spatial": torch.sigmoid(self.spatial(x))}
