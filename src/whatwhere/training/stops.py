"""What ends a run early, in one sentence: signals, exhausted memory."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..base.errors import UserError
from ..base.processes import on_stop_signals
from .config import Config


@contextlib.contextmanager
def listening(request_stop: Callable[[], None], *, alone: bool) -> Iterator[list[int]]:
    """Call `request_stop` at SIGTERM, SIGHUP or Ctrl-C; yield the list of the signals received.

    `alone` says that this is the only process: a second Ctrl-C then raises KeyboardInterrupt.
    """
    received: list[int] = []

    def ask(number: int, frame: Any) -> None:
        # torchrun forwards a Ctrl-C that the terminal has already sent to each process
        if received and number == signal.SIGINT and alone:
            raise KeyboardInterrupt
        received.append(number)
        request_stop()

    with on_stop_signals(ask):
        yield received


@contextlib.contextmanager
def memory_errors(config: Config) -> Iterator[None]:
    """Raise UserError with advice where torch runs out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        exhausted = ("out of memory", "allocate memory", "ALLOC_FAILED", "shared memory")
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in text for words in exhausted):
            raise UserError(
                f"out of memory with batches of {config.batch_size} images of {config.image_size} px in "
                f"{config.accumulate} pieces; raise --accumulate (same steps, less memory), or lower --batch-size, "
                f"--image-size or --workers{'' if config.amp != 'none' else ', or give --amp bf16'}; a run that has "
                "checkpoints keeps its options: for others give another --out"
            ) from error
        raise
