"""Float32 at least for sums and squares, which float16 may not hold, and the way back."""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor


@torch.fx.wrap
def widened(x: Tensor) -> Tensor:
    """Return x in the dtype in which sums over it are taken: float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@torch.fx.wrap
def narrowed(values: Tensor, x: Tensor) -> Tensor:
    """Return `values` in the dtype of x, those beyond its range as the largest number that it holds."""
    return held(values, x.dtype)


def held(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `values` in `dtype`, those beyond its range as the largest number that it holds."""
    if dtype.itemsize < values.dtype.itemsize:
        most = torch.finfo(dtype).max
        values = values.clamp(-most, most)
    return values.to(dtype)
