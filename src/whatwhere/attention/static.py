"""The placebo of an attention: it scales channels and positions, but does not look at the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.errors import UserError
from .gate import Attention, Gate, place_of

PREFIX = "static:"
GRID = 8  # cells of a mean over images, in height and in width
LEAST_SHARE = 0.1  # of a batch in the means, from the tenth on; as in a BatchNorm


class RunningMeans(nn.Module):
    """Gives, in place of the values of each image, their means over the training images; constants to the gradient.

    With b the mean over a batch, n the number of batches before it and m the means::

        m <- m + max(1 / (n + 1), 0.1) (b - m)         after the forward pass, in training

    The result is m from before the batch, so it does not depend on the images of the batch. The very first batch is the
    exception: it gets its own means. In evaluation before it they are 0.

    Args:
        num_values: How many values there are for each image.
        channels: C of each.
        is_map: Whether they are maps. A map is averaged in 8 x 8 cells, and its mean is interpolated back, so that any
            H and W fit.

    Shape:
        (N, C), or maps (N, C, H, W), each -> the same.
    """

    def __init__(self, num_values: int, channels: int, *, is_map: bool) -> None:
        super().__init__()
        size = (num_values, channels, GRID, GRID) if is_map else (num_values, channels)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    mean: Tensor
    num_batches: Tensor

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        means = self.mean
        if self.training:
            with torch.no_grad():
                batch = torch.stack([self._over_images(value) for value in values]).to(means.dtype)
                means = torch.where(self.num_batches == 0, batch, means)
                self.num_batches += 1
                self.mean.lerp_(batch, (1 / self.num_batches).clamp_min(LEAST_SHARE).to(batch.dtype))
        return tuple(self._for_each(mean, value) for mean, value in zip(means, values, strict=True))

    @staticmethod
    def _over_images(value: Tensor) -> Tensor:
        cells = F.adaptive_avg_pool2d(value, GRID) if value.dim() == 4 else value
        return cells.mean(0)

    @staticmethod
    def _for_each(mean: Tensor, value: Tensor) -> Tensor:
        if value.dim() == 4:
            mean = F.interpolate(mean[None], value.shape[2:], mode="bilinear")[0]
        return mean.to(value.dtype).expand_as(value)


class Static:
    """Builds the placebo of an attention: the same parameters from the same start, and it never looks at an image.

    The pools and maps of each image are replaced by their means over the training images (see `RunningMeans`)::

        y = x * s * m,   s = what(means of the pools of x),   m = where(means of the maps of x * s)

    Where an attention has no pools of its own (it is no `Gate`), x itself is replaced in what it computes from x: y =
    x * gates(mean of x). So y depends on no other image of the batch, and the gates on no image at all that they scale.

    A BatchNorm of one value for each image and channel would divide by a variance of 0; it keeps the statistics it
    starts with, 0 and 1.

    An attention that helps where its placebo does not helps because it looks. One that helps no more than its placebo
    helps because it has scales that are learned.

    Args:
        builder: What builds the attention: its class.

    Raises:
        UserError: When called, if it builds no attention of whatwhere.
    """

    def __init__(self, builder: Callable[..., nn.Module]) -> None:
        self.builder = builder
        self.place = place_of(builder)

    def __call__(self, channels: int, **kwargs: Any) -> nn.Module:
        attention = self.builder(channels, **kwargs)
        if not isinstance(attention, Attention):
            raise UserError(f"{PREFIX} takes an attention of whatwhere; a {type(attention).__name__} is none")
        for norm in attention.modules():
            if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
                norm.register_forward_pre_hook(_without_variance)
        if not isinstance(attention, Gate):
            _give(attention, RunningMeans(1, channels, is_map=True))
            return attention
        if attention.what is not None:
            _blind(attention.what, RunningMeans(len(attention.what.pools), channels, is_map=False))
        if attention.where is not None:
            _blind(attention.where, RunningMeans(1, len(attention.where.maps), is_map=True))
        return attention


def _give(module: nn.Module, means: RunningMeans) -> None:
    """Give a module its means, of the dtype and on the device of its parameters."""
    module.means = means.to(next(module.parameters(), torch.zeros(())))


def _blind(function: Any, means: RunningMeans) -> None:
    """Let a function get means for what it is called with."""
    _give(function, means)
    # A hook leaves the names of the parameters, and so their initial values, as they are. It also tells `gate` that
    # the function must be called.
    function.register_forward_pre_hook(_means_of)


def _means_of(function: Any, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    means: tuple[Tensor, ...] = function.means(*values)
    return means


def _without_variance(norm: nn.Module, values: tuple[Tensor, ...]) -> None:
    """Let a norm use its running statistics, which stay 0 and 1, where each image has one value, the same for all."""
    if values[0][0, 0].numel() == 1:
        norm.eval()
