from __future__ import annotations

import math
from typing import TypeGuard

from .words import brief, printable, shortened

SENTENCE_LETTERS = 300


class UserError(ValueError):
    """Bad input. The message is one sentence: what is wrong, where, and what to do.

    The command line prints it on standard error and exits with status 2; any other exception there is a bug. The
    message is always one printable line. Its sentence has at most 300 letters: in a longer one the longest names lose
    their middles, and the advice at its end stays. A command at the end is whole, so that it can be run.
    """

    def __init__(self, sentence: str, command: str = "") -> None:
        super().__init__(shortened(sentence, SENTENCE_LETTERS), *filter(None, [printable(command)]))

    def __str__(self) -> str:
        return ": ".join(self.args)


class Stopped(Exception):  # noqa: N818 - no error
    """A run was asked to stop; it stands after a whole step.

    The command line prints the message on standard error and exits with status 128 + `signal`, or 1 without a signal.

    Attributes:
        signal: Number of the signal, 0 where another process received it.
    """

    def __init__(self, message: str = "", signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal


def check_integer(name: str, value: int, least: int = 1, most: int = 2**31 - 1) -> None:
    """Raise UserError unless `value` is an integer from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        if most < 2**31 - 1:
            raise UserError(f"{name} must be an integer from {least} to {most:,}, got {brief(value)}")
        kind = "a positive integer" if least == 1 else f"an integer of at least {least} and"
        raise UserError(f"{name} must be {kind} below 2**31, got {brief(value)}")


def check_factor(name: str, value: float, most: float = math.inf) -> None:
    """Raise UserError unless `value` is a finite number above 0 and at most `most`."""
    if not is_number(value) or not 0 < value <= most or value == math.inf:
        kind = "positive number" if most == math.inf else f"number above 0 and at most {most:g}"
        raise UserError(f"{name} must be a {kind}, got {brief(value)}")


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether `value` is an integer or a float; a bool is neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
