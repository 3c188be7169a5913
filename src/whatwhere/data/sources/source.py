"""Images with labels, as listed, and the names of classes and splits."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ...base.words import printable
from ..images import open_image, read_bytes

SPLITS = ("train", "val", "test")
_SPELLINGS = {
    "train": ("train", "training", "trn", "train_set", "trainset", "training_set", "train_data", "train_images"),
    "val": ("val", "valid", "validation", "validate", "dev", "val_set", "valset", "validation_set", "val_images"),
    "test": ("test", "testing", "tst", "test_set", "testset", "testing_set", "test_data", "test_images"),
}
_SPLIT_OF = {spelling: split for split, spellings in _SPELLINGS.items() for spelling in spellings}


@dataclass(frozen=True)
class Sample:
    """One image: its path relative to the source's root ("/" between) or its name, its class and its split."""

    path: str
    label: str
    split: str | None


@dataclass(frozen=True)
class Finding:
    """Something to know about DATA: `severity` is "error", "warning" or "note", `kind` a word for programs."""

    severity: str
    kind: str
    message: str
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """Images with labels, as listed: nothing has been decoded. Can be pickled.

    Attributes:
        name: DATA as it was given.
        root: what the samples' paths are relative to; None for a built-in set.
        samples: sorted by path.
        findings: what the listing met.
    """

    name: str
    root: Path | None
    samples: tuple[Sample, ...] = field(repr=False)
    findings: tuple[Finding, ...] = ()

    def open(self, sample: Sample) -> Image.Image:
        """Return an image: from a file, opened but not decoded yet; of a built-in set, the image.

        Raises:
            ImageError: the file cannot be opened as an image.
        """
        return open_image(self.file(sample))

    def content(self, sample: Sample) -> bytes:
        """Return what byte-identity is judged on: the file's bytes, or the pixels in a built-in set.

        Raises:
            ImageError: the file cannot be read.
        """
        return read_bytes(self.file(sample))

    def file(self, sample: Sample) -> Path:
        """Return the path of a sample's file."""
        assert self.root is not None
        return self.root / sample.path

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that DATA came with."""
        found = {sample.split for sample in self.samples}
        return tuple(split for split in SPLITS if split in found)


def split_of(name: str) -> str | None:
    """Return "train", "val" or "test" if `name` is a spelling of it, else None."""
    return _SPLIT_OF.get(name.strip().lower().replace("-", "_").replace(" ", "_"))


def class_name(name: str) -> str:
    """Return the class that a folder or a cell names; an accent may be stored in two ways, which are one class."""
    return unicodedata.normalize("NFC", printable(name))
