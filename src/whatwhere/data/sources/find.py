"""Find DATA: a folder, a CSV file or a data set by name."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

from ...base.errors import UserError
from ...base.words import brief, listed, printable, suggest
from .csv_table import list_csv
from .folders import ARCHIVES, TABLES, list_folder
from .named import DATASETS, digits_source, torchvision_source
from .source import Source, label_findings


def find_source(
    data: str,
    *,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
) -> Source:
    """Return the labelled images of DATA.

    Args:
        data: A folder of class folders, or of train/val/test folders of them; a CSV file of paths and labels; "digits"
            (scikit-learn's handwritten digits); or the name of a torchvision data set. A path that exists wins over a
            name.
        path_column: Column of the paths in a CSV file; by default the first with a known name.
        label_column: Column of the labels in a CSV file; by default the first with a known name.
        split_column: Column of the splits in a CSV file; by default the first with a known name, or else the only one
            that holds the words train, val and test; "none" for no splits.
        data_dir: Folder of torchvision's data sets; by default "data" in the working directory.
        download: Whether to download a torchvision data set that is not there.

    Raises:
        UserError: There is no such DATA, or it has no images with classes.
    """
    if not data:
        raise UserError("DATA is empty; give a folder, a CSV file or the name of a data set")
    path = Path(os.path.expanduser(data))  # unlike Path.expanduser, keeps the ~ of an unknown user
    shown = printable(str(path))
    exists = os.path.exists(path)
    is_list = exists and path.is_file() and path.suffix.lower() in TABLES
    if (path_column or label_column or split_column) and not is_list:
        raise UserError(
            "--path-column, --label-column and --split-column are for a CSV file, and "
            f"{brief(printable(data), 200)} is none"
        )
    if is_list:
        return _named(Source(data, path.parent, *list_csv(path, path_column, label_column, split_column)))
    if exists and path.is_dir():
        return _named(Source(data, path, *list_folder(path)))
    if exists and path.suffix.lower() in ARCHIVES:
        raise UserError(f"{shown} is an archive; unpack it and give the folder")
    if exists:
        raise UserError(f"{shown} is a file, and DATA is a folder of class folders or a .csv or .tsv file")
    name = data.lower().removeprefix("torchvision/").removeprefix("torchvision:")
    if data.lower() == "digits":
        return digits_source(data)
    if name in DATASETS:
        return torchvision_source(data, name, data_dir, download)
    known = ["digits", *DATASETS]
    hint = suggest(name, known) if "torchvision" in data.lower() else _nearest(path, [] if "/" in data else known)
    if not hint and len(data) < 20 and "/" not in data:
        hint = f"; data sets by name: {listed(known)}"
    raise UserError(f"there is no folder, CSV file or data set {brief(printable(data), 200)}{hint}")


def _named(source: Source) -> Source:
    """Return `source` with what its names of classes, given by people, make doubtful."""
    return replace(source, findings=(*source.findings, *label_findings(source.samples)))


def _nearest(path: Path, known: list[str]) -> str:
    """Return a hint at what is beside `path`, or among the `known` names, under a similar name."""
    beside: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        beside = sorted(entry for entry in os.listdir(path.parent) if not entry.startswith("."))
    return suggest(path.name, [*beside, *known], before=str(path.parent / "_")[:-1])
