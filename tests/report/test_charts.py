import pytest

from whatwhere.comparison.content import ClassRow, Curve, Curves, PerClass
from whatwhere.experiment import Metric
from whatwhere.report.charts import Bar, Scale, class_charts, curve_panels, padded, pairs_chart, wins_chart

POINTS = Metric("accuracy", "accuracy", 100, "points")


def test_positions_of_pairs_by_hand(arm):
    only = arm("cbam", (-1.0, 3.0), verdict="helps", interval_95=(0.0, 2.0), deciding_interval=(-0.5, 2.5))
    chart = pairs_chart([only], "none", 1.0, POINTS)
    # -1 to 3 with 4 % room at either end: -1.16 to 3.16
    assert chart.band == Bar("3.70%", "50.00%")
    assert chart.band.width == "46.30%"
    assert chart.rule == "26.85%"
    (row,) = chart.rows
    assert [dot.at for dot in row.dots] == ["3.70%", "96.30%"]
    assert row.mean == "50.00%"
    assert row.interval == Bar("26.85%", "73.15%")
    assert row.deciding == Bar("15.28%", "84.72%")
    assert [tick.label for tick in chart.ticks] == ["-1", "0", "+1", "+2", "+3"]
    assert (chart.left, chart.right) == ("← worse", "better →")
    assert row.dots[1].title == "seed 1: none 90.00 points, cbam 93.00 points, difference +3.00 points"
    assert row.description == (
        "cbam: helps. Mean difference +1.00 points, 95 %: 0.00 to +2.00 points. Better in 1 of 2 pairs."
    )


def test_a_verdict_on_an_attention_that_was_hardly_used_says_so(arm):
    (row,) = pairs_chart([arm("a", (-1.0, 3.0), verdict="hurts", hardly_used=("a",))], "none", 1.0, POINTS).rows
    assert row.words == "hurts (attention hardly used)"
    assert row.description.startswith("a: hurts (attention hardly used). ")
    (row,) = pairs_chart([arm("a", (-1.0, 3.0)), arm("b", (), hardly_used=("b",))], "none", 1.0, POINTS).rows[1:]
    assert row.words == "cannot tell yet (attention hardly used)"


def test_where_lower_is_better_the_left_is(arm):
    chart = pairs_chart([arm("a", (-0.1, 0.2))], "none", 0.1, Metric("nll", "nll", higher_is_better=False))
    assert (chart.left, chart.right) == ("← better", "worse →")


def test_no_margin_no_band(arm):
    assert pairs_chart([arm("a", (-0.1, 0.2))], "none", 0.0, POINTS).band is None


def test_an_interval_that_would_dwarf_everything_goes_on_beyond_the_axis(arm):
    chart = pairs_chart([arm("a", (-1.0, 3.0), interval_95=(-100.0, 100.0))], "none", 1.0, POINTS)
    # one and a half times the range of 4 at either end, and room: -7.64 to 9.64
    assert chart.rows[0].interval == Bar("0.00%", "100.00%", open_start=True, open_end=True)
    assert chart.goes_beyond
    assert [dot.at for dot in chart.rows[0].dots] == ["38.43%", "61.57%"]


def test_endless_intervals_can_be_drawn(arm):
    only = arm("a", (-1.0, 3.0), deciding_interval=(float("-inf"), float("inf")))
    assert pairs_chart([only], "none", 1.0, POINTS).rows[0].deciding.open_end


def test_dots_side_by_side_do_not_hide_each_other(arm):
    chart = pairs_chart([arm("a", (0.0, 0.0, 0.01, 5.0))], "none", 1.0, POINTS)
    assert [dot.y for dot in chart.rows[0].dots] == [12, 21, 30, 12]
    assert chart.bar_y > 30


def test_pairs_that_may_be_no_independent_draws_have_no_interval(arm):
    equal = arm("a", (0.5,) * 6, standard_deviation=0.0, interval_95=None)
    (row,) = pairs_chart([equal], "none", 1.0, POINTS).rows
    assert row.interval is None
    assert row.deciding is None
    assert row.values == ("+0.50 points", "no interval: the pairs are in doubt")
    assert "Better in" not in row.description


def test_all_zero_and_no_margin(arm):
    zero = arm("a", (0.0,) * 6, standard_deviation=0.0, interval_95=None)
    assert pairs_chart([zero], "none", 0.0, POINTS).rows[0].mean == "50.00%"


def test_seeds_after_the_look_do_not_count(arm):
    (row,) = pairs_chart([arm("a", (1.0, 2.0, 3.0), num_pairs=2)], "none", 1.0, POINTS).rows
    assert [dot.counts for dot in row.dots] == [True, True, False]


def test_arms_without_pairs(arm):
    nothing = arm("b", ())
    assert pairs_chart([nothing], "none", 1.0, POINTS) is None
    assert wins_chart([nothing], POINTS) is None
    chart = pairs_chart([arm("a", (1.0, 2.0)), nothing], "none", 1.0, POINTS)
    assert chart.rows[1].values == ("no two pairs yet",)


def test_wins_are_counted_in_the_better_direction(arm):
    only = arm("a", (-0.1, -0.2, 0.3, 0.0), win_probability=0.625, win_interval=(0.2, 0.9))
    (row,) = wins_chart([only], Metric("nll", "nll", higher_is_better=False)).rows
    assert (row.mean, row.interval) == ("62.50%", Bar("20.00%", "90.00%"))
    assert row.words == "better in 2 of 4, 1 tied"
    assert row.values == ("62.5 %", "95 %: 20 % to 90 %")


def class_row(name, difference, p, arm="cbam"):
    interval = (difference - 1, difference + 1)
    means = {"baseline_mean": 90.0, "arm_mean": 90.0 + difference, "mean_difference": difference}
    return ClassRow(arm=arm, name=name, num_images=1, interval_95=interval, p_t_holm=p, **means)


def test_classes_are_sorted_and_marked_after_holm():
    rows = [class_row("b", 3.0, 0.05), class_row("a", -2.0, 0.051), class_row("c", 0.5, 1.0)]
    classes = class_charts(PerClass(metric="recall", unit="points", rows=rows), "none", 0.05)
    ((_, chart),) = classes.charts
    assert [(row.name, row.is_marked) for row in chart.rows] == [("a", False), ("c", False), ("b", True)]
    assert (classes.num_missing, classes.num_rows) == (2, 3)
    # -3 to 4 with 4 % room: -3.28 to 4.28
    assert [row.mean for row in chart.rows] == ["16.93%", "50.00%", "83.07%"]
    assert chart.rows[2].values == ("+3.00", "(+2.00 to +4.00)")


def curves(**arms):
    return Curves(x="epoch", y="accuracy", arms={name: Curve(**curve) for name, curve in arms.items()})


def test_curves_by_hand():
    none = {"epochs": [1, 2, 3], "mean": [0.0, 5.0, 10.0], "low": [0.0, 4.0, 9.0], "high": [1.0, 6.0, 10.0]}
    (panels,) = curve_panels(curves(none=none, cbam={**none, "mean": [0.5, 5.5, 9.5]}), "none")
    # 0 to 10 with 4 % room, upside down
    assert panels.baseline.points == "0.00,96.30 50.00,50.00 100.00,3.70"
    assert panels.baseline.band == "0.00,96.30 50.00,59.26 100.00,12.96 100.00,3.70 50.00,40.74 0.00,87.04"
    ((name, line),) = panels.arms
    assert (name, line.end_x, line.end_y, line.value) == ("cbam", "100.00%", "8.33%", "9.5")
    assert [tick.label for tick in panels.x_ticks] == ["1", "2", "3"]


def test_the_second_half_is_enlarged_where_the_scale_hides_it():
    epochs = list(range(1, 21))
    mean = [90 - 80 / epoch for epoch in epochs]
    steep = {"epochs": epochs, "mean": mean, "low": mean, "high": mean}
    assert [panels.heading for panels in curve_panels(curves(none=steep, cbam=steep), "none")] == [
        "All epochs",
        "From epoch 11 on, enlarged",
    ]


@pytest.mark.parametrize("value", [None, float("nan")])
def test_gaps_and_single_epochs_in_curves(value):
    gap = {"epochs": [1, 2], "mean": [value, 2.0], "low": [1.0, 1.0], "high": [3.0, 3.0]}
    (panels,) = curve_panels(curves(none=gap, cbam=gap), "none")
    assert panels.baseline.end_x == "50.00%"
    empty = {"epochs": [1], "mean": [value], "low": [0.0], "high": [0.0]}
    assert curve_panels(curves(none=empty), "none") == []


def labels(scale, at_most, **how):
    return [tick.label for tick in scale.ticks(at_most, **how)]


def test_positions_are_shares_of_the_axis_and_stay_on_it():
    scale = Scale(-1.0, 3.0)
    assert [scale.at(value) for value in (-1, 0, 3, 99, -99)] == ["0.00%", "25.00%", "100.00%", "100.00%", "0.00%"]


@pytest.mark.parametrize(
    ("scale", "at_most", "expected"),
    [
        (Scale(-1.2, 3.1), 5, ["-1", "0", "+1", "+2", "+3"]),
        (Scale(-0.5, 0.5), 5, ["-0.4", "-0.2", "0", "+0.2", "+0.4"]),
        (Scale(-0.0021, 0.0021), 4, ["-0.002", "0", "+0.002"]),
        (Scale(0.0, 1e-7), 2, ["0", "+5.0e-08", "+1.0e-07"]),
        (Scale(-3000.0, 3000.0), 3, ["-2,000", "0", "+2,000"]),
    ],
)
def test_ticks_are_round_values_in_steps_of_1_2_or_5(scale, at_most, expected):
    assert labels(scale, at_most, signed=True) == expected


def test_ticks_of_epochs_are_whole():
    assert labels(Scale(1.0, 3.0), 5, whole=True) == ["1", "2", "3"]


def test_a_single_value_gets_room_of_its_own_size():
    assert padded(0.0, 0.0) == Scale(-1.0, 1.0)
    assert padded(0.002, 0.002) == Scale(0.0, 0.004)


def test_labels_at_the_ends_stay_within_the_axis():
    assert [tick.anchor for tick in Scale(0.0, 10.0).ticks(2)] == ["start", "middle", "end"]
