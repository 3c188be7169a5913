"""How the benchmarks reckon."""

import importlib
import math
from pathlib import Path

import pytest


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    pytest.importorskip("timm")
    return importlib.import_module("harness")


def test_a_ratio_is_the_median_of_those_of_the_rounds_with_the_interval_of_the_sign_test(harness):
    base = harness.Times((100.0,) * 12, 0)
    # by hand: of 12 ratios fewer than 3 lie below the true median with probability (1 + 12 + 66) / 4096 = 0.0193, and
    # fewer than 4 with 0.0730; so the interval goes from the third to the tenth
    slower = harness.Times(tuple(100.0 + k for k in (5, 1, 12, 3, 9, 2, 8, 4, 11, 6, 10, 7)), 0)
    assert slower.paired_ratio(base) == pytest.approx((1.065, 1.03, 1.10))
    assert slower.ratio_cells(base) == ["x1.065", "x1.030 .. x1.100"]
    # five rounds allow no interval of 95 %: all on one side has probability 2 / 32
    assert harness.Times((2.0,) * 5, 0).paired_ratio(harness.Times((1.0,) * 5, 0)) == (2.0, 0.0, math.inf)
    assert harness.Times((2.0,) * 6, 0).paired_ratio(harness.Times((1.0,) * 6, 0)) == (2.0, 2.0, 2.0)


def test_a_change_of_the_machines_speed_that_hits_both_changes_no_ratio(harness):
    base = harness.Times((1.0, 10.0, 100.0, 2.0, 20.0, 200.0), 0)
    twice = harness.Times(tuple(2 * ms for ms in base.milliseconds), 0)
    assert twice.paired_ratio(base) == (2.0, 2.0, 2.0)
