"""The pools of FcaNet, arXiv 2012.11879: one component of a two-dimensional cosine transform per channel.

The components are those of 7 x 7 pixels, ordered by the accuracy of a network that uses one of them alone. On a map of
a multiple of 7 x 7 pixels they repeat: component (u, v) is cos(pi u (2 i + 1) / 14) cos(pi v (2 j + 1) / 14) at the
pixel (i, j), as the authors scale the frequencies. Any other map is averaged down, or repeated up, to such a size, as
adaptive average pooling does, so that every component but (0, 0) still sums to 0.
"""

from __future__ import annotations

import math

import torch
import torch.fx
from torch import Tensor

from .layout import widened

# (vertical, horizontal), the best first
_COMPONENTS = (
    (0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0), (5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3),
    (3, 5), (2, 2), (4, 6), (6, 3), (3, 3), (5, 3), (5, 5), (2, 1), (6, 1), (5, 2), (5, 4), (3, 2), (3, 1), (4, 1),
    (2, 3), (2, 0), (6, 5), (1, 3),
)  # fmt: skip
NUM_COMPONENTS = (1, 2, 4, 8, 16, 32)


@torch.fx.wrap
def spectral_pool(x: Tensor, num_components: int) -> Tensor:
    """Return one component of the cosine transform for each channel, (N, C, H, W) -> (N, C), in float32 at least.

    The channels are split into `num_components` equal parts. The first part gets the best component, the next the
    second, and so on; with fewer channels than components, each channel has its own. The transform is orthonormal:
    component (0, 0) is the mean times the square root of the number of cells.
    """
    num_channels = int(x.shape[1])
    num = min(num_components, num_channels)
    part = torch.arange(num_channels, device=x.device) * num // num_channels
    components = torch.tensor(_COMPONENTS[:num], device=x.device)[part]
    z = widened(x)
    rows, columns = (_waves(z, axis)[components[:, axis]] for axis in (0, 1))
    return ((z * columns[:, None, :]).sum(3) * rows).sum(2)


def _waves(z: Tensor, axis: int) -> Tensor:
    """Return the cosine waves along an axis of z (0 for H, 1 for W), one for each frequency: (7, number of pixels).

    All sizes are tensors, because a tracer would keep numbers from the size at which it traced.
    """
    pixels = torch.arange(z.shape[2 + axis], device=z.device)
    length = pixels[-1:] + 1
    num_cells = 7 * (length // 7).clamp(min=1)
    # the cells that a pixel overlaps: two at most from 7 pixels on; a single pixel overlaps all 7
    first, last = pixels * num_cells // length, ((pixels + 1) * num_cells - 1) // length
    cells = first[:, None] + torch.arange(7, device=z.device)
    start, stop = cells * length // num_cells, ((cells + 1) * length + num_cells - 1) // num_cells
    shares = (cells <= last[:, None]).to(z.dtype) / (stop - start)
    # in 28ths of a turn; whole turns are dropped, because the cosine of a large number loses digits
    frequencies = torch.arange(7, device=z.device)[:, None, None]
    phase = frequencies * (2 * cells + 1) % 28
    scale = ((1 + (frequencies > 0)).to(z.dtype) / num_cells).sqrt()
    return (torch.cos(phase.to(z.dtype) * (math.pi / 14)) * scale * shares).sum(2)
