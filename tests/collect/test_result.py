"""The figures of a finished run must fit each other: a damaged one is refused, not reported."""

import copy

import msgspec
import pytest

from whatwhere.base.words import cause
from whatwhere.collect.result import Result, class_figures

CLASSES, CONFUSION = ["cat", "dog", "owl"], [[3, 1, 0], [0, 2, 0], [0, 0, 0]]
PART = {"num_images": 6, "accuracy": 5 / 6, "balanced_accuracy": 0.875, "macro_f1": (6 / 7 + 0.8) / 2, "loss": 0.4}
SOUND = {
    "status": "finished", "best_epoch": 2, "num_epochs": 3, "seconds": 1.5, "val": {**PART, "accuracy": 0.5},
    "test": PART, "judged_on": "test", "classes": CLASSES, "confusion": CONFUSION,
    "per_class": [
        {"class": "cat", "num_images": 4, "precision": 1.0, "recall": 0.75, "f1": 6 / 7},
        {"class": "dog", "num_images": 2, "precision": 2 / 3, "recall": 1.0, "f1": 0.8},
        {"class": "owl", "num_images": 0, "precision": None, "recall": None, "f1": None},
    ],
}  # fmt: skip


def test_the_figures_of_the_classes_are_those_of_the_confusion_matrix():
    assert msgspec.to_builtins(class_figures(CLASSES, CONFUSION)) == SOUND["per_class"]
    assert msgspec.convert(SOUND, Result).judged.accuracy == 5 / 6


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("test", "accuracy"), 0.9),
        (("test", "accuracy"), 0),
        (("test", "num_images"), 5),
        (("test", "balanced_accuracy"), 0.8),
        (("test", "macro_f1"), 0.8),
        (("val", "accuracy"), 1.1),
        (("confusion", 0, 0), 2),
        (("confusion", 2, 2), 1),
        (("confusion", 2), [0, 0]),
        (("per_class", 0, "recall"), 0.7),
        (("per_class", 1, "precision"), 0),
        (("per_class", 0, "f1"), 0.5),
        (("per_class", 1, "class"), "cat"),
        (("classes",), ["dog", "cat", "owl"]),
        (("judged_on",), "val"),
        (("best_epoch",), 4),
        (("status",), "running"),
        (("best_by",), "luck"),
    ],
)
def test_a_figure_that_contradicts_another_is_refused(at, value, snapshot):
    content = copy.deepcopy(SOUND)
    holder = content
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = value
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(content, Result)
    assert cause(caught.value) == snapshot


def test_what_is_not_said_is_not_missed():
    """Other programs may write the least: the figures of each class without the matrix, or without precision."""
    content = {name: value for name, value in SOUND.items() if name != "confusion"}
    content["per_class"] = [{key: row[key] for key in ("class", "num_images", "recall")} for row in SOUND["per_class"]]
    content["test"] = {"accuracy": 5 / 6, "num_images": 6}
    assert msgspec.convert(content, Result).confusion == []
    assert msgspec.convert({**SOUND, "per_class": content["per_class"]}, Result).confusion == CONFUSION
