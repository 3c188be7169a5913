"""What a file of ours may hold where people, or a crash, may have changed it: checks of types and ranges.

Each returns the value as it is, or raises ValueError; the reader of the file says which one it is.
"""

from __future__ import annotations

from typing import Any

MOST = 1e100  # beyond any figure


def text(value: Any, what: str) -> str:
    """Return a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} is no text")
    return value


def texts(value: Any, what: str) -> tuple[str, ...]:
    """Return a list of texts."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{what} is no list of texts")
    return tuple(value)


def integer(value: Any, what: str, *, least: int, most: int) -> int:
    """Return an integer in a range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{what} is no integer from {least} to {most:,}")
    return value


def number(value: Any, what: str, *, least: float = -MOST, most: float = MOST) -> float:
    """Return a number in a range, which NaN is in none of."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{what} is no number from {least:g} to {most:g}")
    return value


def record(value: Any, what: str) -> dict[str, Any]:
    """Return values by name."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} holds no values by name")
    return value
