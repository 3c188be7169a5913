from __future__ import annotations

from ..base.errors import UserError
from ..base.words import brief
from ..ops.spectral import NUM_COMPONENTS
from .gate import Device, Dtype, Gate, Start, hidden_width
from .squeeze_excitation import Excitation


class FrequencyChannelAttention(Gate):
    """FcaNet's multi-spectral channel attention, arXiv 2012.11879: SE with a cosine transform in place of the average.

    With C = `channels`, r = `reduction`, n = `num_frequencies` and D(u, v) the component of the two-dimensional cosine
    transform of 7 x 7 pixels with u half turns down and v across::

        Freq_i = D(u_i, v_i) of the i-th of n parts of the channels   the n best of 49 components; (0, 0) the average
        s = sigmoid(W2 relu(W1 [Freq_0, ..., Freq_(n-1)]))            W1 (C/r, C), W2 (C, C/r)
        y = s * x

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Args:
        reduction: r; the hidden width is max(1, C // r).
        num_frequencies: n, one of 1, 2, 4, 8, 16 and 32; the authors' "top16" is 16.

    Note:
        The transform is computed in float32 at least. The authors build each module for the size of its map in a
        network for 224 px (56, 28, 14 or 7) and average any other map to that size. Here a map is transformed at its
        own size, which gives the same where their code does not average. A size that is no multiple of 7 is averaged
        down to the next one; below 7 it is repeated up to 7. A 1x1 map has only the average. Their code needs C to be a
        multiple of n; here parts may differ by one channel, and with fewer channels than n each channel has its own
        component. The state dict has no tensor of the transform (theirs has one for each module). 2 * C * hidden
        parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: float = 16,
        num_frequencies: int = 16,
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        hidden = hidden_width(channels, reduction)
        if num_frequencies not in NUM_COMPONENTS:
            choices = ", ".join(map(str, NUM_COMPONENTS))
            raise UserError(f"num_frequencies must be one of {choices}; got {brief(num_frequencies)}")
        # y = x * what(Freq of x): the pool "dct16" is [Freq_0, ..., Freq_15]
        what = Excitation(channels, hidden, (f"dct{int(num_frequencies)}",), bias=False)
        super().__init__(channels, what, start=start, device=device, dtype=dtype)
