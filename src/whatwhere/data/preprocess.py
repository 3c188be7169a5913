"""Turn an image into the network's input: the same in evaluation, prediction and a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..base.limits import IMAGE_SIDE
from ..base.words import brief
from .images import MAX_VALUE, read_image

# of the document: 1, which does not say so, is {image_size, resize, mean, std}
VERSION = 2
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class NewerError(ValueError):
    """A document of a later version: what this one would compute from it is something else."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side to `resize` (bicubic, antialiased), crop the centre to `image_size`, normalise.

    A value v of a channel, scaled to [0, 1], becomes (v - mean) / std.

    `mean` and `std` are of red, green and blue. `max_value` is the value of 16-bit grey that becomes 255
    (`images.levels`); images of 8 bits are read as they are.
    """

    image_size: int
    resize: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    max_value: int = MAX_VALUE

    def to_dict(self) -> dict[str, Any]:
        """Return it as a document of JSON values, with its version."""
        return {"version": VERSION, **{name: msgspec.to_builtins(value) for name, value in asdict(self).items()}}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Preprocessing:
        """Read a document of this version, or of an earlier one.

        Raises:
            NewerError: It says something that this version does not know.
            ValueError: A field is missing, or has an impossible value.
        """
        known = {"version", *(field.name for field in fields(cls))}
        if (version := document.get("version", 1)) not in range(1, VERSION + 1):
            raise NewerError(f"its preprocessing has version {brief(version)}, not {VERSION}")
        for name in sorted(document.keys() - known):
            raise NewerError(f"its preprocessing has {brief(name)}")
        found = msgspec.convert(dict(document), cls)
        if not 1 <= found.image_size <= found.resize <= IMAGE_SIDE:
            raise ValueError(f"its image size is {found.image_size} of {found.resize}")
        if not 1 <= found.max_value <= MAX_VALUE:
            raise ValueError(f"its largest value of 16 bits is {found.max_value}")
        # of values from 0 to 1: far beyond these bounds a network would compute infinities
        if not all(-1e3 <= value <= 1e3 for value in found.mean) or not all(1e-3 <= v <= 1e3 for v in found.std):
            raise ValueError(f"its mean is {found.mean}, its std {found.std}")
        return found

    def pixels(self, image: Image.Image) -> Tensor:
        """Resize and crop an opened image: uint8 (3, image_size, image_size)."""
        image = decoded(image, self.resize, self.max_value)
        # first cut a very long image: only a square is used, and the enlarged whole would fill the memory
        short = min(image.size)
        image = _middle(image, *(min(side, 4 * short + side % 2) for side in image.size))
        return to_tensor(_middle(resized(image, self.resize), self.image_size, self.image_size))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return uint8 (N, 3, H, W) as float32, normalised."""
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (self.mean, self.std))
        scale, shift = (values.to(pixels.device, torch.float32) for values in (1 / (255 * std), -mean / std))
        # two passes over the data; uint8 times float32 is float32
        return (pixels * scale).add_(shift)


def preprocessing_for(
    image_size: int,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    max_value: int = MAX_VALUE,
) -> Preprocessing:
    """Return the usual preprocessing: the whole image up to 64 pixels, else the central 95 % of its shorter side."""
    return Preprocessing(image_size, image_size if image_size <= 64 else round(image_size / 0.95), mean, std, max_value)


def decoded(image: Image.Image, short_side: int, max_value: int = MAX_VALUE) -> Image.Image:
    """Decode an opened image to RGB; a JPEG at 1/2, 1/4 or 1/8 of its size if that leaves 2 x `short_side` or more.

    libjpeg's reduced decoding is several times faster on photos. A resize to `short_side` follows.
    """
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        image.draft(image.mode, (2 * short_side, 2 * short_side))
    return read_image(image, max_value)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def resized(image: Image.Image, short_side: int) -> Image.Image:
    """Resize an RGB image so that its shorter side is `short_side`."""
    scale = short_side / min(image.size)
    if scale == 1:
        return image
    width, height = (max(short_side, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def reduced(image: Image.Image, short_side: int) -> Image.Image:
    """Shrink an RGB image by a whole factor, averaging blocks of pixels; its shorter side stays at least `short_side`.

    This is much cheaper than a resize. The crop resizes it later.
    """
    factor = min(image.size) // short_side
    return image.reduce(factor) if factor > 1 else image


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as uint8 (3, H, W), in channels-last memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return `values` on the device; from pinned memory, so that the CPU does not wait for a GPU."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
