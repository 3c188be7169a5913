"""Cores that the process may use, and signals that ask it to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# SIGHUP: the terminal is closed; Windows has none
STOP_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, *filter(None, (getattr(signal, "SIGHUP", None),)))


def num_cores() -> int:
    """Return the number of cores that this process may use: those of its affinity mask, where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Call `handler` for each stop signal inside the block; a thread other than the main one gets no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
