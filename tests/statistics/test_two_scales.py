"""Shares and percentages in one column."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatwhere import UserError
from whatwhere.experiment import Results, judge, read_results
from whatwhere.statistics.direction import is_at_most_all
from whatwhere.statistics.metric import METRICS, two_scales

CASES = Path(__file__).parent / "cases"
NAMES = ("mAP50", "top1", "IoU", "kappa", "test_err", "WER", "nll", "x")


def test_an_arm_in_shares_and_another_in_percentages_are_refused(refused):
    with refused():
        judge(read_results(CASES / "two-scales.csv"))


def table(metric, none, cbam):
    results = Results()
    for seed, pair in enumerate(zip(none, cbam, strict=True)):
        for arm, figure in zip(("none", "cbam"), pair, strict=True):
            results.add(arm, seed, {metric: figure, "accuracy": 0.7 + seed / 100})
    return results


@pytest.mark.parametrize("name", [*NAMES, "accuracy", "macro_f1", "calibration_error"])
def test_scales_mixed_by_arm_or_by_seed_are_refused_for_every_metric(name, refused):
    rng = np.random.default_rng(0)
    none, cbam = rng.uniform(0.90, 0.96, 8), rng.uniform(0.90, 0.906, 8)
    later = np.where(np.arange(8) < 4, 1, 100)
    for before, after in ((none, 100 * cbam), (none * later, cbam * later), (none, cbam * np.where(later > 1, 1, 100))):
        results = Results()
        for seed in range(8):
            results.add("none", seed, {name: before[seed]})
            results.add("cbam", seed, {name: after[seed]})
        lower = name in ("test_err", "WER", "nll", "calibration_error")
        with refused():
            judge(results, lower_is_better=lower, margin=0.5)


@pytest.mark.parametrize("name", ["top1", "x"])
def test_a_run_at_chance_does_not_hide_two_scales(name):
    for chance in (0.01, 0.001):
        results = table(name, np.linspace(74, 78, 7), [*np.linspace(0.74, 0.78, 6), chance])
        with pytest.raises(UserError, match=f"{name} has two scales, shares such as 0.7.* and percentages such as 7"):
            judge(results, metric=name, lower_is_better=False, margin=0.5)


def test_another_metric_in_two_scales_is_left_out_and_said_so():
    judgement = judge(table("mAP50", [0.4, 0.41, 0.42], [40.1, 41.2, 43.0]))
    assert judgement.others == ()
    assert judgement.cautions == (
        "mAP50 has two scales, shares such as 0.4 (arm none, seed 0) and percentages such as 40.1 (arm cbam, seed 0); "
        "it is left out",
    )


shares = st.lists(st.tuples(st.floats(0.24, 0.94), st.booleans()), min_size=2, max_size=24)


@given(shares, st.sampled_from(NAMES))
def test_shares_among_percentages_are_found_wherever_they_stand(figures, name):
    values = [100 * share if percentage else share for share, percentage in figures]
    mixed = len({percentage for _, percentage in figures}) == 2
    assert (two_scales(name, values) is not None) is mixed


@given(st.lists(st.floats(-200, 200), max_size=24), st.sampled_from(NAMES))
def test_figures_without_a_wide_hole_at_1_have_one_scale(values, name):
    below, above = [v for v in values if 0 < v <= 1], [v for v in values if v > 1]
    if not below or not above or min(values) < 0 or max(values) > 100:
        assert two_scales(name, values) is None
    elif min(above) < 25 * max(below):
        # of a share by its name, most figures of at most 1 tell that all are fractions
        assert (two_scales(name, values) is not None) is (is_at_most_all(name) and len(below) >= len(above))


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.uniform(0.8, 1.3, n),  # a log loss
        lambda rng, n: np.exp(rng.uniform(np.log(0.3), np.log(40), n)),  # a loss of many networks
        lambda rng, n: np.exp(rng.uniform(np.log(0.5), np.log(95), n)),  # milliseconds
        lambda rng, n: np.exp(rng.normal(0, 1, n)),
        lambda rng, n: rng.exponential(2, n),
        lambda rng, n: rng.exponential(20, n),
        lambda rng, n: rng.poisson(3, n).astype(float),  # counts
        lambda rng, n: rng.poisson(0.5, n).astype(float),
        lambda rng, n: 100 * rng.beta(1, 12, n),  # percentages of hard classes
        lambda rng, n: np.where(rng.random(n) < 0.2, 0.1, rng.uniform(60, 80, n)),  # 1,000 classes, some at chance
    ],
)
def test_columns_that_vary_across_1_are_not_refused(draw):
    rng = np.random.default_rng(0)
    columns = [draw(rng, 2 * num_pairs) for num_pairs in (6, 8, 16) for _ in range(1000)]
    assert sum(two_scales("x", column) is not None for column in columns) <= 3  # 1 in 1,000


@pytest.mark.parametrize("name", ["loss", "val_loss", "perplexity", "latency_ms", "box_mse", "time"])
def test_what_has_no_upper_end_has_one_scale(name):
    # stuck at the loss of guessing one of ten classes, beside networks that have learned
    assert two_scales(name, [0.023, 0.025, 2.303, 0.024, 2.303]) is None


def test_zeros_and_our_own_shares():
    assert two_scales("mAP50", [0.0, 41.0, 42.0]) is None
    assert two_scales("mAP50", [0.0, 0.41, 42.0]) == (0.41, 42.0)
    for name, metric in METRICS.items():
        assert (two_scales(name, [0.02, 97.0]) is None) is (metric.unit != "points")
