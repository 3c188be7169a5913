"""Runs of Ultralytics: `results.csv`, `args.yaml`, and the attention that whatwhere.ultralytics put in."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..base.documents import parse_json
from ..base.errors import UserError
from ..base.files import read_file
from ..base.limits import CURVE_BYTES, SETTINGS_BYTES
from ..base.words import cause, few, number_in, printable
from ..statistics.cells import NOT_SET
from ..statistics.within_pairs import ATTENTION
from .result import has_hardly_begun
from .run import Choice, Program, Run, run_with_csv, whole_number
from .settings import flat, has_settings

RECORD = "attention.json"
_TABLE, _SETTINGS = "results.csv", "args.yaml"
_YOUNGER = 60  # seconds; a trainer writes the settings first, and a copy of a folder takes a while
_IGNORED = frozenset(
    {"name", "project", "save_dir", "exist_ok", "save", "save_period", "save_json", "device", "workers", "cache"}
    | {"verbose", "plots", "profile", "resume"}
)
# what patience watches, "fitness": that of 8.4, then that of 8.3 for boxes, masks and key points
_FITNESS: tuple[dict[str, float], ...] = (
    {"metrics/mAP50-95": 1, "metrics/accuracy_top1": 0.5, "metrics/accuracy_top5": 0.5}
    | {"metrics/mIoU": 1, "metrics/delta1": 1},
    {"metrics/mAP50": 0.1, "metrics/mAP50-95": 0.9},
)


class AttentionRecord(msgspec.Struct):
    """The content of `attention.json`, which `whatwhere.ultralytics` writes beside `args.yaml`.

    Attributes:
        format: 1.
        attention: The arguments of each call of `attend`; or a name.
        places: The names of the modules that are the attention.
        parameters: Their parameters.
        largest_mix: The largest mixing factor at the end of the training; None before, and without mixing factors.
        last_line: The numbers in the last line of results.csv, at the start and after each epoch; empty without such a
            line. None in records of old versions, before the first epoch.
    """

    format: int
    attention: str | list[dict[str, Any]]
    places: list[str] = []
    parameters: int = 0
    largest_mix: float | None = None
    last_line: list[float] | None = None


def last_line(folder: Path) -> list[float]:
    """Return the numbers in the last line of a run's results.csv; none where there is no such line."""
    if not (folder / _TABLE).is_file():
        return []
    cells = read_file(folder / _TABLE, CURVE_BYTES).decode("utf-8", "replace").strip().rpartition("\n")[2].split(",")
    with contextlib.suppress(ValueError):
        numbers = [number_in(cell.strip()) for cell in cells]
        return numbers if all(map(math.isfinite, numbers)) else []
    return []


def _is_run(folder: Path, names: set[str]) -> bool:
    return _SETTINGS in names and has_settings(folder / _SETTINGS, "task", "mode: train")


def _read(folder: Path, choice: Choice) -> Run:
    run = run_with_csv(folder, _SETTINGS, _TABLE, choice, sums=_FITNESS)
    attention = _attention(folder / RECORD)
    if attention is not None:
        run.settings |= _settings_of(attention, folder / RECORD)
        run.has_hardly_begun = has_hardly_begun(attention.largest_mix)
        if attention.last_line is not None and attention.last_line != last_line(folder):
            run.fault = (
                f"has another last line in {_TABLE} than {RECORD} tells ({_TABLE} was cut short, or a training without "
                f"attention wrote into the folder later: then take {RECORD} out)"
            )
    with contextlib.suppress(OSError):
        age = (folder / _SETTINGS).stat().st_mtime - (folder / RECORD).stat().st_mtime
        if age > _YOUNGER:
            run.notes.append(
                f"the {RECORD} in {folder} is older than {_SETTINGS}; take it out if a training without attention "
                "wrote into the same folder later"
            )
    # true says nothing: only a checkpoint as model, or a path here, gives weights to start from
    if run.settings.get("pretrained") == "true":
        is_trained = run.settings.get("model", "").endswith(".pt")
        run.settings["pretrained"] = "weights of the model" if is_trained else NOT_SET
    # old versions count epochs from 0, new ones from 1
    run.num_epochs = len(run.curve.epochs)
    # hours of training, where given, take the place of the number of epochs
    if run.settings.get("time", NOT_SET) != NOT_SET:
        run.epochs_asked = None
    patience = whole_number(run.settings.get("patience", ""))
    if patience:
        run.stopped_early = any(max(run.curve.epochs, default=0) - patience in peaks for peaks in run.curve.peaks)
    return run


def _attention(path: Path) -> AttentionRecord | None:
    """Return the attention of a run, if it has one."""
    if not os.path.lexists(path):
        return None
    text = read_file(path, SETTINGS_BYTES)
    try:
        content = parse_json(text, AttentionRecord)
        if content.format != 1:
            raise ValueError(f"format {content.format} is not known; a newer whatwhere wrote it")
        parts = [] if isinstance(content.attention, str) else content.attention
        names = [part.get("attention") for part in parts] or [content.attention]
        if not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError("an attention has no name")
        if NOT_SET in names:
            raise ValueError(f"an attention is called {NOT_SET}, as runs without attention are; give it another name")
    except ValueError as error:
        raise UserError(f"{str(path)!r} does not tell the attention of its run: {cause(error)}") from error
    return content


def _settings_of(content: AttentionRecord, path: Path) -> dict[str, str]:
    """Return the attention as settings: its name or names, and its options."""
    if isinstance(content.attention, str):
        return {"attention": printable(content.attention)}
    names = printable("+".join(part["attention"] for part in content.attention))
    options = [{key: part[key] for key in part if key != "attention"} for part in content.attention]
    settings = flat({"attention": options[0] if len(options) == 1 else options}, path)
    return dict(sorted({**settings, "attention": names}.items()))  # the name first


def _complete(runs: Sequence[Run]) -> list[str]:
    """Give runs that were resumed the settings that they began with: those that the other runs of their arm share.

    Raises:
        UserError: Those began with several models.
    """
    # Ultralytics then names the checkpoint twice, as `resume` and in place of the model
    resumed, others = (
        [run for run in runs if (run.settings.get("resume") == run.settings.get("model", "")) is is_resumed]
        for is_resumed in (True, False)
    )
    if not resumed:
        return []
    for run in resumed:
        own = (run.arm, run.settings.get(ATTENTION))
        peers = [other for other in others if (other.arm, other.settings.get(ATTENTION)) == own] or others
        overwritten = ["model", "pretrained"]
        # a resumed run has what auto chose; a warmup of the biases from 0 tells that it was not given by hand
        if {peer.settings.get("optimizer") for peer in peers} == {"auto"} and run.settings.get("warmup_bias_lr") == "0":
            overwritten += ["optimizer", "lr0", "momentum", "warmup_bias_lr"]
        for key in overwritten:
            values = sorted({peer.settings.get(key, NOT_SET) for peer in peers}) or ["not known"]
            if len(values) == 1:
                (run.settings[key],) = values
            elif key == "model":
                raise UserError(
                    f"{str(run.path)!r} was resumed, so its {_SETTINGS} does not tell the model it began with, and "
                    f"the other runs have {few(values, 4)}; write it into that file, such as model: {values[0]}"
                )
    taken = "it is taken from the other runs" if others else "it is not compared"
    return [
        f"runs that were resumed: {few([str(run.path) for run in resumed], 6)}; their settings do not say any more "
        f"with which model they began, so {taken}"
    ]


PROGRAM = Program(
    "Ultralytics",
    _TABLE,
    _is_run,
    _read,
    _IGNORED,
    attention_file=RECORD,
    complete=_complete,
    if_alike="if `attend` put attention in before `train`, Ultralytics dropped it: use whatwhere.ultralytics.trainer",
)
