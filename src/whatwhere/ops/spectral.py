"""Pools of FcaNet, arXiv 2012.11879: each channel's component of a two-dimensional cosine transform.

The components are those of 7 x 7 pixels, ordered by how well a network did with one of them alone. On a map of several
times 7 x 7 pixels they repeat: component (u, v) is cos(pi u (2 i + 1) / 14) cos(pi v (2 j + 1) / 14) at the pixel
(i, j), as the authors scale the frequencies. Any other map is averaged down, or repeated up, to the next such size in
cells, as adaptive average pooling does, so that every component but (0, 0) still sums to 0.
"""

from __future__ import annotations

import math

import torch
import torch.fx
from torch import Tensor

# (vertical, horizontal), the best first
_COMPONENTS = (
    (0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0), (5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3),
    (3, 5), (2, 2), (4, 6), (6, 3), (3, 3), (5, 3), (5, 5), (2, 1), (6, 1), (5, 2), (5, 4), (3, 2), (3, 1), (4, 1),
    (2, 3), (2, 0), (6, 5), (1, 3),
)  # fmt: skip
NUM_COMPONENTS = (1, 2, 4, 8, 16, 32)


@torch.fx.wrap
def spectral_pool(x: Tensor, num_components: int) -> Tensor:
    """Return one component of each channel, (N, C, H, W) -> (N, C), the channels in `num_components` even parts.

    The first part of the channels gets the best component and so on; of fewer channels than components each has its
    own. The transform is orthonormal: component (0, 0) is the mean times the square root of the number of cells.
    """
    num_channels, height, width = (int(size) for size in x.shape[1:])
    num = min(num_components, num_channels)
    part = torch.arange(num_channels, device=x.device) * num // num_channels
    components = torch.tensor(_COMPONENTS[:num], device=x.device)[part]
    z = x.to(torch.promote_types(x.dtype, torch.float32))
    rows, columns = (_waves(components[:, axis], size, z.dtype) for axis, size in enumerate((height, width)))
    return ((z * columns[:, None, :]).sum(3) * rows).sum(2).to(x.dtype)


def _waves(frequencies: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Return what a row or column of `length` pixels is multiplied by, (number of frequencies, length)."""
    num_cells = 7 * max(1, length // 7)
    cells = torch.arange(num_cells, device=frequencies.device)
    # in 28ths of a turn; whole turns are taken off before they could cost digits
    phase = frequencies[:, None] * (2 * cells + 1) % 28
    waves = torch.cos(phase.to(dtype) * (math.pi / 14)) * math.sqrt(2 / num_cells)
    waves = torch.where(frequencies[:, None] == 0, math.sqrt(1 / num_cells), waves)
    if num_cells == length:
        return waves
    pixels = torch.arange(length, device=cells.device)
    start, stop = cells * length // num_cells, ((cells + 1) * length + num_cells - 1) // num_cells
    covered = ((pixels >= start[:, None]) & (pixels < stop[:, None])).to(dtype)
    return (waves[:, :, None] * (covered / (stop - start)[:, None])).sum(1)
