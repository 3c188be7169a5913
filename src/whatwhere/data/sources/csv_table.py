"""List the images that a CSV file of paths and labels names."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...base.errors import UserError
from ...base.files import read_csv
from ...base.words import brief, few, printable, short, suggest, unescaped
from .source import RANK, Finding, Messages, Sample, class_name, findings_of, is_no_label, split_of

# known names of columns, the preferred ones first
_FILES = ("path", "file", "filepath", "file_path", "filename", "file_name", "image_path", "img_path", "image_file")
_PATH_COLUMNS = (*_FILES, "image", "img", "image_name", "img_name", "images", "photo", "picture", "image_id")
_CLASSES = ("label", "class", "target", "category", "class_name", "classname")
_LABEL_COLUMNS = (*_CLASSES, "label_name", "labels", "class_id", "y")
_SPLIT_COLUMNS = ("split", "set", "subset", "partition", "usage", "data_set", "dataset")

_BREAK = re.compile(r"[\n\r]")
_QUOTES = "look for a quote too many, which makes one cell of several rows"
_FAULTS = {
    "quote": ("with a line break in the path, the label or the split", _QUOTES),
    "missing": ("with a path where no file is", "paths are relative to the CSV file's folder"),
    "no-path": ("without a path in the column {path}", "complete or remove"),
    "no-label": ("without a label in the column {label} (an empty cell, nan, <NA>, #N/A)", "complete or remove"),
    "row": ("with more cells than the header", "put cells that hold the delimiter in quotes"),
    "bad-split": ("with something else than train, val or test in the column {split}", "correct"),
}
_MESSAGES: Messages = {
    **{kind: ("error", "row", f"{{n}} of the CSV file {fault}", cure) for kind, (fault, cure) in _FAULTS.items()},
    "break": ("warning", "row", "{n} of the CSV file with a line break inside a cell", _QUOTES),
    "two-labels": ("error", "image", "{n} in rows of the CSV file with different labels", "remove the wrong rows"),
    "two-splits": ("error", "image", "{n} in rows of the CSV file with different splits", "keep one of each"),
    "repeated": ("note", "image", "{n} in several rows of the CSV file that say the same", "each image counts once"),
    "empty-class": ("warning", "class", "{n} of the CSV file without a row that can be used: {names}", ""),
}


@dataclass(frozen=True)
class _Columns:
    """Which columns of a CSV file are used."""

    path: str
    label: str
    split: str | None

    def in_words(self) -> dict[str, str]:
        """Return the names for messages, by use."""
        return {"path": brief(self.path), "label": brief(self.label), "split": brief(self.split)}

    def finding(self, *, are_given: bool) -> Finding:
        """Return a note that names them, and how to choose others where the user has not chosen both."""
        names = self.in_words()
        split = "; no column of splits" if self.split is None else f", splits from {names['split']}"
        message = f"CSV file: paths from the column {names['path']}, labels from {names['label']}{split}"
        cure = "" if are_given else "others with --path-column and --label-column"
        return Finding("note", "columns", message, cure=cure)


def list_csv(
    file: Path, path_column: str | None = None, label_column: str | None = None
) -> tuple[tuple[Sample, ...], tuple[Finding, ...]]:
    r"""List the images of a CSV file: a header, then one image in each row.

    Cells are separated by commas, semicolons or tabs. Paths are absolute or relative to the file's folder. A column of
    splits is optional. By default, the columns are the first with a known name. Rows that cannot be used are left out
    and reported with their line. A cell that is empty, or holds what pandas, NumPy, R or Excel write for a missing
    value (nan, <NA>, NaT, #N/A, in any case), is no label. A path may be as whatwhere prints it: with `\xe9` for a
    byte that is not UTF-8, and `\n` for a line break.

    Raises:
        UserError: The file cannot be read, a column is unknown, or no row can be used.
    """
    where = printable(str(file))
    _, lines = read_csv(file)
    if not lines:
        raise UserError(f"{where} has no header; its first line must name the columns, such as path,label")
    header = [name.strip() for name in lines[0][1]]
    rows = [(line, [cell.strip() for cell in cells]) for line, cells in lines[1:]]
    columns = _columns(where, header, rows, path_column, label_column)
    if not rows:
        raise UserError(f"{where} has a header and no rows; each image needs one, with its path and its label")

    places: dict[str, list[str]] = defaultdict(list)  # of rows with a fault, by kind
    listed: dict[str, list[tuple[int, Sample]]] = defaultdict(list)  # usable rows with their lines, by path
    labels: set[str] = set()
    for line, cells in rows:
        row = dict(zip(header, cells, strict=False))
        name, label = row.get(columns.path, ""), row.get(columns.label, "")
        broken = [cell for cell in (name, label, row.get(columns.split or "", "")) if _BREAK.search(cell)]
        if not broken and any(map(_BREAK.search, cells)):
            places["break"].append(f"line {line}")
        split = split_of(row.get(columns.split, "")) if columns.split else None
        labels |= set() if broken or is_no_label(label) else {class_name(label)}
        path = _resolve(file.parent, name)
        faults = {
            "quote": bool(broken),
            "row": any(cells[len(header) :]),
            "no-path": not name,
            "no-label": is_no_label(label),
            "missing": path is None,
            "bad-split": columns.split is not None and split is None,
        }
        fault = next((kind for kind, is_there in faults.items() if is_there), None)
        if fault is not None or path is None:
            is_named = name and not broken
            places[fault or "missing"].append(f"{name} (line {line})" if is_named else f"line {line}")
        else:
            listed[path].append((line, Sample(path, class_name(label), split)))

    samples = []
    for path in sorted(listed):
        fault, place, sample = _agreed(listed[path])
        if fault:
            places[fault].append(place)
        if sample is not None:
            samples.append(sample)
    places["empty-class"] = sorted(labels - {sample.label for sample in samples})
    findings = findings_of(_MESSAGES, places, **columns.in_words())
    if not samples:
        first = "".join(f"; {finding.message} ({few(finding.paths)}); {finding.cure}" for finding in findings[:1])
        raise UserError(f"{where} names no image that can be used{first}")
    return tuple(samples), (*findings, columns.finding(are_given=bool(path_column and label_column)))


def _agreed(rows: Sequence[tuple[int, Sample]]) -> tuple[str, str, Sample | None]:
    """Return the fault of the rows with one path, the rows in words, and the sample; None where labels differ."""
    samples = [sample for _, sample in rows]
    first = min(samples, key=lambda sample: RANK.get(sample.split or "", 3))
    if len(rows) == 1:
        return "", "", first
    named = {sample: [str(line) for line, other in rows if other == sample] for sample in dict.fromkeys(samples)}
    has_labels, has_splits = ({getattr(sample, name) for sample in named} for name in ("label", "split"))
    fault = "two-labels" if len(has_labels) > 1 else "two-splits" if len(has_splits) > 1 else "repeated"
    texts = [
        f"line{'s' if len(lines) > 1 else ''} {few(lines, 5)}"
        + {"two-labels": f": {short(sample.label, 40)}", "two-splits": f": {sample.split}"}.get(fault, "")
        for sample, lines in named.items()
    ]
    return fault, f"{first.path} ({'; '.join(texts[:5])})", None if fault == "two-labels" else first


def _columns(
    where: str,
    header: list[str],
    rows: Sequence[tuple[int, list[str]]],
    path_column: str | None,
    label_column: str | None,
) -> _Columns:
    # no column is taken twice
    path = _column(where, header, path_column, _without(_PATH_COLUMNS, label_column), "path")
    label = _column(where, header, label_column, _without(_LABEL_COLUMNS, path), "label")
    splits = [name for name in _without(_SPLIT_COLUMNS, path, label) if name in map(str.lower, header)]
    split = _column(where, header, splits[0], (), "split") if splits else None
    # an empty column of splits does not count
    if not any(dict(zip(header, cells, strict=False)).get(split or "") for _, cells in rows):
        split = None
    return _Columns(path, label, split)


def _without(known: Sequence[str], *taken: str | None) -> list[str]:
    return [name for name in known if name not in {(other or "").strip().lower() for other in taken}]


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
    for spelling in dict.fromkeys((name, name.replace("\\", "/"), unescaped(name))):
        full = os.path.normpath(os.path.join(folder, spelling))
        if spelling and os.path.isfile(full):
            inside = os.path.relpath(full, folder)
            is_elsewhere = os.path.isabs(spelling) and inside.startswith("..")
            return os.path.abspath(full) if is_elsewhere else Path(inside).as_posix()
    return None
