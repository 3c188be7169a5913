"""Scikit-learn's handwritten digits as tensors: real images without a download."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..base.errors import UserError
from ..base.randomness import generator
from .batches import ImageSet
from .sources.named import NUM_DIGITS_TO_TRAIN, sklearn_digits

NUM_CLASSES = 10


def load_digits(image_size: int = 16) -> tuple[ImageSet, ImageSet]:
    """Return the digits of `sklearn_digits`, enlarged to `image_size`: 897 to draw training images from, 900 to test.

    Raises:
        UserError: scikit-learn is not installed.
    """
    digits = sklearn_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=(image_size, image_size), mode="bicubic", align_corners=False).clamp(0, 1)
    labels = torch.tensor(digits.target, dtype=torch.int64)
    to_train, to_test = slice(NUM_DIGITS_TO_TRAIN), slice(NUM_DIGITS_TO_TRAIN, None)
    return ImageSet(images[to_train], labels[to_train]), ImageSet(images[to_test], labels[to_test])


def draw_balanced(images: ImageSet, per_class: int, seed: int) -> ImageSet:
    """Return `per_class` images of each class, drawn by `seed`."""
    chosen = []
    for label in range(NUM_CLASSES):
        candidates = (images.labels == label).nonzero().flatten()
        if len(candidates) < per_class:
            raise UserError(f"class {label} has {len(candidates)} images, fewer than the {per_class} asked for")
        order = torch.randperm(len(candidates), device="cpu", generator=generator(seed, f"subset.{label}"))
        chosen.append(candidates[order[:per_class]])
    index = torch.cat(chosen)
    return ImageSet(images.images[index], images.labels[index])
