"""How the passes read a batch: views for both memory formats, pieces that fit the cache, maxima with indices, dtype."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.fx
from torch import Tensor

# Bytes of a piece of the batch: on a CPU a part of its last cache, elsewhere enough to fill the device.
PIECE_BYTES_CPU = 2**24
PIECE_BYTES = 2**26


@dataclass(frozen=True)
class View:
    """The layout of an (N, C, H, W) tensor, and its view with H and W as one dimension P."""

    memory_format: torch.memory_format  # contiguous or channels_last
    c: int  # which dimension of the view is C: of (N, C, P) 1, of (N, P, C) 2
    p: int  # which dimension is P

    @staticmethod
    def of(x: Tensor) -> View:
        """Return the layout that x has: channels_last if channels lie side by side, else contiguous."""
        if x.is_contiguous() or x.stride(1) != 1:
            return View(torch.contiguous_format, c=1, p=2)
        return View(torch.channels_last, c=2, p=1)

    @property
    def is_channels_last(self) -> bool:
        return self.c == 2

    def dense(self, x: Tensor) -> Tensor:
        """Return x with this layout and without gaps; x itself if it is so already."""
        return x.contiguous(memory_format=self.memory_format)

    def flat(self, x: Tensor) -> Tensor:
        """Return the view (N, P, C) or (N, C, P) of a dense tensor."""
        if self.is_channels_last:
            return x.permute(0, 2, 3, 1).view(x.shape[0], -1, x.shape[1])
        return x.view(x.shape[0], x.shape[1], -1)

    def over_pixels(self, channels: Tensor) -> Tensor:
        """Return (n, C) in the shape that multiplies a view."""
        return channels.unsqueeze(self.p)

    def over_channels(self, pixels: Tensor) -> Tensor:
        """Return (n, P) in the shape that multiplies a view."""
        return pixels.unsqueeze(self.c)

    def image(self, flat: Tensor, height: int, width: int) -> Tensor:
        """Return a view as (n, C, H, W) again."""
        images: Tensor = flat.transpose(1, self.c).unflatten(2, (height, width))  # type: ignore[no-untyped-call]
        return images

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
        """Write x * scale + shift, both (n or 1, C), to `out`, at least as precise as x; return `out`."""
        scale, shift = self.over_pixels(scale), self.over_pixels(shift)
        # one operator where channels lie side by side; where pixels do, it would be slower than two
        if self.is_channels_last and x.dtype == out.dtype:
            return torch.addcmul(shift, x, scale, out=out)
        return torch.mul(x, scale, out=out).add_(shift)


def pieces_of(x: Tensor) -> Iterator[slice]:
    """Yield the pieces of x, as slices of its first dimension."""
    budget = PIECE_BYTES_CPU if x.device.type == "cpu" else PIECE_BYTES
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
    """Return the largest or smallest values of x (n, ., .) along `dim`, and the first index of each if asked."""
    if not with_index:
        return x.amax(dim) if largest else x.amin(dim), None
    # max with indices reads slowly on a CPU: find the maximum of each block first, then search one block. A block is a
    # few vector registers long if its elements lie side by side; blocks of a very different size gain nothing.
    size, wanted = x.shape[dim], 64 if dim == 2 else 16
    worthwhile = x.device.type == "cpu" and size >= 4 * wanted
    near = [length for length in range(wanted // 4, wanted * 4) if size % length == 0] if worthwhile else []
    block = min(near, key=lambda length: max(length / wanted, wanted / length), default=1)
    if block == 1:
        found = x.max(dim) if largest else x.min(dim)
        return found.values, found.indices
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
