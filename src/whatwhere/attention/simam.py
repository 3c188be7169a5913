from __future__ import annotations

import torch
import torch.fx
from torch import Tensor

from ..base.errors import check_factor
from ..ops.layout import widened
from ..ops.reference import bessel
from .gate import Device, ScalingAttention, Start, described, leave_a_mark

# symbolic tracing patches a function under the name by which it is called
torch.fx.wrap("bessel")
torch.fx.wrap("widened")


class SimAM(ScalingAttention):
    """SimAM, Yang et al., ICML 2021 (PMLR 139:11863): each value is scaled by how far it is from its channel's mean.

    With t a value of x, mu and v the mean and the variance of its channel in its image, and lambda = `e_lambda`::

        e* = 4 (v + lambda) / ((t - mu)^2 + 2 v + 2 lambda)      the least energy, eq. 5
        y  = sigmoid(1 / e*) * x                                 eq. 6
           = sigmoid((t - mu)^2 / (4 (v + lambda)) + 1/2) * x

    Args:
        channels: Channels C of the input; there is no parameter.
        e_lambda: lambda, positive: 1e-4 in the paper's CIFAR networks, 0.1 in the authors' for ImageNet.
        start: "paper", or "identity" for y = x at the start (see `ScalingAttention`).
        device, dtype: Of the parameters; None for the current defaults.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any H and W.

    Dtype:
        Any floating dtype; returned in that of the input, the gates computed in float32 at least.

    Raises:
        UserError: An impossible option, or an input of another rank or channel count.

    Note:
        The variance is the sum of squares over H * W - 1, as in the authors' code; the paper divides by H * W. On a
        1x1 map, where their code gives NaN, the variance is 0. The gate is at least sigmoid(1/2) = 0.62. In a
        `ResNet` it stands before the sum as all others do; the authors' networks have it behind each block's 3x3
        convolution (the second one of a basic block). No parameters; one, `mix`, with identity start; an empty tensor
        `mark` tells a network with it from one without.
    """

    def __init__(
        self,
        channels: int,
        *,
        e_lambda: float = 1e-4,
        start: Start = "paper",
        device: Device = None,
        dtype: torch.dtype | None = None,
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

    def extra_repr(self) -> str:
        return described(self.channels, self.mix, f"e_lambda={self.e_lambda:g}")
