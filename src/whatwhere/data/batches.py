"""Batches for training and evaluation. A training batch depends on (seed, step) only, not on the threads that read."""

from __future__ import annotations

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..base.randomness import generator
from .ahead import PIECE, read_ahead
from .augment import Augmentation, draws
from .preprocess import Preprocessing, decoded, reduced, sent, to_tensor
from .sources.source import Sample, Source
from .store import Store

# images for resized crops are stored with at least this many times the pixels, along a side, that the network takes
_STORED = 1.5
# what a thread takes at a time: of RandAugment many images with the same operation, but not more than the cache holds
_AUGMENTED_PIXELS = 2**20


class Batch(NamedTuple):
    """The network's input (N, 3, H, W), the labels (N,), int64, and the samples' numbers (N,) on the CPU."""

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass
class Order:
    """The samples of each training step: in each epoch every sample once, in an order that depends on (seed, epoch).

    An epoch has ceil(num_samples / batch_size) batches. Their sizes differ by at most one, so no step has only a few
    images.
    """

    num_samples: int
    batch_size: int
    seed: int
    _epoch: tuple[int, tuple[Tensor, ...]] | None = field(default=None, init=False, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return math.ceil(self.num_samples / self.batch_size)

    def batch(self, step: int) -> Tensor:
        """Return the numbers of the samples of a step; steps count from the start of training."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            order = torch.randperm(self.num_samples, device="cpu", generator=generator(self.seed, f"order.{epoch}"))
            self._epoch = epoch, torch.tensor_split(order, self.steps_per_epoch)
        return self._epoch[1][position]

    def size(self, step: int) -> int:
        """Return the number of samples of a step."""
        smallest, larger = divmod(self.num_samples, self.steps_per_epoch)
        return smallest + (step % self.steps_per_epoch < larger)

    def share(self, step: int, rank: int, world_size: int) -> Tensor:
        """Return the numbers of a step's samples that process `rank` of `world_size` computes."""
        return torch.tensor_split(self.batch(step), world_size)[rank]


class Reader:
    """Decodes samples: as the evaluation needs them, or whole (reduced in size) for resized crops."""

    def __init__(self, source: Source, samples: Sequence[Sample], preprocessing: Preprocessing, whole: bool) -> None:
        self.source, self.samples, self.preprocessing, self.whole = source, samples, preprocessing, whole

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        with self.source.open(self.samples[index]) as image:
            if not self.whole:
                return self.preprocessing.pixels(image)
            side, mode = round(_STORED * self.preprocessing.image_size), self.preprocessing.resize_mode
            return to_tensor(reduced(decoded(image, side, mode, self.preprocessing.max_value), side, mode))


def label_numbers(samples: Sequence[Sample], classes: tuple[str, ...]) -> Tensor:
    """Return the class number of each sample, (N,), int64: the place of its label in `classes`."""
    number = {name: index for index, name in enumerate(classes)}
    return torch.tensor([number[sample.label] for sample in samples], dtype=torch.int64)


@dataclass
class TrainBatches:
    """Augmented training images: `steps` yields this process's part of each step.

    Threads read, crop and augment; on a device other than the CPU it does all after the crop, for the whole batch.
    """

    images: Store | Reader
    labels: Tensor
    order: Order
    augment: Augmentation
    device: torch.device
    num_workers: int = 0
    rank: int = 0
    world_size: int = 1
    on_device: bool = False

    def __post_init__(self) -> None:
        self._block: Tensor | None = None
        if self.on_device:
            assert isinstance(self.images, Store)
            self._block = self.images.moved_to(self.device)

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of steps `start` to `stop` - 1."""
        block, items = self._block, self._items(start, stop)
        if block is None:
            size = self.augment.preprocessing.image_size
            read = _loaded(self._image, self.augment, items, size, self.num_workers, self.device, _AUGMENTED_PIXELS)
        else:
            near = ((block[indices.to(self.device)], indices, rows) for indices, rows in items)
            read = ((self.augment(pixels, rows), indices) for pixels, indices, rows in near)
        for images, indices in read:
            yield Batch(images, sent(self.labels[indices], self.device), indices)

    def _image(self, index: int, row: Tensor) -> Tensor:
        pixels = self.images[index]
        return self.augment.cropped(pixels, row) if self.augment.crop == "resized" else pixels

    def _items(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the sample numbers of each step, and their rows of random numbers."""
        drawn = -1
        for step in range(start, stop):
            epoch = step // self.order.steps_per_epoch
            if epoch != drawn:
                drawn, rows = epoch, draws(self.order.seed, epoch, self.order.num_samples)
            indices = self.order.share(step, self.rank, self.world_size)
            yield indices, rows[indices]


@dataclass(frozen=True)
class ImageSet:
    """Images (N, C, H, W), float32 in [0, 1], with their labels (N,), int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class TensorBatches:
    """Training images that are in memory as the network's input, without augmentation."""

    images: Tensor
    labels: Tensor
    order: Order
    device: torch.device

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of steps `start` to `stop` - 1."""
        for step in range(start, stop):
            indices = self.order.batch(step)
            yield Batch(self.images[indices].to(self.device), self.labels[indices].to(self.device), indices)


@dataclass
class EvaluationBatches:
    """Evaluation images in order; each image is in exactly one process, whatever their numbers are."""

    images: Store | Reader
    labels: Tensor
    preprocessing: Preprocessing
    batch_size: int
    device: torch.device
    num_workers: int = 0
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[Batch]:
        own = torch.arange(len(self.labels))[self.rank :: self.world_size]
        if not len(own):
            return
        items = ((indices, indices) for indices in torch.split(own, self.batch_size))
        workers = 0 if isinstance(self.images, Store) else self.num_workers

        def normalize(pixels: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
            return self.preprocessing.normalize(pixels, out)

        size = self.preprocessing.image_size
        read = _loaded(lambda index, _: self.images[index], normalize, items, size, workers, self.device)
        for images, indices in read:
            yield Batch(images, sent(self.labels[indices], self.device), indices)


class _Finish(Protocol):
    def __call__(self, pixels: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor: ...


class _Item(NamedTuple):
    """An image to read: its number, its row, and where it goes."""

    number: int
    row: Tensor
    place: int
    out: Tensor
    rows: Tensor


def _loaded(
    read: Callable[[int, Tensor], Tensor],
    finish: _Finish,
    batches: Iterator[tuple[Tensor, Tensor]],
    size: int,
    num_workers: int,
    device: torch.device,
    piece_pixels: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the network's input of each batch, and the numbers of its samples, from these numbers and a row for each.

    `num_workers` threads read ahead. On a CPU they also `finish` what they have read, about `piece_pixels` at a time:
    then all of it runs beside the training. Another device does that itself, for the whole batch.
    """
    on_cpu = device.type == "cpu"
    begun: deque[tuple[Tensor, Tensor, Tensor]] = deque()

    def begin(indices: Tensor, rows: Tensor) -> list[_Item]:
        out = torch.empty(len(indices), 3, size, size, dtype=torch.float32 if on_cpu else torch.uint8)
        begun.append((out, indices, rows))
        pairs = zip(indices.tolist(), rows, strict=True)
        return [_Item(number, row, place, out, rows) for place, (number, row) in enumerate(pairs)]

    def put(items: Sequence[_Item], images: list[Tensor]) -> list[Tensor]:
        _, _, start, out, rows = items[0]
        part = slice(start, start + len(images))
        if on_cpu:
            finish(torch.stack(images), rows[part], out[part])
        else:
            torch.stack(images, out=out[part])
        return []

    pieces = read_ahead(
        lambda item: read(item.number, item.row),
        itertools.starmap(begin, batches),
        num_workers,
        piece=max(PIECE, piece_pixels // size**2 if on_cpu else 0),
        finish=put,
        initializer=functools.partial(_compute_alone, torch.get_num_threads()),
    )
    for _ in pieces:
        images, indices, rows = begun.popleft()
        yield images if on_cpu else finish(sent(images, device), rows), indices


def _compute_alone(others: int) -> None:
    """Use one thread of torch in this one: each reader would start a team of its own, for which no core is free.

    At its first use of torch a thread takes the number that was set last in any thread. So this thread uses it before,
    and then another sets that of the `others` again.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)
    again = Thread(target=torch.set_num_threads, args=(others,))
    again.start()
    again.join()
