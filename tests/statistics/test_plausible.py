"""Figures that a metric cannot have, marks of failed runs, and runs without a figure."""

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from whatwhere import UserError
from whatwhere.experiment import Results, judge, read_results
from whatwhere.statistics.direction import is_at_most_all, is_never_negative
from whatwhere.statistics.metric import check_direction

NOISE = (0.3, -0.4, 0.1, -0.2, 0.4, -0.1, 0.2, -0.3)


def results(metric, none, cbam):
    table = Results()
    for arm, figures in (("none", none), ("cbam", cbam)):
        table.add_arm(arm)
        for seed, figure in enumerate(figures):
            table.add(arm, seed, {metric: figure})
    return table


def with_one(name, mark, size=1.0):
    """A table where a single figure of eight is `mark`, and the other ones are near `size`."""
    figures = [size * (1 + noise / 10) for noise in NOISE]
    return results(name, figures, [mark, *(0.9 * figure for figure in figures[1:])])


LOWER = (
    "mse val_mse rmse mae MAE mape error_rate val/error top1_err err@1 wer WER cer test_wer time train_time_s "
    "latency_ms perplexity val_ppl fid FID lpips brier_score ece calibration_error memory_mb params fpr miss_rate epe "
    "errors 误差 错误率"
)
ANYTHING = (
    "nll elbo log_likelihood loss val_loss box_loss log_mse mse_diff error_delta rmse_change bias reward r2_score "
    "kappa score relative_error_reduction err_gain time_saved mae_vs_baseline energy figure x"
)


@pytest.mark.parametrize("name", [*LOWER.split(), "word error rate"])
def test_an_error_a_time_or_a_size_cannot_be_negative(name):
    assert is_never_negative(name)
    for mark in (-1, -0.25, -9, -99, -999):
        with pytest.raises(UserError, match="cannot be negative; if that marks a run that failed, leave"):
            judge(with_one(name, mark), lower_is_better=True, margin=0.01)


@pytest.mark.parametrize("name", ANYTHING.split())
def test_what_may_be_negative_is_judged(name):
    assert not is_never_negative(name)
    judge(with_one(name, -0.25), lower_is_better=True, margin=0.01)


@pytest.mark.parametrize("name", ["loss", "nll", "x", "val/box_loss"])
@pytest.mark.parametrize("mark", [-1, -9, -99, -999, -9999, 999, 9999, 99999, 1e6, 1e9, 2.0**31 - 1, -(2.0**31)])
def test_a_mark_of_a_failed_run_is_refused_whatever_the_metric(name, mark):
    if mark in (-1, -9):
        said = f"{name} is {mark} .* and all figures but such marks .* leave the figure empty; .* such as signed_{name}"
    else:
        said = "far from all other figures; if that marks a run that failed"
    with pytest.raises(UserError, match=said) as error:
        judge(with_one(name, mark), lower_is_better=True, margin=0.01)
    assert len(str(error.value)) <= 300


@pytest.mark.parametrize("name", ["return", "mcc", "val/pearson", "reward", "r2", "cohen_kappa", "psnr", "signed_loss"])
@pytest.mark.parametrize("size", [0.05, 1.0])
def test_a_figure_of_minus_1_is_one_where_the_name_says_so(name, size):
    judge(with_one(name, -1.0, size), lower_is_better=False, margin=0.01)
    with pytest.raises(UserError, match="far from all other figures"):
        judge(with_one(name, -99.0, size), lower_is_better=False, margin=0.01)


@pytest.mark.parametrize(
    "values",
    [
        [-1, 1, 1, 1, -1, 1, 1, 1],  # games won and lost
        [-1, -2.5, 0.5, 3, 1, 2, -3, 0.1],  # rewards
        [999, 1003, 995, 1001, 998, 990, 997, 1002],
        [0.5, 9, 3, 1, 2, 4, 7, 6],
        [10_000, 9_000, 11_000, 12_000, 8_000, 9_500, 10_500, 9_900],
    ],
)
def test_a_figure_among_its_like_is_no_mark(values):
    judge(results("reward", values, [value + noise for value, noise in zip(values, NOISE, strict=True)]), margin=0.01)


@pytest.mark.parametrize("name", ["mAP50", "accuracy", "top1", "val_f1", "metrics/recall(B)", "iou"])
@pytest.mark.parametrize("size", [0.5, 50.0])
def test_a_share_of_more_than_all_is_refused(name, size):
    assert is_at_most_all(name)
    with pytest.raises(UserError, match=r"is 940 .* cannot be above 100"):
        judge(with_one(name, 940, size), margin=0.5)
    # between 1 and 100 beside shares
    if size < 1:
        with pytest.raises(UserError, match="has two scales"):
            judge(with_one(name, 1.3, size), margin=0.5)


@pytest.mark.parametrize("name", ["psnr", "reward", "cider", "val_score", "num_correct"])
def test_other_metrics_have_no_ceiling(name):
    assert not is_at_most_all(name)
    judge(with_one(name, 940, 700.0), lower_is_better=False, margin=0.5)


def test_such_figures_beside_the_metric_leave_it_out_and_say_so():
    table = results("accuracy", [0.6 + n / 100 for n in NOISE], [0.6 - n / 90 for n in NOISE])
    for (arm, seed), bad in {("none", 0): -1.0, ("cbam", 3): 2.0}.items():
        table.runs(arm)[seed]["mae"] = bad
    judged = judge(table)
    assert not judged.others
    assert "mae is -1 (arm none, seed 0), and it cannot be negative; it is left out" in judged.cautions


@pytest.mark.parametrize("num_zeros", [1, 2, 4, 7])
@pytest.mark.parametrize(("name", "lower"), [("accuracy", False), ("mAP50", False), ("reward", False), ("mae", True)])
def test_figures_of_exactly_0_far_from_all_others_give_no_verdict(name, lower, num_zeros):
    """The best possible error, or the worst possible accuracy: of several runs it is hardly a result."""
    live = [0.8 + noise / 50 for noise in NOISE]
    (arm,) = judge(
        results(name, live, [0.0] * num_zeros + [value + 0.01 for value in live[num_zeros:]]),
        lower_is_better=lower,
        margin=0.005,
    ).arms
    assert (arm.verdict, arm.p_t, arm.interval_95) == ("cannot tell yet", None, None)
    assert f"{name} of cbam is exactly 0 for seed" in arm.reason
    assert arm.conclusion == "Cannot tell about cbam: check its runs and those of the baseline first"
    assert arm.advice.startswith("leave the figure of a run that failed empty")


@given(st.lists(st.integers(0, 12), min_size=6, max_size=12), st.integers(50, 400))
@example([0, 0, 0, 0, 2, 3], 50)
def test_counts_that_reach_0_step_by_step_are_results(counts, num_images):
    assume(len({*counts}) > 2 and 0 in counts and {1, 2} & {*counts})
    errors = [count / num_images for count in counts]
    (arm,) = judge(results("test_err", errors, errors[::-1]), lower_is_better=True, margin=0.01).arms
    assert "exactly 0" not in arm.reason


def test_zeros_in_another_metric_have_no_interval():
    table = results("accuracy", [0.6 + n / 100 for n in NOISE], [0.6 - n / 90 for n in NOISE])
    for arm in table.arms:
        for seed in table.seeds:
            table.runs(arm)[seed]["mAP50"] = 0.0 if arm == "cbam" and seed < 3 else 0.5 + NOISE[seed] / 50
    (other,) = judge(table).others
    assert (other.num_pairs, other.interval_95, other.p_t) == (8, None, None)


@pytest.mark.parametrize("num_pairs", [2, 5, 6])
def test_another_metric_has_a_p_with_as_many_pairs_as_the_verdict(num_pairs):
    table = results("accuracy", [0.6 + n / 100 for n in NOISE], [0.6 - n / 90 for n in NOISE])
    for arm, shift in (("none", 0), ("cbam", 0.02)):
        for seed in range(num_pairs):
            table.runs(arm)[seed]["mAP50"] = 0.5 + NOISE[seed] / 50 + shift * (1 + NOISE[-1 - seed])
    judged = judge(table)
    (other,) = judged.others
    assert (other.num_pairs, other.interval_95 is None, other.p_t is None) == (num_pairs, False, num_pairs < 6)
    assert f"mAP50 is missing in some judged pairs: cbam ({num_pairs} of 8)" in judged.cautions


MARKS = ["nan", "NaN", "inf", "-inf", "infinity", "", "-", "n/a", "none", "failed"]


@pytest.mark.parametrize("mark", MARKS)
def test_a_pair_without_a_figure_in_both_arms_is_counted(tmp_path, mark):
    path = tmp_path / "results.csv"
    lines = [
        f"{arm},{seed},{mark if seed == 3 else 0.7 + noise / 100 + up}"
        for arm, up in (("none", 0), ("cbam", 0.02))
        for seed, noise in enumerate(NOISE if arm == "none" else NOISE[::-1])
    ]
    path.write_text("\n".join(["arm,seed,accuracy", *lines]))
    (arm,) = judge(read_results(path)).arms
    assert arm.num_pairs == 7
    why = f"{float(mark):g}" if mark.lower().strip("-") in ("nan", "inf", "infinity") else "no figure"
    for name, caution in zip(("none", "cbam"), arm.cautions, strict=True):
        assert caution.startswith(f"{name} has no accuracy for 1 seed (3: {why}): only complete pairs are judged")


FIGURE = st.none() | st.sampled_from([math.nan, math.inf, -math.inf]) | st.floats(0.5, 0.9)


@given(st.lists(st.tuples(FIGURE, FIGURE), min_size=2, max_size=9))
def test_each_seed_is_a_pair_or_is_counted_as_missing(pairs):
    table = Results()
    for arm in ("none", "cbam"):
        table.add_arm(arm)
        for seed, pair in enumerate(pairs):
            value = pair[arm == "cbam"]
            table.add(arm, seed, {} if value is None else {"accuracy": value})
    assume(table.metrics)
    lacking = table.missing("none", "cbam", "accuracy")
    counted = set().union(*lacking.values())
    paired = table.paired("none", "cbam", "accuracy")
    complete = {seed for seed, pair in enumerate(pairs) if all(v is not None and math.isfinite(v) for v in pair)}
    assert counted == {*range(len(pairs))} - complete
    assert len(complete) < 2 or {*paired.seeds} == complete
    (arm,) = judge(table).arms
    assert len([caution for caution in arm.cautions if "has no accuracy for" in caution]) == len(lacking)


@pytest.mark.parametrize("cell", ["nan", "inf", "failed", "-"])
def test_a_column_without_a_figure_is_told(tmp_path, cell):
    path = tmp_path / "results.csv"
    lines = [f"{arm},{seed},{0.7 + seed / 100},{cell}," for arm in ("none", "cbam") for seed in range(3)]
    path.write_text("\n".join(["arm,seed,accuracy,mAP50,empty", *lines]))
    note = "columns without a finite figure in any line: mAP50; they are left out"
    assert note in judge(read_results(path)).cautions


def test_a_figure_of_unknown_meaning_is_no_percentage():
    """It was shown in points, and judged by a margin of half a point."""
    table = results("accuracy", [0.6 + n / 100 for n in NOISE], [0.6 - n / 90 for n in NOISE])
    for arm in table.arms:
        for seed in table.seeds:
            table.runs(arm)[seed]["widget"] = 40 + NOISE[seed] * (1 if arm == "none" else 2)
    (other,) = judge(table).others
    assert (other.metric.unit, other.metric.scale) == ("", 1.0)
    with pytest.raises(UserError, match="what difference in widget matters is not known; give it"):
        judge(table, metric="widget", lower_is_better=False)


@pytest.mark.parametrize("length", [90, 250])
def test_sentences_about_long_names_have_300_letters(length):
    arms = [letter * length for letter in "abcdefghijkl"]
    table = Results()
    for arm in arms:
        for seed, noise in enumerate(NOISE):
            value = 0.0 if seed == 3 and arm != arms[0] else 0.6 + noise / 100
            if not (arm == arms[2] and seed > 4):
                table.add(arm, seed, {"m" * length: value, "n" * length: value})
    for options in ({}, {"metric": "x"}, {"metric": "m" * length}, {"metric": "m" * length, "baseline": "x"}):
        with pytest.raises(UserError) as caught:
            judge(table, **options)
        assert len(str(caught.value)) <= 300
    judged = judge(table, metric="m" * length, lower_is_better=False, margin=0.01)
    for arm in judged.arms:
        assert max(map(len, (arm.conclusion, arm.reason, arm.advice, *arm.cautions, *judged.cautions))) <= 300


def test_direction_is_never_guessed_from_the_new_words():
    for name in LOWER.split():
        if name != "calibration_error":
            with pytest.raises(UserError, match="does not follow from its name"):
                check_direction(name, None)
