"""Augment a batch of images, as a function of the images and of one row of uniform random numbers for each.

The row of a sample is a function of (seed, epoch, sample). So the order of reading, the number of threads that read
and the device do not change the result. The image operations are those of torchvision.transforms.v2.functional.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as ops

from ..base.randomness import generator
from .preprocess import IMAGENET_MEAN, Preprocessing, sent

# columns of a row of random numbers, by their use
_CROP, _FLIP, _RAND_AUGMENT, _ERASE = slice(0, 4), 4, slice(5, 9), slice(9, 14)
NUM_DRAWS = 14
_NUM_OPERATIONS = 2
_FILL = [255 * value for value in IMAGENET_MEAN]


def draws(seed: int, epoch: int, num_samples: int) -> Tensor:
    """Return uniform random numbers (num_samples, 14); row i depends on (seed, epoch, i) only."""
    return torch.rand(num_samples, NUM_DRAWS, device="cpu", generator=generator(seed, f"augment.{epoch}"))


@dataclass(frozen=True)
class Augmentation:
    """Random crop, horizontal flip, RandAugment, normalisation and random erasing of training images."""

    preprocessing: Preprocessing  # that of the evaluation; it gives the image size and the normalisation
    # "pad" pads by an eighth of the size and crops at a random pixel; "resized" crops a random area with a random
    # aspect ratio (3/4 to 4/3) and resizes it
    crop: str
    crop_scale: float  # smallest area of a resized crop, as a share of the image
    hflip: float  # probability of a horizontal flip
    rand_augment: int  # magnitude (0 to 30) of two operations drawn from fourteen (arXiv 1909.13719); 0 is off
    random_erasing: float  # probability that a rectangle of 2 to 33 % of the area is set to the mean (arXiv 1708.04896)

    def cropped(self, pixels: Tensor, row: Tensor) -> Tensor:
        """Crop one image at random and resize it: uint8 (3, H, W) -> (3, image_size, image_size).

        Of "letterbox" and "squash" the crop has the shape of the image, times a random aspect ratio. It becomes what
        the whole image becomes in the evaluation: a letterbox, or a square.
        """
        height, width = pixels.shape[-2:]
        area, ratio, down, right = row[_CROP].tolist()
        target = height * width * (self.crop_scale + area * (1 - self.crop_scale))
        aspect = math.exp((2 * ratio - 1) * math.log(4 / 3))
        if self.preprocessing.resize_mode != "crop":
            aspect *= width / height
        crop_width = min(width, max(1, round(math.sqrt(target * aspect))))
        crop_height = min(height, max(1, round(math.sqrt(target / aspect))))
        top, left = int(down * (height - crop_height + 1)), int(right * (width - crop_width + 1))
        x, y, new_width, new_height = self.preprocessing.box(crop_width, crop_height)
        size = [new_height, new_width]
        crop: Tensor = ops.resized_crop(pixels, top, left, crop_height, crop_width, size, InterpolationMode.BILINEAR)
        if new_width == new_height == self.preprocessing.image_size:
            return crop
        square = torch.tensor(self.preprocessing.fill, dtype=torch.uint8, device="cpu")[:, None, None]
        square = square.repeat(1, self.preprocessing.image_size, self.preprocessing.image_size)
        square[:, y : y + new_height, x : x + new_width] = crop
        return square

    def __call__(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """Return the network's input, float32, for uint8 `pixels` (N, 3, S, S) and their rows (N, 14) on the CPU."""
        near = sent(rows, pixels.device)
        if self.crop == "pad":
            pixels = _shifted(pixels, near[:, _CROP][:, 2:])
        if self.hflip:
            flip = near[:, _FLIP] < self.hflip
            pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
        if self.rand_augment:
            pixels = _rand_augmented(pixels, rows[:, _RAND_AUGMENT], self.rand_augment)
        images = self.preprocessing.normalize(pixels)
        if self.random_erasing:
            images = _erased(images, rows[:, _ERASE], self.random_erasing)
        return images


def _shifted(pixels: Tensor, rows: Tensor) -> Tensor:
    """Pad each image with black by an eighth of its size, and crop it at a random pixel."""
    size = pixels.shape[-1]
    pad = size // 8
    start = (rows * (2 * pad + 1)).long()
    y, x = (start[:, i, None] + torch.arange(size, device=pixels.device) for i in (0, 1))
    padded = torch.nn.functional.pad(pixels, (pad, pad, pad, pad))
    sample = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    # indexing gives (N, S, S, 3), because a slice stands between the indices
    return padded[sample, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def _rand_augmented(pixels: Tensor, rows: Tensor, magnitude: int) -> Tensor:
    """Apply two random operations to each image; images with the same operation are computed together."""
    pixels = pixels.clone(memory_format=torch.contiguous_format)
    for column in range(0, 2 * _NUM_OPERATIONS, 2):
        chosen = (rows[:, column] * len(OPERATIONS)).long()
        negative = rows[:, column + 1] < 0.5
        keys, order = (2 * chosen + negative).sort()
        drawn, counts = keys.unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
        groups = torch.split(sent(order, pixels.device), counts.tolist())
        for key, index in zip(drawn.tolist(), groups, strict=True):
            operation, sign = OPERATIONS[key // 2], -1 if key % 2 else 1
            pixels.index_copy_(0, index, operation(pixels[index], magnitude / 30, sign))
    return pixels


def _affine(
    pixels: Tensor, angle: float = 0, translate: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> Tensor:
    center = [0.0, 0.0] if any(shear) else None  # as AutoAugment shears
    moved: Tensor = ops.affine(
        pixels, angle, list(translate), 1.0, list(shear), InterpolationMode.BILINEAR, fill=_FILL, center=center
    )
    return moved


# the fourteen operations of torchvision's RandAugment, with its ranges, at a strength from 0 to 1
OPERATIONS: tuple[Callable[[Tensor, float, int], Tensor], ...] = (
    lambda x, strength, sign: x,
    lambda x, strength, sign: _affine(x, shear=(sign * math.degrees(math.atan(0.3 * strength)), 0)),
    lambda x, strength, sign: _affine(x, shear=(0, sign * math.degrees(math.atan(0.3 * strength)))),
    lambda x, strength, sign: _affine(x, translate=(int(sign * strength * 150 / 331 * x.shape[-1]), 0)),
    lambda x, strength, sign: _affine(x, translate=(0, int(sign * strength * 150 / 331 * x.shape[-2]))),
    lambda x, strength, sign: _affine(x, angle=30 * sign * strength),
    lambda x, strength, sign: ops.adjust_brightness(x, 1 + 0.9 * sign * strength),
    lambda x, strength, sign: ops.adjust_saturation(x, 1 + 0.9 * sign * strength),
    lambda x, strength, sign: ops.adjust_contrast(x, 1 + 0.9 * sign * strength),
    lambda x, strength, sign: ops.adjust_sharpness(x, 1 + 0.9 * sign * strength),
    lambda x, strength, sign: ops.posterize(x, 8 - round(4 * strength)),
    lambda x, strength, sign: ops.solarize(x, 255 * (1 - strength)),
    lambda x, strength, sign: ops.autocontrast(x),
    lambda x, strength, sign: ops.equalize(x),
)


def _erased(images: Tensor, rows: Tensor, probability: float) -> Tensor:
    height, width = images.shape[-2:]
    apply, area, ratio, y, x = rows.unbind(1)
    share = 0.02 + area * (0.33 - 0.02)
    aspect = torch.exp((2 * ratio - 1) * math.log(3.3))
    h = (torch.sqrt(share * aspect) * height).round().clamp(1, height)
    w = (torch.sqrt(share / aspect) * width).round().clamp(1, width)
    top, left = torch.floor(y * (height - h + 1)), torch.floor(x * (width - w + 1))
    places = torch.stack([top, top + h, left, left + w], dim=1).long()
    # a loop over few images is cheaper than a mask over all, and does not wait for the device
    for index in (apply < probability).nonzero().flatten().tolist():
        first_row, end_row, first_column, end_column = places[index].tolist()
        images[index, :, first_row:end_row, first_column:end_column] = 0
    return images
