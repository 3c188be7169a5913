"""How the passes go over a batch: views for both memory formats, pieces that fit the cache, maxima with indices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# What a piece of the batch may take: on a CPU a part of its last cache, elsewhere enough to fill the device.
_PIECE_BYTES_CPU = 2**22
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


def pieces_of(x: Tensor) -> Iterator[slice]:
    """Yield the slices of the first dimension of x that make its pieces."""
    budget = _PIECE_BYTES_CPU if x.device.type == "cpu" else _PIECE_BYTES
    step = max(1, budget // max(1, x[0].numel() * max(4, x.element_size())))
    for start in range(0, x.shape[0], step):
        yield slice(start, start + step)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums over tensors of `dtype` are taken: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Extreme:
    """The largest (or smallest) values along one dimension of a view, and the first index of each.

    `max` with indices reads slowly on a CPU. There, each piece only gives the maxima of blocks along the dimension; the
    index is looked for afterwards, in the one block that has it.
    """

    def __init__(self, flat: Tensor, dim: int, largest: bool) -> None:
        self.dim = dim
        self.largest = largest
        self.in_blocks = flat.device.type == "cpu"
        self.block = _block(flat.shape[dim], innermost=dim == 2) if self.in_blocks else 1
        self.parts: list[Tensor] = []
        self.indices: list[Tensor] = []

    def add(self, piece: Tensor) -> Tensor:
        """Take in a piece of the batch and return its values."""
        if not self.in_blocks:
            values, indices = piece.max(self.dim) if self.largest else piece.min(self.dim)
            self.indices.append(indices)
            return values
        blocks = self._in_blocks(piece)
        part = blocks.amax(self.dim + 1) if self.largest else blocks.amin(self.dim + 1)
        self.parts.append(part)
        return part.amax(self.dim) if self.largest else part.amin(self.dim)

    def _in_blocks(self, flat: Tensor) -> Tensor:
        blocks: Tensor = flat.unflatten(self.dim, (-1, self.block))  # type: ignore[no-untyped-call]
        return blocks

    def locate(self, flat: Tensor) -> Tensor:
        """Return the first index of each value, `flat` being the whole that was taken in."""
        if not self.in_blocks:
            return torch.cat(self.indices)
        parts = torch.cat(self.parts)
        first = (parts.max(self.dim) if self.largest else parts.min(self.dim)).indices
        blocks = self._in_blocks(flat)
        if self.dim == 2:  # a block is a run of memory
            starts = torch.arange(first.numel(), device=flat.device) * blocks.shape[2]
            inside = blocks.reshape(-1, self.block).index_select(0, starts + first.flatten()).view(*first.shape, -1)
        else:
            inside = blocks.gather(1, first[:, None, None].expand(-1, 1, self.block, -1)).squeeze(1)
        return first * self.block + (inside.max(self.dim) if self.largest else inside.min(self.dim)).indices


def _block(size: int, innermost: bool) -> int:
    """Return the divisor of `size` that makes quick blocks: some vectors long where memory runs along them."""
    wanted = 48 if innermost else 16
    divisors = [k for k in range(1, size + 1) if size % k == 0 and k > 1] or [1]
    return min(divisors, key=lambda k: max(k / wanted, wanted / k))
