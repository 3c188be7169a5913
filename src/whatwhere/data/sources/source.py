"""Labelled images before they are decoded, and the names of classes and splits."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ...base.words import command_line, counted, few, option, printable, short, spelt_alike
from ..images import CURES, open_image, read_bytes

SPLITS = ("train", "val", "test")
# of an image in several splits, the copy with the lowest rank stays: the test set stays whole
RANK = {"test": 0, "val": 1, "train": 2}
_SPELLINGS = {
    "train": ("train", "training", "trn", "train_set", "trainset", "training_set", "train_data", "train_images"),
    "val": ("val", "valid", "validation", "validate", "dev", "val_set", "valset", "validation_set", "val_images"),
    "test": ("test", "testing", "tst", "test_set", "testset", "testing_set", "test_data", "test_images"),
}
# what pandas, NumPy, R and Excel write for a missing value
_NO_LABEL = {"", "nan", "-nan", "<na>", "nat", "#n/a", "#na"}
# written for a missing value too, but also names of classes: no defect, sodium
_DOUBTFUL = {"none", "na", "n/a", "null"}
_SPLIT_OF = {spelling: split for split, spellings in _SPELLINGS.items() for spelling in spellings}


@dataclass(frozen=True)
class Sample:
    """One image: its path relative to the source's root (with "/"), its class, and its split if DATA has splits."""

    path: str
    label: str
    split: str | None


@dataclass(frozen=True)
class Finding:
    """A remark on DATA: what it is, and what to do about it."""

    severity: str  # "error", "warning" or "note"
    kind: str  # a word for programs
    message: str  # without the cure
    paths: tuple[str, ...] = ()
    cure: str = ""  # besides --skip-bad
    can_skip: bool = False  # whether --skip-bad leaves out the paths

    def sentence(self, *, skip: bool = True) -> str:
        """Return message and cure; with `skip` also --skip-bad where it helps, which not every command has."""
        cures = [self.cure, "leave out with --skip-bad" if skip and self.can_skip else ""]
        cure = ", or ".join(filter(None, cures))
        return f"{self.message}; {cure}" if cure else self.message


Messages = Mapping[str, tuple[str, str, str, str]]
"""By kind: severity, noun to count, message and cure; {n} is the number with the noun, {names} are the first paths."""


_NAMES: Messages = {
    "spelling": (
        "warning",
        "class",
        "{n} in several spellings, each now a class of its own: {names}",
        "give images of one class one spelling",
    ),
    "missing-label": (
        "warning",
        "class",
        "{n} with a name that programs write for a missing label: {names}",
        "take out images without a label, or give the class another name",
    ),
}

# of the formats in `images.ABSENT`; the message has what to install, because it stands alone with --skip-bad
NOT_READ: Messages = {
    "heif": (
        "error",
        "HEIC file",
        f"{{n}} (photos of an iPhone), which need {CURES['heif']}",
        "or convert to JPEG",
    ),
    "avif": ("error", "AVIF file", f"{{n}}, which need {CURES['avif']}", "or convert to JPEG"),
}


def findings_of(messages: Messages, paths: Mapping[str, Sequence[str]], **fields: object) -> list[Finding]:
    """Return a finding for each kind of `messages` that has `paths`; `fields` fill the other braces of a message.

    --skip-bad leaves out the paths of errors.
    """
    findings = []
    for kind, (severity, noun, message, cure) in messages.items():
        if found := tuple(paths.get(kind, ())):
            plural = "classes" if noun == "class" else None
            text = message.format(n=counted(len(found), noun, plural), names=few(found, 5), **fields)
            findings.append(Finding(severity, kind, text, found, cure.format(**fields), severity == "error"))
    return findings


def label_findings(samples: Sequence[Sample]) -> list[Finding]:
    """Return findings on names of classes: several spellings of one name, and names that stand for no label."""
    counts = Counter(sample.label for sample in samples)
    names = {label: f"{short(label, 40)} ({counted(count, 'image')})" for label, count in sorted(counts.items())}
    alike = [" = ".join(names[label] for label in group) for group in spelt_alike(counts)]
    unlabelled = [name for label, name in names.items() if is_no_label(label) or label.casefold() in _DOUBTFUL]
    return findings_of(_NAMES, {"spelling": alike, "missing-label": unlabelled})


def is_no_label(text: str) -> bool:
    """Return whether a cell has no label: it is empty, or what programs write for a missing value and people do not."""
    return text.strip().casefold() in _NO_LABEL


@dataclass(frozen=True)
class Source:
    """Labelled images, none of them decoded yet. Threads may open them."""

    name: str  # DATA as the user gave it
    root: Path | None  # folder to which the samples' paths are relative; None for a built-in set
    samples: tuple[Sample, ...] = field(repr=False)  # sorted by path
    findings: tuple[Finding, ...] = ()  # remarks of the listing

    def open(self, sample: Sample) -> Image.Image:
        """Open the image of a sample; a file is not decoded yet.

        Raises:
            ImageError: The file cannot be opened as an image.
        """
        assert self.root is not None
        # not a Path: to make one takes twice as long as to open the file
        return open_image(os.path.join(self.root, sample.path))

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

    def full_path(self, sample: Sample) -> str:
        """Return the full path of a sample's file; its name where the images are in no files."""
        return sample.path if self.root is None else str(self.file(sample).absolute())

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that DATA has."""
        found = {sample.split for sample in self.samples}
        return tuple(split for split in SPLITS if split in found)


def check_command(data: str, **options: str | None) -> str:
    """Return the command that shows the findings on DATA, with the options that say where the images are."""
    given = [(option(name), value) for name, value in options.items() if value is not None]
    return command_line(["whatwhere", "check", data, *(word for pair in given for word in pair)])


def split_of(name: str) -> str | None:
    """Return "train", "val" or "test" if `name` is a spelling of it, else None."""
    return _SPLIT_OF.get(name.strip().lower().replace("-", "_").replace(" ", "_"))


def class_name(name: str) -> str:
    """Return the class that a folder or cell names, in Unicode's composed form: an accent may be stored in two ways."""
    return unicodedata.normalize("NFC", printable(name))
