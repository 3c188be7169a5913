import pytest

from whatwhere.report.scale import Scale, padded


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
