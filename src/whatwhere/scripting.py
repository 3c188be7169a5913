"""The old place of `base.scripting`: networks pickled before the move look here."""

from .base.scripting import refuse_scripting

__all__ = ["refuse_scripting"]
