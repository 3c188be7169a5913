"""What may end a run early, as sentences: signals, exhausted memory, processes that are gone."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import torch

from ..base.errors import UserError
from ..base.processes import on_stop_signals
from .config import Config
from .distributed import Team
from .trainer import Trainer


class Stopped(Exception):  # noqa: N818 - no error
    """The run was asked to stop, and everything is saved.

    Attributes:
        signal: The number of the signal that asked, 0 where another process was asked.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


@contextlib.contextmanager
def listening(trainer: Trainer, received: list[int], *, alone: bool) -> Iterator[None]:
    """Let SIGTERM, SIGHUP and Ctrl-C ask the trainer to stop; a second Ctrl-C interrupts a lone process at once."""

    def ask(number: int, frame: Any) -> None:
        # torchrun passes on what the terminal has sent already
        if received and number == signal.SIGINT and alone:
            raise KeyboardInterrupt
        received.append(number)
        trainer.stop_requested = True

    with on_stop_signals(ask):
        yield


@contextlib.contextmanager
def memory_errors(config: Config, command: str) -> Iterator[None]:
    """Turn what torch says of exhausted memory, and of workers that it cost, into advice; `command` continues."""
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
        if "DataLoader worker" in text and "exited unexpectedly" in text:
            raise UserError(
                "a process that reads images ended unexpectedly, often for want of memory or of shared memory; lower "
                f"--workers, and continue with: {command}"
            ) from error
        raise


@contextlib.contextmanager
def lost_processes(processes: Team, command: str) -> Iterator[None]:
    """Turn what the exchange says when a process is gone into a sentence; `command` continues the run."""
    try:
        yield
    except RuntimeError as error:
        is_exchange = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if processes.world_size == 1 or not is_exchange:
            raise
        raise UserError(
            f"process {processes.rank} of {processes.world_size} lost another one; see what that one said, and "
            f"continue with: {command}"
        ) from error
