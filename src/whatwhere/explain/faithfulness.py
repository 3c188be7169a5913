"""Insertion and deletion curves, which say whether a class needs the places that a map points at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.errors import UserError, check_integer
from ..base.modules import undisturbed
from ..base.words import brief

_BLUR = 5 / 224  # the standard deviation of the blur, in sides of the image
_SEED = 0
_LEAST_IMAGES = 5  # for an interval


@dataclass(frozen=True)
class Curves:
    """The probability of a class as an image's pixels come, or go, in the order of a map.

    Attributes:
        insertion: (N, steps + 1): pixels of the image, the greatest of the map first, replace those of the blurred
            image, none of them at first, all at the end.
        deletion: (N, steps + 1): they are replaced by 0, the mean colour of what is normalised.
    """

    insertion: Tensor
    deletion: Tensor

    @property
    def areas(self) -> tuple[Tensor, Tensor]:
        """The areas below both curves, (N,) each, from 0 to 1: the first is large, the second small for a good map."""
        return area(self.insertion), area(self.deletion)


def area(curves: Tensor) -> Tensor:
    """Return the area below curves (..., steps + 1) over an axis of length 1, by the trapezoidal rule."""
    return torch.trapezoid(curves, dx=1 / (curves.shape[-1] - 1))


def is_classifier(output: Any) -> bool:
    """Return whether a network's output is scores of two or more classes, (N, classes)."""
    return isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] > 1


def is_distribution(output: Tensor) -> bool:
    """Return whether a network's scores (N, classes) are probabilities already, as far as its finite rows tell.

    None is negative, and each row adds up to 1, to what is lost by rounding to its dtype.
    """
    if not output.is_floating_point():
        return False
    rows = output[output.isfinite().all(1)].float()
    lost = max(1e-3, torch.finfo(output.dtype).eps)
    return bool(len(rows) and (rows >= 0).all() and ((rows.sum(1) - 1).abs() < lost).all())


def probabilities(output: Tensor, *, are_given: bool) -> Tensor:
    """Return the probabilities of classes, float32: `output` itself where they are given, else of logits."""
    return output.float() if are_given else output.float().softmax(1)


@torch.no_grad()
def faithfulness(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    classes: Sequence[int] | Tensor | None = None,
    *,
    steps: int = 16,
    batch_size: int = 64,
) -> Curves:
    """Return the insertion and deletion curves of `maps`. Petsiuk et al., "RISE" (2018), section 4.3.

    Compare them with those of `torch.rand_like(maps)`: a map that is no better points at nothing. The blur has a
    standard deviation of 5/224 of the shorter side, and is cut off at twice that. `model` runs in evaluation mode and
    is left as it was.

    Args:
        model: A classifier: images -> logits (N, classes).
        images: What it takes, (N, C, H, W).
        maps: (N, 1, h, w), such as those of `grad_cam`; they are enlarged to H x W. Equal values go in random order.
        classes: The class of each image; by default the one with the highest logit.
        steps: Number of equal parts into which the pixels are cut.
        batch_size: Images in a forward pass.

    Raises:
        UserError: Maps of another number of images or with more than one channel, values that are not finite, a network
            that returns no scores of two or more classes, or a class that it does not have.
    """
    check_integer("steps", steps)
    check_integer("batch_size", batch_size)
    if maps.dim() != 4 or maps.shape[:2] != (len(images), 1):
        raise UserError(f"maps must be of the shape ({len(images)}, 1, h, w), got {tuple(maps.shape)}")
    if not maps.isfinite().all():
        raise UserError("maps must be finite; a gate or a gradient went wrong")
    with undisturbed(model):
        model.eval()
        scores = [model(part) for part in torch.split(images, batch_size)]
        if not all(map(is_classifier, scores)):
            raise UserError(f"{type(model).__name__} returns no scores of two or more classes, (N, classes)")
        are_given = is_distribution(torch.cat(scores))
        wanted = torch.cat(scores).argmax(1) if classes is None else torch.as_tensor(classes, device=images.device)
        if wanted.shape != (len(images),) or not bool(((wanted >= 0) & (wanted < scores[0].shape[1])).all()):
            most = scores[0].shape[1] - 1
            raise UserError(f"classes must be one for each image, from 0 to {most}, got {brief(wanted.tolist())}")
        ranks = _ranks(F.interpolate(maps.float(), images.shape[2:], mode="bilinear")).to(images.device)
        blurred, nothing = _blurred(images), torch.zeros_like(images[:1]).expand_as(images)
        insertion, deletion = (torch.empty(len(images), steps + 1) for _ in range(2))
        for step in range(steps + 1):
            first = ranks < round(step * ranks[0].numel() / steps)
            for curve, inside, outside in ((insertion, images, blurred), (deletion, nothing, images)):
                for start in range(0, len(images), batch_size):
                    part = slice(start, start + batch_size)
                    changed = torch.where(first[part], inside[part], outside[part])
                    of_classes = probabilities(model(changed), are_given=are_given)
                    curve[part, step] = of_classes.gather(1, wanted[part, None])[:, 0].cpu()
    return Curves(insertion, deletion)


@dataclass(frozen=True)
class Faithfulness:
    """The curves of a map, and those of pixels in random order, in blocks as large as the places of the map.

    Attributes:
        curves: Of the map.
        at_random: The mean over 2 random orders.
    """

    curves: Curves
    at_random: Curves

    def gains(self) -> list[tuple[float, float, float]]:
        """Return by how much the map is better than random order, by insertion and by deletion, above 0 if it is.

        (mean over the images, and its 95 % interval, by the t distribution; NaN with fewer than 5 images).
        """
        return [
            _with_interval(sign * (own - random))
            for sign, own, random in zip((1, -1), self.curves.areas, self.at_random.areas, strict=True)
        ]


def beside_random(model: nn.Module, images: Tensor, maps: Tensor, classes: Tensor | None) -> Faithfulness:
    """Return the curves of maps (N, 1, h, w) beside those of random order, as `faithfulness` computes them."""
    generator = torch.Generator().manual_seed(_SEED)
    drawn = [faithfulness(model, images, torch.rand(maps.shape, generator=generator), classes) for _ in range(2)]
    random = Curves(*(torch.stack([getattr(one, name) for one in drawn]).mean(0) for name in ("insertion", "deletion")))
    return Faithfulness(faithfulness(model, images, maps, classes), random)


def told_gain(mean: float, low: float, high: float) -> str:
    """Return "+0.12 (+0.02 to +0.21)": with as many decimals, up to 5, as tell on which side of 0 the ends are."""
    if math.isnan(low):
        return f"{mean:+.2f} (no interval: fewer than {_LEAST_IMAGES} images)"
    decimals = next((n for n in range(2, 5) if round(low, n) and round(high, n)), 5)
    return f"{mean:+.{decimals}f} ({low:+.{decimals}f} to {high:+.{decimals}f})"


def _with_interval(values: Tensor) -> tuple[float, float, float]:
    from scipy.stats import t

    mean, num = float(values.double().mean()), len(values)
    if num < _LEAST_IMAGES:
        return mean, float("nan"), float("nan")
    half = float(t.ppf(0.975, num - 1) * values.double().std() / num**0.5)
    return mean, mean - half, mean + half


def _ranks(maps: Tensor) -> Tensor:
    """Return the place of each value, 0 for the greatest, among those of its map; equal ones in random order."""
    flat = maps.flatten(1).cpu()
    shuffled = torch.rand(flat.shape, generator=torch.Generator().manual_seed(_SEED)).argsort(1)
    order = shuffled.gather(1, flat.gather(1, shuffled).sort(dim=1, descending=True, stable=True).indices)
    places = torch.arange(flat.shape[1]).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(maps)


def _blurred(images: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur

    sigma = _BLUR * min(images.shape[2:])
    # a kernel cannot be wider than twice the image
    size = 2 * min(max(1, round(2 * sigma)), (min(images.shape[2:]) - 1) // 2) + 1
    blurred: Tensor = gaussian_blur(images, [size, size], [sigma, sigma])
    return blurred
