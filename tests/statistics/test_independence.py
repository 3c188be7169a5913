"""Pairs that are not independent get no verdict; live ones are not called dead."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, ttest_rel

from whatwhere.experiment import Results, compare, judge, read_results
from whatwhere.statistics.independence import LIMIT, doubt_about
from whatwhere.statistics.metric import metric_for
from whatwhere.statistics.order import chance_of_order

CASES = Path(__file__).parent / "cases"
NOISE = (0.0031, -0.0042, 0.0013, -0.0024, 0.0045, -0.0016, 0.0027, -0.0038, 0.0019)


def table(metric="accuracy", **arms):
    results = Results()
    for arm, figures in arms.items():
        for seed, figure in enumerate(figures):
            results.add(arm, seed, figure if isinstance(figure, dict) else {metric: figure})
    return results


def live(shift=0.0, base=0.75, count=8):
    return [round(base + shift + noise, 4) for noise in NOISE[:count]]


def verdict(results, **options):
    return judge(results, baseline="none", **options).arms[0]


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("dead-seeds", "none gave 1 different result in 8 runs, alike for seeds 0, 1, 2, 3, 4, 5 and 2 more"),
        ("near-dead-seeds", "none gave 2 different results in 8 runs, alike for seeds 0, 1, 2, 4, 5, 6 and 1 more"),
        ("copied-rows", "none and cbam gave 3 different results in 9 runs, alike for seeds 0, 3, 6"),
    ],
)
def test_seeds_that_decide_nothing_and_copies_get_no_verdict(name, begins):
    arm = verdict(read_results(CASES / f"{name}.csv"))
    assert arm.verdict == "cannot tell yet"
    assert arm.reason.startswith(begins)
    assert "too few to be chance: the seed is not passed to the trainer, or files were copied" in arm.reason
    assert "pairs" not in arm.advice  # more of them would not help
    assert arm.pairs_to_settle is None


@pytest.mark.parametrize("name", ["dead-seeds", "near-dead-seeds", "copied-rows", "live-coarse"])
def test_nothing_that_takes_pairs_for_independent_is_told_of_them(name):
    results = read_results(CASES / f"{name}.csv")
    arm = verdict(results)
    assert arm.mean_difference is not None
    assert arm.level is not None
    told = (arm.interval_95, arm.deciding_interval, arm.win_probability, arm.win_interval, arm.skewness)
    assert {*told, arm.p_t, arm.p_t_holm, arm.p_sign_flip, arm.p_sign_flip_holm, arm.p_equivalence} == {None}
    assert not any("skewed" in caution for caution in arm.cautions)


def test_other_metrics_follow_the_same_rule():
    rows = {
        arm: [{"accuracy": a, "macro_f1": 0.8 + shift, "auroc": a - 0.1} for a in live(shift)]
        for arm, shift in (("none", 0.0), ("cbam", 0.01))
    }
    rows["cbam"] = [{**row, "auroc": row["auroc"] + 0.01 * n} for row, n in zip(rows["cbam"], NOISE, strict=False)]
    by_name = {other.metric.name: other for other in judge(table(**rows), metric="accuracy").others}
    dead, alive = by_name["macro_f1"], by_name["auroc"]
    assert (dead.mean_difference, dead.interval_95, dead.p_t) == (pytest.approx(1.0), None, None)
    assert alive.interval_95 is not None
    assert alive.p_t is not None


def test_a_known_small_test_set_is_never_called_dead_by_its_counts():
    # 20 images that are nearly all always right or always wrong
    arm = verdict(table(none=[0.5] * 12, cbam=[0.55] * 11 + [0.5]), test_images=20)
    assert arm.reason.startswith("2 different differences in 12 pairs, at least 4 are needed")
    assert (
        "to be chance"
        in verdict(table(none=[0.5005] * 12, cbam=[*live(count=9), 0.75, 0.76, 0.77]), test_images=2000).reason
    )


def test_whole_numbers_are_not_taken_for_finer_than_they_are():
    rng = np.random.default_rng(1)
    for _ in range(50):
        scores = {arm: rng.normal(500, 2, 10).round() for arm in ("none", "cbam")}
        compare(lambda arm, seed, scores=scores: scores[arm][seed], ["none", "cbam"], 10, metric="score", margin=1.0)


def test_rows_copied_from_another_arm_get_no_verdict():
    rng = np.random.default_rng(0)
    none, cbam, se = (np.round(base + 0.004 * rng.standard_normal(12), 4) for base in (0.71, 0.73, 0.74))
    half = [*none[:6], *cbam[6:]]
    arm = verdict(table(none=none, cbam=half))
    assert arm.reason.startswith(
        "none and cbam have the same figure for seeds 0, 1, 2, 3, 4, 5, too often to be chance: runs"
    )
    assert arm.verdict == "cannot tell yet"
    both = judge(table(none=none, cbam=cbam, se=cbam), baseline="none").arms
    assert [arm.verdict for arm in both] == ["cannot tell yet"] * 2
    assert [arm.verdict for arm in judge(table(none=none, cbam=cbam, se=se), baseline="none").arms] == ["helps"] * 2
    # arms that share all that the seed decides and differ by an image or two
    close = np.round(none + rng.integers(-1, 2, 12) / 10_000, 4)
    assert sum(none == close) >= 4
    arm = verdict(table(none=none, cbam=close))
    assert "same figure" not in arm.reason
    # a tie or two are chance
    assert verdict(table(none=none, cbam=[none[0], *cbam[1:]])).verdict == "helps"


def test_a_number_of_test_images_that_cannot_be_is_refused(refused):
    with refused():
        compare(lambda arm, seed: 0.9005, ["none", "cbam"], 6, test_images=400)
    assert compare(lambda arm, seed: 0.9 + 0.0025 * seed, ["none", "cbam"], 6, test_images=400)


def test_few_pairs_that_are_copies_have_no_interval():
    for cbam in ([0.8512] * 5, [0.8512, 0.8512, 0.8512, 0.8513, 0.8512]):
        arm = verdict(table(none=[0.8068] * 5, cbam=cbam))
        assert arm.reason.startswith("there are 5 pairs: with fewer than 6")
        assert (arm.interval_95, arm.p_t, arm.win_probability) == (None, None, None)
        # and the reader is told why
        (doubt,) = arm.cautions
        assert "in 5 runs, alike for seeds 0, 1, 2, 3, 4, too few to be chance: the seed is not passed" in doubt
        assert doubt.endswith("each run wrote its own figures; then train again")
    arm = verdict(table(none=live(count=3), cbam=live(0.02, count=3)[::-1]))
    assert (arm.interval_95, arm.p_t) != (None, None)


@pytest.mark.parametrize("count", range(2, 10))
@pytest.mark.parametrize(
    ("differences", "told"),
    [((0.0,) * 9, "are exactly equal: cbam was not switched on"), ((0.02,) * 9, "differences are the same: one arm's")],
)
def test_every_doubt_is_shown_whatever_the_number_of_pairs(count, differences, told):
    figures = live(count=count)
    results = table(none=figures, cbam=[a + b for a, b in zip(figures, differences, strict=False)])
    for options in ({}, {"first_look": 10}, {"awaited": {"cbam": range(10)}, "first_look": 6}):
        arm = verdict(results, **options)
        assert arm.p_t is None
        assert told in "; ".join((arm.reason, *arm.cautions))
        assert sum(told in text for text in (arm.reason, *arm.cautions)) == 1


def test_only_counts_are_held_to_the_spread_of_a_count():
    # an area under a curve may vary less than an accuracy of its size
    narrow = [0.9 + noise / 20 for noise in NOISE]
    shifted = [value + 0.001 * (1 + n) for n, value in zip(NOISE, narrow, strict=True)]
    for name, is_told in (("auroc", False), ("accuracy", True), ("val_acc", True)):
        reason = verdict(table(name, none=narrow, cbam=shifted), metric=name, test_images=5000).reason
        assert ("where chance alone makes" in reason) is is_told


def test_a_first_seed_without_figures_stops_nothing():
    values = iter([float("nan"), float("nan"), *live(), *live(0.01)])
    assert compare(lambda arm, seed: next(values), ["none", "cbam"], 9).judgement.arms[0].num_pairs == 8


def test_a_small_test_set_is_not_called_dead():
    arm = verdict(read_results(CASES / "live-coarse.csv"))
    assert arm.verdict == "cannot tell yet"
    assert arm.reason.startswith("3 different differences in 8 pairs, at least 4 are needed: the test set is too small")


def test_one_dead_arm_is_enough_whichever_it_is():
    for dead, alive in ((0.7512, live()), (0.8231, live(0.02))):
        for arms in ({"none": [dead] * 8, "cbam": alive}, {"none": alive, "cbam": [dead] * 8}):
            arm = verdict(table(**arms))
            assert (arm.verdict, "to be chance" in arm.reason) == ("cannot tell yet", True)


def test_whole_rows_that_repeat_tell_it_where_one_coarse_figure_does_not():
    coarse = [0.75, 0.8, 0.75, 0.8, 0.85, 0.8, 0.75, 0.8]
    losses = [0.61234567, 0.59876543, 0.61234567, 0.59876543, 0.58123456, 0.59876543, 0.61234567, 0.59876543]
    alive = [{"accuracy": a, "loss": 0.6 + 0.01 * n} for a, n in zip(coarse, NOISE, strict=False)]
    copied = [{"accuracy": a, "loss": loss} for a, loss in zip(coarse, losses, strict=True)]
    assert "to be chance" not in verdict(table(none=alive, cbam=alive), metric="accuracy").reason
    assert "to be chance" in verdict(table(none=alive, cbam=copied), metric="accuracy").reason
    # figures that do not depend on the seed say nothing
    sized = [{"accuracy": a, "params": 25_557_032.0} for a in coarse]
    assert "to be chance" not in verdict(table(none=sized, cbam=sized), metric="accuracy").reason


def test_figures_computed_from_others_are_told():
    arm = verdict(table(none=live(), cbam=[figure + 0.02 for figure in live()]))
    assert arm.verdict == "cannot tell yet"
    assert arm.reason.startswith(
        "the figures vary, but all 8 differences are the same: one arm's figures were computed"
    )


def test_a_ceiling_is_not_called_dead():
    arm = verdict(table(none=[1.0] * 8, cbam=[1.0] * 7 + [0.9999]))
    assert arm.verdict == "cannot tell yet"
    assert "to be chance" not in arm.reason
    assert "at its ceiling" in arm.reason


def test_last_bits_make_no_difference():
    dead = [0.7512, 0.7512 + 1e-16, np.nextafter(0.7512, 1), *[0.7512] * 5]
    assert "to be chance" in verdict(table(none=dead, cbam=live(0.02))).reason


def test_four_different_differences_are_enough():
    cbam = [b + d for b, d in zip(live(), (0.020, 0.021, 0.022, 0.023, 0.020, 0.021, 0.022, 0.020), strict=True)]
    assert verdict(table(none=live(), cbam=cbam)).verdict == "helps"


def test_runs_that_differ_less_than_their_test_images_allow(refused):
    tight = [0.75 + noise / 500 for noise in NOISE[:8]]
    results = table(none=live(), cbam=[figure + 0.02 for figure in tight])
    known = verdict(results, test_images=2000)
    assert known.verdict == "cannot tell yet"
    assert known.reason.startswith("the runs of cbam differ by only 0.001 points (standard deviation), where chance ")
    assert "0.94 with 2,000 test images" in known.reason
    unknown = verdict(results)
    assert unknown.verdict == "helps"
    assert any("the runs of cbam differ by only 0.001 points" in caution for caution in unknown.cautions)
    # too few images for a spread to be expected
    assert verdict(results, test_images=100).verdict == "helps"
    with refused():
        verdict(results, test_images=0)


@given(st.integers(0, 2**32), st.sampled_from([20, 100, 1000]), st.sampled_from([6, 9, 12]))
def test_counts_of_few_images_repeat_and_are_not_called_dead(seed, num_images, num_pairs):
    rng = np.random.default_rng(seed)
    chances = rng.beta(2, 1, num_images)
    arms = {arm: (rng.random((num_pairs, num_images)) < chances).mean(1) for arm in ("none", "cbam")}
    doubt = doubt_about(table(**arms), metric_for("accuracy", [0.5]), "none", "cbam", range(num_pairs))
    assert doubt is None or "to be chance" not in doubt.reason


@given(st.floats(0.5, 0.99), st.sampled_from([6, 8, 12]), st.sampled_from(["all", "all but one", "in three"]))
def test_repeated_figures_never_get_a_verdict(accuracy, num_pairs, how):
    rng = np.random.default_rng(int(accuracy * 1e6))
    figures = np.round(accuracy + 0.004 * rng.standard_normal(num_pairs), 4)
    if how == "in three":
        figures = np.resize(figures[:3], num_pairs)
    else:
        figures[how == "all but one" :] = figures[-1]
    results = table(none=figures, cbam=np.minimum(figures + 0.005, 1))
    assert verdict(results).verdict == "cannot tell yet"


def test_a_comparison_stops_after_two_seeds_that_end_alike(tmp_path, refused):
    calls = []

    def run(arm, seed):
        calls.append((arm, seed))
        return {"accuracy": 0.7512 + 0.02 * (arm == "cbam"), "loss": 0.6931 + 0.01 * (arm == "cbam")}

    path = tmp_path / "results.csv"
    with refused():
        compare(run, ["none", "cbam"], 8, metric="accuracy", results=path)
    assert calls == [("none", 0), ("cbam", 0), ("none", 1), ("cbam", 1)]
    assert len(path.read_text().splitlines()) == 5


def test_a_comparison_stops_where_every_run_comes_to_one_coarse_figure(refused):
    calls = []

    def run(arm, seed):
        calls.append(seed)
        return 0.75 + 0.05 * (arm == "cbam")

    with refused():
        compare(run, ["none", "cbam"], 8)
    assert max(calls) == 3
    # of few images that may be
    assert compare(run, ["none", "cbam"], 8, test_images=20).judgement.arms[0].verdict == "cannot tell yet"


def test_a_comparison_on_few_test_images_goes_on():
    accuracies = iter([0.75, 0.8, 0.75, 0.8, 0.8, 0.8, 0.75, 0.85, 0.7, 0.8, 0.75, 0.9])
    assert compare(lambda arm, seed: next(accuracies), ["none", "cbam"], 6).judgement.arms[0].num_pairs == 6


def test_the_limit_is_that_of_the_text():
    assert LIMIT == 1 / 10_000


@pytest.mark.parametrize("n", [4, 5, 6])
def test_the_chance_of_an_order_is_that_of_all_orders(n):
    orders = [dict(enumerate(order)) for order in itertools.permutations(range(n))]
    chances = [chance_of_order([order], range(n)) for order in orders]
    for limit in {chance for _, chance in chances if chance < 1}:
        # both ways have one limit each, so the share of orders below it is the bound itself
        assert sum(chance <= limit + 1e-12 for _, chance in chances) / len(orders) == pytest.approx(limit)
    assert chances[0] == ("rise", pytest.approx(2 / math.factorial(n)))
    assert chances[-1] == ("fall", pytest.approx(2 / math.factorial(n)))


def test_many_seeds_have_nearly_the_exact_chance():
    rng = np.random.default_rng(1)
    for size in (100, 101):
        figures = dict(enumerate(rng.standard_normal(size) + np.linspace(0, 1, size)))
        chance = chance_of_order([figures], range(size))[1]
        exact = kendalltau(range(size), list(figures.values()), method="exact").pvalue
        assert exact * (1 - 1e-9) <= chance <= exact * (1 + 1e-9 if size == 100 else 1.1)


def test_arms_that_were_sorted_get_no_verdict():
    rng = np.random.default_rng(2)
    none, cbam = (sorted(np.round(0.8 + 0.01 * rng.standard_normal(10), 4)) for _ in range(2))
    for way, results in (("rise", table(none=none, cbam=cbam)), ("fall", table(none=none[::-1], cbam=cbam[::-1]))):
        arm = verdict(results)
        assert arm.verdict == "cannot tell yet"
        assert arm.reason.startswith(f"the figures of none and of cbam {way} from seed to seed: they were sorted")
        assert "give each figure the seed of its run" in arm.advice
    # one sorted arm may be the order of the table; the pairs say nothing then, but their interval is no shorter
    order = rng.permutation(10)
    assert "sorted" not in verdict(table(none=none, cbam=[cbam[i] for i in order])).reason


def test_sorted_arms_would_get_a_wrong_verdict_in_nearly_half_of_tables():
    none, cbam = np.sort(np.random.default_rng(0).standard_normal((2, 4000, 10)), axis=2)
    assert (ttest_rel(none, cbam, axis=1).pvalue <= 0.05).mean() > 0.4


def test_saved_states_of_one_training_get_no_verdict():
    rng = np.random.default_rng(3)
    rise = 0.8 + 0.07 * (1 - np.exp(-np.arange(1, 13) / 4))
    none, cbam = (np.round(rise + shift + 0.002 * rng.standard_normal(12), 4) for shift in (0, 0.01))
    results = Results()
    for step, before, after in zip(range(1000, 13000, 1000), none, cbam, strict=True):
        results.add("none", str(step), {"accuracy": before})
        results.add("cbam", str(step), {"accuracy": after})
    arm = verdict(results)
    assert arm.verdict == "cannot tell yet"
    assert "the seeds count the steps of one training" in arm.reason


def test_few_sorted_runs_are_a_caution():
    none, cbam = [0.71, 0.712, 0.713, 0.717, 0.719, 0.722], [0.7311, 0.7312, 0.735, 0.736, 0.738, 0.744]
    arm = verdict(table(none=none, cbam=cbam))
    assert arm.verdict == "helps"
    assert [caution for caution in arm.cautions if "rise from seed to seed" in caution]


def test_live_seeds_are_hardly_ever_said_to_be_sorted():
    rng = np.random.default_rng(4)
    doubted = cautioned = 0
    for _ in range(4000):
        shared, own = rng.standard_normal(10), rng.standard_normal((2, 10))
        chance = chance_of_order([dict(enumerate(shared + 0.05 * of)) for of in own], range(10))[1]
        doubted, cautioned = doubted + (chance <= LIMIT), cautioned + (chance <= 1 / 200)
    assert doubted <= 3
    assert cautioned <= 4000 / 200 + 3 * math.sqrt(4000 / 200)
