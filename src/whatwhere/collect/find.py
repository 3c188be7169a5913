"""Find the folders of runs, of whichever program, below the folders that are given."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..base.errors import UserError
from ..base.limits import RUN_FOLDERS
from ..base.words import few
from . import lightning, own, timm, ultralytics
from .run import Program

PROGRAMS = (own.PROGRAM, ultralytics.PROGRAM, timm.PROGRAM, lightning.PROGRAM)
_TABLES = (".csv", ".tsv")
KNOWN = (
    "Ultralytics (results.csv, args.yaml), timm (summary.csv, args.yaml), Lightning's CSVLogger (metrics.csv, "
    "hparams.yaml) or whatwhere (run.json, result.json)"
)


@dataclass
class Found:
    """What stands below the folders.

    Attributes:
        runs: Folders of runs, each with its program.
        tables: CSV files that belong to no run.
    """

    runs: dict[Path, Program] = field(default_factory=dict)
    tables: list[Path] = field(default_factory=list)


def find(paths: Sequence[Path]) -> Found:
    """Return the runs and the CSV files in `paths`; each path is a folder, at any depth, or a file.

    The CSV of a run stands for its folder. Hidden folders, and links to folders, are not looked into.

    Raises:
        UserError: A path that is not there or cannot be read, runs of two programs, or more than 100,000 folders.
    """
    found, num_folders, seen = Found(), 0, set[str]()
    for path in paths:
        for folder, names, program in _folders(path):
            num_folders += 1
            if num_folders > RUN_FOLDERS:
                raise UserError(f"more than {RUN_FOLDERS:,} folders in {str(path)!r}; give those of the runs")
            is_file = path.is_file()
            if program is not None and (not is_file or path.name == program.table):
                new = [folder]
            else:
                new = [path] if is_file else [folder / name for name in sorted(names) if name.lower().endswith(_TABLES)]
            for one in new:
                if (real := os.path.realpath(one)) in seen:
                    continue
                seen.add(real)
                if one is folder and program is not None:
                    found.runs[folder] = program
                else:
                    found.tables.append(one)
    programs = {program.name: str(folder) for folder, program in found.runs.items()}
    if len(programs) > 1:
        each = few([f"{name} (such as {folder!r})" for name, folder in programs.items()])
        raise UserError(f"the runs are those of several programs, {each}; give those of one")
    return found


def _folders(path: Path) -> Iterator[tuple[Path, set[str], Program | None]]:
    """Yield each folder to look at, the names of the files in it, and whose run it is; not the folders in a run."""

    def failed(error: OSError) -> None:
        raise UserError(f"cannot read {str(error.filename)!r}: {error.strerror or error}") from error

    try:
        is_file, is_there, is_folder = path.is_file(), path.exists(), path.is_dir()
        names = set(os.listdir(path.parent)) if is_file else set()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UserError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    if not is_there:
        raise UserError(f"there is no {str(path)!r}; give folders of runs, or a CSV")
    if not is_file and not is_folder:
        raise UserError(f"{str(path)!r} is a pipe, a socket or a device; give folders of runs, or a CSV")
    if is_file:
        of_runs = {program.table for program in PROGRAMS}
        yield path.parent, names, _program(path.parent, names) if path.name in of_runs else None
        return
    for folder, folders, files in os.walk(path, onerror=failed):
        names = set(files)
        program = _program(Path(folder), names)
        folders[:] = [] if program is not None else sorted(name for name in folders if name[0] != ".")
        yield Path(folder), names, program


def _program(folder: Path, names: set[str]) -> Program | None:
    try:
        return next((program for program in PROGRAMS if program.is_run(folder, names)), None)
    except OSError as error:
        raise UserError(f"cannot read {str(error.filename)!r}: {error.strerror or error}") from error
