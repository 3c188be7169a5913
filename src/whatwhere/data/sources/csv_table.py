"""List the images that a CSV file of paths and labels names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...base.errors import UserError
from ...base.files import read_csv
from ...base.words import brief, counted, few, printable, suggest
from .source import Finding, Sample, class_name, split_of

# known names of columns, the preferred ones first
_FILES = ("path", "file", "filepath", "file_path", "filename", "file_name", "image_path", "img_path", "image_file")
_PATH_COLUMNS = (*_FILES, "image", "img", "image_name", "img_name", "images", "photo", "picture", "image_id")
_CLASSES = ("label", "class", "target", "category", "class_name", "classname")
_LABEL_COLUMNS = (*_CLASSES, "label_name", "labels", "class_id", "y")
_SPLIT_COLUMNS = ("split", "set", "subset", "partition", "usage", "data_set", "dataset")
_RANK = {"test": 0, "val": 1, "train": 2, None: 3}

_MESSAGES = {
    "missing": "{n} of the CSV file with a path where no file is; paths are relative to the CSV file's folder",
    "no-path": "{n} of the CSV file without a path; complete or remove",
    "no-label": "{n} of the CSV file without a label; complete or remove",
    "row": "{n} of the CSV file with more cells than the header; put cells that hold the delimiter in quotes",
    "bad-split": "{n} of the CSV file with something else than train, val or test as the split; correct",
    "two-labels": "{n} of the CSV file with a path from an earlier row and another label; remove the wrong one of each",
    "two-splits": "{n} of the CSV file with a path from an earlier row and another split; keep one of each",
}


@dataclass(frozen=True)
class _Row:
    line: int
    cells: dict[str, str]
    too_long: bool


@dataclass(frozen=True)
class _Columns:
    path: str
    label: str
    split: str | None


def list_csv(
    file: Path, path_column: str | None = None, label_column: str | None = None
) -> tuple[tuple[Sample, ...], tuple[Finding, ...]]:
    """List the images of a CSV file: a header, then one image in each row.

    Cells are separated by commas, semicolons or tabs. Paths are absolute or relative to the file's folder. A column of
    splits is optional. Rows that cannot be used are left out and reported with their line.

    Args:
        file: The CSV file.
        path_column: Column of the paths; by default the first with a known name.
        label_column: Column of the labels; by default the first with a known name.

    Raises:
        UserError: The file cannot be read, a column is unknown, or no row can be used.
    """
    where = printable(str(file))
    header, rows = _read(file, where)
    columns = _Columns(
        _column(where, header, path_column, _PATH_COLUMNS, "path"),
        _column(where, header, label_column, _LABEL_COLUMNS, "label"),
        next((name for known in _SPLIT_COLUMNS for name in header if name.strip().lower() == known), None),
    )
    met: dict[str, list[str]] = {kind: [] for kind in _MESSAGES}
    repeated: list[str] = []
    samples = _samples(file.parent, rows, columns, met, repeated)
    if not samples:
        first = next((f"; {_sentence(kind, met[kind])}" for kind in _MESSAGES if met[kind]), "")
        raise UserError(f"{where} names no image that can be used{first}")
    findings = [Finding("error", kind, _sentence(kind, met[kind]), tuple(met[kind])) for kind in met if met[kind]]
    if repeated:
        rows_with = counted(len(repeated), "row")
        message = f"{rows_with} of the CSV file with a path and a label from an earlier row; each image counts once"
        findings.append(Finding("note", "repeated", message, tuple(repeated)))
    return samples, tuple(findings)


def _sentence(kind: str, paths: Sequence[str]) -> str:
    return _MESSAGES[kind].format(n=counted(len(paths), "row"))


def _read(file: Path, where: str) -> tuple[list[str], list[_Row]]:
    _, rows = read_csv(file)
    if not rows:
        raise UserError(f"{where} has no header; its first line must name the columns, such as path,label")
    header = [name.strip() for name in rows[0][1]]
    return header, [
        _Row(
            line,
            dict(zip(header, (cell.strip() for cell in cells), strict=False)),
            any(cell.strip() for cell in cells[len(header) :]),
        )
        for line, cells in rows[1:]
    ]


def _column(where: str, header: list[str], wanted: str | None, known: Sequence[str], kind: str) -> str:
    lowered = {name.lower(): name for name in header}
    for name in (wanted.strip().lower(),) if wanted is not None else known:
        if name in lowered:
            return lowered[name]
    columns = few([name for name in header if name], 12)
    if wanted is not None:
        close = suggest(wanted, list(lowered))
        raise UserError(f"{where} has no column {brief(wanted)}{close}; its columns are {columns}")
    raise UserError(f"no column of {where} is known to be the {kind} (found {columns}); name it with --{kind}-column")


def _samples(
    folder: Path, rows: list[_Row], columns: _Columns, met: dict[str, list[str]], repeated: list[str]
) -> tuple[Sample, ...]:
    # an empty column of splits does not count
    split_column = columns.split if any(row.cells.get(columns.split or "") for row in rows) else None
    taken: dict[str, Sample] = {}
    disputed: set[str] = set()
    for row in rows:
        name, label = row.cells.get(columns.path, ""), row.cells.get(columns.label, "")
        split = split_of(row.cells.get(split_column, "")) if split_column else None
        place = f"{name} (line {row.line})" if name else f"line {row.line}"
        path = _resolve(folder, name)
        fault = _fault(row, name, label, path, split_column is not None and split is None)
        if fault or path is None:
            met[fault or "missing"].append(place)
            continue
        sample = Sample(path, class_name(label), split)
        before = taken.setdefault(path, sample)
        if before.label != sample.label:
            met["two-labels"].append(place)
            disputed.add(path)
        elif before.split != split:
            met["two-splits"].append(place)
            # the test set stays whole
            taken[path] = min(before, sample, key=lambda item: _RANK[item.split])
        elif before is not sample:
            repeated.append(place)
    return tuple(taken[path] for path in sorted(taken) if path not in disputed)


def _fault(row: _Row, name: str, label: str, path: str | None, no_split: bool) -> str | None:
    if row.too_long:
        return "row"
    if not name:
        return "no-path"
    if not label:
        return "no-label"
    if path is None:
        return "missing"
    return "bad-split" if no_split else None


def _resolve(folder: Path, name: str) -> str | None:
    """Return the path of a file relative to `folder`, absolute if it is elsewhere; None if there is no such file."""
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
        full = os.path.normpath(os.path.join(folder, spelling))
        if spelling and os.path.isfile(full):
            inside = os.path.relpath(full, folder)
            return (
                os.path.abspath(full)
                if os.path.isabs(spelling) and inside.startswith("..")
                else Path(inside).as_posix()
            )
    return None
