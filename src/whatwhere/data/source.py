"""DATA: where images and their labels come from."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..errors import UserError, nearest
from .images import open_image, read_bytes
from .names import printable

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar")


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


def find_source(
    data: str,
    *,
    path_column: str | None = None,
    label_column: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
) -> Source:
    """Return the images that DATA stands for.

    DATA is a folder of class folders, or of train/val/test folders of them; a CSV file of paths and labels; "digits",
    the handwritten digits that come with scikit-learn; or a torchvision data set by name, looked for in `data_dir`
    (by default the folder "data" of the working directory) and fetched only if `download`. A path that exists wins
    over a name.

    Raises:
        UserError: nothing fits, or there are no images with classes in it.
    """
    path = Path(data).expanduser() if data else Path()
    if not data:
        raise UserError("DATA is empty; give a folder, a CSV file or the name of a data set")
    exists = os.path.exists(path)
    is_list = exists and path.is_file() and path.suffix.lower() in {".csv", ".tsv"}
    if (path_column or label_column) and not is_list:
        raise UserError(f"--path-column and --label-column are for a CSV file, and {printable(data)!r} is none")
    if is_list:
        from .csvlist import list_csv

        samples, findings = list_csv(path, path_column, label_column)
        return Source(data, path.parent, samples, findings)
    if exists and path.is_dir():
        from .folder import list_folder

        samples, findings = list_folder(path)
        return Source(data, path, samples, findings)
    if exists:
        raise _no_data_file(path)
    return _find_built_in(data, data_dir, download)


def _no_data_file(path: Path) -> UserError:
    if path.suffix.lower() in _ARCHIVES:
        return UserError(f"{printable(str(path))} is an archive; unpack it and give the folder")
    return UserError(f"{printable(str(path))} is a file, and DATA is a folder of class folders or a .csv or .tsv file")


def _find_built_in(data: str, data_dir: str | None, download: bool) -> Source:
    from . import builtin

    name = data.lower().removeprefix("torchvision/").removeprefix("torchvision:")
    if data.lower() == "digits":
        return builtin.digits_source(data)
    if name in builtin.DATASETS:
        return builtin.torchvision_source(data, name, data_dir, download)
    known = ["digits", *builtin.DATASETS]
    close = nearest(name, known) if "torchvision" in data.lower() or "/" not in data else ""
    raise UserError(
        f"there is no folder, CSV file or data set {printable(data)!r}{close or _nearest_path(data)}"
        + ("" if close else "; data sets by name: " + ", ".join(known) if len(data) < 20 and "/" not in data else "")
    )


def _nearest_path(data: str) -> str:
    parent = Path(data).expanduser().parent
    try:
        beside = sorted(entry for entry in os.listdir(parent) if not entry.startswith("."))
    except (OSError, ValueError):
        return ""
    lowered = {entry.lower(): str(parent / entry) for entry in beside}
    found = nearest(Path(data).name, list(lowered))
    for entry, full in lowered.items():
        found = found.replace(f" {entry},", f" {printable(full)},").replace(f" {entry}?", f" {printable(full)}?")
    return found
