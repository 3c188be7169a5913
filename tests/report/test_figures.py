import pytest

from whatwhere.experiment import Metric
from whatwhere.report.figures import cost_columns, interval, p_value, planned, ratio, typeset, wins

POINTS = Metric("accuracy", "accuracy", 100, "points")


@pytest.mark.parametrize(
    ("p", "text"), [(None, "-"), (1.0, "1.0000"), (0.05, "0.0500"), (0.0001, "0.0001"), (0.00009, "<0.0001")]
)
def test_p_values(p, text):
    assert p_value(p) == text


def test_differences_that_are_all_equal_have_no_interval():
    assert interval((0.5, 0.5), POINTS) == "none: all equal"
    assert interval((-0.5, 1.25), POINTS) == "-0.50 to +1.25"
    assert interval(None, POINTS) == "-"


def test_ties_are_told_apart(arm):
    assert wins(arm("a", (1.0, 0.0, -1.0, 2.0)), POINTS) == "2 of 4, 1 tied"
    assert wins(arm("a", (1.0, 2.0, -1.0), num_pairs=2), POINTS) == "2 of 2"
    assert wins(arm("a", ()), POINTS) == "-"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-0.50 to +0.89 points: more than the margin of -+0.50 points", "−0.50 to +0.89 points: more than the margin of ±0.50 points"),  # noqa: E501, RUF001
        ("sign-flip p = 0.5", "sign-flip p = 0.5"),
        ("resnet-50, 3-4 and a_-1", "resnet-50, 3-4 and a_-1"),
        ("(-1.00 to -0.50)", "(−1.00 to −0.50)"),  # noqa: RUF001
    ],
)  # fmt: skip
def test_signs_as_a_book_has_them(text, shown):
    assert typeset(text) == shown


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (None, "the first look is still to come"),
        ({"first": 8, "last": 8}, "one look, at 8 pairs, which spends all of the 5 %"),
        ({"first": 8, "last": 24}, "looks at 8, 16 and, at the end, 24 pairs; how much"),
        ({"first": 6, "last": 100}, "looks at 6, 12, 18, 24, 30, ... and, at the end, 100 pairs; how much"),
        (
            {"first": 8, "last": None},
            "looks at 8, 12, 16, 24, 32, 48 pairs and so on, without an end; the first spends",
        ),
    ],
)
def test_plans_in_words(plan, words):
    assert planned(plan, "5 %").startswith(words)


def test_costs_share_a_unit_and_missing_ones_have_no_column():
    keys = ("num_params", "macs", "saved_bytes", "forward_ms", "training_step_ms", "images_per_second")
    small = dict(zip(keys, (1000, 5e8, 2**20, 1.0, None, None), strict=True))
    large = {**small, "macs": 2e9, "saved_bytes": 0, "forward_ms": None}
    columns = cost_columns([small, large])
    assert [column.head for column in columns] == ["parameters", "MACs, G", "kept for backward, MiB", "forward, ms"]
    assert [columns[1].text(row["macs"]) for row in (small, large)] == ["0.500", "2.000"]
    assert ratio(large, small, "macs") == "x4.000"
    assert [ratio(small, small, "macs"), ratio(small, None, "macs"), ratio(large, small, "forward_ms")] == [""] * 3
    assert ratio(small, large, "saved_bytes") == ""
