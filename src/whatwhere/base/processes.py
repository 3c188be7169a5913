"""Cores that the process may use, and signals that ask it to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

# SIGHUP: the terminal is closed; Windows has none
STOP_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, *filter(None, (getattr(signal, "SIGHUP", None),)))
READER = "whatwhere-reader"  # name of the threads that read images while a network trains


def num_cores() -> int:
    """Return the number of cores that this process may use: those of its affinity mask, where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def on_signals(
    handler: Callable[[int, FrameType | None], Any], numbers: Sequence[int] = STOP_SIGNALS
) -> Iterator[None]:
    """Call `handler` for these signals inside the block.

    A signal that is ignored stays ignored: nohup ignores SIGHUP so that the program runs on without its terminal. A
    handler in C stays too, because Python could not put it back. A thread other than the main one gets no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def leave(status: int) -> NoReturn:
    """End the process, though Python waits for its threads and one may wait for a disk that does not answer."""
    readers = [thread for thread in threading.enumerate() if thread.name.startswith(READER)]
    deadline = time.monotonic() + 0.5  # for all of them: they end at once unless they hang
    for thread in readers:
        thread.join(max(0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in readers):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
