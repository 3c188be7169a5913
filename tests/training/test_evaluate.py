import contextlib

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from whatwhere.data.batches import Batch
from whatwhere.training.distributed import Team
from whatwhere.training.evaluate import Figures, evaluate

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
    assert HAND.score("loss") == -0.5
    assert HAND.score("balanced_accuracy") == HAND.balanced_accuracy


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
    assert seen == [3, 1]
