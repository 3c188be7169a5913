"""What ends a run early, in one sentence: signals, exhausted memory."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..base.errors import UserError
from ..base.processes import STOP_SIGNALS, on_signals
from .config import Config

# seconds that a step may take after a signal: who sends one kills after 10 (Docker) or 30 seconds (Kubernetes, Slurm)
_GRACE = 3.0
_ALARM: int | None = getattr(signal, "SIGALRM", None)  # Windows has none


class Unfinished(BaseException):
    """After a signal, the step did not end in time. No `Exception`, so that no code in between takes it for its own."""


@contextlib.contextmanager
def listening(request_stop: Callable[[], None], is_saving: Callable[[], bool], *, alone: bool) -> Iterator[list[int]]:
    """Call `request_stop` at SIGTERM, SIGHUP or Ctrl-C; yield the list of the signals received.

    `alone` says that this is the only process. A second Ctrl-C then raises KeyboardInterrupt, and `Unfinished` is
    raised three seconds after the first signal, or as soon as `is_saving` is no longer true: a step may take long, or
    wait for a disk that does not answer.
    """
    received: list[int] = []
    numbers = (_ALARM,) if alone and _ALARM is not None else ()

    def ask(number: int, frame: Any) -> None:
        # torchrun, and a comparison in several processes, pass on a Ctrl-C that the terminal has sent to each process:
        # torchrun as a second one, the comparison as SIGTERM
        if number == signal.SIGINT and signal.SIGINT in received and alone:
            raise KeyboardInterrupt
        if not received and numbers:
            signal.setitimer(signal.ITIMER_REAL, _GRACE, 1)
        received.append(number)
        request_stop()

    def late(number: int, frame: Any) -> None:
        if not is_saving():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Unfinished

    with on_signals(late, numbers), on_signals(ask, STOP_SIGNALS):
        try:
            yield received
        finally:
            if received and numbers:
                signal.setitimer(signal.ITIMER_REAL, 0)


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
