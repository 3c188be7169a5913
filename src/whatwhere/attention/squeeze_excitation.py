from __future__ import annotations

from typing import get_args

import torch

from ..base.errors import check_integer
from .gate import Device, Form, Gate, SharedMLP, Start, check_choice, check_reduction


class SqueezeExcitation(Gate):
    """Squeeze-and-excitation, arXiv 1709.01507, eqs. 2 to 4: a channel gate from the average of each channel.

    With C = `channels` and r = `reduction`::

        z = mean over H x W of x            squeeze, eq. 2      (N, C)
        s = sigmoid(W2 relu(W1 z))          excitation, eq. 3   W1 (C/r, C), W2 (C, C/r)
        y = s * x                           eq. 4

    Args:
        channels: Channels C of the input.
        reduction: r; the hidden width is C / r, rounded as `form` says.
        bias: Whether W1 and W2 come with biases, as in the authors' code (the formula has none).
        form: "official" (width rounded down, at least 1) or "timm" (to the nearest multiple of 8, at least 8).
        start: "paper", or "identity" for y = x at the start (see `Gate`).
        device, dtype: Of the parameters; None for the current defaults.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any H and W.

    Dtype:
        Any floating dtype; computed and returned in that of the input.

    Raises:
        UserError: An impossible option, or an input of another rank or channel count.

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
        dtype: torch.dtype | None = None,
    ) -> None:
        check_integer("channels", channels)
        check_reduction(reduction)
        check_choice("form", form, get_args(Form))
        if form == "timm":
            hidden_channels = max(8, int(channels / reduction + 4) // 8 * 8)
        else:
            hidden_channels = max(1, int(channels // reduction))
        super().__init__(
            channels, SharedMLP(channels, hidden_channels, ("avg",), bias), start=start, device=device, dtype=dtype
        )
