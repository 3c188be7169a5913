"""The content of `result.json`, typed: the figures of a finished run of whatwhere, which must fit each other and it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from ..base.documents import read_json
from ..base.errors import UserError
from ..base.words import brief, cause, counted

RESULT = "result.json"
BEST_INFO = "best/bundle.json"  # the best network
# fields of run.json that a run keeps to its end, but the hash of the images: `RunFolder.begin` compares that itself
_FIXED = (
    "config",
    "given",
    "chosen",
    "classes",
    "num_images",
    "drawn",
    "left_out",
    "data_fingerprint",
    "preprocessing",
)
Fraction = Annotated[float, Meta(ge=0, le=1)]
Amount = Annotated[float, Meta(ge=0, le=1e300)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
HARDLY_BEGUN = 0.05  # largest mixing factor, where attention changes features by less than 5 % of what it would at 1


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


class GateFault(msgspec.Struct, kw_only=True, frozen=True):
    """A gate that does not do what it is for, as `explain.Finding`."""

    layer: str
    gate: str
    fault: str


class Result(msgspec.Struct, kw_only=True):
    """The content of `result.json`: the figures of the best network.

    Raises:
        ValueError: Two of its figures contradict each other, as where one was damaged.
    """

    status: Literal["finished", "stopped early"]
    best_by: Literal["accuracy", "balanced_accuracy", "loss", "last"] = "accuracy"
    best_epoch: Count
    num_epochs: Count
    seconds: Amount  # of training, evaluations included
    val: PartFigures
    test: PartFigures | UnsetType = UNSET
    judged_on: Literal["test", "val"]  # the part that `per_class` and `confusion` are of
    classes: list[str]
    per_class: list[ClassFigures]
    confusion: list[list[Count]] = []  # number of images by label (row) and prediction (column)
    run: str = ""  # `run_digest` of its run.json; results of earlier versions lack these two
    weights: str = ""  # SHA-256 of the file of the best network's weights
    largest_mix: Amount | UnsetType | None = UNSET  # of the best network's attention; None without mixing factors
    gates: list[GateFault] | UnsetType | None = UNSET  # what gate health found in it; None where nothing is known

    def __post_init__(self) -> None:
        if (self.test is UNSET) is (self.judged_on == "test"):
            raise ValueError(f"it is judged on {self.judged_on}, and {'lacks' if self.test is UNSET else 'has'} test")
        if self.best_epoch > self.num_epochs:
            raise ValueError(f"its best epoch is {self.best_epoch:,} of {self.num_epochs:,}")
        if [row.name for row in self.per_class] != self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError("its per_class and classes differ, or a class is there twice")
        if self.confusion:
            size = len(self.classes)
            if [len(row) for row in self.confusion] != [size] * size:
                raise ValueError("its confusion has not a row and a column for each class")
            for row, counted in zip(self.per_class, class_figures(self.classes, self.confusion), strict=True):
                lacking = {name: None for name in ("precision", "f1") if getattr(row, name) is None}
                if row != replace(counted, **lacking):
                    raise ValueError(f"the figures of class {brief(row.name)} are not those of its confusion")
        for name, value in _figures(self.per_class).items():
            said = getattr(self.judged, name)
            if said is not None and not math.isclose(said, value, rel_tol=1e-9):
                raise ValueError(f"its {self.judged_on}.{name} is {said:g}, that of its per_class {value:g}")

    @property
    def judged(self) -> PartFigures:
        """The figures of the part that the run is judged on."""
        return self.val if self.test is UNSET else self.test


def has_hardly_begun(largest_mix: float | UnsetType | None) -> bool:
    """Return whether attention with this largest mixing factor changes hardly anything; False where none is known."""
    return isinstance(largest_mix, float) and largest_mix < HARDLY_BEGUN


def told_of_mix(largest_mix: float | None) -> str:
    """Return, as a sentence, that such attention has hardly begun; "" if it has."""
    if not has_hardly_begun(largest_mix):
        return ""
    return (
        f"the attention has hardly begun: its mixing factors are at most {largest_mix:.2g}, where 0 is no attention. "
        "Train for more steps before you judge it"
    )


class OfAnotherRun(UserError):  # noqa: N818 - a UserError by its base
    """A `result.json` is not of the run in its folder."""


class Epoch(Protocol):
    """The figures of a line of `metrics.jsonl` that those of a result must fit."""

    val_accuracy: float
    val_loss: float | None
    is_best: bool


class _Bundle(msgspec.Struct):
    info: dict[str, Any]


def run_digest(described: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a run keeps of its `run.json` from its start to its end."""
    kept = {name: described[name] for name in _FIXED if described.get(name)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def check_is_of_run(result: Result, folder: Path, described: Mapping[str, Any], epochs: Sequence[Epoch]) -> None:
    """Check that a result is that of the run in `folder`, with the content of its `run.json` and `metrics.jsonl`.

    Raises:
        OfAnotherRun: It is not: it has another digest, another number of epochs, or another best epoch or figures.
        UserError: `best/bundle.json` is damaged.
    """
    if why := next(_differences(result, folder, described, epochs), ""):
        raise OfAnotherRun(f"{str(folder / RESULT)!r} is not of this run ({why}); move it away")


def _differences(result: Result, folder: Path, described: Mapping[str, Any], epochs: Sequence[Epoch]) -> Iterator[str]:
    """Say in words how a result differs from its run; only the first difference is sure to be one."""
    if result.run not in ("", run_digest(described)):
        yield "run.json has other options or images"
    if result.classes != described.get("classes", result.classes):
        yield "run.json has other classes"
    if not epochs:
        return
    if result.num_epochs != len(epochs):
        yield f"it has {counted(result.num_epochs, 'epoch')}, metrics.jsonl {len(epochs):,}"
    best = max((number for number, line in enumerate(epochs, start=1) if line.is_best), default=0)
    if not best or result.best_epoch != best:
        yield f"its best epoch is {result.best_epoch:,}, that of metrics.jsonl {best:,}"
    line, val = epochs[best - 1], result.val
    # computed anew, perhaps on another device: an image on the border may fall to the other side
    if abs(val.accuracy - line.val_accuracy) > 0.01 + 1.01 / max(val.num_images, 1):
        yield f"its val.accuracy is {val.accuracy:g}, that of epoch {best:,} {line.val_accuracy:g}"
    loss, before = val.loss, line.val_loss
    if loss is not None and before is not None and not math.isclose(loss, before, rel_tol=0.05, abs_tol=0.002):
        yield f"its val.loss is {loss:g}, that of epoch {best:,} {before:g}"
    if (file := folder / BEST_INFO).is_file():
        try:
            info = read_json(file, _Bundle).info
        except ValueError as error:
            raise UserError(f"{str(file)!r} is damaged ({cause(error)}); put it back, or move it away") from error
        if (info.get("epoch"), info.get("val_accuracy")) != (best, line.val_accuracy):
            yield f"{BEST_INFO} is not of epoch {best:,}"


def class_figures(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[ClassFigures]:
    """Return the figures of each class from the number of images by label (row) and prediction (column)."""
    predictions = [sum(column) for column in zip(*confusion, strict=True)]
    hits = [row[number] for number, row in enumerate(confusion)]
    return [
        ClassFigures(
            name=name,
            num_images=total,
            precision=correct / predicted if predicted else None,
            recall=correct / total if total else None,
            f1=2 * correct / (predicted + total) if predicted + total else None,
        )
        for name, correct, predicted, total in zip(classes, hits, predictions, map(sum, confusion), strict=True)
    ]


def _figures(rows: Sequence[ClassFigures]) -> dict[str, float]:
    """Return the figures of a part that follow from those of its classes."""
    known = [(row.num_images, row.recall, row.f1) for row in rows if row.num_images]
    total = sum(num_images for num_images, _, _ in known)
    recalls = [(num_images, recall) for num_images, recall, _ in known if recall is not None]
    scores = [f1 for _, _, f1 in known if f1 is not None]
    figures: dict[str, float] = {"num_images": total}
    if total and len(recalls) == len(known):
        figures["accuracy"] = sum(num_images * recall for num_images, recall in recalls) / total
        figures["balanced_accuracy"] = fmean(recall for _, recall in recalls)
    if total and len(scores) == len(known):
        figures["macro_f1"] = fmean(scores)
    return figures
