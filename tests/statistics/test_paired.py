import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from whatwhere.experiment import PairedDifference

figures = st.floats(0.01, 1, allow_subnormal=False)


def paired(differences):
    return PairedDifference(tuple(range(len(differences))), (0.0,) * len(differences), tuple(map(float, differences)))


def test_interval_is_scipys_paired_t():
    a, b = (0.90, 0.88, 0.93), (0.91, 0.92, 0.92)
    pairs = PairedDifference((0, 1, 2), a, b)
    expected = stats.ttest_rel(b, a)
    assert pairs.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert pairs.mean == pytest.approx(0.04 / 3)
    assert pairs.p_t() == pytest.approx(expected.pvalue)


def test_equal_arms_differ_by_exactly_nothing():
    pairs = PairedDifference((0, 1), (0.5, 0.7), (0.5, 0.7))
    assert pairs.differences == (0.0, 0.0)
    assert pairs.interval() == (0.0, 0.0)
    assert pairs.p_t() == pairs.p_sign_flip() == 1
    assert pairs.skewness() == 0


@pytest.mark.parametrize(("a", "b"), [((1.0,), (1.0,)), ((1.0, 2.0), (1.0,))])
def test_incomplete_pairs_are_refused(a, b, refused):
    with refused():
        PairedDifference(tuple(range(len(a))), a, b)


def test_sign_flip_by_hand():
    # of the 16 sums of +-1 +-2 +-3 +-4 only 10 and -10, 8 and -8 are at least 8
    assert paired([-1, 2, 3, 4]).p_sign_flip() == 4 / 16
    # 0 may have either sign
    assert paired([0, 2, 3, 4]).p_sign_flip() == 4 / 16


@given(st.lists(figures.flatmap(lambda x: st.sampled_from([x, -x, 0.0])), min_size=2, max_size=9))
def test_sign_flip_is_the_share_of_all_sign_patterns(differences):
    seen = abs(sum(differences))
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    near = [total for total in sums if abs(abs(total) - seen) < 1e-6]
    reached = sum(abs(total) >= seen - 1e-9 * sum(map(abs, differences)) for total in sums) / len(sums)
    p = paired(differences).p_sign_flip()
    # sums that rounding alone tells apart may count or not
    assert abs(p - reached) <= len(near) / len(sums)
    if all(abs(abs(total) - seen) < 1e-12 for total in near):
        assert p == pytest.approx(reached)


def test_sign_flip_is_scipys_exact_test():
    differences = np.random.default_rng(3).normal(0.4, 1, 12)
    expected = stats.permutation_test(
        (differences,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=2**12, vectorized=True
    )
    assert paired(differences).p_sign_flip() == pytest.approx(expected.pvalue)


def test_sign_flip_of_many_pairs_is_nearly_the_t_test():
    rng = np.random.default_rng(5)
    forty, more = paired(rng.normal(0.25, 1, 40)), paired(rng.normal(0.25, 1, 60))
    assert forty.p_sign_flip() == pytest.approx(forty.p_t(), rel=0.1)
    assert more.p_sign_flip() == pytest.approx(more.p_t(), rel=0.1)
    assert more.p_sign_flip() == more.p_sign_flip()


def test_equal_differences_are_judged_by_the_sign_flip_test():
    # not exactly representable: their differences differ in the last bit
    pairs = PairedDifference(tuple(range(6)), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.11, 0.21, 0.31, 0.41, 0.51, 0.61))
    assert len(set(pairs.differences)) > 1
    assert pairs.standard_deviation == 0
    assert pairs.p_t() == pairs.p_sign_flip() == pairs.smallest_p_value == 2 / 64
    assert pairs.p_equivalence(0.02) == 2 / 64
    assert pairs.p_equivalence(0.005) == 1


@given(st.lists(st.integers(-50, 50), min_size=3, max_size=12), st.integers(1, 40), st.floats(0.8, 0.999))
def test_equivalence_is_an_interval_inside_the_margin(differences, margin, confidence):
    pairs = paired(differences)
    low, high = pairs.interval(confidence)
    if pairs.standard_deviation == 0 or min(abs(low + margin), abs(high - margin)) < 1e-9:
        return
    assert (pairs.p_equivalence(margin) <= 1 - confidence) is (-margin < low and high < margin)
    assert (pairs.p_t() <= 1 - confidence) is not (low <= 0 <= high) or min(abs(low), abs(high)) < 1e-9


def test_equivalence_is_two_one_sided_tests():
    differences = np.random.default_rng(1).normal(0.1, 0.5, 15)
    above = stats.ttest_1samp(differences, -0.4, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, 0.4, alternative="less").pvalue
    assert paired(differences).p_equivalence(0.4) == pytest.approx(2 * max(above, below))


def test_win_probability_is_clopper_and_pearsons():
    pairs = paired([1, 2, 3, 4, 5, -1, -2, 6])
    expected = stats.binomtest(6, 8).proportion_ci(0.95, method="exact")
    assert pairs.win_probability() == pytest.approx((0.75, expected.low, expected.high))
    assert paired([1, 1, 2]).win_probability() == pytest.approx((1, 0.025 ** (1 / 3), 1))
    assert paired([-1, -1, -2]).win_probability() == pytest.approx((0, 0, 1 - 0.025 ** (1 / 3)))


def test_a_tie_is_half_a_win():
    share, low, high = paired([0, 0, 0, 0]).win_probability()
    assert share == 0.5
    assert low == pytest.approx(1 - high)


def test_skewness_is_scipys_over_its_standard_error():
    differences = np.random.default_rng(2).exponential(size=20)
    expected = stats.skew(differences, bias=False) / math.sqrt(6 * 20 * 19 / (18 * 21 * 23))
    assert paired(differences).skewness() == pytest.approx(expected)
    rng = np.random.default_rng(4)
    assert np.std([paired(rng.standard_normal(12)).skewness() for _ in range(3000)]) == pytest.approx(1, abs=0.05)
