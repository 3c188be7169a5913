import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.meta_analysis import combine_effects

from data_sets import LOOKS, clustered, depends, drawn, several_arms, shares
from whatwhere.statistics.pooled import paule_mandel, pooled

COUNT = 20_000
LIMIT = 0.025 + 3 * math.sqrt(0.025 * 0.975 / COUNT)
# BCG vaccine: log risk ratios and their variances in 13 trials (Colditz et al., JAMA 271, 1994; dat.bcg of metafor)
TREATED = [(4, 123), (6, 306), (3, 231), (62, 13598), (33, 5069), (180, 1541), (8, 2545), (505, 88391), (29, 7499)]
TREATED += [(17, 1716), (186, 50634), (5, 2498), (27, 16913)]
CONTROLS = [(11, 139), (29, 303), (11, 220), (248, 12867), (47, 5808), (372, 1451), (10, 629), (499, 88391), (45, 7277)]
CONTROLS += [(65, 1665), (141, 27338), (3, 2341), (29, 17854)]


@st.composite
def tables(draw):
    """Means and squared errors of 2 to 12 data sets, in a unit of any size."""
    num, unit = draw(st.integers(2, 12)), 10 ** draw(st.integers(-3, 3))
    means = draw(st.lists(st.floats(-3, 3), min_size=num, max_size=num))
    errors = draw(st.lists(st.floats(0.1, 2), min_size=num, max_size=num))
    return unit * np.array(means), (unit * np.array(errors)) ** 2


def test_by_hand():
    # w = 1 / (1 + tau**2) for all, so Q = 18 / (1 + tau**2) is k - 1 = 2 at tau**2 = 8
    found = pooled([1.0, 4.0, -2.0], [1.0, 1.0, 1.0])
    assert found.tau_squared == pytest.approx(8)
    assert found.mean == pytest.approx(1)
    assert found.error == pytest.approx(math.sqrt(9 / 3))
    low, high = found.interval()
    # t(2) at 97.5 % is 4.3027; both methods agree where the variances are equal
    assert (low, high) == (pytest.approx(1 - 4.3027 * math.sqrt(3), abs=1e-3), pytest.approx(8.4524, abs=1e-3))
    low, high = found.prediction_interval()
    assert high == pytest.approx(1 + 4.3027 * math.sqrt(9 + 3), abs=1e-3)
    # the means are closer than their errors allow: tau**2 is 0, and the factor stays at 1
    found = pooled([1.0, 1.1, 0.9], [1.0, 1.0, 1.0])
    assert (found.tau_squared, found.error) == (0, pytest.approx(math.sqrt(1 / 3)))


def test_the_published_estimate_for_the_trials_of_bcg():
    (a, n), (c, m) = (np.array(counts, float).T for counts in (TREATED, CONTROLS))
    means, squared_errors = np.log(a / n) - np.log(c / m), 1 / a - 1 / n + 1 / c - 1 / m
    # metafor's tau**2 by empirical Bayes, which is Paule and Mandel's (Viechtbauer, J. Stat. Software 36:3, 2010)
    assert round(float(paule_mandel(means, squared_errors)), 4) == 0.3181
    assert round(float(pooled(means, squared_errors).mean), 3) == -0.715


@pytest.mark.parametrize("seed", range(40))
def test_as_statsmodels_has_it(seed):
    rng = np.random.default_rng(seed)
    num = rng.integers(2, 13)
    means, squared_errors = rng.choice([0.3, 1, 3]) * rng.standard_normal(num), rng.uniform(0.1, 2, num) ** 2
    found = pooled(means, squared_errors)
    theirs = combine_effects(means, squared_errors, method_re="iterated", use_t=True)
    assert found.tau_squared == pytest.approx(theirs.tau2, rel=1e-4, abs=1e-4)
    assert found.mean == pytest.approx(theirs.mean_effect_re, rel=1e-4, abs=1e-4)
    # statsmodels lets the factor fall below 1
    floored = theirs.sd_eff_w_re_hksj / math.sqrt(min(1.0, theirs.scale_hksj_re))
    assert found.error == pytest.approx(floored, rel=1e-4)


@given(tables(), st.sampled_from([0.2, 0.05, 0.0125]), st.floats(0.01, 5))
def test_p_values_say_what_the_interval_says(table, level, margin):
    found = pooled(*table)
    low, high = found.interval(1 - level)
    near = 1e-6 * (abs(low) + abs(high))
    if min(abs(low), abs(high)) > near:
        assert (found.p_difference() <= level) == (low > 0 or high < 0)
    if min(abs(low + margin), abs(high - margin)) > near:
        assert (found.p_equivalence(margin) <= level) == (-margin < low and high < margin)
    before, after = found.prediction_interval(1 - level)
    assert before <= low <= high <= after


@given(tables(), st.randoms())
def test_order_unit_and_sign_change_nothing_else(table, random):
    means, squared_errors = table
    order = random.sample(range(len(means)), len(means))
    found, other = pooled(means, squared_errors), pooled(-100 * means[order], 1e4 * squared_errors[order])
    scale = float(np.sqrt(squared_errors.max()))
    for mine, theirs in (
        (found.interval(), other.interval()),
        (found.prediction_interval(), other.prediction_interval()),
    ):
        assert [-100 * mine[1], -100 * mine[0]] == pytest.approx(list(theirs), abs=1e-4 * scale, rel=1e-6)
    assert other.p_difference() == pytest.approx(found.p_difference(), abs=1e-6)


def test_equal_means_have_an_error_still():
    found = pooled([1.0, 1.0, 1.0, 1.0], [0.01] * 4)
    assert found.plain_error == 0
    assert found.interval() == (pytest.approx(1 - 3.182 * 0.05, abs=1e-3), pytest.approx(1 + 3.182 * 0.05, abs=1e-3))
    assert pooled([0.0] * 4, [0.01] * 4).p_difference() == 1


def test_means_as_near_as_numbers_can_be():
    # the slope of Q is about 1e-323 there: no step is taken, and nothing is divided by it
    found = pooled([0.0, 9.2e-162], [1.0, 1.0])
    assert found.tau_squared == 0
    assert found.error == pytest.approx(math.sqrt(1 / 2))


# the cells of benchmarks/across.py in which most goes wrong
@pytest.mark.parametrize(
    ("num", "pairs", "spread", "tau", "effect"),
    [
        (4, "one 36, others 6", "one 0.5, others 3", 0.5, 0.0),
        (8, "one 36, others 6", "1", 2.0, 0.0),
        (12, "looks at 12, 24, 36", "1", 0.0, 0.5),
        (12, "6", "1", 0.25, 0.0),
        (6, "6 to 36", "0.5 to 3", 1.0, 0.5),
        (12, "6 to 36", "1", 0.5, 0.5),
    ],
)
def test_wrong_verdicts_are_rare(num, pairs, spread, tau, effect):
    told = shares(num, pairs, spread, tau, effect, COUNT, seed=1)
    assert max(told["above"], told["below"]) <= LIMIT
    assert told["hurts"] <= LIMIT
    assert effect or told["helps"] <= LIMIT
    assert not effect or told["same"] <= LIMIT  # the effect is the margin
    assert told["prediction_covers"] >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / COUNT)


def test_random_effects_alone_would_err_more_often():
    told = shares(4, "one 36, others 6", "one 0.5, others 3", 0.5, 0.0, COUNT, seed=1)
    assert told["random_effects_alone"] > 0.1


def test_a_data_set_that_appears_twice_counts_once():
    for correlation in (0.0, 1.0):
        told = clustered(correlation, COUNT, seed=1)
        assert max(told["helps"], told["hurts"]) <= LIMIT
    assert clustered(0.5, COUNT, seed=1, is_clustered=False)["helps"] > 0.09


def test_several_arms_together_are_as_rarely_wrong_as_one():
    told = several_arms(3, 6, 8000, seed=1)
    assert max(told.values()) <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 8000)


@pytest.mark.parametrize("pairs", ["6 to 36", "looks at 12, 24, 36"])
def test_effects_of_one_sign_rarely_depend(pairs):
    assert depends([0.0, 0.0, 2.0, 2.0], pairs, 0.5, 400, seed=1) <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 400)


def test_simulated_looks_have_the_errors_of_their_pairs():
    rng = np.random.default_rng(1)
    _, errors = drawn("looks at 12, 24, 36", "1", np.full((COUNT, 1), 3.0), rng)
    # so large an effect always ends at the first look
    assert float(errors.mean()) == pytest.approx(1 / LOOKS.first, rel=0.02)
    _, errors = drawn("looks at 12, 24, 36", "1", np.full((COUNT, 1), 0.25), rng)
    assert float(errors.min()) < 1 / 36 < float(errors.max())
