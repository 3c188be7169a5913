"""Where networks pickled by version 0.1 look for the norm behind which attention stands."""

from __future__ import annotations

from .host import AttendedBatchNorm2d

__all__ = ["AttendedBatchNorm2d"]
