from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..ops.forms import Layers, known, layers
from ..ops.reference import POOLS
from .gate import Device, Dtype, Gate, Start, channels_into, check_choice, check_names, hidden_width

Form = Literal["official", "timm"]


@known
class Excitation(nn.Module):
    """Channel gate sigmoid(W2 relu(W1 z + b1) + b2) of one pooled feature z.

    Args:
        channels: Channels C.
        hidden_channels: Width of the hidden layer.
        pools: Names of the pooled features that the gate takes: those that `whatwhere.ops.gate` knows.
        bias: Whether both layers have a bias.

    Shape:
        (N, C) -> (N, C).
    """

    def __init__(self, channels: int, hidden_channels: int, pools: tuple[str, ...] = ("avg",), bias: bool = True):
        super().__init__()
        check_names("pools", pools, tuple(POOLS))
        self.pools = tuple(pools)
        self.fc1 = nn.Linear(channels, hidden_channels, bias=bias)
        self.fc2 = nn.Linear(hidden_channels, channels, bias=bias)

    @property
    def channels(self) -> int | None:
        return channels_into(self.fc1)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.mlp(z))

    def form(self) -> Layers | None:
        return layers(self.fc1, self.fc2) if len(self.pools) == 1 else None

    def mlp(self, z: Tensor) -> Tensor:
        """Return W2 relu(W1 z + b1) + b2."""
        logits: Tensor = self.fc2(torch.relu(self.fc1(z)))
        return logits

    def extra_repr(self) -> str:
        return f"pools={self.pools}"


class SqueezeExcitation(Gate):
    """Squeeze-and-excitation, arXiv 1709.01507, eqs. 2 to 4: a channel gate from the average of each channel.

    With C = `channels` and r = `reduction`::

        z = mean over H x W of x            squeeze, eq. 2      (N, C)
        s = sigmoid(W2 relu(W1 z))          excitation, eq. 3   W1 (C/r, C), W2 (C, C/r)
        y = s * x                           eq. 4

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Args:
        reduction: r; the hidden width is C / r, rounded by the rule of `form`.
        bias: Whether W1 and W2 have biases, as in the authors' code (the formula has none).
        form: "official" (width rounded down, at least 1) or "timm" (to the nearest multiple of 8, at least 8).

    Note:
        torchvision's module of this name takes the hidden width itself. The two forms differ below 128 channels or so:
        at C = 64 and r = 16 the width is 4 or 8.
        2 * C * hidden + hidden + C parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: float = 16,
        bias: bool = True,
        form: Form = "official",
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        hidden = hidden_width(channels, reduction)
        check_choice("form", form, get_args(Form))
        if form == "timm":
            hidden = max(8, int(channels / reduction + 4) // 8 * 8)
        # y = x * what(mean of x)
        super().__init__(channels, Excitation(channels, hidden, bias=bias), start=start, device=device, dtype=dtype)
