"""BatchNorm2d as the lean backend sees it: z = x * scale + shift, its statistics taken piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layout import View, accumulation_dtype, pieces_of


@dataclass(frozen=True)
class Normed:
    """What a norm makes of x: z = (x - mean) * invstd * weight + bias = x * scale + shift.

    Attributes:
        mean: Of the batch, or the running mean, (C,), in the dtype of accumulation as all of these.
        invstd: 1 / sqrt(var + eps), (C,).
        scale: weight * invstd, (C,).
        shift: bias - mean * scale, (C,).
        plane_means: Mean over H x W of x, (N, C), where the statistics are the batch's; None otherwise.
    """

    mean: Tensor
    invstd: Tensor
    scale: Tensor
    shift: Tensor
    plane_means: Tensor | None

    def keeps_order(self) -> bool:
        """Return whether larger x is known to make larger z, so that the extremes of both stand at one place."""
        # elsewhere the answer would have to be waited for
        return self.scale.device.type == "cpu" and bool((self.scale > 0).all())


def takes_batch_statistics(norm: nn.BatchNorm2d | None) -> bool:
    """Return whether `norm` takes mean and variance from the batch rather than its running ones, as torch decides."""
    return norm is not None and (norm.training or (norm.running_mean is None and norm.running_var is None))


def normed(norm: nn.BatchNorm2d, view: View, x: Tensor, room: Tensor) -> Normed:
    """Return `norm` on x as scale and shift; update its running statistics as its own forward pass would.

    Into `room`, another tensor like x, anything may be written; it may be x itself, which is then left alone.
    """
    dtype = accumulation_dtype(x.dtype)
    plane_means = None
    if takes_batch_statistics(norm):
        plane_means, mean, var = _moments(view, x, room)
        running_mean, running_var, momentum = _running(norm)
        if running_mean is not None and running_var is not None:
            num = x.numel() // x.shape[1]
            running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
            running_var.mul_(1 - momentum).add_(var, alpha=momentum * num / (num - 1))
    else:
        mean, var = _running_copies(norm, dtype)
    invstd = torch.rsqrt(var + norm.eps)
    scale = invstd if norm.weight is None else norm.weight.to(dtype) * invstd
    shift = -mean * scale if norm.bias is None else torch.addcmul(norm.bias.to(dtype), mean, scale, value=-1)
    return Normed(mean, invstd, scale, shift, plane_means)


def normed_by_torch(norm: nn.BatchNorm2d, view: View, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return z bit for bit as `norm` itself gives it, its running statistics updated, with mean and invstd."""
    z = norm(x)
    if takes_batch_statistics(norm):
        _, mean, var = _moments(view, x, room=x)
    else:
        mean, var = _running_copies(norm, accumulation_dtype(x.dtype))
    return z, mean, torch.rsqrt(var + norm.eps)


def _running_copies(norm: nn.BatchNorm2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance; as copies, because they may move on before the backward pass."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.to(dtype, copy=True), norm.running_var.to(dtype, copy=True)


def _running(norm: nn.BatchNorm2d) -> tuple[Tensor | None, Tensor | None, float]:
    """Return the running statistics that a training step updates, and how far; count the step."""
    if not (norm.training and norm.track_running_stats):
        return None, None, 0.0
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1 / float(norm.num_batches_tracked)
    return norm.running_mean, norm.running_var, momentum


def _moments(view: View, x: Tensor, room: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean of each plane of x, (N, C), and mean and biased variance of each channel, (C,).

    Each plane's sum of squares is taken about its own mean, which is why a large mean costs no precision.
    """
    flat, dtype = view.flat(x), accumulation_dtype(x.dtype)
    free = view.flat(room) if room is not x and room.dtype == dtype else None
    means, variances = [], []
    for piece in pieces_of(flat):
        if x.device.type == "cpu":
            # var_mean takes one element at a time there
            mean = flat[piece].mean(view.p, dtype=dtype)
            centred = torch.sub(flat[piece], view.over_pixels(mean), out=None if free is None else free[piece])
            var = centred.mul_(centred).mean(view.p)
        else:
            var, mean = torch.var_mean(flat[piece].to(dtype), view.p, correction=0)
        means.append(mean)
        variances.append(var)
    plane_means = torch.cat(means)
    channel_means = plane_means.mean(0)
    return plane_means, channel_means, torch.cat(variances).mean(0) + (plane_means - channel_means).square_().mean(0)
