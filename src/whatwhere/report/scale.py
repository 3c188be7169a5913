"""Positions along an axis, as shares of its length, so that a chart is as wide as its page allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

_PADDING = 0.04


@dataclass(frozen=True)
class Tick:
    """A labelled position."""

    at: str
    label: str

    @property
    def anchor(self) -> str:
        """Where the text begins, so that it stays within the ends of the axis."""
        share = float(self.at[:-1])
        return "start" if share < 2 else "end" if share > 98 else "middle"


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """Return where a value lies, 0 at `low` and 100 at `high`; what lies beyond is put at the end."""
        return min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low)))

    def at(self, value: float) -> str:
        """Return a position for SVG: "43.21%"."""
        return f"{self.share(value):.2f}%"

    def ticks(self, at_most: int, *, signed: bool = False, whole: bool = False) -> list[Tick]:
        """Return ticks at round values: steps of 1, 2 or 5 times a power of ten.

        Args:
            at_most: About how many.
            signed: With a sign, zero apart.
            whole: At integers alone.
        """
        step = _round_step((self.high - self.low) / at_most)
        if whole:
            step = max(1.0, step)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [Tick(self.at(k * step), _label(k * step, step, signed=signed)) for k in range(first, last + 1)]


def padded(low: float, high: float) -> Scale:
    """Return a scale that holds `low` to `high` with a little room; around a single value, of its own size."""
    if high <= low:
        room = abs(low) or 1.0
        return Scale(low - room, high + room)
    room = _PADDING * (high - low)
    return Scale(low - room, high + room)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _label(value: float, step: float, *, signed: bool) -> str:
    if abs(value) < step / 2:
        return "0"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    sign = "+" if signed else ""
    if decimals > 5 or abs(value) >= 1e6:
        return f"{value:{sign}.1e}"
    return f"{value:{sign},.{decimals}f}"
