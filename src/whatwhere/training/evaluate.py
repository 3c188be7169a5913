"""Evaluation of a classifier: every image once, over any number of processes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.modules import modes_kept
from ..data.batches import Batch, ImageSet
from .distributed import Team
from .probabilities import auroc, calibration_error


@dataclass(frozen=True)
class Figures:
    """What a classifier did with a set of images.

    Attributes:
        confusion: (classes, classes), int64; row: the label, column: what the classifier said.
        loss: Mean cross-entropy per image, natural logarithm, without smoothing or weights.
        has_probabilities: Whether probabilities were collected, which the other two need.
        auroc: One-vs-rest area under the ROC curve, mean over the classes that have images and others.
        calibration_error: Expected calibration error of the largest probability.
    """

    confusion: Tensor
    loss: float
    has_probabilities: bool = False
    auroc: float | None = None
    calibration_error: float | None = None

    @property
    def num_images(self) -> int:
        """Images counted."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of the images classified correctly, in [0, 1]; nan without images."""
        return float(self.confusion.diagonal().sum().double() / self.confusion.sum())

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images."""
        totals = self.confusion.sum(1)
        return float((self.confusion.diagonal()[totals > 0].double() / totals[totals > 0]).mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images; of one that is never said it is 0."""
        said, totals, hits = self.confusion.sum(0), self.confusion.sum(1), self.confusion.diagonal()
        present = totals > 0
        return float((2 * hits[present].double() / (said + totals)[present]).mean())

    def per_class(self, classes: Iterable[str]) -> list[dict[str, Any]]:
        """Return precision, recall and F1 of each class; None where there is nothing to divide by."""
        rows = []
        said, present, hits = self.confusion.sum(0), self.confusion.sum(1), self.confusion.diagonal()
        for index, name in enumerate(classes):
            correct, predicted, total = int(hits[index]), int(said[index]), int(present[index])
            rows.append(
                {
                    "class": name,
                    "num_images": total,
                    "precision": correct / predicted if predicted else None,
                    "recall": correct / total if total else None,
                    "f1": 2 * correct / (predicted + total) if predicted + total else None,
                }
            )
        return rows

    def summary(self) -> dict[str, Any]:
        """Return the figures that one line holds, as JSON has them: a loss that is not finite is None."""
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

    def score(self, best_by: str) -> float:
        """Return the figure that chooses between epochs: higher is better."""
        return -self.loss if best_by == "loss" else float(getattr(self, best_by))


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
    """Return the figures of `model`, in evaluation mode, over the batches of all processes of `team`.

    Each process counts its own images; counts and losses (float64) are added once, at the end.

    Args:
        model: Returns logits (N, num_classes).
        batches: This process's share.
        num_classes: Width of the classifier.
        team: The processes.
        autocast: Makes the context of the forward pass.
        on_batch: Called with the number of images after each batch.
        collect: The number of images of all processes, to keep the probabilities of each for what needs them together,
            in 4 * collect * num_classes bytes; 0 keeps none.
    """
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=team.device)
    # MPS has no float64
    loss = torch.zeros((), dtype=torch.float32 if team.device.type == "mps" else torch.float64, device=team.device)
    # by the images' numbers, so that what the processes have of it adds up
    probabilities = torch.zeros(collect, num_classes, device=team.device)
    all_labels = torch.zeros(collect, dtype=torch.int64, device=team.device)
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
            if on_batch is not None:
                on_batch(len(labels))
    confusion = team.sum(confusion).view(num_classes, num_classes).cpu()
    total = team.sum(loss)
    loss_per_image = float(total) / max(1, int(confusion.sum()))
    if not collect:
        return Figures(confusion, loss_per_image)
    known = team.sum(probabilities).cpu().numpy(), team.sum(all_labels).cpu().numpy()
    return Figures(confusion, loss_per_image, True, auroc(*known), calibration_error(*known))


def accuracy(model: nn.Module, images: ImageSet, num_classes: int, batch_size: int = 256) -> float:
    """Return the share of `images` that `model`, in evaluation mode, classifies correctly, in [0, 1]."""
    device = next(model.parameters()).device
    parts = torch.split(torch.arange(len(images)), batch_size)
    batches = (Batch(images.images[i].to(device), images.labels[i].to(device), i) for i in parts)
    team = Team(0, 1, 0, device)
    return evaluate(model, batches, num_classes, team, autocast=contextlib.nullcontext).accuracy
