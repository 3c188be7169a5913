import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from whatwhere import experiment
from whatwhere.experiment import Schedule
from whatwhere.statistics.looks import boundary_levels


def test_looks():
    assert list(Schedule(8, 24).looks()) == [8, 16, 24]
    assert list(Schedule(8, 20).looks()) == [8, 16, 20]
    assert list(Schedule(8, 8).looks()) == [8]
    assert list(itertools.islice(Schedule(7).looks(), 6)) == [7, 11, 14, 21, 28, 42]
    assert [Schedule(8).look_at(n) for n in (7, 8, 11, 12, 100)] == [None, 8, 8, 12, 96]
    assert [Schedule(8, 20).next_after(n) for n in (3, 8, 16, 20, 25)] == [8, 16, 20, None, None]


def test_the_name_of_version_0_1_is_kept():
    assert experiment.Plan is Schedule


def test_one_look_spends_all():
    assert Schedule(8, 8).level(8) == 0.05
    assert Schedule(8).level(8) == pytest.approx(0.04)


# Pocock's equal bounds and O'Brien and Fleming's, two-sided alpha 0.05, from Jennison and Turnbull (2000), tables 2.1
# and 2.3: C_P(K, 0.05) and C_B(K, 0.05) * sqrt(K / k)
@pytest.mark.parametrize(
    "bounds",
    [
        [2.178, 2.178],
        [2.289, 2.289, 2.289],
        [2.413] * 5,
        [1.977 * 2**0.5, 1.977],
        [2.040 * (5 / k) ** 0.5 for k in range(1, 6)],
    ],
)
def test_published_bounds_spend_five_percent(bounds):
    looks = tuple(range(1, len(bounds) + 1))
    # what each look of the published design spends, by the multivariate normal distribution
    covariance = [[min(i, j) / (i * j) ** 0.5 for j in looks] for i in looks]
    inside = [1.0]
    for k in looks:
        upper = np.array(bounds[:k])
        distribution = multivariate_normal(
            np.zeros(k), np.array(covariance)[:k, :k], seed=0, abseps=1e-7, releps=1e-7, maxpts=10**6
        )
        inside.append(float(distribution.cdf(upper, lower_limit=-upper)))
    spent = tuple(1 - value for value in inside[1:])
    assert spent[-1] == pytest.approx(0.05, abs=3e-4)
    # from what is spent, the bounds come back
    levels = boundary_levels(looks, spent)
    assert [-norm.ppf(level / 2) for level in levels] == pytest.approx(bounds, abs=2e-3)


@settings(deadline=None, max_examples=25)
@given(st.integers(6, 20), st.one_of(st.none(), st.integers(0, 60)), st.sampled_from([0.05, 0.025, 0.01]))
def test_levels_lie_between_what_a_look_adds_and_what_is_spent(first, more, alpha):
    schedule = Schedule(first, None if more is None else first + more)
    before = 0.0
    for look in itertools.islice(schedule.looks(), 8):
        spent = schedule.spent(look, alpha)
        assert before < spent <= alpha
        assert spent - before <= schedule.level(look, alpha) * (1 + 1e-6) <= spent * (1 + 1e-5)
        before = spent


def test_paths_of_normal_pairs_cross_as_often_as_is_spent():
    schedule, rng = Schedule(8, 24), np.random.default_rng(0)
    sums, crossed, before = np.zeros(200_000), np.zeros(200_000, bool), 0
    for look in schedule.looks():
        sums += rng.standard_normal(200_000) * (look - before) ** 0.5
        crossed |= np.abs(sums) > -norm.ppf(schedule.level(look) / 2) * look**0.5
        before = look
    assert crossed.mean() == pytest.approx(schedule.spent(24), abs=4 * (0.05 * 0.95 / 200_000) ** 0.5)


@pytest.mark.parametrize(("first", "last"), [(5, None), (8, 7), (8.0, None), (True, None), (8, 0)])
def test_impossible_plans_are_refused(first, last, refused):
    with refused():
        Schedule(first, last)
