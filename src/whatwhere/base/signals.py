"""Signals that ask a program to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# SIGHUP: the terminal is closed; Windows has none
STOP_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, *filter(None, (getattr(signal, "SIGHUP", None),)))


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
