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
    before = _handled(numbers)
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _handled(numbers: Sequence[int]) -> dict[int, Any]:
    """Return the handlers of these signals, without those that stay."""
    handlers = {number: signal.getsignal(number) for number in numbers}
    return {number: old for number, old in handlers.items() if old not in (signal.SIG_IGN, None)}


def end_at_signals() -> None:
    """From now on, end the process at once where a signal asks it to stop; what `on_signals` leaves alone stays."""
    for number in _handled(STOP_SIGNALS):
        signal.signal(number, _end_at_once)


def _end_at_once(number: int, frame: FrameType | None = None) -> NoReturn:
    with contextlib.suppress(OSError):  # standard error is closed
        os.write(2, b"whatwhere: interrupted\n")  # the signal may have come while Python was printing
    os._exit(128 + number)


@contextlib.contextmanager
def unwound_at_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt where a signal asks the process to stop inside the block, and end it after the block.

    So files and the screen are left in order. The process ends with 128 + the signal even if other code turned the
    exception into another or swallowed it, as imports do. It ends at once where a second signal comes, or the first
    one where Python can raise nothing, such as a destructor.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if received:
            _end_at_once(number)
        received.append(number)
        raise KeyboardInterrupt

    def unraisable(ignored: sys.UnraisableHookArgs) -> None:
        if received:
            _end_at_once(received[0])
        before(ignored)

    before, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        with on_signals(interrupt):
            yield
    finally:
        sys.unraisablehook = before
        if received:
            _end_at_once(received[0])


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
