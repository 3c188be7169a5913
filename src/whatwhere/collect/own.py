"""Runs of whatwhere: `run.json`, `result.json` and `metrics.jsonl`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..base.documents import parse_json
from ..base.errors import UserError
from ..base.files import read_file
from ..base.limits import DOCUMENT_BYTES
from ..base.words import cause
from .curve import Curve
from .result import RESULT, Amount, Fraction, Result, check_is_of_run, has_hardly_begun
from .run import Choice, Program, Run
from .settings import flat

_RUN, _METRICS = "run.json", "metrics.jsonl"
# `data` is the path of images that `data_fingerprint` tells apart
_IGNORED = frozenset(
    {"data", "data_dir", "path_column", "label_column", "split_column", "device", "workers", "cache", "download"}
    | {"check", "save_minutes", "tensorboard"}
)
# `ADDED` of training/config.py: what runs of earlier versions did
_ADDED = {"near_duplicates": "together", "max_value": 65535, "resize": "crop", "split_column": "", "train_images": 0}
T = TypeVar("T")


class _Description(msgspec.Struct):
    config: dict[str, Any]
    data_fingerprint: str


class _Epoch(msgspec.Struct):
    val_accuracy: Fraction
    is_best: bool
    val_loss: Amount | None


def _is_run(folder: Path, names: set[str]) -> bool:
    return _RUN in names and b'"data_fingerprint"' in read_file(folder / _RUN, DOCUMENT_BYTES)


def _read(folder: Path, choice: Choice) -> Run:
    content = _content(folder / _RUN, dict[str, Any])
    with _named(folder / _RUN):
        described = msgspec.convert(content, _Description)
    settings = flat({**_ADDED, **described.config, "data_fingerprint": described.data_fingerprint}, folder / _RUN)
    if not os.path.lexists(folder / RESULT):
        return Run(folder, settings, fault=f"has no {RESULT}")
    result, lines = _content(folder / RESULT, Result), _lines(folder / _METRICS)
    check_is_of_run(result, folder, content, lines)
    found = msgspec.structs.asdict(result.judged)
    figures = {name: value for name, value in found.items() if value is not None and name != "num_images"}
    curve = Curve(list(figures), {result.best_epoch}, figures, best=figures, best_epoch=result.best_epoch)
    is_chosen = result.judged_on == "val" and result.best_by != "last"
    shares = [line.val_accuracy for line in lines]
    return Run(
        folder,
        settings,
        curve,
        num_epochs=result.num_epochs,
        stopped_early=True,
        is_chosen=is_chosen,
        learned=(result, shares),
        has_hardly_begun=has_hardly_begun(result.largest_mix),
    )


def _lines(path: Path) -> list[_Epoch]:
    lines = read_file(path, DOCUMENT_BYTES).splitlines() if os.path.lexists(path) else []
    return [_parsed(line, path, _Epoch) for line in lines]


def _content(path: Path, kind: type[T]) -> T:
    return _parsed(read_file(path, DOCUMENT_BYTES), path, kind)


def _parsed(content: bytes, path: Path, kind: type[T]) -> T:
    with _named(path):
        return parse_json(content, kind)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file that a ValueError is about."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not that of a run of whatwhere ({cause(error)})") from error


PROGRAM = Program("whatwhere", RESULT, _is_run, _read, _IGNORED, chooses_epoch=True)
