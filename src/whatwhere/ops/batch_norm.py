"""BatchNorm2d as one multiplication and one addition, its statistics computed piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layout import View, accumulation_dtype, pieces_of


@dataclass(frozen=True)
class Normed:
    """A norm applied to one x, in the dtype of sums: z = (x - mean) * invstd * weight + bias = x * scale + shift."""

    mean: Tensor  # of the batch, or the running mean, (C,)
    invstd: Tensor  # 1 / sqrt(var + eps), (C,)
    scale: Tensor  # weight * invstd, (C,)
    shift: Tensor  # bias - mean * scale, (C,)
    plane_means: Tensor | None  # mean of x over H x W, (N, C); None with running statistics

    def keeps_order(self) -> bool:
        """Return whether z is known to grow with x in every channel, so that both have their maximum at one index."""
        # only on a CPU: an accelerator would have to be waited for
        return self.scale.device.type == "cpu" and bool((self.scale > 0).all())


def takes_batch_statistics(norm: nn.BatchNorm2d | None) -> bool:
    """Return whether `norm` uses the mean and variance of the batch, not its running ones; the rule is torch's."""
    return norm is not None and (norm.training or (norm.running_mean is None and norm.running_var is None))


def normed(
    norm: nn.BatchNorm2d, view: View, x: Tensor, room: Tensor, planes: tuple[Tensor, Tensor] | None = None
) -> Normed:
    """Return scale and shift of `norm` for x; update its running statistics as its own forward pass would.

    `room`, a tensor like x, is scratch space; if it is x itself, nothing is written to it. `planes` are mean and biased
    variance of each plane of x, (N, C), where they are known.
    """
    dtype = accumulation_dtype(x.dtype)
    plane_means, mean, var = _statistics(norm, view, x, room, planes)
    update_running(norm, mean, var, x.numel() // x.shape[1])
    invstd = torch.rsqrt(var + norm.eps)
    scale = invstd if norm.weight is None else norm.weight.to(dtype) * invstd
    shift = -mean * scale if norm.bias is None else torch.addcmul(norm.bias.to(dtype), mean, scale, value=-1)
    return Normed(mean, invstd, scale, shift, plane_means)


def momentum_of(norm: nn.BatchNorm2d) -> float | None:
    """Count a batch; return by how much it moves the running statistics, None if it does not."""
    if not (norm.training and norm.track_running_stats):
        return None
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1 / float(norm.num_batches_tracked)
    return None if norm.running_mean is None or norm.running_var is None else momentum


def update_running(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, num: int) -> None:
    """Move the running statistics by the mean and the biased variance of a batch of `num` values, if `norm` does so."""
    momentum = momentum_of(norm)
    if momentum is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
        norm.running_var.mul_(1 - momentum).add_(var, alpha=momentum * num / (num - 1))


def normed_by_torch(norm: nn.BatchNorm2d, view: View, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return norm(x), computed by `norm` itself, with the mean and the invstd that it used."""
    z = norm(x)
    _, mean, var = _statistics(norm, view, x, room=x)
    return z, mean, torch.rsqrt(var + norm.eps)


def _statistics(
    norm: nn.BatchNorm2d, view: View, x: Tensor, room: Tensor, planes: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the mean of each plane of x, (N, C), and the mean and biased variance that `norm` takes, (C,).

    The squares of each plane are summed about its own mean, so that a large mean costs no precision. With running
    statistics there are no means of planes.
    """
    dtype = accumulation_dtype(x.dtype)
    if not takes_batch_statistics(norm):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # copies, because they may be updated before the backward pass
        return None, norm.running_mean.to(dtype, copy=True), norm.running_var.to(dtype, copy=True)
    plane_means, variances = _of_planes(view, x, room) if planes is None else planes
    channel_means = plane_means.mean(0)
    return plane_means, channel_means, variances.mean(0) + (plane_means - channel_means).square_().mean(0)


def _of_planes(view: View, x: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    dtype, flat = accumulation_dtype(x.dtype), view.flat(x)
    free = view.flat(room) if room is not x and room.dtype == dtype else None
    means, variances = [], []
    for piece in pieces_of(flat):
        if x.device.type == "cpu":
            # here var_mean reads one element at a time
            mean = flat[piece].mean(view.p, dtype=dtype)
            centred = torch.sub(flat[piece], view.over_pixels(mean), out=None if free is None else free[piece])
            var = centred.mul_(centred).mean(view.p)
        else:
            var, mean = torch.var_mean(flat[piece].to(dtype), view.p, correction=0)
        means.append(mean)
        variances.append(var)
    return torch.cat(means), torch.cat(variances)


class FoldedNorm(nn.Module):
    """What is left of a norm that was folded into the convolution before it: its children, such as an activation.

    It is no BatchNorm, and has no statistics, so that nothing folds or converts it once more.
    """

    @classmethod
    def take_the_place_of(cls, norm: nn.Module) -> None:
        """Make a norm such a module, for all that hold it."""
        norm._buffers.clear()
        norm.__class__ = cls

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x
