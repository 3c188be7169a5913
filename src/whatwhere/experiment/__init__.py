"""Comparing networks fairly."""

from .paired import PairedDifference

__all__ = ["PairedDifference"]
