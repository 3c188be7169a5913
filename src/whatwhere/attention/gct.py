from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..base.errors import check_integer
from .gate import Device, Dtype, Gate, Start


class ChannelNormalization(nn.Module):
    """Channel gate 1 + tanh(gamma * s / rms(s) + beta), where s is alpha times the l2 norm of each channel.

    Shape:
        (N, C) -> (N, C).
    """

    pools = ("l2",)
    in_float32 = True  # float16 may hold neither a norm nor its square
    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    @property
    def channels(self) -> int:
        return self.alpha.shape[0]

    def forward(self, norms: Tensor) -> Tensor:
        embedding = self.alpha * torch.sqrt(norms.square() + self.eps)
        rms = torch.sqrt(embedding.square().mean(1, keepdim=True) + self.eps)
        return 1 + torch.tanh(self.gamma * embedding / rms + self.beta)


class GatedChannelTransform(Gate):
    """GCT, arXiv 1909.11519, eqs. 2 to 4: a channel gate from the l2 norm of each channel, relative to the others.

    With C = `channels` and learned alpha, gamma, beta (C,)::

        s = alpha * sqrt(sum over H x W of x ** 2 + eps)                   global context embedding, eq. 2
        n = s / sqrt(mean over C of s ** 2 + eps)                          channel normalisation, eq. 3
        y = x * (1 + tanh(gamma * n + beta))                               gating, eq. 4

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Args:
        start: "paper" or "identity"; both are the same here, because alpha = 1 and gamma = beta = 0 make y = x.

    Note:
        The gates are computed in float32 at least. alpha gets no gradient before the second step, when gamma is no
        longer 0. As in the authors' code, eps = 1e-5 is added to the mean of s ** 2 (in the paper, to the sum). Their
        l1 form is left out. The authors put the module before every convolution; in the networks here it stands once in
        each block, like the others. The authors exempt beta from weight decay and decay alpha and gamma;
        `no_weight_decay` names all three, as decay pulls gamma to 0, where y = x. 3 * C parameters.
    """

    identity_at_start: ClassVar[bool] = True
    bounds = (0.0, 2.0)

    def __init__(self, channels: int, *, start: Start = "paper", device: Device = None, dtype: Dtype = None) -> None:
        check_integer("channels", channels)
        # y = x * what(l2 norm of x)
        super().__init__(channels, ChannelNormalization(channels), start=start, device=device, dtype=dtype)
