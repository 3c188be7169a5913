"""The folder of a run: its files, their types, and whether a run may begin or continue there."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType
from torch import Tensor

from ..base.errors import UserError
from ..base.files import check_writable, locked, write_bytes, write_json, writing
from ..base.words import brief, cause, few, short
from ..data.split import Prepared, fingerprint
from ..networks.spec import is_import_path
from .bundle import Bundle, save_bundle
from .config import FREE, OPTIONS, Config
from .plots import confusion_png, curves_png

RUN, METRICS, SPLIT, RESULT = "run.json", "metrics.jsonl", "split.csv", "result.json"
LAST, BEST = "last", "best"

Fraction = Annotated[float, Meta(ge=0, le=1)]
Amount = Annotated[float, Meta(ge=0, le=1e300)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
_Document = TypeVar("_Document")


class RunDescription(msgspec.Struct, kw_only=True):
    """The content of `run.json`.

    Attributes:
        config: The options, as `Config` takes them.
        classes: Names of the classes.
        num_images: Number of images of each part.
        drawn: Parts that the seed drew; unset in runs of old versions.
        left_out: Paths of bad images that were left out.
        data_fingerprint: SHA-256 of the images and their split.
        sessions: Machine and versions of each start, the first and each continuation.
    """

    config: dict[str, Any]
    classes: list[str]
    num_images: dict[str, Count]
    drawn: list[str] | UnsetType = UNSET
    left_out: list[str] = []
    data_fingerprint: str
    sessions: Annotated[list[dict[str, Any]], Meta(min_length=1)]


class EpochLine(msgspec.Struct, kw_only=True):
    """A line of `metrics.jsonl`; losses are mean cross-entropies in nats, `val_loss` None where it is not finite.

    Attributes:
        train_loss: Of the augmented images, with label smoothing and class weights.
        seconds: Time of training so far, evaluations included.
    """

    epoch: Annotated[int, Meta(ge=1, lt=2**31)]
    step: Count
    lr: Amount
    train_loss: Amount
    val_accuracy: Fraction
    val_balanced_accuracy: Fraction
    val_macro_f1: Fraction | UnsetType = UNSET  # not in runs of old versions
    val_loss: Amount | None
    is_best: bool
    seconds: Amount


class PartFigures(msgspec.Struct, kw_only=True):
    """The figures of one part in `result.json`; see `evaluate.Figures`."""

    accuracy: Fraction
    num_images: Count = 0
    balanced_accuracy: Fraction | None = None
    macro_f1: Fraction | None = None
    loss: Amount | None = None
    auroc: Fraction | None = None
    calibration_error: Fraction | None = None


class ClassFigures(msgspec.Struct, kw_only=True, rename={"name": "class"}):
    """The figures of one class in `result.json`; None where the denominator is 0."""

    name: str
    num_images: Count
    precision: Fraction | None = None
    recall: Fraction | None
    f1: Fraction | None = None


class Result(msgspec.Struct, kw_only=True):
    """The content of `result.json`.

    Attributes:
        status: "finished" or "stopped early".
        best_epoch: Epoch of the best network, which the figures are of.
        seconds: Time of training, evaluations included.
        judged_on: The part that `per_class` and `confusion` are of.
        confusion: Number of images by label (row) and prediction (column).
    """

    status: str
    best_by: str = "accuracy"
    best_epoch: Count
    num_epochs: Count
    seconds: Amount
    val: PartFigures
    test: PartFigures | UnsetType = UNSET
    judged_on: Literal["test", "val"]
    classes: list[str]
    per_class: list[ClassFigures]
    confusion: list[list[Count]] = []


class RunFolder:
    """The files of a run in `path`; the caller holds its lock.

    `run.json` (`RunDescription`), `split.csv` (the part of each image), `metrics.jsonl` (an `EpochLine` for each
    epoch), `last/` (checkpoints), `best/` (a bundle), and at the end `result.json` (`Result`) and pictures.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last, self.best = path / LAST, path / BEST

    @property
    def result(self) -> dict[str, Any] | None:
        """The checked content of `result.json`; None where the run is not finished."""
        if not (self.path / RESULT).is_file():
            return None
        content = _read(self.path / RESULT)
        _converted(self.path / RESULT, content, Result)
        assert isinstance(content, dict)
        return content

    @property
    def description(self) -> RunDescription | None:
        """The content of `run.json`; None where there is none, or where it is not one of a run."""
        content = _read(self.path / RUN) if (self.path / RUN).is_file() else None
        if not isinstance(content, dict) or "data_fingerprint" not in content:
            return None
        return _converted(self.path / RUN, content, RunDescription)

    def fixed_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that a continuation with the options `given` takes over; none where there is no run.

        Raises:
            UserError: The run has an attention to import, and `given` does not name it again.
        """
        description = self.description
        options = {} if description is None else description.config
        named = str(options.get("attention", ""))
        if "attention" not in given and is_import_path(named):
            text = short(named, 200)
            raise UserError(
                f"the run in {str(self.path)!r} has the attention {brief(text)}, and whatwhere never imports code that "
                f"a file names; give --attention {text} again"
            )
        return {name: value for name, value in options.items() if name in OPTIONS and name not in FREE}

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Create the folder and hold it for this process inside the block.

        Raises:
            UserError: It cannot be written, or another process holds it.
        """
        check_writable(self.path)
        return locked(self.path)

    def check_new(self) -> None:
        """Raise UserError if the folder holds a run, or files of something else that a run would replace."""
        if self._has_run():
            raise UserError(
                f"{str(self.path)!r} holds a run already; give --resume to continue it, or another folder with --out"
            )

    def _has_run(self) -> bool:
        """Return whether a run has written an epoch or a checkpoint here.

        Raises:
            UserError: The folder holds files of something else.
        """
        done = [name for name in (METRICS, RESULT, LAST, BEST) if _holds_something(self.path / name)]
        taken = [*done, *(name for name in (RUN, SPLIT) if (self.path / name).exists())]
        if taken and self.description is None:
            raise UserError(f"{str(self.path)!r} holds {taken[0]} of something else; give another folder with --out")
        return bool(done)

    def begin(self, config: Config, prepared: Prepared, session: dict[str, Any], *, resume: bool) -> None:
        """Write `run.json` and `split.csv`, or add a session to the run that is there.

        A run without an epoch or a checkpoint is replaced.

        Raises:
            UserError: A run is there and `resume` is not set, or it has other options or other data.
        """
        if not resume:
            self.check_new()
        new = RunDescription(
            config=asdict(config),
            classes=list(prepared.classes),
            num_images={part: len(samples) for part, samples in prepared.parts.items()},
            drawn=list(prepared.drawn),
            left_out=list(prepared.left_out),
            data_fingerprint=fingerprint(prepared),
            sessions=[session],
        )
        old = self.description if self._has_run() else None
        if old is None:
            write_bytes(self.path / SPLIT, _split_table(prepared).encode("utf-8", "surrogateescape"))
            write_json(self.path / RUN, msgspec.to_builtins(new))
            return
        _check_same(self.path, old, new)
        if self.result is None:
            old.sessions.append(session)
            write_json(self.path / RUN, msgspec.to_builtins(old))

    def metrics(self) -> list[EpochLine]:
        """Return the lines of `metrics.jsonl`, without a last line that a crash cut short.

        Raises:
            UserError: The file is damaged.
        """
        return [line for line, _ in self._metrics()]

    def _metrics(self) -> list[tuple[EpochLine, bytes]]:
        file = self.path / METRICS
        texts = file.read_bytes().splitlines() if file.is_file() else []
        lines = []
        for number, text in enumerate(texts, start=1):
            try:
                lines.append((msgspec.json.decode(text, type=EpochLine), text))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                is_cut = isinstance(error, msgspec.DecodeError) and not isinstance(error, msgspec.ValidationError)
                if is_cut and number == len(texts):
                    break
                raise _damaged(file, error, f"in line {number}, ") from error
        return lines

    def keep_metrics(self, num_epochs: int) -> None:
        """Remove the lines after `num_epochs`; the continuation writes them again."""
        kept = [text + b"\n" for line, text in self._metrics() if line.epoch <= num_epochs]
        write_bytes(self.path / METRICS, b"".join(kept))

    def append_metrics(self, line: EpochLine) -> None:
        """Add a line to `metrics.jsonl`."""
        with writing(self.path / METRICS), open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(msgspec.to_builtins(line)) + "\n")

    def save_best(self, bundle: Bundle) -> None:
        """Write the best network so far."""
        save_bundle(self.best, bundle)

    def draw(self, title: str, confusion: Tensor, classes: tuple[str, ...], part: str) -> None:
        """Write `curves.png` and `confusion.png`; `part` names the images of the confusion matrix."""
        write_bytes(self.path / "curves.png", curves_png(self.metrics(), title))
        write_bytes(self.path / "confusion.png", confusion_png(confusion, classes, f"{title}: {part} images"))

    def save_result(self, result: dict[str, Any]) -> None:
        """Write `result.json`; the run is then finished."""
        write_json(self.path / RESULT, result)


def training_images(bundle: Path) -> frozenset[str]:
    """Return the paths of the training images of a bundle's run; none where its `split.csv` is not beside it."""
    for folder in (bundle, bundle.parent, bundle.parent.parent):
        if (folder / SPLIT).is_file() and (folder / RUN).is_file():
            with open(folder / SPLIT, encoding="utf-8", errors="surrogateescape", newline="") as file:
                return frozenset(row["path"] for row in csv.DictReader(file) if row.get("split") == "train")
    return frozenset()


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size > 0


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _converted(path: Path, content: Any, kind: type[_Document]) -> _Document:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception, where: str = "") -> UserError:
    return UserError(f"{str(path)!r} is damaged ({where}{cause(error)}); start again with another --out")


def _check_same(path: Path, before: RunDescription, now: RunDescription) -> None:
    """Raise UserError if a continuation has other options or other images."""
    same_images = before.data_fingerprint == now.data_fingerprint
    data = before.config.get("data")
    if not same_images and data == now.config["data"]:
        raise UserError(
            f"the images of {data!r} or their split have changed since the run in {str(path)!r} began; restore "
            "them, or start again with another --out"
        )
    # a run of an older version lacks new options: it ran with their defaults
    options = {**asdict(Config()), **before.config}
    changed = [
        f"{name} was {brief(options[name], 40)}, is {brief(value, 40)}"
        for name, value in now.config.items()
        if name not in FREE and name != "data" and options[name] != value
    ]
    if not same_images:
        changed.insert(0, f"data was {brief(data)}, is {brief(now.config['data'])}")
    if changed:
        raise UserError(
            f"the run in {str(path)!r} has other options: {few(changed, 5, '; ')}; give the same, or another --out"
        )


def _split_table(prepared: Prepared) -> str:
    """Return a CSV of path, label and part; where the images are files it can be used as DATA."""
    root = prepared.source.root
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["path", "label", "split"])
    for part, samples in prepared.parts.items():
        for sample in samples:
            path = sample.path if root is None else str((root / sample.path).absolute())
            writer.writerow([path, sample.label, part])
    return target.getvalue()
