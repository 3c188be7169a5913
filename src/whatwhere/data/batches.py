"""Batches for training and evaluation. A training batch depends on (seed, step) only, not on worker processes."""

from __future__ import annotations

import atexit
import dataclasses
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..base.processes import STOP_SIGNALS
from ..base.randomness import generator
from .augment import Augmentation, draws
from .images import ImageError
from .preprocess import Preprocessing, decoded, reduced, to_tensor
from .sources.source import Sample, Source
from .store import Store

# images for resized crops are stored with a shorter side of at least this many times the network's image size
_STORED = 1.5


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
        # One block of text instead of a million Sample objects: worker processes would copy each object, because
        # counting references writes to it. For the same reason the source has no list of samples.
        self.source = dataclasses.replace(source, samples=())
        paths = [sample.path.encode("utf-8", "surrogatepass") for sample in samples]
        self.paths = np.frombuffer(b"".join(paths), dtype=np.uint8)
        self.ends = np.cumsum([0, *map(len, paths)])
        self.preprocessing, self.whole = preprocessing, whole

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> Tensor:
        path = self.paths[self.ends[index] : self.ends[index + 1]].tobytes().decode("utf-8", "surrogatepass")
        with self.source.open(Sample(path, "", None)) as image:
            if not self.whole:
                return self.preprocessing.pixels(image)
            short_side = round(_STORED * self.preprocessing.image_size)
            return to_tensor(reduced(decoded(image, short_side), short_side))


def label_numbers(samples: Sequence[Sample], classes: tuple[str, ...]) -> Tensor:
    """Return the class number of each sample, (N,), int64: the place of its label in `classes`."""
    number = {name: index for index, name in enumerate(classes)}
    return torch.tensor([number[sample.label] for sample in samples], dtype=torch.int64)


@dataclass
class _Decoded(Dataset[Any]):
    """Reads the images of a batch, and crops them if `augment` says so, in a worker process."""

    images: Store | Reader
    labels: Tensor
    augment: Augmentation | None = None

    def __getitem__(self, item: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        indices, rows = item
        pixels = [self.images[index] for index in indices.tolist()]
        if self.augment is not None and self.augment.crop == "resized":
            pixels = [self.augment.cropped(image, row) for image, row in zip(pixels, rows, strict=True)]
        return torch.stack(pixels), self.labels[indices], indices, rows


@dataclass
class TrainBatches:
    """Augmented training images: `steps` yields this process's part of each step.

    Worker processes read and crop. The rest of the augmentation runs on the device, for the whole batch.
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
            read = _loaded(_Decoded(self.images, self.labels, self.augment), items, self.num_workers, self.device)
        else:
            read = ((block[indices.to(self.device)], self.labels[indices], indices, rows) for indices, rows in items)
        for pixels, labels, indices, rows in read:
            images = self.augment(pixels.to(self.device, non_blocking=True), rows)
            yield Batch(images, labels.to(self.device, non_blocking=True), indices)

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
        batches = ((indices, torch.empty(0)) for indices in torch.split(own, self.batch_size))
        workers = 0 if isinstance(self.images, Store) else self.num_workers
        for pixels, labels, indices, _ in _loaded(_Decoded(self.images, self.labels), batches, workers, self.device):
            images = self.preprocessing.normalize(pixels.to(self.device, non_blocking=True))
            yield Batch(images, labels.to(self.device, non_blocking=True), indices)


def _loaded(data: Dataset[Any], items: Iterator[Any], num_workers: int, device: torch.device) -> Iterator[Any]:
    loader = DataLoader(
        data,
        batch_size=None,  # an item is a batch already
        sampler=items,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_parent if num_workers else None,
    )
    iterator: Any = iter(loader)
    # workers ignore SIGTERM, so end them here; at exit, if an exception still holds the iterator
    end = iterator._shutdown_workers if num_workers else lambda: None
    atexit.register(end)
    try:
        yield from iterator
    except ImageError as error:
        # an error from a worker has the worker's traceback before its message
        raise ImageError(str(error).rpartition("ImageError: ")[2].removesuffix(r"\n")) from error
    finally:
        atexit.unregister(end)
        end()


def _leave_signals_to_parent(worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach all processes; the parent finishes its step and then ends its workers
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
