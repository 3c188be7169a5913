"""How the passes read a batch: views for both memory formats, pieces that fit the cache, maxima with indices, dtype."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.fx
from torch import Tensor

# What a piece of the batch may take: on a CPU a part of its last cache, elsewhere enough to fill the device.
_PIECE_BYTES_CPU = 2**24
_PIECE_BYTES = 2**26


@dataclass(frozen=True)
class View:
    """How a 4-dimensional tensor is laid out, and its view with H and W as one dimension."""

    memory_format: torch.memory_format
    c: int
    p: int

    @staticmethod
    def of(x: Tensor) -> View:
        if x.is_contiguous() or x.stride(1) != 1:
            return View(torch.contiguous_format, c=1, p=2)
        return View(torch.channels_last, c=2, p=1)

    def dense(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self.memory_format)

    def flat(self, x: Tensor) -> Tensor:
        """Return the view (N, P, C) or (N, C, P) of a dense tensor."""
        if self.c == 1:
            return x.view(x.shape[0], x.shape[1], -1)
        return x.permute(0, 2, 3, 1).view(x.shape[0], -1, x.shape[1])

    def over_pixels(self, channels: Tensor) -> Tensor:
        """Return (n, C) as something that multiplies a view."""
        return channels.unsqueeze(self.p)

    def over_channels(self, pixels: Tensor) -> Tensor:
        """Return (n, P) as something that multiplies a view."""
        return pixels.unsqueeze(self.c)

    def image(self, flat: Tensor, height: int, width: int) -> Tensor:
        """Return a view back as (n, C, H, W)."""
        images: Tensor = flat.transpose(1, self.c).unflatten(2, (height, width))  # type: ignore[no-untyped-call]
        return images

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
        """Write x * scale + shift, both (n or 1, C), to `out`, which is at least as precise as x, and return it."""
        scale, shift = self.over_pixels(scale), self.over_pixels(shift)
        # one operator where memory runs along the channels; broadcast along the pixels it would be slower than two
        if self.c == 2 and x.dtype == out.dtype:
            return torch.addcmul(shift, x, scale, out=out)
        return torch.mul(x, scale, out=out).add_(shift)


def pieces_of(x: Tensor) -> Iterator[slice]:
    """Yield the slices of the first dimension of x that make its pieces."""
    budget = _PIECE_BYTES_CPU if x.device.type == "cpu" else _PIECE_BYTES
    step = max(1, budget // max(1, x[0].numel() * max(4, x.element_size())))
    for start in range(0, x.shape[0], step):
        yield slice(start, start + step)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums over tensors of `dtype`: float32 at least, because float16 overflows in squares."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# Symbolic tracing (torch.fx) keeps these as one call. It patches a function under the name by which it is called, so a
# module that imports one repeats `torch.fx.wrap`.
@torch.fx.wrap
def widened(x: Tensor) -> Tensor:
    """Return x in float32, or float64 if it is float64."""
    return x.to(accumulation_dtype(x.dtype))


@torch.fx.wrap
def narrowed(values: Tensor, x: Tensor) -> Tensor:
    """Return `values` in the dtype of x, clamped to its range."""
    return clamped_to(values, x.dtype)


def clamped_to(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `values` in `dtype`, clamped to its range."""
    if dtype.itemsize < values.dtype.itemsize:
        largest = torch.finfo(dtype).max
        values = values.clamp(-largest, largest)
    return values.to(dtype)


def extreme(x: Tensor, dim: int, largest: bool, with_index: bool) -> tuple[Tensor, Tensor | None]:
    """Return the largest (or smallest) values of x (n, ., .) along `dim`, and the first index of each if wanted."""
    if not with_index:
        return x.amax(dim) if largest else x.amin(dim), None
    block = _block(x.shape[dim], innermost=dim == 2) if x.device.type == "cpu" else 1
    if block == 1:
        found = x.max(dim) if largest else x.min(dim)
        return found.values, found.indices
    # max with indices reads slowly on a CPU: the maxima of blocks come first, then the one block that has it
    blocks: Tensor = x.unflatten(dim, (-1, block))  # type: ignore[no-untyped-call]
    parts = blocks.amax(dim + 1) if largest else blocks.amin(dim + 1)
    in_parts = parts.max(dim) if largest else parts.min(dim)
    first = in_parts.indices
    if dim == 2:  # a block is a run of memory
        starts = torch.arange(first.numel(), device=x.device) * blocks.shape[2]
        inside = blocks.reshape(-1, block).index_select(0, starts + first.flatten()).view(*first.shape, -1)
    else:
        inside = blocks.gather(1, first[:, None, None].expand(-1, 1, block, -1)).squeeze(1)
    return in_parts.values, first * block + (inside.max(dim) if largest else inside.min(dim)).indices


def _block(size: int, innermost: bool) -> int:
    """Return the divisor of `size` that makes quick blocks, some vectors long where memory runs along them; or 1."""
    wanted = 64 if innermost else 16
    if size < 4 * wanted:
        return 1
    # far from it, the blocks gain nothing over one search through everything
    near = [k for k in range(wanted // 4, wanted * 4) if size % k == 0]
    return min(near, key=lambda k: max(k / wanted, wanted / k), default=1)
