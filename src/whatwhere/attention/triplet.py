from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.reference import MAPS
from .cbam import SpatialConv
from .gate import Device, Dtype, ScalingAttention, Start


class TripletAttention(ScalingAttention):
    """Triplet attention, arXiv 2010.03045: a gate over each pair of the axes C, H and W, the three averaged.

    With Z-pool over an axis = [max; mean] over it and psi = BN(conv k x k), one for each branch, k = `kernel_size`::

        w1 = sigmoid(psi1(Z-pool over H of x))      over C and W, (N, C, 1, W)
        w2 = sigmoid(psi2(Z-pool over W of x))      over H and C, (N, C, H, 1)
        w3 = sigmoid(psi3(Z-pool over C of x))      over H and W, (N, 1, H, W)
        y  = (x * w1 + x * w2 + x * w3) / 3

    `Attention` explains `start`, `device`, `dtype`, shapes and errors.

    Args:
        channels: Channels C of the input; no parameter depends on it.
        kernel_size: k, odd.
        spatial: Whether there is the third branch, w3; without it y = (x * w1 + x * w2) / 2.

    Raises:
        ValueError: From torch, in training, if a BatchNorm sees one value alone: a batch of one with C = W = 1, with
            H = C = 1 or with H = W = 1.

    Note:
        As the authors' code, parameter for parameter: convolutions without a bias, BatchNorm with momentum 0.01,
        maxima before means. Here the gates are averaged and x is scaled once; they scale x three times and average.
        The rotations are views here. The kernels slide over channels as if channels had an order. The first of several
        equal maxima takes the gradient. 2 * k * k + 2 parameters a branch, 300 in all by default.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        spatial: bool = True,
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(channels, start=start)

        def branch() -> SpatialConv:
            return SpatialConv(kernel_size, ("max", "mean"), lambda width: nn.BatchNorm2d(width, momentum=0.01))

        self.cw = branch()
        self.hc = branch()
        self.hw = branch() if spatial else None
        self.to(device=device, dtype=dtype)

    def gates(self, x: Tensor) -> Tensor:
        cw, hc, *hw = self.parts(x).values()
        return (cw + hc + hw[0]) / 3 if hw else (cw + hc) / 2

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        # swap the axis to pool over with the channels, and swap it back in the gate
        cw: Tensor = self.cw(_z_pool(x.transpose(1, 2))).transpose(1, 2)
        hc: Tensor = self.hc(_z_pool(x.transpose(1, 3))).transpose(1, 3)
        parts = {"columns": cw, "rows": hc}
        return parts if self.hw is None else {**parts, "spatial": self.hw(_z_pool(x))}


def _z_pool(x: Tensor) -> Tensor:
    return torch.cat([MAPS["max"](x), MAPS["mean"](x)], 1)
