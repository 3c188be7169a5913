"""Decoded images kept in one block of memory, which worker processes share, or on the device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

_LARGEST = 4 * 2**30


class Store:
    """Images (3, H, W) of any sizes, uint8, by number."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self.shapes = [image.shape for image in images]
        sizes = torch.tensor([0, *(image.numel() for image in images)])
        self.starts: list[int] = sizes.cumsum(0).tolist()
        self.pixels = torch.empty(self.starts[-1], dtype=torch.uint8)
        for start, image in zip(self.starts, images, strict=False):
            self.pixels[start : start + image.numel()] = image.flatten()
        self.pixels.share_memory_()  # type: ignore[no-untyped-call]

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[self.starts[index] : self.starts[index + 1]].view(self.shapes[index])

    def block(self) -> Tensor:
        """Return images of one size as one tensor (N, 3, H, W)."""
        return self.pixels.view(len(self.shapes), *self.shapes[0])


class Images(Protocol):
    """Images by number, which are decoded when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Tensor: ...


def fits_in_memory(images: Images, num_processes: int = 1) -> bool:
    """Return whether all images, judged by some, take a quarter of the free memory and 4 GiB at most."""
    num_images = len(images)
    if not num_images:
        return True
    probes = range(0, num_images, max(1, num_images // 16))
    mean = sum(images[index].numel() for index in probes) / len(probes)
    return mean * num_images * num_processes <= min(_LARGEST, _free_memory() / 4)


def _free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not everywhere; then what most machines have
        return 8 * 2**30


def decode_all(images: Images) -> Store:
    """Decode every image once, on all cores (Pillow lets other threads run while it decodes)."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return Store(list(pool.map(images.__getitem__, range(len(images)))))
