"""Labelled images before they are decoded, and the names of classes and splits."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ...base.words import counted, few, printable
from ..images import open_image, read_bytes

SPLITS = ("train", "val", "test")
# of an image in several splits, the copy with the lowest rank stays: the test set stays whole
RANK = {"test": 0, "val": 1, "train": 2}
_SPELLINGS = {
    "train": ("train", "training", "trn", "train_set", "trainset", "training_set", "train_data", "train_images"),
    "val": ("val", "valid", "validation", "validate", "dev", "val_set", "valset", "validation_set", "val_images"),
    "test": ("test", "testing", "tst", "test_set", "testset", "testing_set", "test_data", "test_images"),
}
_SPLIT_OF = {spelling: split for split, spellings in _SPELLINGS.items() for spelling in spellings}


@dataclass(frozen=True)
class Sample:
    """One image: its path relative to the source's root (with "/"), its class, and its split if DATA has splits."""

    path: str
    label: str
    split: str | None


@dataclass(frozen=True)
class Finding:
    """A remark on DATA. `severity` is "error", "warning" or "note"; `kind` is a word for programs."""

    severity: str
    kind: str
    message: str
    paths: tuple[str, ...] = ()


Messages = Mapping[str, tuple[str, str, str]]
"""By kind: severity, noun to count, and a sentence: {n} is the number with the noun, {names} are the first paths."""


def findings_of(messages: Messages, paths: Mapping[str, Sequence[str]], **fields: object) -> list[Finding]:
    """Return a finding for each kind of `messages` that has `paths`; `fields` fill the other braces of a sentence."""
    findings = []
    for kind, (severity, noun, sentence) in messages.items():
        if found := tuple(paths.get(kind, ())):
            plural = "classes" if noun == "class" else None
            text = sentence.format(n=counted(len(found), noun, plural), names=few(found, 5), **fields)
            findings.append(Finding(severity, kind, text, found))
    return findings


@dataclass(frozen=True)
class Source:
    """Labelled images, none of them decoded yet. Each worker process gets a copy."""

    name: str  # DATA as the user gave it
    root: Path | None  # folder to which the samples' paths are relative; None for a built-in set
    samples: tuple[Sample, ...] = field(repr=False)  # sorted by path
    findings: tuple[Finding, ...] = ()  # remarks of the listing

    def open(self, sample: Sample) -> Image.Image:
        """Open the image of a sample; a file is not decoded yet.

        Raises:
            ImageError: The file cannot be opened as an image.
        """
        return open_image(self.file(sample))

    def content(self, sample: Sample) -> bytes:
        """Return the bytes by which two images are compared: the file's, or the pixels in a built-in set.

        Raises:
            ImageError: The file cannot be read.
        """
        return read_bytes(self.file(sample))

    def file(self, sample: Sample) -> Path:
        """Return the path of a sample's file."""
        assert self.root is not None
        return self.root / sample.path

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that DATA has."""
        found = {sample.split for sample in self.samples}
        return tuple(split for split in SPLITS if split in found)


def split_of(name: str) -> str | None:
    """Return "train", "val" or "test" if `name` is a spelling of it, else None."""
    return _SPLIT_OF.get(name.strip().lower().replace("-", "_").replace(" ", "_"))


def class_name(name: str) -> str:
    """Return the class that a folder or cell names, in Unicode's composed form: an accent may be stored in two ways."""
    return unicodedata.normalize("NFC", printable(name))
