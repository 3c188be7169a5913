import pytest
from scipy import stats

from whatwhere import UserError
from whatwhere.experiment import PairedDifference


def test_interval_is_scipys_paired_t():
    a, b = (0.90, 0.88, 0.93), (0.91, 0.92, 0.92)
    paired = PairedDifference((0, 1, 2), a, b)
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert paired.interval() == pytest.approx((expected.low, expected.high))
    assert paired.mean == pytest.approx(0.04 / 3)


def test_equal_arms_differ_by_exactly_nothing():
    paired = PairedDifference((0, 1), (0.5, 0.7), (0.5, 0.7))
    assert paired.differences == (0.0, 0.0)
    assert paired.interval() == (0.0, 0.0)


def test_three_pairs_cannot_be_significant():
    paired = PairedDifference((0, 1, 2), (0.1, 0.1, 0.1), (0.9, 0.9, 0.9))
    exact = stats.permutation_test(
        (paired.differences,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=100
    )
    assert paired.smallest_p_value == exact.pvalue == 0.25


@pytest.mark.parametrize(("a", "b"), [((1.0,), (1.0,)), ((1.0, 2.0), (1.0,))])
def test_incomplete_pairs_are_refused(a, b):
    with pytest.raises(UserError, match="two or more seeds and one figure of each arm per seed"):
        PairedDifference(tuple(range(len(a))), a, b)
