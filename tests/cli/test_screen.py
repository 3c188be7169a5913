import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatwhere.base.screen import Remaining, about, duration
from whatwhere.cli.screen import TerminalScreen, result_tables

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


@pytest.mark.parametrize(
    ("num_right", "num_images", "expected"),
    [(0, 2, "0.0 to 65.8%"), (2, 2, "34.2 to 100.0%"), (8, 10, "49.0 to 94.3%"), (0, 0, "-")],
)
def test_the_interval_of_an_accuracy_is_wilsons(num_right, num_images, expected):
    accuracy = num_right / num_images if num_images else math.nan
    figures = {**FIGURES, "num_images": num_images, "accuracy": accuracy}
    assert result_tables({**RESULT, "val": figures})[0].rows[0][3] == expected
    if num_images:
        # (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
        z = 1.959964
        middle, half = (
            accuracy + z**2 / (2 * num_images),
            z * math.sqrt(accuracy * (1 - accuracy) / num_images + z**2 / (4 * num_images**2)),
        )
        low, high = ((middle + sign * half) / (1 + z**2 / num_images) for sign in (-1, 1))
        assert expected == f"{100 * max(0, low):.1f} to {min(1, high):.1%}"


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_without_a_terminal_a_line_ends_each_minute_of_silence(capsys):
    clock = Clock()
    with TerminalScreen(clock=clock) as screen:
        for done in range(1, 10):
            screen.progress("checking the images", 100 * done, 1000)
            clock.now += 25
            if done == 5:
                screen.line("something else")
    # 100 images in 25 s; the line after 125 s counts as well
    assert capsys.readouterr().out.splitlines() == [
        "checking the images: 400 of 1,000, about 2 min left",
        "something else",
        "checking the images: 900 of 1,000, less than a minute left",
    ]


def test_what_is_short_prints_no_progress(capsys):
    with TerminalScreen(clock=Clock()) as screen:
        for done in range(1001):
            screen.progress("checking the images", done, 1000)
    assert capsys.readouterr() == ("", "")


def test_the_time_left_is_that_of_what_is_shown():
    clock = Clock()
    remaining = Remaining(clock)

    def seconds(what, done, total, took):
        clock.now += took
        return remaining.seconds(what, done, total)

    assert seconds("training", 1, 12, 9) is None  # the first step is slower than the others
    assert seconds("training", 2, 12, 4) == 4 * 10
    assert seconds("evaluating", 50, 100, 1) is None
    assert seconds("evaluating", 100, 100, 1) == 0
    # the evaluation is a part of the training
    assert seconds("training", 3, 12, 4) == 10 / 2 * 9
    # the next evaluation begins anew
    assert seconds("evaluating", 50, 100, 100) is None
    assert seconds("evaluating", 75, 100, 3) == 3


def test_a_measured_length_is_rounded_once():
    words = {0.2: "0 s", 59.4: "59 s", 59.7: "1 min", 61: "1 min", 3569: "59 min", 3599: "1 h", 3660: "1 h 1 min"}
    assert {seconds: duration(seconds) for seconds in words} == words


def test_an_estimate_is_widely_rounded():
    minutes = {0.9: "less than a minute", 1: "about 1 min", 12.4: "about 12 min", 47: "about 45 min", 58: "about 1 h"}
    minutes |= {
        68: "about 1 h 15 min",
        179: "about 3 h",
        268: "about 4 h 30 min",
        800: "about 13 h",
        5000: "about 3 days",
    }
    assert {length: about(60 * length) for length in minutes} == minutes


@given(st.floats(60, 1e9))
def test_no_estimate_is_far_from_what_it_rounds(seconds):
    number = {"min": 60, "h": 3600, "days": 86400}
    words = about(seconds).removeprefix("about ").split()
    said = sum(int(count) * number[unit] for count, unit in zip(words[::2], words[1::2], strict=True))
    share = 3 if seconds < 120 else 5 if seconds < 240 or "days" in words else 8
    assert abs(said - seconds) <= seconds / share


def test_a_bar_on_standard_error_leaves_results_on_standard_output(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    clock = Clock()
    with TerminalScreen(to_stderr=True, clock=clock) as screen:
        for done in range(1, 4):
            screen.progress("predicting", done, 10)
            clock.now += 60
        screen.bar.refresh()
        print("path,rank,class,probability")
    out, err = capsys.readouterr()
    assert out == "path,rank,class,probability\n"
    assert "predicting" in err
    assert "about 7 min left" in err
