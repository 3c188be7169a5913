"""Draw gates over their images, in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PIXELS = 192


def gate_figure(images: Tensor, gates: Mapping[str, Tensor], captions: Sequence[str], title: str) -> Figure:
    """Draw images and their spatial gates: a row for each image, a column for each gate, enlarged to one size.

    The colours show a gate's values, with one scale for each column. The white line is the image's contour at half
    brightness.

    Args:
        images: Grey images (N, 1, H, W) in [0, 1].
        gates: By column title, a gate (N, 1, h, w).
        captions: One text for each image.
        title: Title of the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    def enlarge(maps: Tensor) -> Tensor:
        return F.interpolate(maps, size=(_PIXELS, _PIXELS), mode="bicubic", align_corners=False)

    enlarged = enlarge(images).clamp(0, 1).numpy()
    num_rows, num_columns = len(images), len(gates) + 1
    figure = Figure(figsize=(2.3 * num_columns, 2.15 * num_rows + 1.5), layout="constrained", dpi=150)
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    for row in range(num_rows):
        axes[row, 0].imshow(enlarged[row, 0], cmap="gray", vmin=0, vmax=1)
        axes[row, 0].set_ylabel(captions[row], fontsize=10)
    axes[0, 0].set_title("image", fontsize=11)
    for column, (name, gate) in enumerate(gates.items(), start=1):
        low, high = gate.min().item(), gate.max().item()
        maps = enlarge(gate).clamp(low, high).numpy()
        for row in range(num_rows):
            axis = axes[row, column]
            drawn = axis.imshow(maps[row, 0], cmap="inferno", vmin=low, vmax=high)
            axis.contour(enlarged[row, 0], levels=[0.5], colors="white", linewidths=0.9, alpha=0.9)
        axes[0, column].set_title(name, fontsize=11)
        bar = figure.colorbar(drawn, ax=axes[:, column].tolist(), location="bottom", shrink=0.9, aspect=18, pad=0.015)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=2)
        bar.locator = MaxNLocator(nbins=3)
        bar.update_ticks()
    return figure
