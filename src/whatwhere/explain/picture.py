"""Draw maps over their images, in one picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.images import ImageError, open_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PIXELS = 192
_SOFTWARE = "whatwhere"
_OPACITY = 0.6


def gate_figure(images: Tensor, gates: Mapping[str, Tensor], captions: Sequence[str], title: str) -> Figure:
    """Draw images and their spatial gates: a row for each image, a column for each gate, enlarged to one size.

    The colours show a gate's values, with one scale for each column. On grey images the white line is the image's
    contour at half brightness; colour images are seen through the gate.

    Args:
        images: Images in [0, 1], grey (N, 1, H, W) or in colour (N, 3, H, W).
        gates: By column title, a gate (N, 1, h, w).
        captions: One text for each image.
        title: Title of the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    height, width = images.shape[2:]
    size = tuple(max(1, round(_PIXELS * side / max(height, width))) for side in (height, width))

    def enlarge(maps: Tensor) -> Tensor:
        return F.interpolate(maps, size=size, mode="bicubic", align_corners=False)

    enlarged = enlarge(images).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    is_grey = enlarged.shape[3] == 1
    num_rows, num_columns = len(images), len(gates) + 1
    figure = Figure(figsize=(2.3 * num_columns, 2.15 * num_rows + 1.5), layout="constrained", dpi=150)
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    for row in range(num_rows):
        axes[row, 0].imshow(enlarged[row], cmap="gray", vmin=0, vmax=1)
        axes[row, 0].set_ylabel(captions[row], fontsize=10)
    axes[0, 0].set_title("image", fontsize=11)
    for column, (name, gate) in enumerate(gates.items(), start=1):
        low, high = gate.min().item(), gate.max().item()
        maps = enlarge(gate).clamp(low, high).numpy()
        for row in range(num_rows):
            axis = axes[row, column]
            if not is_grey:
                axis.imshow(enlarged[row])
            opacity = 1 if is_grey else _OPACITY
            drawn = axis.imshow(maps[row, 0], cmap="inferno", vmin=low, vmax=high, alpha=opacity)
            if is_grey:
                axis.contour(enlarged[row, :, :, 0], levels=[0.5], colors="white", linewidths=0.9, alpha=0.9)
        axes[0, column].set_title(name, fontsize=11)
        bar = figure.colorbar(drawn, ax=axes[:, column].tolist(), location="bottom", shrink=0.9, aspect=18, pad=0.015)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=2)
        bar.locator = MaxNLocator(nbins=3)
        bar.update_ticks()
    return figure


def colour_scale(name: str) -> NDArray[np.uint8]:
    """Return the 256 colours of a scale of matplotlib, (256, 3)."""
    from matplotlib import colormaps

    return (np.asarray(colormaps[name](np.arange(256)))[:, :3] * 255).round().astype(np.uint8)


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    kept = io.BytesIO()
    figure.savefig(kept, format="png", metadata={"Software": _SOFTWARE})
    return kept.getvalue()


def is_png_of_ours(path: Path) -> bool:
    """Return whether a file is a PNG that `png` made."""
    try:
        with open_image(path) as image:
            return image.info.get("Software") == _SOFTWARE
    except ImageError:
        return False
