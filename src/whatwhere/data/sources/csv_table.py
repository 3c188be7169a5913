"""List the images that a CSV file of paths and labels names."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PureWindowsPath

from ...base.errors import UserError
from ...base.files import read_csv
from ...base.words import brief, few, printable, short, suggest, unescaped
from ..images import SUFFIXES
from .source import RANK, Finding, Messages, Sample, class_name, findings_of, is_no_label, split_of

# known names of columns, the preferred ones first
_FILES = ("path", "file", "filepath", "file_path", "filename", "file_name", "image_path", "img_path", "image_file")
_PATH_COLUMNS = (*_FILES, "image", "img", "image_name", "img_name", "images", "photo", "picture", "image_id")
_CLASSES = ("label", "class", "target", "category", "class_name", "classname")
_LABEL_COLUMNS = (*_CLASSES, "label_name", "labels", "class_id", "y")
_SPLIT_COLUMNS = ("split", "set", "subset", "partition", "usage", "data_set", "dataset")

# cells that say yes or no, and where words in the name of a column begin
_FLAGS = {"", "0", "1", "0.0", "1.0", "true", "false", "yes", "no", "t", "f", "y", "n"}
_WORDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")

_BREAK = re.compile(r"[\n\r]")
_QUOTES = "look for a quote too many, which makes one cell of several rows"
_FAULTS = {
    "quote": ("with a line break in the path, the label or the split", _QUOTES),
    "missing": ("with a path where no file is", "paths are relative to the CSV file's folder"),
    "foreign": (
        "with an absolute path where no file is, as if of another machine",
        "write the paths relative to the CSV file's folder",
    ),
    "case": (
        "with a path whose file is named in other upper and lower case, such as {found}",
        "write the paths as the files are named",
    ),
    "no-path": ("without a path in the column {path}", "complete or remove"),
    "no-label": ("without a label in the column {label} (an empty cell, nan, <NA>, #N/A)", "complete or remove"),
    "row": ("with more cells than the header", "put cells that hold the delimiter in quotes"),
    "bad-split": (
        "(all that have {bad_splits} in the column {split} instead of train, val or test)",
        "correct, or choose with --split-column",
    ),
}
_MESSAGES: Messages = {
    **{kind: ("error", "row", f"{{n}} of the CSV file {fault}", cure) for kind, (fault, cure) in _FAULTS.items()},
    "break": ("warning", "row", "{n} of the CSV file with a line break inside a cell", _QUOTES),
    "two-labels": ("error", "image", "{n} in rows of the CSV file with different labels", "remove the wrong rows"),
    "two-splits": ("error", "image", "{n} in rows of the CSV file with different splits", "keep one of each"),
    "repeated": ("note", "image", "{n} in several rows of the CSV file that say the same", "each image counts once"),
    "empty-class": ("warning", "class", "{n} of the CSV file without a row that can be used: {names}", ""),
    "empty-split": ("warning", "split", "{n} of the CSV file without a row that can be used: {names}", ""),
    "no-split": (
        "warning",
        "column",
        "ignored {n} that may hold the splits, but in other words than train, val and test: {names}",
        "write these words, or give --split-column none",
    ),
}


@dataclass(frozen=True)
class _Columns:
    """Which columns of a CSV file are used."""

    path: str
    label: str
    split: str | None
    doubtful: tuple[str, ...] = ()  # that may divide the images too, where none gives the splits

    def in_words(self) -> dict[str, str]:
        """Return the names for messages, by use."""
        return {"path": brief(self.path), "label": brief(self.label), "split": brief(self.split)}

    def finding(self, *, are_given: bool) -> Finding:
        """Return a note that names them, and how to choose others where the user has not chosen all."""
        names = self.in_words()
        split = "; no column of splits" if self.split is None else f", splits from {names['split']}"
        message = f"CSV file: paths from the column {names['path']}, labels from {names['label']}{split}"
        cure = "" if are_given else "others with --path-column, --label-column and --split-column"
        return Finding("note", "columns", message, cure=cure)


def list_csv(
    file: Path, path_column: str | None = None, label_column: str | None = None, split_column: str | None = None
) -> tuple[tuple[Sample, ...], tuple[Finding, ...]]:
    r"""List the images of a CSV file: a header, then one image in each row.

    Cells are separated by commas, semicolons or tabs. Paths are absolute or relative to the file's folder. A column of
    splits is optional. By default, the columns are the first with a known name; that of the splits may also be the only
    one whose cells are all spellings of train, val or test, two of them at least. `split_column` "none" is no column.
    Rows that cannot be used are left out and reported with their line. A cell that is empty, or holds what pandas,
    NumPy, R or Excel write for a missing value (nan, <NA>, NaT, #N/A, in any case), is no label. A path may be as
    whatwhere prints it: with `\xe9` for a byte that is not UTF-8, and `\n` for a line break.

    Raises:
        UserError: The file cannot be read, a column is unknown, several may hold the splits, or no row can be used.
    """
    where = printable(str(file))
    _, lines = read_csv(file)
    if not lines:
        raise UserError(f"{where} has no header; its first line must name the columns, such as path,label")
    header = [name.strip() for name in lines[0][1]]
    if named := [name for name in header if os.path.splitext(name)[1].lower() in SUFFIXES]:
        raise UserError(
            f"{where} has no header: its first line names an image, {brief(named[0])}; write a line such as path,label "
            "above it"
        )
    rows = [(line, [cell.strip() for cell in cells]) for line, cells in lines[1:]]
    columns = _columns(where, header, rows, path_column, label_column, split_column)
    if not rows:
        raise UserError(f"{where} has a header and no rows; each image needs one, with its path and its label")

    places: dict[str, list[str]] = defaultdict(list)  # of rows with a fault, by kind
    listed: dict[str, list[tuple[int, Sample]]] = defaultdict(list)  # usable rows with their lines, by path
    labels, splits, bad_splits, found = set[str](), set[str](), dict[str, None](), ""
    names_in = cache(_names_in)
    for line, cells in rows:
        row = dict(zip(header, cells, strict=False))
        name, label = row.get(columns.path, ""), row.get(columns.label, "")
        broken = [cell for cell in (name, label, row.get(columns.split or "", "")) if _BREAK.search(cell)]
        if not broken and any(map(_BREAK.search, cells)):
            places["break"].append(f"line {line}")
        split = split_of(row.get(columns.split, "")) if columns.split else None
        labels |= set() if broken or is_no_label(label) else {class_name(label)}
        splits |= set() if split is None else {split}
        path = _resolve(file.parent, name)
        real = _in_other_case(file.parent, name, names_in) if path is None else None
        faults = {
            "quote": bool(broken),
            "row": any(cells[len(header) :]),
            "no-path": not name,
            "no-label": is_no_label(label),
            "foreign": path is None and bool(PureWindowsPath(name).anchor),
            "case": real is not None,
            "missing": path is None,
            "bad-split": columns.split is not None and split is None,
        }
        fault = next((kind for kind, is_there in faults.items() if is_there), None)
        if fault is not None or path is None:
            is_named = name and not broken
            places[fault or "missing"].append(f"{name} (line {line})" if is_named else f"line {line}")
            found = found or (fault == "case" and real) or ""
            if fault == "bad-split":
                bad_splits[brief(row.get(columns.split or "", ""), 30)] = None
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
    places["empty-split"] = sorted(splits - {sample.split for sample in samples})
    places["no-split"] = list(columns.doubtful)
    values = few(list(bad_splits), 4, letters=80)
    findings = findings_of(_MESSAGES, places, **columns.in_words(), bad_splits=values, found=brief(found))
    if not samples:
        first = "".join(f"; {finding.message} ({few(finding.paths)}); {finding.cure}" for finding in findings[:1])
        raise UserError(f"{where} names no image that can be used{first}")
    return tuple(samples), (*findings, columns.finding(are_given=bool(path_column and label_column and split_column)))


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
    split_column: str | None,
) -> _Columns:
    # no column is taken twice
    path = _column(where, header, path_column, _without(_PATH_COLUMNS, label_column, split_column), "path")
    label = _column(where, header, label_column, _without(_LABEL_COLUMNS, path, split_column), "label")
    if split_column is not None and split_column.strip().lower() == "none":
        return _Columns(path, label, None)
    if split_column is not None:
        return _Columns(path, label, _column(where, header, split_column, (), "split"))
    held = {
        name: {cells[place] for _, cells in rows if place < len(cells)}
        for place, name in enumerate(header)
        if name and name not in (path, label)
    }
    kinds = {name: {split_of(cell) for cell in cells if cell} for name, cells in held.items()}
    spelt = {name.lower(): name for name, cells in held.items() if any(cells)}
    named = [spelt[name] for name in _SPLIT_COLUMNS if name in spelt]
    by_content = [name for name, found in kinds.items() if None not in found and len(found) > 1]
    # a known name counts before the content, unless its cells speak of something else
    spoken = [name for name in named if kinds[name] != {None}]
    if not spoken and len(by_content) > 1:
        names = few([brief(name) for name in by_content])
        raise UserError(f"several columns of {where} may hold the splits: {names}; name one with --split-column")
    chosen = [*spoken, *by_content, *named][:1]
    if chosen:
        return _Columns(path, label, _column(where, header, chosen[0], (), "split"))
    doubtful = [name for name, found in kinds.items() if len(found - {None}) > 1 or _is_flag(name, held[name])]
    return _Columns(path, label, None, tuple(doubtful))


def _is_flag(name: str, cells: set[str]) -> bool:
    """Return whether a column says, by its name and cells, which images are in a split, as is_train with 0 and 1."""
    words = [word.lower().removeprefix("is") for word in _WORDS.split(name)]
    return len(cells) > 1 and {cell.lower() for cell in cells} <= _FLAGS and any(map(split_of, words))


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


def _names_in(folder: str) -> dict[str, str]:
    """Return the names in a folder, by their lower case; none where it cannot be listed."""
    try:
        return {name.casefold(): name for name in sorted(os.listdir(folder), reverse=True)}
    except OSError:
        return {}


def _in_other_case(folder: Path, name: str, names_in: Callable[[str], Mapping[str, str]]) -> str | None:
    """Return the path in `folder` that differs from `name` in upper and lower case only; None if there is none."""
    full = str(folder)
    for part in os.path.normpath(name.replace("\\", "/")).split("/"):
        found = part if part == ".." else names_in(full).get(part.casefold())
        if found is None:
            return None
        full = os.path.join(full, found)
    return os.path.relpath(full, folder) if os.path.isfile(full) else None
