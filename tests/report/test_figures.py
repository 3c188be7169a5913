import msgspec
import pytest

from whatwhere.comparison.content import CostRow, Costs
from whatwhere.experiment import Metric
from whatwhere.report.figures import cost_table, interval, p_value, scheduled, typeset, wins
from whatwhere.statistics.looks import Schedule

POINTS = Metric("accuracy", "accuracy", 100, "points")


@pytest.mark.parametrize(
    ("p", "text"), [(None, "-"), (1.0, "1.0000"), (0.05, "0.0500"), (0.0001, "0.0001"), (0.00009, "<0.0001")]
)
def test_p_values(p, text):
    assert p_value(p) == text


def test_intervals():
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
    ("schedule", "words"),
    [
        (None, "the first look is still to come"),
        (Schedule(8, 8), "one look, at 8 pairs, which uses all of the 5 %"),
        (Schedule(8, 24), "looks at 8, 16 and, at the end, 24 pairs; each uses"),
        (Schedule(6, 100), "looks at 6, 12, 18, 24, 30, ... and, at the end, 100 pairs; each uses"),
        (
            Schedule(8),
            "looks at 8, 12, 16, 24, 32, 48 pairs and so on, without an end; the first uses",
        ),
    ],
)
def test_plans_in_words(schedule, words):
    assert scheduled(schedule, "5 %").startswith(words)


def costs(*rows):
    keys = ("num_params", "macs", "saved_bytes", "forward_ms", "training_step_ms", "images_per_second")
    made = (CostRow(arm=f"arm {index}", **dict(zip(keys, row, strict=True))) for index, row in enumerate(rows))
    return Costs(num_images=1, image_size=8, device="cpu", rows=tuple(made))


def test_costs_share_a_unit_and_missing_ones_have_no_column():
    small, large = (1000, 500_000_000, 2**20, 1.0, None, None), (1000, 2_000_000_000, 0, None, None, None)
    table = cost_table(costs(small, large), "arm 0")
    assert table.heads == ("parameters", "MACs, G", "kept for backward, MiB", "forward, ms")
    (first, baseline), (second, cells) = table.rows
    assert (first, second) == ("arm 0", "arm 1")
    assert baseline == (("1,000", ""), ("0.500", ""), ("1.00", ""), ("1.0", ""))
    assert cells == (("1,000", "x1.000"), ("2.000", "x4.000"), ("0.00", "x0.000"), ("-", ""))
    assert table.basis.startswith("Parameters and MACs: one network, one image of 8 px. Bytes and times: a batch of 1 ")


def test_ratios_need_a_baseline_that_is_not_0():
    small, large = (1000, 500_000_000, 2**20, 1.0, None, None), (1000, 2_000_000_000, 0, None, None, None)
    assert cost_table(costs(small, large), "none").rows[1][1][1] == ("2.000", "")
    assert cost_table(costs(large, small), "arm 0").rows[1][1][2] == ("1.00", "")


def test_times_that_mean_little_have_a_mark_and_no_ratio():
    quiet, disturbed = (1000, 10**9, 2**20, 10.0, 30.0, 500), (1100, 10**9, 2**20, 11.0, 600.0, 25)
    measured = costs(quiet, quiet, disturbed)
    *steady, last = measured.rows
    measured = msgspec.structs.replace(
        measured, rows=(*steady, msgspec.structs.replace(last, spread=20.1, steady=False))
    )
    table = cost_table(measured, "arm 0")
    assert table.rows[1][1][3:] == (("10.0", "x1.000"), ("30.0", "x1.000"), ("500", "x1.000"))
    assert table.rows[2][1][0] == ("1,100", "x1.100")
    assert table.rows[2][1][3:] == (("11.0?", ""), ("600.0?", ""), ("25?", ""))
    assert table.basis.endswith(
        " ?: other programs ran: the times of arm 2 differ by up to x20.1 between measurements, so these times mean "
        "little; on a quiet machine, the same compare command measures them again."
    )
    # nothing is compared with a baseline that means little
    assert cost_table(measured, "arm 2").rows[1][1][3:] == (("10.0", ""), ("30.0", ""), ("500", ""))


def test_a_forward_pass_longer_than_a_step_is_no_fact_in_files_of_earlier_versions_either():
    table = cost_table(costs((1000, 10**9, 2**20, 456.4, 74.2, 216), (1000, 10**9, 2**20, 57.1, 80.0, 200)), "arm 0")
    assert table.rows[0][1][3:] == (("456.4?", ""), ("74.2?", ""), ("216?", ""))
    assert table.rows[1][1][3:] == (("57.1", ""), ("80.0", ""), ("200", ""))
    assert "the times of arm 0 differ by up to x6.2 between measurements" in table.basis
