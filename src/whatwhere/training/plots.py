"""Pictures of a run: curves, confusion matrix, TensorBoard."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .run_folder import EpochLine

_MOST_NAMES = 60  # with more classes their names are too small to read
# fonts of Windows, macOS and Linux for scripts that matplotlib's own font lacks
_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Malgun Gothic")


@contextlib.contextmanager
def _as_written() -> Iterator[None]:
    """Draw text as it is: no formulas between dollar signs, and a font for other scripts where there is one."""
    import matplotlib
    from matplotlib import font_manager

    families = ["DejaVu Sans", *(name for name in _FONTS if name in set(font_manager.get_font_names()))]
    with matplotlib.rc_context({"text.parse_math": False, "font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


@_as_written()
def curves_png(metrics: Sequence[EpochLine], title: str) -> bytes:
    """Draw the losses and the validation accuracy over the epochs; return a PNG."""
    from matplotlib.figure import Figure

    # not pyplot: it would choose a window system and keep every figure in memory
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [line.epoch for line in metrics]
    marker = "o" if len(epochs) < 3 else ""  # a line needs two points
    left.plot(epochs, [line.train_loss for line in metrics], marker=marker, label="training (augmented)")
    left.plot(epochs, [line.val_loss for line in metrics], marker=marker, label="validation")
    left.set_ylabel("cross-entropy")
    left.set_ylim(bottom=0)
    right.plot(epochs, [100 * line.val_accuracy for line in metrics], marker=marker, label="accuracy")
    right.plot(epochs, [100 * line.val_balanced_accuracy for line in metrics], "--", label="balanced accuracy")
    right.set_ylabel("validation, %")
    best = max(metrics, key=lambda line: (line.is_best, line.epoch))
    right.plot(best.epoch, 100 * best.val_accuracy, "o", color="black", label=f"kept: epoch {best.epoch}")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    return _png(figure)


@_as_written()
def confusion_png(confusion: Tensor, classes: tuple[str, ...], title: str) -> bytes:
    """Draw the confusion matrix, each row in % of the images of its class; return a PNG."""
    from matplotlib.figure import Figure

    size = min(14, 4 + 0.35 * len(classes))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    totals = confusion.sum(1, keepdim=True)
    shares = 100 * confusion.double() / totals.clamp(min=1)
    image = axes.imshow(shares.numpy(), vmin=0, vmax=100, cmap="Blues")
    figure.colorbar(image, ax=axes, label="% of the class's images", fraction=0.046)
    if len(classes) <= _MOST_NAMES:
        names = [name if len(name) <= 24 else name[:23] + "…" for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
    if len(classes) <= 20:
        for row, column in (confusion > 0).nonzero().tolist():
            colour = "white" if shares[row, column] > 50 else "black"
            axes.text(column, row, str(int(confusion[row, column])), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title(title)
    return _png(figure)


def _png(figure: Any) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=110, bbox_inches="tight")
    return target.getvalue()


class TensorBoard:
    """Writes the figures of each epoch for TensorBoard into `folder`/tensorboard."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None

    def write(self, line: dict[str, Any]) -> None:
        """Write a line of `metrics.jsonl`."""
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what a killed run wrote after its last checkpoint
        self._writer = self._writer or SummaryWriter(str(self._folder), purge_step=line["step"])
        for name, value in line.items():
            if name not in ("epoch", "step", "is_best") and value is not None:
                self._writer.add_scalar(name, value, line["step"])
        self._writer.flush()
