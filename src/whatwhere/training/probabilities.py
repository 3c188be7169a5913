"""What the probabilities of a classifier are worth, beyond which class is the largest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

NUM_BINS = 15

Probabilities = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def auroc(probabilities: Probabilities, labels: Labels) -> float | None:
    """Return the mean over classes of the one-vs-rest area under the ROC curve, in [0, 1].

    Of class c it is the share of the pairs of an image of c and another image in which the former has the larger
    probability of c, ties counted half (Mann-Whitney): (R - P (P + 1) / 2) / (P N), with P images of c, N others, and R
    the sum of the ranks of the P images. Classes without images, or without others, are left out.

    Args:
        probabilities: (N, classes).
        labels: (N,), numbers of classes.

    Returns:
        None if no class is left, or if a probability is not finite.
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

    sum over b of |B_b| / N * |acc(B_b) - conf(B_b)|, where B_b are the images whose largest probability lies in
    ((b - 1) / 15, b / 15], acc the share of them for which it is the label's, and conf its mean.

    Args:
        probabilities: (N, classes).
        labels: (N,), numbers of classes.

    Returns:
        None without images, or if a probability is not finite.
    """
    if not len(labels) or not np.isfinite(probabilities).all():
        return None
    confidence = probabilities.max(1).astype(np.float64)
    is_right = probabilities.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    # |B| (acc - conf) is the sum of the differences
    surplus = np.bincount(bins, weights=is_right - confidence, minlength=NUM_BINS)
    return float(np.abs(surplus).sum() / len(labels))
