"""List the images of a folder of class folders, of train/val/test folders of them, or of any folder."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...base.errors import UserError
from ...base.words import command_line, counted, few, printable, short
from ..images import ABSENT, SUFFIXES, ImageError, open_image
from .source import NOT_READ, Finding, Messages, Sample, check_command, class_name, findings_of, split_of

_HIDDEN = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
# files that are never images: not opened
_TEXTS = {".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".rst", ".xml", ".yaml", ".yml", ".html", ".pdf", ".log"}
_BYSTANDERS = _TEXTS | {".ini", ".db", ".npy", ".npz", ".mat", ".pkl", ".py", ".ipynb"}
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar"}
TABLES = {".csv", ".tsv"}
# images in formats that are not read
_RAW = {".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f"}
_FOREIGN = dict.fromkeys(_RAW | {".jxl", ".jp2", ".psd", ".svg", ".eps", ".ico", ".exr"}, "convert") | {
    suffix: kind for kind, suffixes in ABSENT.items() for suffix in suffixes
}
# below this depth a folder is listed once, however many links lead to it
_FREE_DEPTH = 2

_MESSAGES: Messages = {
    "permission": ("error", "folder", "{n} that could not be listed", "change the permissions"),
    **NOT_READ,
    "convert": ("error", "file", "{n} in a format that is not read (raw, PSD, ...)", "convert to JPEG"),
    "suffix": ("warning", "file", "left out {n} with an image inside but another suffix", "rename, as to .png"),
    "archive": ("warning", "archive", "left out {n}, which may hold images", "unpack"),
    "stray": ("warning", "image", "left out {n} outside any class folder", "move into one"),
    "beside": ("warning", "folder", "left out {n} with images, beside the train, val or test folders", ""),
    "empty-class": ("warning", "class folder", "{n} without any image: {names}", ""),
    "split-in-class": ("warning", "folder", "{n} inside a class but named like a split", "a split is DATA/train/CLASS"),
    "regrouped": (
        "warning",
        "folder",
        "{n} of the same name in every class folder: {names}",
        "if they are the classes, put them at the top, or give a CSV file of paths and labels",
    ),
    "link": ("warning", "link", "left out {n} to a folder already listed, or to nothing", ""),
    "special": ("warning", "file", "left out {n} of a special kind, such as a pipe", ""),
    "hidden": ("note", "name", "left out {n} hidden or made by the system", ""),
    "nested": ("note", "folder", "{n} inside a class folder: the images there belong to the class", ""),
    "other": ("note", "file", "left out {n} without an image that can be read", ""),
}


@dataclass
class _Folder:
    """A listed folder; paths are relative to DATA."""

    path: str
    name: str
    folders: list[_Folder] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    def all_images(self) -> Iterator[str]:
        yield from self.images
        for folder in self.folders:
            yield from folder.all_images()

    def below(self) -> Iterator[_Folder]:
        for folder in self.folders:
            yield folder
            yield from folder.below()

    @property
    def class_folders(self) -> list[_Folder]:
        return [folder for folder in self.folders if any(True for _ in folder.all_images())]


def list_folder(root: Path) -> tuple[tuple[Sample, ...], tuple[Finding, ...]]:
    """List the images under `root` with their classes and splits, sorted by path.

    A folder is a split if its name is a spelling of train, val or test and it has class folders. If `root` holds one
    folder only, that folder is used instead. Folders inside a class belong to the class. Hidden and system folders, and
    files that are no images, are left out and reported.

    Raises:
        UserError: There are no class folders with images, or a split is there twice.
    """
    top, met = _listed(root)
    notes = []
    # DATA holds one folder that is neither a class nor a split: look inside
    while len(with_images := top.class_folders) == 1 and not top.images:
        inner = with_images[0]
        if inner.images or not inner.class_folders or split_of(inner.name) is not None:
            break
        message = f"DATA holds only the folder {printable(inner.path)}; its folders are the classes or splits"
        notes.append(Finding("note", "wrapper", message, (inner.path,)))
        top = inner
    # labels may be in a table beside the images
    tables = [path for path in met["other"] if os.path.dirname(path) == top.path and _suffix(path) in TABLES]
    # of the test images many have none
    tables.sort(key=lambda path: split_of(Path(path).stem) == "test")
    samples = _samples(root, top, met, tables)
    labels = {sample.label for sample in samples}
    if tables and len(labels) == 1:
        message = f"all images are of one class, {short(min(labels))}, and a table is beside them, {few(tables)}"
        where = command_line([str(root / tables[0])])
        notes.append(Finding("error", "table", message, cure=f"if it has the classes, give {where} as DATA"))
    return tuple(sorted(samples, key=lambda sample: sample.path)), (*_findings(met), *notes)


def list_images(root: Path) -> tuple[tuple[str, ...], tuple[Finding, ...]]:
    """List all images under `root`, sorted, whatever the folders mean; files are left out as by `list_folder`.

    Raises:
        UserError: The folder cannot be listed.
    """
    top, met = _listed(root)
    return tuple(sorted(top.all_images())), tuple(_findings(met))


def _listed(root: Path) -> tuple[_Folder, dict[str, list[str]]]:
    """Return the folder `root`, listed, and the paths that are left out or odd, by kind."""
    top, met = _Folder("", ""), defaultdict[str, list[str]](list)
    try:
        _fill(root, top, 0, {_identity(root)}, met)
    except OSError as error:
        raise UserError(f"cannot list {printable(str(root))}: {error.strerror}; see its permissions") from error
    return top, met


def _findings(met: dict[str, list[str]]) -> list[Finding]:
    return findings_of(_MESSAGES, {kind: sorted(set(paths)) for kind, paths in met.items()})


def reasons(findings: Iterable[Finding]) -> str:
    """Return what `findings` say of why no image was listed, to stand behind a sentence."""
    return "".join(f"; {finding.sentence(skip=False)}" for finding in findings if finding.severity != "note")


def _identity(path: Path | str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _fill(root: Path, folder: _Folder, depth: int, seen: set[tuple[int, int]], met: dict[str, list[str]]) -> None:
    """List `folder` and the folders in it; `seen` are the folders that are not entered again."""
    with os.scandir(root / folder.path) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = f"{folder.path}/{entry.name}" if folder.path else entry.name
        suffix = _suffix(path)
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link to itself
            is_folder = is_file = False
        if entry.name.startswith(".") or entry.name.lower() in _HIDDEN:
            met["hidden"].append(path)
        elif is_folder and (identity := _identity(entry.path)) in seen:
            met["link"].append(path)
        elif is_folder:
            # near the top, only a folder inside itself is left out: two classes may be links to one folder, and the
            # doctor then reports the same images under two names
            inside = set(seen) if depth < _FREE_DEPTH else seen
            inside.add(identity)
            inner = _Folder(path, entry.name)
            try:
                _fill(root, inner, depth + 1, inside, met)
            except OSError:
                met["permission"].append(path)
            folder.folders.append(inner)
        elif not is_file:
            met["link" if entry.is_symlink() else "special"].append(path)
        elif suffix in SUFFIXES:
            folder.images.append(path)
        elif suffix in _FOREIGN:
            met[_FOREIGN[suffix]].append(path)
        elif suffix in ARCHIVES:
            met["archive"].append(path)
        elif suffix not in _BYSTANDERS and _is_image(entry.path):
            met["suffix"].append(path)
        else:
            met["other"].append(path)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _is_image(full: str) -> bool:
    try:
        open_image(Path(full)).close()
    except ImageError as error:
        return error.kind == "huge"
    return True


def _samples(root: Path, top: _Folder, met: dict[str, list[str]], tables: list[str]) -> list[Sample]:
    where = printable(str(root))
    or_table, command = "", ""
    if tables:
        or_table = f"; if a table there ({few(tables)}) has the classes, give it in place of the folder, as in"
        command = check_command(str(root / tables[0]))
    splits: dict[str | None, _Folder] = {}
    for folder in top.folders:
        split = split_of(folder.name)
        if split is None or not folder.class_folders:
            continue
        if split in splits:
            names = f"{printable(splits[split].path)} and {printable(folder.path)}"
            raise UserError(f"in {where}, {names} are both a {split} folder; merge or rename one")
        splits[split] = folder
    classes = top.class_folders
    if splits:
        taken = {folder.path for folder in splits.values()}
        met["beside"] += [folder.path for folder in classes if folder.path not in taken]
        met["stray"] += top.images
    elif not classes and top.images:
        raise UserError(
            f"{where} holds {counted(len(top.images), 'image')} but no class folders; put each class's images into a "
            f"folder of its name{or_table or ', or give a CSV file of paths and labels'}",
            command,
        )
    elif not classes:
        raise UserError(
            f"{where} holds no images; DATA is a folder of class folders, or of train/val/test folders"
            f"{reasons(_findings(met))}{or_table}",
            command,
        )
    elif len(classes) > 1 and all(split_of(folder.name) for folder in classes):
        names = few([folder.path for folder in classes], 6, " and ")
        raise UserError(
            f"in {where}, {names} hold images but no class folders; the classes must be folders in them{or_table}",
            command,
        )
    else:
        met["split-in-class"] += [
            inner.path for folder in top.folders for inner in folder.class_folders if split_of(inner.name) is not None
        ]
    samples = []
    met["regrouped"] += _in_every_class(
        [folder for parent in (splits or {None: top}).values() for folder in parent.class_folders]
    )
    for split, parent in (splits or {None: top}).items():
        met["stray"] += parent.images
        for folder in parent.folders:
            images = list(folder.all_images())
            if not images:
                met["empty-class"].append(folder.path)
            met["nested"] += [inner.path for inner in folder.below() if inner.images]
            samples += [Sample(path, class_name(folder.name), split) for path in images]
    return samples


def _in_every_class(classes: list[_Folder]) -> list[str]:
    """Return the folders, of the first class, that stand in all classes under the same names, two or more.

    They may be the classes, as in fold1/cat, fold1/dog, fold2/cat, fold2/dog.
    """
    if len(classes) < 2 or any(folder.images for folder in classes):
        return []
    first, *others = ({inner.name: inner.path for inner in folder.class_folders} for folder in classes)
    shared = [path for name, path in first.items() if all(name in other for other in others)]
    return shared if len(shared) > 1 else []
