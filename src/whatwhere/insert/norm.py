"""The old place of `AttendedBatchNorm2d`: networks pickled by version 0.1 look here."""

from __future__ import annotations

from .host import AttendedBatchNorm2d

__all__ = ["AttendedBatchNorm2d"]
