"""Small here, at full size in benchmarks/calibration.py."""

import math

import pytest

from simulations import simulate, simulate_arms

COUNT = 4000


def _limit(share, count=COUNT):
    """A share plus three standard errors of its simulation."""
    return share + 3 * math.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize("first", [6, 8, 15, 30])
def test_no_difference_rarely_helps_or_hurts(first):
    for last in (None, first):
        tally = simulate("once", first, COUNT, last=last)
        assert tally.share("helps") <= _limit(0.025)
        assert tally.share("hurts") <= _limit(0.025)
        assert tally.covered_95 / COUNT >= 0.94


@pytest.mark.parametrize(("first", "last"), [(8, 24), (6, 30), (6, 12)])
def test_planned_looks_do_not_inflate_the_error(first, last):
    tally = simulate("next", first, COUNT, last=last)
    assert tally.share("helps") <= _limit(0.025)
    assert tally.share("hurts") <= _limit(0.025)
    # the plain 95 % interval would fall short of that
    assert tally.covered / COUNT >= 0.94


@pytest.mark.parametrize("policy", ["next", "low", "high"])
@pytest.mark.parametrize("margin", [0, 0.5])
def test_nor_does_following_the_advice_to_add_seeds(policy, margin):
    count = 1500
    tally = simulate(policy, 6, count, margin=margin)
    assert tally.share("helps") <= _limit(0.025, count)
    assert tally.share("hurts") <= _limit(0.025, count)


@pytest.mark.slow
@pytest.mark.parametrize("stops_early", [True, False])
def test_three_arms_together_are_as_rarely_wrong_as_one(stops_early):
    count = 400
    told = simulate_arms(3, 6, 18, count, stops_early=stops_early)
    assert told["helps"] / count <= _limit(0.025, count)
    assert told["hurts"] / count <= _limit(0.025, count)


def test_a_difference_at_the_margin_is_rarely_called_none():
    tally = simulate("next", 8, COUNT, effect=0.5, margin=0.5)
    assert tally.share("no practical difference") <= _limit(0.025)


def test_large_effects_are_found_and_the_sign_is_theirs():
    tally = simulate("once", 8, 1000, effect=1.5, last=8)
    # of the noncentral t distribution: P(T(7, 1.5 sqrt(8)) > 2.365) = 0.959
    assert tally.share("helps") == pytest.approx(0.959, abs=3 * math.sqrt(0.959 * 0.041 / 1000))
    assert tally.share("hurts") == 0
    assert simulate("once", 8, 200, effect=-1.5).share("hurts") > 0.9


def test_what_is_advised_probably_settles():
    tally = simulate("high", 8, 500, effect=0.4, margin=0.5)
    assert 1 - tally.share("cannot tell yet") > 0.7
