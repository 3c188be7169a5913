"""Messages and progress for the person who watches a command, and lengths of time in words."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Screen(Protocol):
    """Shows messages and progress: `cli.screen.TerminalScreen`, or `Silent`."""

    def line(self, text: str) -> None:
        """Show a line of text."""

    def warn(self, text: str) -> None:
        """Show a warning."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts of `what` are done."""


class Silent:
    """A screen that shows nothing, for processes other than the first."""

    def line(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def progress(self, what: str, done: int, total: int) -> None: ...


class OnlyProgress(Silent):
    """Shows the progress alone, for work whose messages come later."""

    def __init__(self, screen: Screen) -> None:
        self.progress = screen.progress  # type: ignore[method-assign]


class Remaining:
    """Estimates how long what is in progress still takes, from its speed so far.

    Several things may be in progress in turn, as training and its evaluations are. One that begins again, because fewer
    parts of it are done than before, is timed anew.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._began: dict[str, tuple[float, int, int]] = {}  # time and parts done at first, and parts done at last

    def seconds(self, what: str, done: int, total: int) -> float | None:
        """Return about how many seconds `what` still takes, with `done` of `total` parts done; None at its beginning.

        The first part does not count, because it is slower than the others.
        """
        now = self.clock()
        began, first, last = self._began.get(what, (now, done, done))
        if done < last:
            began, first = now, done
        self._began[what] = began, first, done
        return None if done == first else (now - began) / (done - first) * max(0, total - done)


def duration(seconds: float) -> str:
    """Return a measured length of time in words: "12 s", "3 min", "2 h 5 min"."""
    return f"{seconds:.0f} s" if round(seconds) < 60 else _in_hours(round(seconds / 60))


def about(seconds: float) -> str:
    """Return an estimated length of time in words, widely rounded: "about 12 min", "about 1 h 15 min"."""
    minutes = seconds / 60
    if minutes < 1:
        return "less than a minute"
    # half a step is at most a third of the length below 2 minutes, a fifth below 4 minutes and from 2 days on, and an
    # eighth between them
    for most, step in ((20, 1), (60, 5), (180, 15), (600, 30), (2880, 60)):
        rounded = step * round(minutes / step)
        if rounded < most:
            return f"about {_in_hours(rounded)}"
    return f"about {round(minutes / 1440)} days"


def _in_hours(minutes: int) -> str:
    hours, rest = divmod(minutes, 60)
    return " ".join(f"{number} {unit}" for number, unit in ((hours, "h"), (rest, "min")) if number)
