from __future__ import annotations

from typing import ClassVar

import torch
import torch.fx
from torch import Tensor, nn

from ..ops.layout import narrowed, widened
from .gate import Attention, Device, Dtype, Start, hidden_width

# symbolic tracing patches a function under the name by which it is called
torch.fx.wrap("narrowed")
torch.fx.wrap("widened")


class GlobalContext(Attention):
    """GCNet's global context block, arXiv 1904.11492, eq. 5: adds to every pixel a summary of all of them.

    With C = `channels`, r = `reduction`, h = max(8, C // r) and p over the pixels::

        a = softmax over p of (w_k . x_p + b_k)            context modelling, w_k (C,)
        c = sum over p of a_p * x_p                        (N, C)
        t = W_v2 relu(LayerNorm(W_v1 c + b_v1)) + b_v2     bottleneck transform, W_v1 (h, C), W_v2 (C, h)
        y = x + t                                          fusion by addition

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Args:
        reduction: r.
        start: "paper" or "identity"; both are the same here, because W_v2 = b_v2 = 0 make y = x.

    Note:
        Softmax and sums are computed in float32 at least. The zeros at the start are those of the authors' code
        ("last_zero_init"): W_v2 and b_v2 learn from the first step, the rest from the second; until then -0.0 becomes
        0.0. The softmax does not depend on b_k, which never learns; it is kept because the authors' and timm's modules
        have it. The minimum of 8 hidden channels is new here. The authors' C // r is 1 below 2 * r channels; LayerNorm
        makes a single channel constant, and the block cannot learn what to add. Fusion by multiplication, the default
        of timm's module, is left out; timm's r is 8, and its hidden width is rounded to 1 or more. The authors leave
        the block out of a network's first stage.
        2 * C * h + 2 * C + 3 * h + 1 parameters.
    """

    identity_at_start: ClassVar[bool] = True
    sized_by = "mask"

    def __init__(
        self,
        channels: int,
        *,
        reduction: float = 16,
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(channels, start=start)
        hidden_channels = hidden_width(channels, reduction, least=8)
        self.mask = nn.Conv2d(channels, 1, 1)
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.norm = nn.LayerNorm(hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)
        nn.init.kaiming_normal_(self.mask.weight, mode="fan_in")
        for parameter in (self.mask.bias, self.fc2.weight, self.fc2.bias):
            assert parameter is not None
            nn.init.zeros_(parameter)
        self.to(device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        seen = self.seen(x)
        # float16 may not hold w_k . x of large features; b_k is not scaled back exactly, but the softmax ignores it
        unit = 64 if isinstance(x, Tensor) and x.dtype == torch.float16 else 1
        logits = widened(self.mask(seen)) if unit == 1 else widened(self.mask(seen / unit)) * unit
        shares = torch.softmax(logits.flatten(2), 2)
        context = narrowed((seen.flatten(2) * shares).sum(2), x)
        added: Tensor = self.fc2(torch.relu(self.norm(self.fc1(context))))
        return x + added[:, :, None, None]
