"""Augment a batch of images, as a function of the images and of one row of uniform random numbers for each.

The row of a sample is a function of (seed, epoch, sample). So the order of reading, the number of threads that read
and the device do not change the result. The image operations are those of torchvision.transforms.v2.functional.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

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
Key = TypeVar("Key", bound=Hashable)


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

    def __call__(self, pixels: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the network's input, float32, for uint8 `pixels` (N, 3, S, S) and their rows (N, 14) on the CPU.

        It is written into `out`, where there is one.
        """
        if self.crop == "pad":
            pixels = _shifted(pixels, sent(rows[:, _CROP][:, 2:], pixels.device))
        if self.hflip:
            flip = (rows[:, _FLIP] < self.hflip).tolist()
            pixels = _by_group(pixels, flip, lambda key, images, _: images.flip(-1) if key else images)
        if self.rand_augment:
            pixels = _rand_augmented(pixels, rows[:, _RAND_AUGMENT], self.rand_augment)
        images = self.preprocessing.normalize(pixels, out)
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
    """Apply two random operations to each image, one after the other."""
    pixels = pixels.contiguous()
    for column in range(0, 2 * _NUM_OPERATIONS, 2):
        chosen = (rows[:, column] * len(OPERATIONS)).long()
        signs = torch.where(rows[:, column + 1] < 0.5, -1, 1)
        pixels = operate(pixels, chosen.tolist(), signs.tolist(), magnitude / 30)
    return pixels


def operate(pixels: Tensor, chosen: Sequence[int], signs: Sequence[int], strength: float) -> Tensor:
    """Return each image after the operation of this number in `OPERATIONS`, with its sign.

    All images that are moved are computed together, each by its own matrix.
    """

    def group(number: int, sign: int) -> tuple[str, int]:
        name = OPERATIONS[number]
        return ("", 0) if name in _MOVES else (name, sign if name in _SIGNED else 1)

    def apply(key: tuple[str, int], images: Tensor, indices: list[int]) -> Tensor:
        name, sign = key
        if name:
            return _COLOURS[name](images, sign * strength)
        height, width = images.shape[-2:]
        matrices = [_MOVES[OPERATIONS[chosen[i]]](signs[i] * strength, width, height) for i in indices]
        return _moved(images, torch.tensor(matrices))

    return _by_group(pixels, list(map(group, chosen, signs)), apply)


def _by_group(pixels: Tensor, keys: Sequence[Key], apply: Callable[[Key, Tensor, list[int]], Tensor]) -> Tensor:
    """Apply `apply` to all images of a key together: key, images, their numbers.

    Few large calls, because threads wait for each other at each.
    """
    groups: dict[Key, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    order = torch.tensor([*itertools.chain(*groups.values())])
    # `index_select` copies whole images, which indexing does not
    result = pixels.index_select(0, sent(order, pixels.device))
    for (key, indices), part in zip(groups.items(), torch.split(result, [*map(len, groups.values())]), strict=True):
        if (changed := apply(key, part, indices)) is not part:
            part.copy_(changed)
    return result.index_select(0, sent(order.argsort(), pixels.device))


def _moved(pixels: Tensor, matrices: Tensor) -> Tensor:
    """Return images whose value at (x, y), from the centre, is that of the image at matrix (x, y, 1): (N, 2, 3).

    As torchvision's `affine`, bilinear, which takes one matrix for all images.
    """
    height, width = pixels.shape[-2:]
    device = pixels.device
    at = torch.ones(height, width, 3, device=device)
    at[..., 0] = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=device)
    at[..., 1] = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=device)[:, None]
    half = torch.tensor([[width / 2], [height / 2]])
    to_unit = sent((matrices / half).transpose(1, 2), device)
    grid = at.view(1, -1, 3).expand(len(pixels), -1, -1).bmm(to_unit).view(-1, height, width, 2)
    # the last channel becomes the share of a pixel that comes from inside the image
    images = torch.ones(len(pixels), 4, height, width, device=device)
    images[:, :3] = pixels
    images = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    fill = torch.tensor(_FILL, device=device)[:, None, None]
    return images[:, :3].sub_(fill).mul_(images[:, 3:]).add_(fill).round_().to(torch.uint8)


def _sharpened(pixels: Tensor, factor: float) -> Tensor:
    """Return torchvision's `adjust_sharpness`, without its convolution, which takes longer than all else here.

    It blends with the smoothed image, whose value is (the sum of 3 x 3 pixels + 4 times the middle one) / 13.
    """
    result = pixels.float()
    inner = result[..., 1:-1, 1:-1]
    rows = result[..., :-2, :] + result[..., 1:-1, :] + result[..., 2:, :]
    total = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]).add_(inner, alpha=4)
    inner.add_(total.div_(13).round_().sub_(inner), alpha=1 - factor)
    return result.clamp_(0, 255).to(torch.uint8)


# the fourteen operations of torchvision's RandAugment, in its order
OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
# from a strength, -1 to 1, width and height of the images, the matrix for `_moved`; torchvision's ranges
_MOVES: dict[str, Callable[[float, int, int], list[list[float]]]] = {
    # about the left top corner, as AutoAugment shears
    "ShearX": lambda s, w, h: [[1, 0.3 * s, 0.3 * s * h / 2], [0, 1, 0]],
    "ShearY": lambda s, w, h: [[1, 0, 0], [0.3 * s, 1, 0.3 * s * w / 2]],
    "TranslateX": lambda s, w, h: [[1, 0, -int(s * 150 / 331 * w)], [0, 1, 0]],
    "TranslateY": lambda s, w, h: [[1, 0, 0], [0, 1, -int(s * 150 / 331 * h)]],
    "Rotate": lambda s, w, h: _turn(math.radians(30 * s)),
}
_SIGNED = ("Brightness", "Color", "Contrast", "Sharpness")  # those with a strength below 0, besides _MOVES
_COLOURS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Identity": lambda x, s: x,
    "Brightness": lambda x, s: ops.adjust_brightness(x, 1 + 0.9 * s),
    "Color": lambda x, s: ops.adjust_saturation(x, 1 + 0.9 * s),
    "Contrast": lambda x, s: ops.adjust_contrast(x, 1 + 0.9 * s),
    "Sharpness": lambda x, s: _sharpened(x, 1 + 0.9 * s),
    "Posterize": lambda x, s: ops.posterize(x, 8 - round(4 * s)),
    "Solarize": lambda x, s: ops.solarize(x, 255 * (1 - s)),
    "AutoContrast": lambda x, s: ops.autocontrast(x),
    "Equalize": lambda x, s: ops.equalize(x),
}


def _turn(angle: float) -> list[list[float]]:
    return [[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0]]


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
