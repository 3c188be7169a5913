"""What happens to an image before the network sees it, the same in evaluation, prediction and a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .images import read_image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Shorter side to `resize` (bicubic, antialiased), centre crop to `image_size`, scale to [0, 1], normalise.

    Attributes:
        image_size: Height and width of the result.
        resize: Shorter side before the crop.
        mean: Of the channels red, green, blue in [0, 1], subtracted.
        std: Of the same, divided by.
    """

    image_size: int
    resize: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def pixels(self, image: Any) -> Tensor:
        """Return an opened image as uint8 (3, image_size, image_size)."""
        image = resized(_middle(decoded(image, self.resize)), self.resize)
        left, top = (image.width - self.image_size) // 2, (image.height - self.image_size) // 2
        return to_tensor(image.crop((left, top, left + self.image_size, top + self.image_size)))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return uint8 (N, 3, H, W) as float32, normalised."""
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (self.mean, self.std))
        scale, shift = (values.to(pixels.device, torch.float32) for values in (1 / (255 * std), -mean / std))
        # two passes; the product of bytes and floats is float32
        return (pixels * scale).add_(shift)


def preprocessing_for(
    image_size: int, mean: tuple[float, float, float] = IMAGENET_MEAN, std: tuple[float, float, float] = IMAGENET_STD
) -> Preprocessing:
    """Return the usual preprocessing: small images whole, of larger ones the central 95 %."""
    return Preprocessing(image_size, image_size if image_size <= 64 else round(image_size / 0.95), mean, std)


def decoded(image: Any, short_side: int) -> Any:
    """Return an opened image as RGB; a JPEG is decoded at a half, quarter or eighth where that leaves 2 x `short_side`.

    The reduced decoding is libjpeg's, several times faster on photos; the resize that follows evens out the rest.
    """
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        image.draft(image.mode, (2 * short_side, 2 * short_side))
    return read_image(image)


def _middle(image: Any) -> Any:
    """Return the middle of a very long image, of which only a square will be seen: enlarged whole, it fills memory."""
    short = min(image.size)
    width, height = (min(side, 4 * short + side % 2) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image if (width, height) == image.size else image.crop((left, top, left + width, top + height))


def resized(image: Any, short_side: int) -> Any:
    """Return an RGB image with its shorter side at `short_side`."""
    from PIL import Image

    scale = short_side / min(image.size)
    if scale == 1:
        return image
    width, height = (max(short_side, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def reduced(image: Any, short_side: int) -> Any:
    """Return an RGB image averaged over whole blocks of pixels, its shorter side still `short_side` or more.

    Much cheaper than a resize, which follows with the crop.
    """
    factor = min(image.size) // short_side
    return image.reduce(factor) if factor > 1 else image


def to_tensor(image: Any) -> Tensor:
    """Return an RGB image as uint8 (3, H, W), channels last in memory, as it lies in the image."""
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
