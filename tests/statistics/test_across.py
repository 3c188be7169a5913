import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from data_sets import EFFECTS, compared, several
from whatwhere import UserError
from whatwhere.experiment import Results, across, judge
from whatwhere.statistics.across import DEPENDS, HELPS_ON_AVERAGE, HURTS_ON_AVERAGE
from whatwhere.statistics.decide import SAME, UNKNOWN
from whatwhere.statistics.pooled import pooled
from whatwhere.statistics.related import LIMIT, _chance, related


def only(verdict):
    (arm,) = verdict.arms
    return arm


def test_helps_on_average():
    arm = only(across(several()))
    assert (arm.verdict, arm.level) == (HELPS_ON_AVERAGE, 0.05)
    assert arm.interval_95 == arm.deciding_interval
    assert 0.5 < arm.interval_95[0] < 1.06 < arm.interval_95[1]
    assert arm.prediction_interval[0] < arm.interval_95[0]
    assert arm.conclusion == "Try cbam first: on average it does better than the baseline"
    assert arm.reason.startswith("accuracy changes by +1.0")
    assert [one.comparison for one in arm.comparisons] == list(EFFECTS)
    assert sum(one.weight for one in arm.data_sets) == pytest.approx(1)
    json.dumps(across(several()).to_dict())


def test_hurts_on_average_and_less_is_better_the_other_way_round():
    assert only(across(several({name: -effect for name, effect in EFFECTS.items()}))).verdict == HURTS_ON_AVERAGE
    turned = {
        name: judge(_figures(seed, effect), metric="loss", margin=0.001)
        for seed, (name, effect) in enumerate(EFFECTS.items())
    }
    assert only(across(turned)).verdict == HURTS_ON_AVERAGE


def test_shares_and_percentages_of_two_comparisons_are_a_caution():
    def one(number, scale):
        rng, results = np.random.default_rng(number), Results()
        for seed in range(8):
            for arm in ("none", "cbam"):
                results.add(arm, seed, {"wobble": scale * rng.uniform(0.7, 0.8)})
        return judge(results, margin=0.5, lower_is_better=False)

    scales = {"a": 1, "b": 100, "c": 1, "d": 1}
    mixed = across({name: one(number, scale) for number, (name, scale) in enumerate(scales.items())})
    assert mixed.cautions[0].startswith("wobble may have two scales, shares such as 0.7")
    assert only(across({name: one(number, 1) for number, name in enumerate(scales)})).arm == "cbam"


@pytest.mark.parametrize(
    ("text", "names", "sets"),
    [("the arms 'CBAM' and 'cbam'", ("cbam", "CBAM"), None), ("the data sets 'CIFAR' and 'cifar'", ("cbam",) * 2, "x")],
)
def test_a_name_in_two_spellings_is_refused(text, names, sets):
    comparisons = {}
    for number, arm in enumerate(names):
        rng, results = np.random.default_rng(number), Results()
        for seed in range(8):
            results.add("none", seed, {"accuracy": rng.uniform(0.7, 0.8)})
            results.add(arm, seed, {"accuracy": rng.uniform(0.7, 0.8)})
        comparisons[f"set{number}"] = judge(results)
    with pytest.raises(UserError, match=f"{text} are spellings of one name; spell them alike"):
        across(comparisons, sets and {"set0": "cifar", "set1": "CIFAR"})


def _figures(seed, effect):
    rng, results = np.random.default_rng(seed), Results()
    for number in range(8):
        loss = rng.uniform(0.3, 0.4)
        results.add("none", str(number), {"loss": loss})
        results.add("cbam", str(number), {"loss": loss + (effect + 0.3 * rng.standard_normal()) / 100})
    return results


def test_no_practical_difference_and_cannot_tell():
    assert only(across(several(dict.fromkeys(EFFECTS, 0.1), deviation=0.2))).verdict == SAME
    arm = only(across(several({"a": 1.0, "b": -1.0, "c": 2.0, "d": -0.5}, deviation=2.0)))
    assert arm.verdict == UNKNOWN
    assert arm.conclusion.startswith("Cannot tell about cbam yet: compare it on more data sets")


def test_it_depends_where_one_helps_and_another_hurts():
    arm = only(across(several({**EFFECTS, "stars": -3.0})))
    assert arm.verdict == DEPENDS
    assert [one.verdict for one in arm.comparisons] == ["helps"] * 5 + ["hurts"]
    assert arm.conclusion.endswith("helps in cifar10, digits, flowers, pets and 1 more and hurts in stars")
    # heterogeneous, but nowhere a loss that is more than chance: no matter how large Q is
    assert only(across(several({"a": 0.0, "b": 4.0, "c": 8.0, "d": 16.0}))).verdict == UNKNOWN


def test_several_recipes_on_one_data_set_have_no_mean_but_may_depend():
    comparisons = several({"off": 2.0, "on": -2.0, "long": 0.0, "both": 0.1})
    arm = only(across(comparisons, dict.fromkeys(comparisons, "cifar10")))
    assert (arm.verdict, arm.mean_difference, arm.data_sets) == (DEPENDS, None, ())
    assert arm.conclusion == "Choose cbam case by case: it helps in off and hurts in on"
    assert arm.reason == (
        "it helps in 1 comparison and hurts in 1, which chance alone hardly explains; 1 data set counts, and a mean "
        "needs 4"
    )
    del comparisons["both"]
    arm = only(across(comparisons, dict.fromkeys(comparisons, "cifar10")))
    assert (arm.verdict, arm.reason) == (UNKNOWN, "1 data set counts, and a verdict needs 4")


def test_a_positive_control_is_found_or_missed_in_each_comparison():
    effects = {"a": -3.0, "b": -2.0, "c": 0.0, "d": -4.0}
    found = {name: compared(seed, deviation=1.5, short=effect) for seed, (name, effect) in enumerate(effects.items())}
    found["few"] = compared(9, num_pairs=5, short=-3.0)
    arm = only(across({name: dataclasses.replace(one, arms=_as_control(one)) for name, one in found.items()}))
    assert arm.conclusion == (
        "The positive control short is found in 3 of 4 comparisons, not in c, which may be too weak for the other "
        "arms, too"
    )
    assert arm.headline == f"{arm.verdict} (positive control)"
    assert only(across(found)).conclusion != arm.conclusion


def _as_control(judgement):
    return tuple(dataclasses.replace(arm, is_control=True) for arm in judgement.arms)


def test_a_loss_smaller_than_the_margin_is_no_loss():
    effects = {**EFFECTS, "stars": -0.2}
    verdict = across(several(effects, deviation=0.05))
    assert only(verdict).comparisons[-1].interval_95[1] < 0
    assert only(verdict).comparisons[-1].verdict == SAME
    assert only(verdict).verdict == HELPS_ON_AVERAGE


def test_three_data_sets_have_a_plot_and_no_verdict():
    verdict = across(several(dict(list(EFFECTS.items())[:3])))
    arm = only(verdict)
    assert (arm.verdict, arm.mean_difference, arm.data_sets) == (UNKNOWN, None, ())
    assert arm.conclusion == "Cannot tell about cbam yet: compare it on at least 1 more data set"
    assert len(arm.comparisons) == 3


def test_an_arm_counts_where_it_occurs():
    comparisons = {**several(), "stars": compared(9, cbam=1.0, se=1.0)}
    cbam, se = across(comparisons).arms
    assert (cbam.verdict, len(cbam.data_sets)) == (HELPS_ON_AVERAGE, 6)
    assert (se.verdict, se.reason) == (UNKNOWN, "1 data set counts, and a verdict needs 4")
    assert cbam.level == 0.05  # se shares no error, as it can have no verdict


def test_arms_share_the_error():
    effects = {"cbam": 0.5, "se": -0.1, "eca": 0.1}
    comparisons = {name: compared(seed, deviation=1.0, **effects) for seed, name in enumerate(EFFECTS)}
    assert {arm.level for arm in across(comparisons).arms} == {0.05 / 3}


def test_comparisons_that_cannot_count_are_shown():
    short = compared(11, num_pairs=5, cbam=9.0)
    copied = compared(12, deviation=0.0, cbam=9.0)
    arm = only(across({**several(), "few": short, "same": copied}))
    assert len(arm.data_sets) == 5
    assert [one.left_out[:17] for one in arm.comparisons[-2:]] == ["there are 5 pairs", "the figures vary,"]
    assert arm.reason.endswith("; few, same do not count")
    assert arm.mean_difference == pytest.approx(only(across(several())).mean_difference)


def test_a_data_set_counts_once():
    comparisons = {**several(), "digits, wide": compared(20, cbam=1.6)}
    data_sets = {name: name.partition(",")[0] for name in comparisons}
    verdict = across(comparisons, data_sets)
    arm = only(verdict)
    digits = arm.data_sets[1]
    assert (digits.name, digits.num_comparisons, len(arm.data_sets)) == ("digits", 2, 5)
    ones = [one for one in arm.comparisons if one.data_set == "digits"]
    assert digits.mean_difference == pytest.approx(np.mean([one.mean_difference for one in ones]))
    # as if the two were perfectly correlated, not smaller by the root of 2
    assert digits.standard_error == pytest.approx(np.mean([one.standard_error for one in ones]))
    assert verdict.cautions == ()
    told = across(comparisons).cautions[0]
    assert told.startswith(
        "taken for data sets of their own: cifar10, digits, flowers, pets, signs, digits, wide; if two"
    )
    partly = across(comparisons, {name: data_sets[name] for name in EFFECTS}).cautions[0]
    assert partly.startswith("taken for data sets of their own: digits, wide; if")
    # four comparisons, two data sets
    names = dict(zip(EFFECTS, ("a", "a", "b", "b", "b"), strict=True))
    assert only(across(several(), names)).reason == "2 data sets count, and a verdict needs 4"


def test_the_verdict_names_the_data_set_that_it_hangs_on():
    close = {"a": 0.9, "b": 0.9, "c": 0.8, "d": 0.9, "e": -0.4}
    arm = only(across(several(close, deviation=0.2)))
    assert arm.verdict == UNKNOWN
    assert {one.name: one.verdict_without for one in arm.data_sets}["e"] == HELPS_ON_AVERAGE
    assert not any("would not stand" in caution for caution in arm.cautions)  # nothing was claimed
    shaky = only(across(several({"a": 0.6, "b": 1.2, "c": 0.9, "d": 1.0}, deviation=0.7)))
    assert shaky.verdict == HELPS_ON_AVERAGE
    hinges = [one.name for one in shaky.data_sets if one.verdict_without != HELPS_ON_AVERAGE]
    assert shaky.cautions[0] == f"the verdict would not stand without {' or without '.join(hinges)}"


def test_order_and_sign_change_nothing_else():
    forward, back = across(several()), across(dict(reversed(several().items())))
    assert only(back).mean_difference == pytest.approx(only(forward).mean_difference)
    assert only(back).interval_95 == pytest.approx(only(forward).interval_95)
    opposite = {
        name: dataclasses.replace(
            judgement,
            arms=tuple(
                dataclasses.replace(
                    arm,
                    baseline=arm.treatment,
                    treatment=arm.baseline,
                    mean_difference=-arm.mean_difference,
                    interval_95=(-arm.interval_95[1], -arm.interval_95[0]),
                )
                for arm in judgement.arms
            ),
        )
        for name, judgement in several().items()
    }
    turned = only(across(opposite))
    assert turned.verdict == HURTS_ON_AVERAGE
    assert turned.interval_95 == pytest.approx([-end for end in reversed(only(forward).interval_95)])


def test_each_comparison_keeps_its_looks():
    results = Results()
    rng = np.random.default_rng(5)
    for number in range(9):
        base = rng.uniform(0.65, 0.75)
        results.add("none", number, {"accuracy": base})
        results.add("cbam", number, {"accuracy": base + (1 + 0.4 * rng.standard_normal()) / 100})
    looked = judge(results, first_look=6, max_pairs=12)
    arm = only(across({**several(), "stars": looked}))
    assert arm.comparisons[-1].num_pairs == 6
    assert arm.comparisons[-1].mean_difference == pytest.approx(looked.arms[0].mean_difference)
    assert arm.comparisons[-1].standard_error == pytest.approx(looked.arms[0].standard_deviation / math.sqrt(6))


def test_cautions_of_each_comparison_are_kept():
    missing = compared(30, cbam=1.0)
    missing = dataclasses.replace(
        missing,
        cautions=("of the table",),
        arms=tuple(dataclasses.replace(arm, cautions=("of the arm",), hardly_used=("cbam",)) for arm in missing.arms),
    )
    verdict = across({**several(), "stars": missing})
    assert verdict.cautions[-1] == "stars: of the table"
    assert only(verdict).cautions[-2:] == ("stars: of the arm", "stars: the attention of cbam was hardly used")


def test_baselines_of_several_names_are_told():
    verdict = across({**several(), "stars": compared(31, baseline="plain", cbam=1.0)})
    assert verdict.cautions[1] == "the baselines are called none, plain: they are taken for the same network"
    assert verdict.baselines["stars"] == "plain"


@pytest.mark.parametrize(
    ("comparisons", "options", "message"),
    [
        ({"a": compared(0, cbam=1.0)}, {}, "needs two or more, got 1"),
        (
            {"a": compared(0, cbam=1.0), "b": compared(1, metric="balanced_accuracy", cbam=1.0)},
            {},
            "a is judged by 'accuracy', b by 'balanced_accuracy'; name one figure that all have with --metric",
        ),
        (
            {"a": compared(0, cbam=1.0), "b": dataclasses.replace(compared(1, cbam=1.0), margin=1.0)},
            {},
            "the margin is 0.5 in a and 1 in b; give one for all with --margin",
        ),
        (
            {"a": compared(0, cbam=1.0), "b": compared(1, baseline="cbam", none=1.0)},
            {},
            "'none' is the baseline of a and an arm of b; name one baseline for all with --baseline",
        ),
        (
            {"a": compared(0, cbam=1.0), "b": compared(0, cbam=1.0)},
            {},
            "same figures of cbam: runs that stand in two comparisons would count twice; leave one out",
        ),
        (
            {"a": compared(0, cbam=1.0), "b": compared(0, num_pairs=12, cbam=1.0)},
            {},
            "a and b hold the same figures of cbam",
        ),
        (
            {"a": compared(0, cbam=1.0), "b": compared(1, cbam=1.0)},
            {"data_sets": {"c": "digits"}},
            "data_sets names 'c', which is no comparison; there are: a, b",
        ),
    ],
)
def test_refusals(comparisons, options, message):
    with pytest.raises(UserError) as caught:
        across(comparisons, **options)
    assert message in str(caught.value)


def test_other_units_are_refused():
    table = compared(1, cbam=1.0)
    other = dataclasses.replace(table, metric=dataclasses.replace(table.metric, unit="", scale=1.0))
    with pytest.raises(UserError, match="accuracy has other units or another direction in b than in a"):
        across({"a": compared(0, cbam=1.0), "b": other})


def _renumbered(judgement, first=100):
    arms = (dataclasses.replace(arm, seeds=tuple(range(first, first + len(arm.seeds)))) for arm in judgement.arms)
    return dataclasses.replace(judgement, arms=tuple(arms))


def test_copies_under_other_seeds_are_found():
    with pytest.raises(UserError, match="hold the same figures of cbam"):
        across({"a": compared(0, cbam=1.0), "b": _renumbered(compared(0, cbam=1.0))})


def test_one_baseline_is_one_data_set():
    one = compared(0, cbam=1.0)
    other = compared(50, cbam=1.0)
    shared = dataclasses.replace(
        other, arms=tuple(dataclasses.replace(arm, baseline=one.arms[0].baseline) for arm in other.arms)
    )
    with pytest.raises(UserError, match="hold the same figures of their baseline, so they are of one data set"):
        across({"a": one, "b": shared})
    assert across({"a": one, "b": shared}, {"a": "digits", "b": "digits"}).arms


def on_test_sets(num_sets, own=0.3, num_seeds=8, effect=1.0, seed=5):
    """Return comparisons of the same trained networks on several test sets: one training noise, and some of each."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((2, num_seeds))
    found = {}
    for name in "abcdefgh"[:num_sets]:
        results = Results()
        for number in range(num_seeds):
            of = 80 + noise[:, number] + own * rng.standard_normal(2)
            results.add("none", str(number), {"accuracy": round(float(of[0]), 2)})
            results.add("cbam", str(number), {"accuracy": round(float(of[1] + effect), 2)})
        found[name] = judge(results)
    return found


def test_the_same_networks_on_many_test_sets_are_one_data_set():
    verdict = across(on_test_sets(6, num_seeds=12))
    arm = only(verdict)
    assert (arm.verdict, arm.mean_difference, arm.data_sets) == (UNKNOWN, None, ())
    assert arm.reason == "1 data set counts, and a verdict needs 4"
    assert {one.data_set for one in arm.comparisons} == {"a + b + c + d and 2 more"}
    assert verdict.cautions[0].startswith(
        "a, b, c, d and 2 more count as one data set: their differences go together from seed to seed"
    )


def test_the_same_networks_counted_many_times_would_get_a_wrong_verdict_often():
    differences = np.random.default_rng(0).standard_normal((4000, 1, 8)) + np.zeros((4000, 8, 1))
    differences += 0.3 * np.random.default_rng(1).standard_normal(differences.shape)  # of the test images
    found = pooled(differences.mean(2), differences.var(2, ddof=1) / 8)
    assert (found.p_difference() <= 0.05).mean() > 0.35


def test_two_test_sets_of_the_same_networks_count_once_among_others():
    comparisons = several() | on_test_sets(2, own=0.05, num_seeds=12)
    arm = only(across(comparisons))
    assert len(arm.data_sets) == len(EFFECTS) + 1
    assert [one.num_comparisons for one in arm.data_sets if one.name == "a + b"] == [2]


@pytest.mark.parametrize("kind", ["normal", "outliers"])
def test_independent_trainings_with_the_same_seeds_count_each(kind):
    rng, mistaken = np.random.default_rng(7), 0
    for _ in range(1000):
        table = rng.standard_normal((6, 12))
        if kind == "outliers":  # a run that failed now and then
            table -= 15 * (rng.random((6, 12)) < 0.08)
        mistaken += bool(related([{str(number): dict(enumerate(row)) for number, row in enumerate(table)}]))
    assert mistaken <= 1000 * LIMIT + 3 * math.sqrt(1000 * LIMIT)


def test_agreement_is_kendalls():
    rng = np.random.default_rng(8)
    table = rng.standard_normal((2, 9)).round(1)
    chance = _chance([dict(enumerate(row)) for row in table])
    assert chance == pytest.approx(spearmanr(*table, alternative="greater").pvalue, rel=1e-9)
    # four judges who agree on 7 things: each order has the probability 1 / 7!
    assert _chance([dict(enumerate(range(7)))] * 4) == pytest.approx(1 / math.factorial(7) ** 3)
    assert _chance([dict(enumerate([1.0] * 7))] * 2) == 1
    assert _chance([{0: 1.0, 1: 2.0}, {1: 1.0, 2: 2.0}]) == 1
