"""Keep decoded images in one block of memory, or on the device."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..base.processes import num_cores
from .ahead import read_ahead

_LARGEST = 4 * 2**30
_AHEAD = 64  # images that are asked for together


class Images(Protocol):
    """Images by number, decoded on access."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Tensor: ...


class Store:
    """Images (3, H, W) of any sizes, uint8, by number."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self.shapes = [image.shape for image in images]
        self.starts = [0, *itertools.accumulate(image.numel() for image in images)]
        self.pixels = torch.empty(self.starts[-1], dtype=torch.uint8)
        for start, image in zip(self.starts, images, strict=False):
            # height x width x channels, as decoded; crops of it are fast
            self.pixels[start : start + image.numel()] = image.permute(1, 2, 0).reshape(-1)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Tensor:
        channels, height, width = self.shapes[index]
        pixels = self.pixels[self.starts[index] : self.starts[index + 1]]
        return pixels.view(height, width, channels).permute(2, 0, 1)

    def moved_to(self, device: torch.device) -> Tensor:
        """Return the images, all of one size, as a tensor (N, 3, H, W) on the device, and free the memory here."""
        channels, height, width = self.shapes[0]
        block = self.pixels.view(len(self.shapes), height, width, channels).permute(0, 3, 1, 2).to(device)
        self.pixels = torch.empty(0, dtype=torch.uint8)
        return block


def num_bytes(images: Images) -> int:
    """Estimate the bytes that a `Store` of `images` takes, from about 16 of them."""
    if not len(images):
        return 0
    probes = range(0, len(images), max(1, len(images) // 16))
    (found,) = read_ahead(lambda index: images[index].numel(), [probes], num_cores())
    return sum(found) * len(images) // len(probes)


def room(free: int, num_processes: int = 1) -> int:
    """Return the bytes that each process may keep of `free` bytes: its share of a quarter, at most 4 GiB."""
    return min(_LARGEST, free // num_processes // 4)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device; 8 GiB where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30


def decode_all(images: Images, *, num_threads: int | None = None) -> Store:
    """Decode every image once, on `num_threads` threads (by default one for each core)."""
    numbers = [range(start, min(start + _AHEAD, len(images))) for start in range(0, len(images), _AHEAD)]
    decoded = read_ahead(images.__getitem__, numbers, num_threads or num_cores())
    return Store(list(itertools.chain.from_iterable(decoded)))
