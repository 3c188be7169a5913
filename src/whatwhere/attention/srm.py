from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.errors import check_integer
from .gate import Device, Dtype, Gate, Start


class StyleIntegration(nn.Module):
    """Channel gate sigmoid(BatchNorm(w1 * mean + w2 * standard deviation)), each channel with its own w1 and w2.

    Shape:
        Two (N, C) -> (N, C).
    """

    pools = ("avg", "std")

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 2))
        self.norm = nn.BatchNorm1d(channels)

    @property
    def channels(self) -> int:
        return self.norm.num_features

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters of two or more dimensions that weight decay must leave alone."""
        return {"weight"}

    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        return torch.sigmoid(self.norm(self.weight[:, 0] * mean + self.weight[:, 1] * std))


class StyleRecalibration(Gate):
    """SRM, arXiv 1903.10829: a channel gate from the mean and the standard deviation of the channel itself.

    With C = `channels`::

        t = (mean over H x W of x, standard deviation over H x W of x)   style pooling       (N, C, 2)
        z = w[:, 0] * t[:, :, 0] + w[:, 1] * t[:, :, 1]                  channel-wise fully connected, w (C, 2)
        g = sigmoid(BatchNorm(z))                                        over N; style integration
        y = g * x

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Raises:
        ValueError: From torch, in training on a batch of one: the BatchNorm then sees one value for each channel.

    Note:
        As in the authors' code, w starts at 0: every gate is 0.5 at first, and the weight of the norm gets no gradient
        before the second step. As in their code, the standard deviation is unbiased (the paper divides by H * W), and
        1e-5 is added to the variance, because otherwise a constant plane has no gradient. A 1x1 map has the deviation
        sqrt(1e-5); their code makes NaN of it. Their training decays neither w nor the norm, and `no_weight_decay`
        names both. 4 * C parameters.
    """

    def __init__(self, channels: int, *, start: Start = "paper", device: Device = None, dtype: Dtype = None) -> None:
        check_integer("channels", channels)
        # y = x * what(mean of x, standard deviation of x)
        super().__init__(channels, StyleIntegration(channels), start=start, device=device, dtype=dtype)
