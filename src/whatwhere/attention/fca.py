from __future__ import annotations

import torch

from ..base.errors import UserError, check_integer
from ..base.words import brief
from ..ops.spectral import NUM_COMPONENTS
from .gate import Device, Gate, SharedMLP, Start, check_reduction


class FrequencyChannelAttention(Gate):
    """FcaNet's multi-spectral channel attention, arXiv 2012.11879: SE with a cosine transform in place of the average.

    With C = `channels`, r = `reduction`, n = `num_frequencies` and D(u, v) the component of the two-dimensional cosine
    transform of 7 x 7 pixels with u half turns down and v across::

        Freq_i = D(u_i, v_i) of the i-th of n parts of the channels   the n best of 49 components; (0, 0) the average
        s = sigmoid(W2 relu(W1 [Freq_0, ..., Freq_(n-1)]))            W1 (C/r, C), W2 (C, C/r)
        y = s * x

    Args:
        channels: Channels C of the input.
        reduction: r; the hidden width is max(1, C // r).
        num_frequencies: n, one of 1, 2, 4, 8, 16 and 32; the authors' "top16" is 16.
        start: "paper", or "identity" for y = x at the start (see `Gate`).
        device, dtype: Of the parameters; None for the current defaults.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any H and W.

    Dtype:
        Any floating dtype; computed and returned in that of the input, the transform in float32 at least.

    Raises:
        UserError: An impossible option, or an input of another rank or channel count.

    Note:
        The authors build each module for the size of its map in a network for 224 px, 56, 28, 14 or 7, and average
        any other to that size. Here a map is transformed at its own size, which gives the same where theirs needs no
        averaging; a size that is no multiple of 7 is averaged down to the next, below 7 repeated up to 7. Of 1x1 maps
        only the average is left. Their code wants C to be a multiple of n; here parts may differ by one channel, and
        of fewer channels than n each has its own component. The transform is computed as it is used, so the state
        dict has no tensor of it (theirs has one of each module). 2 * C * hidden parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: float = 16,
        num_frequencies: int = 16,
        start: Start = "paper",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_integer("channels", channels)
        check_reduction(reduction)
        if num_frequencies not in NUM_COMPONENTS:
            choices = ", ".join(map(str, NUM_COMPONENTS))
            raise UserError(f"num_frequencies must be one of {choices}; got {brief(num_frequencies)}")
        hidden_channels = max(1, int(channels // reduction))
        what = SharedMLP(channels, hidden_channels, (f"dct{int(num_frequencies)}",), bias=False)
        super().__init__(channels, what, start=start, device=device, dtype=dtype)
