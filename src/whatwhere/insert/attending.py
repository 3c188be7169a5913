"""The old place of `insert.attend`: networks pickled by version 0.1 look here."""

from .host import Before as _Before
from .host import Behind as _Behind
from .host import OldRecord as _Record

__all__ = ["_Before", "_Behind", "_Record"]
