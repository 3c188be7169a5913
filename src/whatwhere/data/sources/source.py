"""Images with labels, as listed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..images import open_image, read_bytes


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
        return tuple(split for split in ("train", "val", "test") if split in found)
