"""The old place of `base.modules`: networks pickled before the move look here."""

from .base.modules import refuse_scripting

__all__ = ["refuse_scripting"]
