"""Networks that have hardly learned, or still learn, are told before any verdict."""

import json

import numpy as np
import pytest

from whatwhere.collect.learned import unlearned
from whatwhere.collect.result import RESULT, ClassFigures, PartFigures, Result
from whatwhere.training.run_folder import METRICS


def result(recalls, num_images=(100, 100)):
    """What a run came to, as far as it is read: the recall and the images of each class."""
    images = list(num_images) if len(num_images) == len(recalls) else [num_images[0]] * len(recalls)
    rows = [
        ClassFigures(name=str(n), num_images=count, recall=recall)
        for n, (count, recall) in enumerate(zip(images, recalls, strict=True))
    ]
    others = {"status": "finished", "best_epoch": 1, "num_epochs": 1, "seconds": 0.0, "judged_on": "val"}
    accuracy = sum(row.num_images * row.recall for row in rows if row.recall is not None) / sum(images)
    return Result(
        **others, val=PartFigures(accuracy=accuracy, num_images=sum(images)), classes=[row.name for row in rows],
        per_class=rows,
    )  # fmt: skip


def finished(recalls, num_images=(100, 100)):
    return unlearned([result(recalls, num_images)] * 8, [[0.9] * 20] * 8)


def test_runs_at_chance_are_counted():
    rng = np.random.default_rng(0)
    guessing = [result(rng.binomial(140, 0.1, 10) / 140, (140,)) for _ in range(5)]
    learned = [result(rng.binomial(140, 0.2, 10) / 140, (140,)) for _ in range(3)]
    flat = [[0.1] * 20] * 8
    assert unlearned(guessing + learned, flat) == "5 of 8 runs are no better than guessing one of 10 classes"
    # one that failed among many is the seed's luck, not the number of epochs
    assert unlearned(guessing[:1] + learned + learned, flat[:7]) == ""
    assert unlearned([], []) == ""


@pytest.mark.parametrize(
    ("recalls", "num_images", "at_chance"),
    [
        ([1.0, 0.0], (900, 100), True),  # 90 % right by always saying the same
        ([0.5, 0.5], (900, 100), True),
        ([0.85, 0.7], (900, 100), False),
        ([1.0, 0.0, None], (50, 50, 0), True),  # a class without images is none to guess
        ([1.0, 1.0], (4, 4), False),
        ([0.75, 0.75], (4, 4), False),  # so few that all is within the error of guessing
        ([0.12] * 10, (1000,), False),
        ([0.104] * 10, (1000,), True),
        ([1.0], (100,), False),
    ],
)
def test_guessing_is_known_by_the_mean_recall(recalls, num_images, at_chance):
    assert bool(finished(recalls, num_images)) is at_chance


def curves(time, num_epochs, num_images=2000, num_runs=8):
    """Curves towards 95 % with this time constant, in trainings, as validation images show them."""
    rng = np.random.default_rng(0)
    share = 0.1 + 0.85 * (1 - np.exp(-np.arange(1, num_epochs + 1) / num_epochs / time))
    return [
        (rng.binomial(num_images, np.clip(share + rng.normal(0, 0.01), 0, 1)) / num_images).tolist()
        for _ in range(num_runs)
    ]


@pytest.mark.parametrize("num_epochs", [3, 10, 30, 100])
@pytest.mark.parametrize(("time", "improving"), [(5, True), (0.8, True), (0.3, False), (0.1, False)])
def test_learning_that_has_not_slowed_down_is_told(num_epochs, time, improving):
    why = unlearned([result([0.5] * 10)] * 8, curves(time, num_epochs))
    assert why.startswith("still improving: +") is improving
    assert bool(why) is improving


def test_noise_is_no_improvement():
    rng = np.random.default_rng(0)
    runs = [result([0.5] * 10)] * 8
    told = sum(bool(unlearned(runs, (0.9 + rng.normal(0, 0.03, (8, 20))).tolist())) for _ in range(500))
    assert told <= 2
    for single in ([[0.5]] * 8, [[]] * 8, [[0.1, 0.9]]):
        assert unlearned([result([0.5] * 10)] * len(single), single) == ""


@pytest.fixture
def pretended(compared):
    compared.figures = lambda arm, seed: 0.25 if arm == "none" else 0.8 - 0.01 * int(seed)
    return compared


def test_a_comparison_says_it_before_its_verdict_and_in_its_advice(pretended):
    content = pretended("none,se", seeds=3)
    assert content["first"] == [["none", "3 of 3 runs are no better than guessing one of 3 classes"]]
    (se,) = content["judgement"]["arms"]
    assert se["conclusion"] == "Train for more epochs before you decide about se"
    assert se["advice"] == "more epochs first, as said at the top; only then: train at least 6 seeds of each arm"
    assert pretended.read("verdict.json")["first"] == content["first"]


def test_a_plan_that_goes_on_warns_that_more_pairs_are_not_what_is_missing(pretended):
    pretended.figures = lambda arm, seed: 0.3 + 0.02 * (int(seed) % 3) * (arm == "se")
    pretended("none,se", seeds=6, max_seeds=12)
    assert len(pretended.trained) == 24
    warning = (
        "none: 6 of 6 runs are no better than guessing one of 3 classes; more epochs would help more than more pairs"
    )
    assert warning in pretended.warnings


def test_a_comparison_reads_its_learning_curves(pretended):
    pretended.figures = lambda arm, seed: 0.8
    assert pretended("none,se", seeds=3)["first"] == []
    for seed in range(3):
        path = pretended.out / "runs" / "se" / f"seed-{seed}" / METRICS
        (line,) = map(json.loads, path.read_text().splitlines())
        lines = [
            {**line, "epoch": epoch, "val_accuracy": 0.5 + 0.03 * epoch + 0.001 * seed * (-1) ** epoch}
            for epoch in range(1, 11)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = json.loads((path.parent / RESULT).read_text())
        (path.parent / RESULT).write_text(json.dumps({**result, "num_epochs": 10, "best_epoch": 10}))
    ((arm, why),) = pretended.collect()["first"]
    assert arm == "se"
    assert why == "still improving: +6.0 points of validation accuracy over the last epochs"
