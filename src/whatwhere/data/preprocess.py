"""Turn an image into the network's input: the same in evaluation, prediction and a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..base.limits import IMAGE_SIDE
from ..base.words import brief
from .images import MAX_VALUE, read_image

# of the document: 1, which does not say so, has image_size, resize, mean and std
VERSION = 2
ResizeMode = Literal["crop", "letterbox", "squash"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class NewerError(ValueError):
    """A document of a later version: what this one would compute from it is something else."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize (bicubic, antialiased) to a square of `image_size`, and normalise.

    "crop" resizes the shorter side to `resize` and crops the centre, as torchvision and timm do. The other modes show
    the whole image: "letterbox" resizes its longer side to `image_size` and fills the rest, "squash" resizes both sides
    to `image_size`, so that shapes change. They are timm's crop_mode "border" and "squash" with crop_pct 1.

    The letterbox stands in the middle; an odd pixel is filled at the right or at the bottom. The fill is
    round(255 mean), as in timm: near 0 for the network, as its convolutions pad.

    A value v of a channel, scaled to [0, 1], becomes (v - mean) / std.

    `mean` and `std` are of red, green and blue. `max_value` is the value of 16-bit grey that becomes 255
    (`images.levels`); images of 8 bits are read as they are.
    """

    image_size: int
    resize: int  # the size before the crop; `image_size` where there is no crop
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    max_value: int = MAX_VALUE
    resize_mode: ResizeMode = "crop"

    def to_dict(self) -> dict[str, Any]:
        """Return it as a document of JSON values, with its version."""
        values = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        return {"version": VERSION, **values}

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
        if isinstance(mode := document.get("resize_mode", "crop"), str) and mode not in get_args(ResizeMode):
            raise NewerError(f"its resize_mode is {brief(mode)}")
        found = msgspec.convert(dict(document), cls)
        if not 1 <= found.image_size <= found.resize <= IMAGE_SIDE:
            raise ValueError(f"its image size is {found.image_size} of {found.resize}")
        if not 1 <= found.max_value <= MAX_VALUE:
            raise ValueError(f"its largest value of 16 bits is {found.max_value}")
        if found.resize_mode != "crop" and found.resize != found.image_size:
            raise ValueError(f"its {found.resize_mode} is of {found.resize} pixels for {found.image_size}")
        # of values from 0 to 1: far beyond these bounds a network would compute infinities
        if not all(-1e3 <= value <= 1e3 for value in found.mean) or not all(1e-3 <= v <= 1e3 for v in found.std):
            raise ValueError(f"its mean is {found.mean}, its std {found.std}")
        return found

    @property
    def fill(self) -> tuple[int, ...]:
        """The colour around a letterbox: the mean, of 255."""
        return tuple(round(255 * min(max(value, 0), 1)) for value in self.mean)

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, width and height of what an image, or a part of it, becomes when nothing is cut off."""
        size = self.image_size
        if self.resize_mode != "letterbox":
            return 0, 0, size, size
        width, height = (max(1, round(side * size / max(width, height))) for side in (width, height))
        return (size - width) // 2, (size - height) // 2, width, height

    def pixels(self, image: Image.Image) -> Tensor:
        """Resize an opened image: uint8 (3, image_size, image_size)."""
        image = decoded(image, self.resize, self.resize_mode, self.max_value)
        if self.resize_mode != "crop":
            return to_tensor(self._boxed(image))
        # first cut a very long image: only a square is used, and the enlarged whole would fill the memory
        short = min(image.size)
        image = _middle(image, *(min(side, 4 * short + side % 2) for side in image.size))
        return to_tensor(_middle(resized(image, self.resize), self.image_size, self.image_size))

    def _boxed(self, image: Image.Image) -> Image.Image:
        left, top, width, height = self.box(*image.size)
        if image.width < width and image.height > 4 * height:
            # Pillow up to 12.1 would make it wider first, and a very long image would fill the memory
            image = image.resize((image.width, height), Image.Resampling.BICUBIC)
        square = Image.new("RGB", (self.image_size, self.image_size), self.fill)
        square.paste(image.resize((width, height), Image.Resampling.BICUBIC), (left, top))
        return square

    def normalize(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """Return uint8 (N, 3, H, W) as float32, normalised; in `out`, where there is one."""
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (self.mean, self.std))
        scale, shift = (values.to(pixels.device, torch.float32) for values in (1 / (255 * std), -mean / std))
        images = pixels.float() if out is None else out.copy_(pixels)
        return images.mul_(scale).add_(shift)


def preprocessing_for(
    image_size: int,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    max_value: int = MAX_VALUE,
    resize_mode: ResizeMode = "crop",
) -> Preprocessing:
    """Return the usual preprocessing; "crop" crops 95 % of the shorter side, up to 64 pixels all of it."""
    is_whole = resize_mode != "crop" or image_size <= 64
    resize = image_size if is_whole else round(image_size / 0.95)
    return Preprocessing(image_size, resize, mean, std, max_value, resize_mode)


def _factors(size: tuple[int, int], side: int, resize_mode: ResizeMode) -> tuple[int, int]:
    """Return by what whole factors width and height may shrink, so that what becomes `side` still has that many pixels.

    That is the shorter side of a "crop", the longer one of a "letterbox", both of a "squash".
    """
    width, height = size
    if resize_mode == "squash":
        return max(1, width // side), max(1, height // side)
    factor = max(1, (min if resize_mode == "crop" else max)(size) // side)
    return factor, factor


def decoded(image: Image.Image, side: int, resize_mode: ResizeMode = "crop", max_value: int = MAX_VALUE) -> Image.Image:
    """Decode an opened image to RGB; a JPEG at 1/2, 1/4 or 1/8 of its size if that leaves 2 x `side` or more.

    libjpeg's reduced decoding is several times faster on photos. A resize to `side` follows; which side that is says
    `_factors`.
    """
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        least = min(_factors(image.size, 2 * side, resize_mode))
        factor = next(factor for factor in (8, 4, 2, 1) if factor <= least)
        if factor > 1:
            image.draft(image.mode, (max(1, image.width // factor), max(1, image.height // factor)))
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


def reduced(image: Image.Image, side: int, resize_mode: ResizeMode = "crop") -> Image.Image:
    """Shrink an RGB image by whole factors, averaging blocks of pixels; what becomes `side` keeps that many pixels.

    This is much cheaper than a resize. The crop resizes it later.
    """
    factors = _factors(image.size, side, resize_mode)
    return image.reduce(factors) if max(factors) > 1 else image


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as uint8 (3, H, W), in channels-last memory."""
    return torch.from_numpy(np.array(image).transpose(2, 0, 1))


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return `values` on the device; from pinned memory, so that the CPU does not wait for a GPU."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
