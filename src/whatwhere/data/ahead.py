"""Read images ahead in threads, and give up on a disk that does not answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

from ..base.processes import READER
from .images import ImageError

_PATIENCE = 60.0  # seconds to wait while no thread reads an image
PIECE = 8  # images that a thread takes at a time: with one, threads would wait for each other more than they read

Item = TypeVar("Item")
Image = TypeVar("Image")


def read_ahead(
    read: Callable[[Item], Image],
    batches: Iterable[Sequence[Item]],
    num_threads: int,
    *,
    piece: int = PIECE,
    finish: Callable[[Sequence[Item], list[Image]], list[Image]] | None = None,
    initializer: Callable[[], None] | None = None,
) -> Generator[list[Image], None, None]:
    """Yield what `read` returns for each item of a batch, batch by batch; `num_threads` read ahead, 0 do not.

    A thread takes `piece` items at a time. There `finish` makes of the items and their images what is yielded of them.
    Each thread begins with `initializer`.

    At least a batch is read ahead, and two pieces for each thread. Who leaves in the middle waits for no thread; each
    ends with the image that it reads.

    Threads, not processes: Pillow and torch release the GIL while they decode and resize. So there is no shared memory
    that may be full, and no process that may be lost.

    Raises:
        ImageError: Of kind "silent": no thread has read an image for a minute.
    """
    came, ended = Event(), Event()

    def work(items: Sequence[Item]) -> list[Image]:
        images = []
        for item in items:
            if ended.is_set():
                return []
            images.append(read(item))
            came.set()
        return finish(items, images) if finish else images

    if not num_threads:
        yield from map(work, batches)
        return

    remaining = iter(batches)
    ahead: deque[list[Future[list[Image]]]] = deque()
    pool = ThreadPoolExecutor(num_threads, READER, initializer)
    try:
        while True:
            while len(ahead) < 2 or sum(map(len, ahead)) < 2 * num_threads:
                if (batch := next(remaining, None)) is None:
                    break
                starts = range(0, len(batch), piece)
                ahead.append([pool.submit(work, batch[start : start + piece]) for start in starts])
            if not ahead:
                return
            yield [image for one in ahead.popleft() for image in _result(one, came)]
    finally:
        ended.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _result(reading: Future[list[Image]], came: Event) -> list[Image]:
    """Return what a thread reads; `came` is set with each image of any thread.

    The minute is waited in two halves: if the whole process was stopped for hours, only the first of them is over.
    """
    silent = 0
    came.clear()
    while not wait([reading], _PATIENCE / 2).done:
        silent = 0 if came.is_set() else silent + 1
        came.clear()
        if silent == 2:
            reason = f"no images were read for {_PATIENCE:.0f} s: the disk or network that holds them does not answer"
            raise ImageError(reason, "silent")
    return reading.result()
