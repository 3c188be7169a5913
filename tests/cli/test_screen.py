import pytest

from whatwhere.cli.screen import result_tables

FIGURES = {"num_images": 3, "accuracy": 1.0, "balanced_accuracy": 1.0, "macro_f1": 1.0, "loss": 0.25}
RESULT = {"best_epoch": 7, "val": FIGURES, "judged_on": "val", "per_class": []}


@pytest.mark.parametrize(
    ("more", "note"),
    [
        ({}, "The network of epoch 7, chosen on the validation images."),  # of an older version
        ({"best_by": "loss"}, "The network of epoch 7, chosen on the validation images."),
        ({"best_by": "last"}, "The network of epoch 7, the last."),
    ],
)
def test_why_the_network_is_that_of_its_epoch(more, note):
    assert result_tables({**RESULT, **more})[0].note == note


def test_a_loss_that_is_not_finite_has_no_figure():
    rows = result_tables({**RESULT, "test": {**FIGURES, "loss": None}})[0].rows
    assert [row[-1] for row in rows] == ["0.2500", "-"]
