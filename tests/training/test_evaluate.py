import contextlib
import json
import math
import types

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from whatwhere.collect.result import PartFigures
from whatwhere.data.batches import Batch
from whatwhere.training.distributed import Team
from whatwhere.training.evaluate import Figures, evaluate, merit

ALONE = Team(0, 1, 0, torch.device("cpu"))
HAND = Figures(torch.tensor([[3, 1, 0], [0, 2, 2], [0, 0, 0]]), 0.5)


def test_figures_by_hand():
    assert HAND.num_images == 8
    assert HAND.accuracy == 5 / 8
    assert HAND.balanced_accuracy == (3 / 4 + 2 / 4) / 2  # the third class has no images
    first, second, third = HAND.per_class(["a", "b", "c"])
    assert first == {"class": "a", "num_images": 4, "precision": 1.0, "recall": 0.75, "f1": 6 / 7}
    assert second == {"class": "b", "num_images": 4, "precision": 2 / 3, "recall": 0.5, "f1": 4 / 7}
    assert third == {"class": "c", "num_images": 0, "precision": 0.0, "recall": None, "f1": 0.0}
    assert HAND.macro_f1 == (6 / 7 + 4 / 7) / 2


def test_what_is_better_is_the_figure_and_of_equal_ones_the_lower_loss():
    assert merit(HAND, "accuracy") == (5 / 8, -0.5)
    assert merit(HAND, "balanced_accuracy") == (HAND.balanced_accuracy, -0.5)
    assert merit(HAND, "loss") == (-0.5, -0.5)
    worse = [PartFigures(accuracy=5 / 8, loss=loss) for loss in (0.6, None)]
    worse += [Figures(HAND.confusion, loss) for loss in (math.inf, math.nan)]
    for by in ("accuracy", "loss"):
        assert all(merit(figures, by) < merit(HAND, by) for figures in worse)
    assert merit(PartFigures(accuracy=1, loss=0), "balanced_accuracy") < merit(HAND, "balanced_accuracy")


def test_a_class_that_is_neither_there_nor_said_has_no_figures():
    row = Figures(torch.tensor([[1, 0], [0, 0]]), 0.0).per_class(["a", "b"])[1]
    assert row == {"class": "b", "num_images": 0, "precision": None, "recall": None, "f1": None}


@pytest.mark.parametrize("seed", range(5))
def test_figures_against_scikit_learn(seed):
    random = np.random.default_rng(seed)
    num_classes, num_images = 6, 90
    labels = random.integers(0, num_classes, num_images)
    logits = torch.tensor(random.normal(0, 2, (num_images, num_classes)))
    batches = [
        Batch(logits[part], torch.tensor(labels)[part], part) for part in torch.split(torch.arange(num_images), 32)
    ]
    figures = evaluate(nn.Identity(), batches, num_classes, ALONE, autocast=contextlib.nullcontext)
    said = logits.argmax(1).numpy()
    assert (figures.confusion.numpy() == metrics.confusion_matrix(labels, said)).all()
    assert figures.accuracy == pytest.approx(metrics.accuracy_score(labels, said))
    assert figures.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, said))
    probabilities = logits.softmax(1).numpy()
    assert figures.loss == pytest.approx(metrics.log_loss(labels, probabilities), rel=1e-6)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(labels, said, zero_division=0)
    assert figures.macro_f1 == pytest.approx(f1[support > 0].mean())
    for index, row in enumerate(figures.per_class(map(str, range(num_classes)))):
        assert row["precision"] == pytest.approx(precision[index])
        assert row["recall"] == pytest.approx(recall[index])
        assert row["f1"] == pytest.approx(f1[index])
        assert row["num_images"] == support[index]


def test_the_model_is_evaluated_in_evaluation_mode_and_left_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9)).train()
    model[1].eval()
    before = model[0].running_mean.clone()
    batch = Batch(torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]), torch.arange(5))
    evaluate(model, [batch], 3, ALONE, autocast=contextlib.nullcontext)
    assert (model[0].training, model[1].training) == (True, False)
    assert torch.equal(model[0].running_mean, before)


def test_progress_counts_images():
    seen = []
    batches = [Batch(torch.zeros(n, 2), torch.zeros(n, dtype=torch.int64), torch.arange(n)) for n in (3, 1)]
    evaluate(nn.Identity(), batches, 2, ALONE, autocast=contextlib.nullcontext, on_batch=seen.append)
    assert seen == [3, 4]


def test_a_class_that_is_never_said_counts_as_0_and_one_without_images_not():
    figures = Figures(torch.tensor([[2, 0, 1], [3, 0, 0], [0, 0, 0]]), 0.0)
    # 2 * 2 / (5 + 3) of the first, 0 of the second; the third is said once, wrongly
    assert figures.macro_f1 == (0.5 + 0) / 2


def case(num_images=40, num_classes=5):
    random = np.random.default_rng(0)
    labels = torch.tensor(random.integers(0, num_classes, num_images))
    return torch.tensor(random.normal(0, 2, (num_images, num_classes)), dtype=torch.float32), labels


def batches_of(logits, labels, numbers, size=7):
    return [Batch(logits[part], labels[part], part) for part in torch.split(numbers, size)]


def test_probabilities_are_collected_on_demand_by_the_images_numbers():
    logits, labels = case()
    order = torch.randperm(len(labels))
    plain = evaluate(nn.Identity(), batches_of(logits, labels, order), 5, ALONE, autocast=contextlib.nullcontext)
    assert set(plain.summary()) == {"num_images", "accuracy", "balanced_accuracy", "macro_f1", "loss"}
    collected = evaluate(
        nn.Identity(), batches_of(logits, labels, order), 5, ALONE, autocast=contextlib.nullcontext, collect=len(labels)
    )
    probabilities = logits.softmax(1).numpy().astype(np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    theirs = metrics.roc_auc_score(labels, probabilities, multi_class="ovr")
    assert collected.summary() == {
        **plain.summary(),
        "auroc": pytest.approx(theirs, abs=1e-9),
        "calibration_error": collected.calibration_error,
    }
    assert 0 < collected.calibration_error < 1


def test_two_processes_collect_what_one_does():
    logits, labels = case()
    sums = []

    def evaluated(rank, add):
        team = types.SimpleNamespace(device=torch.device("cpu"), sum=add)
        own = torch.arange(len(labels))[rank::2]
        batches = batches_of(logits, labels, own)
        return evaluate(nn.Identity(), batches, 5, team, autocast=contextlib.nullcontext, collect=len(labels))

    def note(values):
        sums.append(values.clone())
        return values

    evaluated(1, note)
    remaining = iter(sums)
    together = evaluated(0, lambda values: values + next(remaining))
    alone = evaluate(
        nn.Identity(),
        batches_of(logits, labels, torch.arange(len(labels))),
        5,
        ALONE,
        autocast=contextlib.nullcontext,
        collect=len(labels),
    )
    assert together.summary() == {**alone.summary(), "loss": pytest.approx(alone.loss)}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_none_in_json(bad):
    logits, labels = case()
    logits[3] = bad
    batches = batches_of(logits, labels, torch.arange(len(labels)))
    figures = evaluate(nn.Identity(), batches, 5, ALONE, autocast=contextlib.nullcontext, collect=len(labels))
    summary = json.loads(json.dumps(figures.summary(), allow_nan=False))
    assert (summary["auroc"], summary["calibration_error"], summary["loss"]) == (None, None, None)
    assert 0 < summary["accuracy"] < 1


def test_one_class_has_no_area_but_an_error():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    batches = [Batch(logits, torch.tensor([0, 0]), torch.arange(2))]
    summary = evaluate(nn.Identity(), batches, 2, ALONE, autocast=contextlib.nullcontext, collect=2).summary()
    assert summary["auroc"] is None
    # right at 1 / (1 + e**-2), wrong at 1 / (1 + e**-1), in two bins
    assert summary["calibration_error"] == pytest.approx((1 - 0.880797 + 0.731059) / 2, abs=1e-6)
