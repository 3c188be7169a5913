"""Evaluation of a classifier: accuracy, F1, loss, AUROC and calibration, over any number of processes."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.modules import modes_kept
from ..collect.result import class_figures
from ..data.batches import Batch, ImageSet
from .distributed import Team

_WORST = sys.float_info.max  # a loss that is not finite; its negative, a figure

NUM_BINS = 15  # of the calibration error

Probabilities = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Figures:
    """How well a classifier did on a set of images."""

    confusion: Tensor  # (classes, classes), int64; rows are labels, columns are predictions
    loss: float  # mean cross-entropy per image in nats, without label smoothing or class weights
    has_probabilities: bool = False  # whether the next two were computed
    auroc: float | None = None
    calibration_error: float | None = None

    @property
    def num_images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Fraction of the images classified correctly, in [0, 1]; nan without images."""
        return float(self.confusion.diagonal().sum().double() / self.confusion.sum())

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images."""
        totals = self.confusion.sum(1)
        return float((self.confusion.diagonal()[totals > 0].double() / totals[totals > 0]).mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images; 0 for a class that is never predicted."""
        predicted, totals, hits = self.confusion.sum(0), self.confusion.sum(1), self.confusion.diagonal()
        present = totals > 0
        return float((2 * hits[present].double() / (predicted + totals)[present]).mean())

    def per_class(self, classes: Iterable[str]) -> list[dict[str, Any]]:
        """Return precision, recall and F1 of each class; None where the denominator is 0."""
        rows: list[dict[str, Any]] = msgspec.to_builtins(class_figures(tuple(classes), self.confusion.tolist()))
        return rows

    def summary(self) -> dict[str, Any]:
        """Return the figures by name for JSON; a loss that is not finite is None."""
        figures: dict[str, Any] = {
            "num_images": self.num_images,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "loss": self.loss if math.isfinite(self.loss) else None,
        }
        if self.has_probabilities:
            figures |= {"auroc": self.auroc, "calibration_error": self.calibration_error}
        return figures


def merit(figures: Any, best_by: str) -> tuple[float, float]:
    """Return what epochs and runs are compared by, the better one larger: a validation figure, then the lower loss.

    Few images have few accuracies, so that several epochs or runs have the best one: their losses tell more. What is
    not finite, or None, counts as the worst number.

    Args:
        figures: `Figures`, or those in `result.json`.
        best_by: "accuracy", "balanced_accuracy" or "loss".
    """

    def finite(value: float | None, otherwise: float) -> float:
        return otherwise if value is None or not math.isfinite(value) else value

    loss = finite(figures.loss, _WORST)
    return -loss if best_by == "loss" else finite(getattr(figures, best_by), -_WORST), -loss


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    num_classes: int,
    team: Team,
    *,
    autocast: Callable[[], Any],
    on_batch: Callable[[int], None] | None = None,
    collect: int = 0,
) -> Figures:
    """Evaluate `model`, in evaluation mode, on the batches of all processes of `team`.

    Each process counts its own images. Counts and losses (float64) are summed over the processes once, at the end.

    Args:
        model: Returns logits (N, num_classes).
        batches: The batches of this process.
        num_classes: Number of classes.
        team: The processes.
        autocast: Returns the context of a forward pass.
        on_batch: Called after each batch with the number of images that this process has done.
        collect: Number of images of all processes, to compute AUROC and calibration error from the probabilities of
            all images, in 4 * collect * num_classes bytes; 0 leaves both out.
    """
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=team.device)
    # MPS has no float64
    loss = torch.zeros((), dtype=torch.float32 if team.device.type == "mps" else torch.float64, device=team.device)
    # each process fills the rows of its images and leaves the others 0, so that the sum over processes has all
    probabilities = torch.zeros(collect, num_classes, device=team.device)
    all_labels = torch.zeros(collect, dtype=torch.int64, device=team.device)
    done = 0
    with modes_kept(model):
        model.eval()
        for images, labels, indices in batches:
            with autocast():
                logits = model(images).float()
            loss += F.cross_entropy(logits, labels, reduction="none").to(loss.dtype).sum()
            cells = labels * num_classes + logits.argmax(1)
            confusion.index_add_(0, cells, torch.ones_like(cells))
            if collect:
                places = indices.to(team.device)
                probabilities[places], all_labels[places] = logits.softmax(1), labels
            done += len(labels)
            if on_batch is not None:
                on_batch(done)
    confusion = team.sum(confusion).view(num_classes, num_classes).cpu()
    loss_per_image = float(team.sum(loss)) / max(1, int(confusion.sum()))
    if not collect:
        return Figures(confusion, loss_per_image)
    known = team.sum(probabilities).cpu().numpy(), team.sum(all_labels).cpu().numpy()
    return Figures(confusion, loss_per_image, True, auroc(*known), calibration_error(*known))


def accuracy(model: nn.Module, images: ImageSet, num_classes: int, batch_size: int = 256) -> float:
    """Return the fraction of `images` that `model`, in evaluation mode, classifies correctly."""
    device = next(model.parameters()).device
    parts = torch.split(torch.arange(len(images)), batch_size)
    batches = (Batch(images.images[i].to(device), images.labels[i].to(device), i) for i in parts)
    team = Team(0, 1, 0, device)
    return evaluate(model, batches, num_classes, team, autocast=contextlib.nullcontext).accuracy


def auroc(probabilities: Probabilities, labels: Labels) -> float | None:
    """Return the mean over classes of the one-vs-rest area under the ROC curve, in [0, 1].

    For class c with P images and N other images: take all pairs of an image of c and another image. The area is the
    fraction of pairs in which the image of c has the larger probability of c; a tie counts half (Mann-Whitney):
    (R - P (P + 1) / 2) / (P N), where R is the sum of the ranks of the P images. Classes with P = 0 or N = 0 are left
    out. The result is None if no class is left, or if one of the `probabilities` (images, classes) is not finite.
    """
    from scipy.stats import rankdata

    if not np.isfinite(probabilities).all():
        return None
    areas = []
    for number, column in enumerate(probabilities.T):
        is_positive = labels == number
        num_positive = int(is_positive.sum())
        num_pairs = num_positive * (len(labels) - num_positive)
        if num_pairs:
            ranks: Any = rankdata(column)
            areas.append((ranks[is_positive].sum() - num_positive * (num_positive + 1) / 2) / num_pairs)
    return float(np.mean(areas)) if areas else None


def calibration_error(probabilities: Probabilities, labels: Labels) -> float | None:
    """Return the expected calibration error of the largest probability, in [0, 1]; Guo et al., arXiv 1706.04599.

    ECE = sum over b of |B_b| / N * |acc(B_b) - conf(B_b)|. Bin B_b holds the images with their largest probability in
    ((b - 1) / 15, b / 15]; acc is the accuracy in the bin and conf the mean of the largest probability. The result is
    None without images, or if one of the `probabilities` (N, classes) is not finite.
    """
    if not len(labels) or not np.isfinite(probabilities).all():
        return None
    confidence = probabilities.max(1).astype(np.float64)
    is_right = probabilities.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    # |B| (acc - conf) is the sum of the differences
    surplus = np.bincount(bins, weights=is_right - confidence, minlength=NUM_BINS)
    return float(np.abs(surplus).sum() / len(labels))
