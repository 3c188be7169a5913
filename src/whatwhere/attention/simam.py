from __future__ import annotations

import torch
import torch.fx
from torch import Tensor

from ..base.errors import check_factor
from ..ops.layout import widened
from ..ops.reference import bessel
from .gate import Device, Dtype, ScalingAttention, Start, leave_a_mark

# symbolic tracing patches a function under the name by which it is called
torch.fx.wrap("bessel")
torch.fx.wrap("widened")


class SimAM(ScalingAttention):
    """SimAM, Yang et al., ICML 2021 (PMLR 139:11863): each value is scaled by how far it is from its channel's mean.

    With t a value of x, mu and v the mean and the variance of its channel in its image, and lambda = `e_lambda`::

        e* = 4 (v + lambda) / ((t - mu)^2 + 2 v + 2 lambda)      the least energy, eq. 5
        y  = sigmoid(1 / e*) * x                                 eq. 6
           = sigmoid((t - mu)^2 / (4 (v + lambda)) + 1/2) * x

    `Attention` explains `start`, `device`, `dtype`, shapes and errors.

    Args:
        channels: Channels C of the input; there is no parameter.
        e_lambda: lambda, positive: 1e-4 in the paper's CIFAR networks, 0.1 in the authors' for ImageNet.

    Note:
        The gates are computed in float32 at least. The variance is the sum of squares over H * W - 1, as in the
        authors' code; the paper divides by H * W. On a 1x1 map the variance is 0; their code gives NaN. The gate is at
        least sigmoid(1/2) = 0.62. In a `ResNet` it stands before the sum like all others; the authors' networks have it
        behind each block's 3x3 convolution (the second one of a basic block). No parameters, or `mix` alone with the
        identity start; an empty buffer `mark` shows in a state dict that the module is there.
    """

    shown = ("e_lambda",)

    def __init__(
        self,
        channels: int,
        *,
        e_lambda: float = 1e-4,
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(channels, start=start)
        check_factor("e_lambda", e_lambda)
        self.e_lambda = float(e_lambda)
        leave_a_mark(self)
        self.to(device=device, dtype=dtype)

    def gates(self, x: Tensor) -> Tensor:
        t = widened(x)
        squares = (t - t.mean((2, 3), keepdim=True)).square()
        variance = squares.mean((2, 3), keepdim=True) * bessel(x)
        return torch.sigmoid(squares / (4 * (variance + self.e_lambda)) + 0.5)
