"""The content of `result.json`, typed: the figures of a finished run of whatwhere, which must fit each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from ..base.words import brief

Fraction = Annotated[float, Meta(ge=0, le=1)]
Amount = Annotated[float, Meta(ge=0, le=1e300)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]


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
