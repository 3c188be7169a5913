from __future__ import annotations

import torch
from torch import Tensor, nn

from .gate import Device, Dtype, ScalingAttention, Start, hidden_width


class CoordinateAttention(ScalingAttention):
    """Coordinate attention, arXiv 2103.02907: a gate along each axis, both made from the averages of rows and columns.

    With C = `channels`, r = `reduction`, m = max(8, C // r) and [ , ] laying two strips end to end::

        z^h = mean over W of x                  eq. 4, (N, C, H)
        z^w = mean over H of x                  eq. 5, (N, C, W)
        f   = h_swish(BN(F1 [z^h, z^w]))        eq. 6, F1 a 1x1 convolution (m, C); f (N, m, H + W)
        g^h = sigmoid(F_h f^h)                  eq. 7, F_h a 1x1 convolution (C, m), f^h the first H of f
        g^w = sigmoid(F_w f^w)                  eq. 8, F_w the same for f^w, the last W
        y   = x * g^h * g^w                     eq. 9

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Args:
        reduction: r, 32 in the paper's experiments.

    Note:
        The layers are those of the authors' code, parameter for parameter: biases in all three convolutions, at least
        8 hidden channels (the paper says neither), h_swish(t) = t * relu6(t + 3) / 6 as the paper's delta. In training
        the BatchNorm removes the bias of F1, so the gradient of that bias is rounding noise. Averages are taken by
        `mean`, not by adaptive pooling. timm's `CoordAttn` has no biases and another hidden width, by default
        C / 24 rounded to a multiple of 8. 3 * C * m + 3 * m + 2 * C parameters.
    """

    sized_by = "conv"

    def __init__(
        self,
        channels: int,
        *,
        reduction: float = 32,
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(channels, start=start)
        hidden = hidden_width(channels, reduction, least=8)
        self.conv = nn.Conv2d(channels, hidden, 1)
        self.norm = nn.BatchNorm2d(hidden)
        self.act = nn.Hardswish()
        self.conv_h = nn.Conv2d(hidden, channels, 1)
        self.conv_w = nn.Conv2d(hidden, channels, 1)
        self.to(device=device, dtype=dtype)

    def gates(self, x: Tensor) -> Tensor:
        along_h, along_w = self.parts(x).values()
        return along_h * along_w

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        strips = torch.cat((x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)), 2)
        features = self.act(self.norm(self.conv(strips)))
        height = x.shape[2]
        along_h = torch.sigmoid(self.conv_h(features[:, :, :height]))
        along_w = torch.sigmoid(self.conv_w(features[:, :, height:].transpose(2, 3)))
        return {"rows": along_h, "columns": along_w}
