"""Messages and progress for the person who watches a command."""

from __future__ import annotations

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


def duration(seconds: float) -> str:
    """Return a length of time in words: "12 s", "3 min", "2 h 5 min"."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
