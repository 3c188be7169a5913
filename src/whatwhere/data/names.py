"""Names of files, classes and splits."""

from __future__ import annotations

import unicodedata

from ..base.words import printable

SPLITS = ("train", "val", "test")
_SPELLINGS = {
    "train": ("train", "training", "trn", "train_set", "trainset", "training_set", "train_data", "train_images"),
    "val": ("val", "valid", "validation", "validate", "dev", "val_set", "valset", "validation_set", "val_images"),
    "test": ("test", "testing", "tst", "test_set", "testset", "testing_set", "test_data", "test_images"),
}
_SPLIT_OF = {spelling: split for split, spellings in _SPELLINGS.items() for spelling in spellings}


def split_of(name: str) -> str | None:
    """Return "train", "val" or "test" if `name` is a spelling of it, else None."""
    return _SPLIT_OF.get(name.strip().lower().replace("-", "_").replace(" ", "_"))


def class_name(name: str) -> str:
    """Return the class that a folder or a cell names; an accent may be stored in two ways, which are one class."""
    return unicodedata.normalize("NFC", printable(name))
