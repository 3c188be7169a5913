"""List the images that a CSV file of paths and labels names."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ...base.errors import UserError
from ...base.files import read_csv
from ...base.words import brief, few, printable, suggest
from .source import RANK, Finding, Messages, Sample, class_name, findings_of, split_of

# known names of columns, the preferred ones first
_FILES = ("path", "file", "filepath", "file_path", "filename", "file_name", "image_path", "img_path", "image_file")
_PATH_COLUMNS = (*_FILES, "image", "img", "image_name", "img_name", "images", "photo", "picture", "image_id")
_CLASSES = ("label", "class", "target", "category", "class_name", "classname")
_LABEL_COLUMNS = (*_CLASSES, "label_name", "labels", "class_id", "y")
_SPLIT_COLUMNS = ("split", "set", "subset", "partition", "usage", "data_set", "dataset")

_FAULTS = {
    "missing": "with a path where no file is; paths are relative to the CSV file's folder",
    "no-path": "without a path; complete or remove",
    "no-label": "without a label; complete or remove",
    "row": "with more cells than the header; put cells that hold the delimiter in quotes",
    "bad-split": "with something else than train, val or test as the split; correct",
    "two-labels": "with a path from an earlier row and another label; remove the wrong one of each",
    "two-splits": "with a path from an earlier row and another split; keep one of each",
    "repeated": "with a path and a label from an earlier row; each image counts once",
}
_MESSAGES: Messages = {
    kind: ("note" if kind == "repeated" else "error", "row", f"{{n}} of the CSV file {fault}")
    for kind, fault in _FAULTS.items()
} | {"empty-class": ("warning", "class", "{n} of the CSV file without a row that can be used: {names}")}


def list_csv(
    file: Path, path_column: str | None = None, label_column: str | None = None
) -> tuple[tuple[Sample, ...], tuple[Finding, ...]]:
    """List the images of a CSV file: a header, then one image in each row.

    Cells are separated by commas, semicolons or tabs. Paths are absolute or relative to the file's folder. A column of
    splits is optional. By default, the columns are the first with a known name. Rows that cannot be used are left out
    and reported with their line.

    Raises:
        UserError: The file cannot be read, a column is unknown, or no row can be used.
    """
    where = printable(str(file))
    _, lines = read_csv(file)
    if not lines:
        raise UserError(f"{where} has no header; its first line must name the columns, such as path,label")
    header = [name.strip() for name in lines[0][1]]
    path_column = _column(where, header, path_column, _PATH_COLUMNS, "path")
    label_column = _column(where, header, label_column, _LABEL_COLUMNS, "label")
    splits = [name for name in _SPLIT_COLUMNS if name in map(str.lower, header)]
    split_column = _column(where, header, splits[0], (), "split") if splits else None
    rows = [(line, [cell.strip() for cell in cells]) for line, cells in lines[1:]]
    # an empty column of splits does not count
    if not any(dict(zip(header, cells, strict=False)).get(split_column or "") for _, cells in rows):
        split_column = None

    places: dict[str, list[str]] = defaultdict(list)  # of rows with a fault, by kind
    taken: dict[str, Sample] = {}
    disputed: set[str] = set()
    labels: set[str] = set()
    for line, cells in rows:
        row = dict(zip(header, cells, strict=False))
        name, label = row.get(path_column, ""), row.get(label_column, "")
        split = split_of(row.get(split_column, "")) if split_column else None
        labels |= {class_name(label)} if label else set()
        place = f"{name} (line {line})" if name else f"line {line}"
        path = _resolve(file.parent, name)
        faults = {
            "row": any(cells[len(header) :]),
            "no-path": not name,
            "no-label": not label,
            "missing": path is None,
            "bad-split": split_column is not None and split is None,
        }
        fault = next((kind for kind, is_there in faults.items() if is_there), None)
        if fault is not None or path is None:
            places[fault or "missing"].append(place)
            continue
        sample = Sample(path, class_name(label), split)
        before = taken.setdefault(path, sample)
        if before.label != sample.label:
            places["two-labels"].append(place)
            disputed.add(path)
        elif before.split != split:
            places["two-splits"].append(place)
            taken[path] = min(before, sample, key=lambda item: RANK.get(item.split or "", 3))
        elif before is not sample:
            places["repeated"].append(place)

    samples = tuple(taken[path] for path in sorted(taken) if path not in disputed)
    places["empty-class"] = sorted(labels - {sample.label for sample in samples})
    findings = findings_of(_MESSAGES, places)
    if not samples:
        first = "".join(f"; {finding.message}" for finding in findings[:1])
        raise UserError(f"{where} names no image that can be used{first}")
    return samples, tuple(findings)


def _column(where: str, header: list[str], wanted: str | None, known: Sequence[str], kind: str) -> str:
    lowered = {name.lower(): name for name in header}
    for name in (wanted.strip().lower(),) if wanted is not None else known:
        if name in lowered:
            if sum(other.lower() == name for other in header) > 1:
                raise UserError(f"{where} has more than one column {brief(lowered[name])}; rename or remove the others")
            return lowered[name]
    columns = few([name for name in header if name], 12)
    if wanted is not None:
        raise UserError(f"{where} has no column {brief(wanted)}{suggest(wanted, header)}; its columns are {columns}")
    raise UserError(f"no column of {where} is known to be the {kind} (found {columns}); name it with --{kind}-column")


def _resolve(folder: Path, name: str) -> str | None:
    """Return the path of a file relative to `folder`, absolute if it is elsewhere; None if there is no such file."""
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
        full = os.path.normpath(os.path.join(folder, spelling))
        if spelling and os.path.isfile(full):
            inside = os.path.relpath(full, folder)
            is_elsewhere = os.path.isabs(spelling) and inside.startswith("..")
            return os.path.abspath(full) if is_elsewhere else Path(inside).as_posix()
    return None
