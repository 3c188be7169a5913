"""Functions on tensors: the passes over x that all attention modules share. Imports nothing of the package."""

from .reference import gate

__all__ = ["gate"]
