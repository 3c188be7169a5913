import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatwhere.experiment import PairedDifference, Results, Schedule, judge
from whatwhere.statistics.decide import Case, decide, holm
from whatwhere.statistics.history import Record, judge_again
from whatwhere.statistics.verdict import known_baseline

NOISE = (0.3, -0.4, 0.1, -0.2, 0.4, -0.1, 0.2, -0.3)


def results(metric="accuracy", **arms):
    """Figures by arm, seeds counted from 0; None is a missing run."""
    table = Results()
    for arm, figures in arms.items():
        table.add_arm(arm)
        for seed, figure in enumerate(figures):
            if figure is not None:
                table.add(arm, seed, {metric: figure})
    return table


def points(*differences, base=50.0):
    """Shares whose differences from the baseline's are these points."""
    return [(base + difference) / 100 for difference in differences]


def one(*differences, **options):
    """The verdict on one arm with these differences in points."""
    table = results(none=points(*[0] * len(differences)), cbam=points(*differences))
    return judge(table, **options).arms[0]


@pytest.mark.parametrize(
    ("shift", "scale", "verdict"),
    [
        (2, 1, "helps"),
        (-2, 1, "hurts"),
        (0.05, 0.2, "no practical difference"),
        (0.2, 3, "cannot tell yet"),
    ],
)
def test_the_four_verdicts(shift, scale, verdict):
    arm = one(*(shift + scale * noise for noise in NOISE))
    assert arm.verdict == verdict
    assert arm.mean_difference == pytest.approx(shift)
    assert bool(arm.advice) is (verdict == "cannot tell yet")


@pytest.mark.parametrize(
    ("differences", "options", "conclusion"),
    [
        ([2 + noise for noise in NOISE], {}, "Keep cbam: it does better than the baseline"),
        (
            [0.7 + noise for noise in NOISE],
            {},
            "cbam helps, but perhaps by less than 0.50 points; keep it if it costs little",
        ),
        ([-2 + noise for noise in NOISE], {}, "Do not choose cbam: it does worse than the baseline"),
        (
            [0.05 + 0.2 * noise for noise in NOISE],
            {},
            "cbam makes no practical difference; take the cheaper network",
        ),
        ([0.3 + 1.2 * noise for noise in NOISE], {}, "Cannot tell about cbam yet: train at least 4 more seeds"),
        ([0.3 + 90 * noise for noise in NOISE], {}, "Do not choose cbam on this evidence"),
        ([0.2 + 3 * noise for noise in NOISE], {"max_pairs": 8}, "Do not choose cbam on this evidence"),
        # the looks to come may well tell, though not with 80 %
        (
            [0.5 + 3 * noise for noise in NOISE],
            {"max_pairs": 24},
            "Cannot tell about cbam yet: train at least 8 more seeds",
        ),
        ([0.5 + 3 * noise for noise in NOISE], {"max_pairs": 12}, "Do not choose cbam on this evidence"),
        ([5, 5.1, 5.2, 5], {}, "Cannot tell about cbam yet: train at least 2 more seeds"),
        ([5, 5.1, 5.2, 5, 5.3], {"first_look": 6}, "Cannot tell about cbam yet: train at least 1 more seed"),
        ([5], {}, "Cannot tell about cbam yet: train at least 5 more seeds"),
        ([0.0] * 8, {}, "Cannot tell about cbam: check its runs and those of the baseline first"),
        (
            NOISE,
            {"awaited": {"cbam": range(9)}, "first_look": 9},
            "Cannot tell about cbam yet: finish the missing runs",
        ),
    ],
)
def test_the_conclusion_says_what_to_do(differences, options, conclusion):
    assert one(*differences, **options).conclusion == conclusion


@pytest.mark.parametrize(
    ("differences", "conclusion", "is_missed"),
    [
        (
            [-2 + noise for noise in NOISE],
            "The positive control cbam is found: it does worse than the baseline",
            False,
        ),
        ([0.3 + 1.2 * noise for noise in NOISE], "Cannot tell about cbam yet: train at least 4 more seeds", True),
        (
            [0.3 + 90 * noise for noise in NOISE],
            "The positive control cbam is not found, and more pairs will hardly change that",
            True,
        ),
        (
            [0.05 + 0.2 * noise for noise in NOISE],
            "cbam makes no practical difference: it is no positive control here, and says nothing about the other arms",
            False,
        ),
        (
            [2 + noise for noise in NOISE],
            "cbam does better than the baseline: it is no positive control here, and says nothing about the other arms",
            False,
        ),
        ([-2.0], "Cannot tell about cbam yet: train at least 5 more seeds", False),
    ],
)
def test_a_positive_control_is_found_or_the_comparison_may_be_too_weak(differences, conclusion, is_missed):
    figures = results(none=points(*[0] * len(differences)), cbam=points(*differences), se=points(*differences[::-1]))
    judgement = judge(figures, controls=["cbam"])
    control, other = judgement.arms
    assert (control.conclusion, control.headline) == (conclusion, f"{control.verdict} (positive control)")
    assert (control.verdict, other.is_control) == (other.verdict, False)
    assert any("positive control cbam is not found yet" in caution for caution in judgement.cautions) is is_missed


@pytest.mark.parametrize("controls", ["cbam", ["cbma"], ["none"]])
def test_controls_must_be_arms(controls, refused):
    with refused():
        judge(results(none=points(*NOISE), cbam=points(*NOISE), or_=points(*NOISE)), controls=controls)


def test_the_conclusion_without_a_pair():
    arm = judge(results(none=[0.5, 0.6], cbam=[None, None], se=[0.5, 0.6])).arms[0]
    assert arm.conclusion == "Cannot tell about cbam yet: train cbam and the baseline with the same seeds"


def test_at_the_end_of_a_plan_missing_runs_come_first():
    table = results(
        none=points(*[0] * 13), cbam=[*points(*(0.2 + 3 * noise for noise in NOISE)), None, *points(1, 2, 3, 4)]
    )
    arm = judge(table, first_look=6, max_pairs=12, awaited={"cbam": range(12)}).arms[0]
    assert (arm.num_pairs, arm.conclusion) == (6, "Cannot tell about cbam yet: finish the missing runs")


def test_a_small_sure_difference_is_no_practical_one():
    arm = one(*(0.2 + 0.05 * noise for noise in NOISE))
    assert arm.verdict == "no practical difference"
    assert arm.interval_95[0] > 0
    assert "though probably not zero" in arm.reason
    assert one(*(0.2 + 0.05 * noise for noise in NOISE), margin=0.1).verdict == "helps"


def test_fewer_than_six_pairs_tell_nothing():
    arm = one(5, 5.1, 5.2, 5, 5.1)
    assert (arm.verdict, arm.level, arm.plan) == ("cannot tell yet", None, None)
    assert "p-value of the sign-flip test is at least 0.062" in arm.reason
    assert arm.advice == "train at least 6 seeds of each arm"
    assert arm.mean_difference == pytest.approx(5.08)
    single = judge(results(none=[0.5], cbam=[0.7])).arms[0]
    assert (single.verdict, single.num_pairs, single.mean_difference) == ("cannot tell yet", 0, None)
    assert single.reason.startswith("there is 1 pair:")


def test_pairs_that_are_all_equal_or_all_differ_alike_tell_nothing():
    same = points(*NOISE[:6])
    arm = judge(results(none=same, cbam=same)).arms[0]
    assert (arm.verdict, arm.level, arm.mean_difference) == ("cannot tell yet", pytest.approx(0.04), 0)
    assert arm.reason.startswith("all 6 pairs are exactly equal: cbam was not switched on, or files were copied")
    assert one(*[1] * 6).verdict == "cannot tell yet"
    table = results(none=points(*NOISE), cbam=points(*(2 + noise for noise in NOISE)))
    arm = judge(table).arms[0]
    assert arm.verdict == "cannot tell yet"
    assert arm.reason.startswith("the figures vary, but all 8 differences are the same")


def test_missing_runs_are_named_and_their_pairs_left_out():
    figures = points(*(2 + noise for noise in NOISE))
    table = results(none=points(*[0] * 8), cbam=[*figures[:3], None, *figures[4:]])
    arm = judge(table).arms[0]
    assert (arm.verdict, arm.num_pairs, arm.seeds) == ("helps", 7, (0, 1, 2, 4, 5, 6, 7))
    assert "cbam has no accuracy for 1 seed (3: no run): only complete pairs are judged" in arm.cautions[0]
    # what a comparison still waits for is no missing run
    waiting = judge(table, awaited={"cbam": range(8)}).arms[0]
    assert waiting.verdict == "cannot tell yet"
    assert waiting.reason == "7 of 8 pairs are complete; missing: seed 3"


def test_after_a_verdict_at_a_planned_look_later_seeds_are_not_missing():
    differences = [2 + noise for noise in NOISE]
    assert len(differences) == 8
    figures = results(none=points(*[0] * 12), cbam=points(*differences))

    def missing(table, **options):
        (arm,) = judge(table, **options).arms
        assert arm.verdict == "helps"
        return [caution for caution in arm.cautions if "has no accuracy" in caution]

    assert missing(figures, first_look=8, max_pairs=24) == []
    # without a plan nobody knows that the runs ended there
    (unplanned,) = missing(figures)
    assert unplanned.startswith("cbam has no accuracy for 4 seeds")
    # a hole before the last judged seed is one
    holed = results(none=points(*[0] * 13), cbam=[None, *points(*differences)])
    (caution,) = missing(holed, first_look=8, max_pairs=24)
    assert caution.startswith("cbam has no accuracy for 1 seed (0: no run)")
    # judged again, it is still one, although pairs that were judged come first
    record = Record(judge(holed, first_look=8, max_pairs=24), ())
    again, _ = judge_again(holed, record, terms={})
    assert caution in again.arms[0].cautions


def test_without_any_pair_no_test_is_spoken_of():
    arm = judge(results(none=[0.5, 0.6], cbam=[None, None], se=[0.5, 0.6])).arms[0]
    assert (arm.verdict, arm.reason) == ("cannot tell yet", "no seed has a run of both cbam and none")


def test_what_is_not_finite_is_a_missing_run():
    table = results(none=[0.1, 0.2, 0.3], cbam=[0.1, float("nan"), float("inf")])
    assert table.values("cbam", "accuracy") == {0: 0.1}


def test_many_ties_and_skewed_differences_are_pointed_out():
    assert "3 of 8 pairs are exactly equal" in one(0, 0, 0, 1, 2, -1, 1, 3).cautions[0]
    assert "look skewed (+" in one(0.1, 0.2, 0.15, 0.1, 0.2, 0.1, 0.3, 6).cautions[0]
    varied = judge(results(none=points(*NOISE), cbam=points(*reversed(NOISE)))).arms[0]
    assert not varied.cautions


def test_lower_is_better(refused):
    loss = results("loss", none=[1.0] * 8, cbam=[0.8 + noise / 10 for noise in NOISE])
    arm = judge(loss, margin=0.01).arms[0]
    assert arm.verdict == "helps"
    assert arm.mean_difference == pytest.approx(-0.2)
    assert arm.win_probability == 1
    error = results("top-1 error", none=[10.0] * 8, cbam=[12 + noise for noise in NOISE])
    assert judge(error, lower_is_better=True, margin=0.5).arms[0].verdict == "hurts"
    assert judge(error, lower_is_better=False, margin=0.5).arms[0].verdict == "helps"
    for lower in (True, False):
        with refused():
            judge(error, lower_is_better=lower)


@pytest.mark.parametrize(
    "name",
    ["val_loss", "logloss", "top-1 error", "test_err", "MAE", "box_mse", "RMSE", "FID50k", "perplexity", "WER", "cer",
     "inference time", "latency_ms", "nll", "ECE", "brier_score", "ppl", "HD95", "params", "seconds", "top1_failures",
     "misclassified", "power", "certain", "map_error"],
)  # fmt: skip
def test_a_direction_that_the_name_does_not_tell_must_be_said(name, refused):
    table = results(name, none=[10.0] * 8, cbam=[12 + noise for noise in NOISE])
    with refused():
        judge(table, margin=0.5)
    assert judge(table, margin=0.5, lower_is_better=True).arms[0].verdict == "hurts"
    assert judge(table, margin=0.5, lower_is_better=False).arms[0].verdict == "helps"


@pytest.mark.parametrize(
    "name",
    ["mAP50", "metrics/mAP50-95(B)", "map50", "macro_recall", "val_acc", "Top-1", "top5_accuracy", "F1", "mIoU", "AUC",
     "Dice", "box/precision", "box AP", "准确率", "score"],
)  # fmt: skip
def test_of_figures_with_a_known_name_higher_is_better(name):
    table = results(name, none=[10.0] * 8, cbam=[12 + noise for noise in NOISE])
    assert judge(table, margin=0.5).arms[0].verdict == "helps"


@pytest.mark.parametrize(("name", "lower"), [("accuracy", True), ("auroc", True), ("loss", False)])
def test_a_direction_that_contradicts_a_metric_of_ours_is_refused(name, lower, refused):
    table = results(name, none=[0.5] * 8, cbam=[0.6 + noise / 100 for noise in NOISE])
    with refused():
        judge(table, lower_is_better=lower, margin=0.1)
    assert judge(table, lower_is_better=not lower, margin=0.1) == judge(table, margin=0.1)


def test_units(refused):
    assert one(*NOISE).mean_difference == pytest.approx(0)
    percentages = results("mAP", none=[61.0] * 8, cbam=[63 + noise for noise in NOISE])
    judgement = judge(percentages)
    assert (judgement.metric.scale, judgement.metric.unit, judgement.margin) == (1, "points", 0.5)
    assert judgement.arms[0].mean_difference == pytest.approx(2)
    with refused():
        judge(results("score", none=[1000.0] * 8, cbam=[1001.0] * 8))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_arms_share_the_error():
    clear, middling = [3 + noise for noise in NOISE], [0.48 + 1.5 * noise for noise in NOISE]
    alone = judge(results(none=points(*[0] * 8), x=points(*middling)), max_pairs=8, margin=0).arms[0]
    p = alone.p_t
    assert 0.0167 < p < 0.05
    assert alone.verdict == "helps"
    # beside two arms that differ clearly Holm leaves it all of alpha; beside two that do not, a third
    names = {"x": middling, "y": clear, "z": [1 + 1.1 * noise for noise in clear]}
    beside_clear = judge(
        results(none=points(*[0] * 8), **{k: points(*v) for k, v in names.items()}), max_pairs=8, margin=0
    )
    assert [arm.verdict for arm in beside_clear.arms] == ["helps"] * 3
    assert beside_clear.arms[0].level == pytest.approx(0.05)
    names = {"x": middling, "y": NOISE, "z": [1.1 * noise for noise in NOISE]}
    beside_none = judge(
        results(none=points(*[0] * 8), **{k: points(*v) for k, v in names.items()}), max_pairs=8, margin=0
    )
    assert [arm.verdict for arm in beside_none.arms] == ["cannot tell yet"] * 3
    assert beside_none.arms[0].level == pytest.approx(0.05 / 3)
    assert beside_none.arms[0].p_t_holm == pytest.approx(3 * p)
    low, high = beside_none.arms[0].deciding_interval
    assert low < 0 < beside_none.arms[0].interval_95[0] < high


def test_arms_at_different_looks_are_claimed_by_their_own_levels():
    # at 12 pairs of a schedule of 8 the level is lower than at a first look: the larger p-value may be the one to claim
    early = [value + 0.55 for value in (*NOISE, *NOISE[:4])]
    late = [value + 0.35 for value in (*NOISE, *NOISE[:4])]
    cases = [
        Case(name, PairedDifference(tuple(range(12)), (0.0,) * 12, tuple(values)), Schedule(first))
        for name, values, first in (("a", [2 * v for v in late], 8), ("b", early, 12))
    ]
    decisions = decide(cases, 0)
    p, levels = [case.paired.p_t() for case in cases], [case.level_among(2) for case in cases]
    assert p[1] <= levels[1]
    assert [decision.verdict for decision in decisions][1] == "helps"
    for case, decision in zip(cases, decisions, strict=True):
        assert (decision.verdict == "helps") is (case.paired.interval(1 - decision.level)[0] > 0)


@given(st.lists(st.lists(st.integers(-30, 60), min_size=8, max_size=8), min_size=1, max_size=4), st.integers(0, 30))
def test_a_verdict_is_what_its_interval_says(arms, margin):
    schedule = Schedule(8, 8)
    cases = [
        Case(str(i), PairedDifference(tuple(range(8)), (0.0,) * 8, tuple(map(float, values))), schedule)
        for i, values in enumerate(arms)
    ]
    for case, decision in zip(cases, decide(cases, margin), strict=True):
        if case.paired.standard_deviation == 0:
            continue
        low, high = case.paired.interval(1 - decision.level)
        if min(abs(low), abs(high), abs(low + margin), abs(high - margin)) < 1e-6:
            continue
        if decision.verdict in ("helps", "hurts"):
            assert (low > 0) if decision.verdict == "helps" else (high < 0)
        if decision.verdict == "cannot tell yet":
            assert low <= 0 <= high
        if decision.verdict == "no practical difference":
            assert -margin < low <= high < margin


def test_pairs_after_a_look_wait_for_the_next():
    early = [2 + noise for noise in NOISE]
    late = [-40.0, 35.0, -20.0]
    at_look = one(*early)
    more = one(*early, *late, first_look=8)
    assert (more.verdict, more.num_pairs, more.level) == ("helps", 8, at_look.level)
    assert more.differences[8:] == pytest.approx(late)
    assert "3 pairs more than this look has: the verdict uses the first 8" in more.cautions[0]
    assert "next look is at 12" in more.cautions[0]
    whole = one(*early, *late, 1.0, first_look=8)
    assert (whole.verdict, whole.num_pairs) == ("cannot tell yet", 12)
    assert whole.level < at_look.level


def test_after_the_end_of_a_plan_nothing_changes():
    unclear = [0.2 + 3 * noise for noise in NOISE]
    arm = one(*unclear, *[5.0] * 12, first_look=8, max_pairs=8)
    assert (arm.verdict, arm.num_pairs, arm.pairs_to_settle) == ("cannot tell yet", 8, None)
    assert arm.advice == "the schedule ends at 8 pairs; more pairs cannot change the verdict"
    assert "12 pairs more than this look has" in arm.cautions[0]


def test_before_the_first_look_there_is_no_verdict():
    arm = one(*(2 + noise for noise in NOISE), first_look=10)
    assert (arm.verdict, arm.level) == ("cannot tell yet", None)
    assert arm.reason == "there are 8 pairs; the first look is at 10"


def test_advice_names_pairs_and_the_next_look():
    arm = one(*(0.3 + 2 * noise for noise in NOISE))
    low, high = arm.pairs_to_settle
    assert 8 < low <= high
    assert {low, high} <= set(itertools.islice(Schedule(8).looks(), 12))
    assert arm.advice == f"{low} to {high} pairs in all will probably tell; the next look is at 12 pairs"
    wild = one(*(0.3 + 90 * noise for noise in NOISE))
    assert wild.pairs_to_settle[1] is None
    assert "even 768 pairs may not tell" in wild.advice
    maybe = one(*(0.5 + 3 * noise for noise in NOISE), max_pairs=24)
    assert maybe.pairs_to_settle == (16, None)
    assert maybe.advice == "even 24 pairs may not tell; the next look is at 16 pairs"
    likely = one(*(0.8 + 3 * noise for noise in NOISE), max_pairs=16)
    assert likely.pairs_to_settle == (16, 16)
    assert likely.advice == "16 pairs in all will probably tell; the next look is at 16 pairs"


def test_other_metrics_stand_beside():
    table = Results()
    for seed, noise in enumerate(NOISE):
        table.add("none", seed, {"accuracy": 0.9, "loss": 0.5})
        table.add("cbam", seed, {"accuracy": 0.92 + noise / 100, "loss": 0.4})
    (other,) = judge(table).others
    assert (other.metric.name, other.arm, other.num_pairs, other.better) == ("loss", "cbam", 8, "lower")
    assert other.mean_difference == pytest.approx(-0.1)


def test_everything_is_json():
    table = results(none=points(*[0] * 8), a=points(*NOISE), b=[None] * 8, c=points(*[0] * 8))
    content = json.loads(json.dumps(judge(table).to_dict(), allow_nan=False))
    assert [arm["arm"] for arm in content["arms"]] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "options",
    [
        {"metric": "acc"},
        {"baseline": "nones"},
        {"margin": -1},
        {"margin": float("nan")},
        {"first_look": 5},
        {"first_look": 8, "max_pairs": 7},
    ],
)
def test_impossible_terms_are_refused(options, refused):
    with refused():
        one(*NOISE, **options)


def test_our_own_metrics_in_per_cent_are_points_already(refused):
    table = results("accuracy", none=[91.0] * 8, cbam=[91.12 + noise / 100 for noise in NOISE])
    judgement = judge(table)
    assert (judgement.metric.scale, judgement.metric.unit) == (1, "points")
    assert judgement.arms[0].mean_difference == pytest.approx(0.12)
    assert judgement.arms[0].verdict == "no practical difference"
    with refused():
        judge(results("accuracy", none=[910.0] * 8, cbam=[901.0] * 8))


def test_what_cannot_be_compared_is_refused(refused):
    with refused():
        judge(results(none=[0.1, 0.2]))
    with refused():
        judge(Results())
    table = results("a", none=[1.0] * 2, cbam=[1.0] * 2)
    table.add("none", 9, {"b": 1.0})
    with refused():
        judge(table)


def test_the_baseline_is_none_or_the_first():
    assert judge(results(cbam=[0.5] * 2, none=[0.5] * 2)).baseline == "none"
    assert judge(results(b=[0.5] * 2, a=[0.5] * 2)).baseline == "b"
    assert judge(results(b=[0.5] * 2, a=[0.5] * 2), baseline="a").arms[0].arm == "b"


def test_the_order_of_arms_and_a_shift_of_all_figures_change_nothing():
    rng = np.random.default_rng(0)
    figures = {arm: rng.normal(0.8, 0.01, 10) for arm in ("none", "a", "b")}
    first = judge(results(**figures))
    second = judge(results(**dict(reversed(figures.items()))))
    shifted = judge(results(**{arm: values + 0.1 for arm, values in figures.items()}))
    by_name = {arm.arm: arm for arm in second.arms}
    for arm, moved in zip(first.arms, shifted.arms, strict=True):
        assert arm.verdict == by_name[arm.arm].verdict == moved.verdict
        assert arm.interval_95 == pytest.approx(by_name[arm.arm].interval_95)
        assert arm.interval_95 == pytest.approx(moved.interval_95)


@pytest.mark.parametrize("name", ["accuracy", "mAP50", "f1_score", "val/iou"])
def test_a_negative_figure_of_a_metric_that_has_none_is_refused(name, refused):
    with refused():
        judge(results(name, none=[0.6, 0.61, 0.62, 0.59, 0.58, -1.0], cbam=[0.63, 0.62, 0.64, 0.61, 0.6, 0.62]))


def test_a_negative_figure_beside_the_metric_leaves_that_out():
    found = results("accuracy", none=[0.6 + n / 100 for n in NOISE], cbam=[0.6 - n / 90 for n in NOISE])
    for arm in found.arms:
        for seed in found.seeds:
            found.runs(arm)[seed]["mAP50"] = -1.0
    judged = judge(found)
    assert not judged.others
    assert [note for note in judged.cautions if "cannot be negative" in note]


def test_a_single_zero_is_told():
    judged = judge(
        results("accuracy", none=[0.6, 0.61, 0.62, 0.59, 0.58, 0.57], cbam=[0.63, 0.0, 0.64, 0.61, 0.6, 0.66])
    )
    assert judged.arms[0].verdict == "cannot tell yet"
    assert judged.arms[0].reason.startswith("accuracy of cbam is exactly 0 for seed 1, and 0.6 or more for the others")
    # a hard task, where some runs find nothing and others little
    judged = judge(results("accuracy", none=[0.01, 0.02, 0.04, 0.09, 0.01, 0], cbam=[0.03, 0, 0.01, 0.06, 0.1, 0.02]))
    assert "exactly 0" not in judged.arms[0].reason


@pytest.mark.parametrize(("none", "cbam"), [(0.0, 0.0), (0.5, 0.5), (0.1, 0.1), (0.0, None), (None, 0.0)])
def test_arms_that_learned_nothing_get_no_verdict(none, cbam):
    live = [0.6 + noise / 100 for noise in NOISE]
    arms = {"none": live if none is None else [none] * len(live), "cbam": live if cbam is None else [cbam] * len(live)}
    (arm,) = judge(results("accuracy", **arms)).arms
    assert arm.verdict == "cannot tell yet"
    assert "learned nothing" in arm.reason
    assert arm.p_t is None


def test_with_too_few_pairs_there_is_no_p():
    (arm,) = judge(results("accuracy", none=[0.6, 0.61, 0.62], cbam=[0.63, 0.65, 0.64])).arms
    assert (arm.p_t, arm.p_sign_flip, arm.p_equivalence) == (None, None, None)
    assert arm.mean_difference is not None


@pytest.mark.parametrize(
    ("arms", "baseline"),
    [
        (["cbam", "none"], "none"),
        (["resnet_cbam", "resnet"], "resnet"),
        (["SE-ResNet50", "CBAM-ResNet50", "ResNet50"], "ResNet50"),
        (["yolo11n+cbam", "yolo11n", "yolo11n-eca"], "yolo11n"),
        (["a", "b"], None),
        (["resnet18", "resnet50"], None),  # a name within a word is another name
        (["se", "se_cbam", "eca"], None),
        (["+", "+se"], None),
    ],
)
def test_the_baseline_is_known_by_its_name_alone_or_told(arms, baseline):
    assert known_baseline(arms) == baseline
    table = Results()
    for arm in arms:
        for seed in range(8):
            table.add(arm, seed, {"accuracy": 0.5 + seed * (1 + arms.index(arm)) / 100})
    judgement = judge(table)
    assert judgement.baseline == (baseline or arms[0])
    told = [note for note in judgement.cautions if "the first arm, is taken as the baseline" in note]
    assert bool(told) is (baseline is None)
    assert not any("is taken as the baseline" in note for note in judge(table, baseline=arms[1]).cautions)


def test_arms_without_a_common_seed_are_told_so_and_nothing_else():
    table = Results()
    for arm, first in (("none", 0), ("se", 100)):
        for seed in range(first, first + 8):
            table.add(arm, seed, {"accuracy": 0.5 + seed / 1000})
    (arm,) = judge(table).arms
    assert (arm.reason, arm.cautions) == ("se and none have no seed in common", ())
    assert arm.advice == "number runs that belong together alike, or train both arms with 6 seeds or more in common"
