"""Training and evaluating a classifier."""

from .loop import Recipe, accuracy, train

__all__ = ["Recipe", "accuracy", "train"]
