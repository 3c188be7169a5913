"""One verdict on each arm over several comparisons: data sets and networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median_low
from typing import Any

from ..base.errors import UserError
from ..base.words import brief, counted, few, named, spelt_alike
from .decide import HELPS, HURTS, SAME, UNKNOWN, Case, decide, step_down
from .independence import LEAST_DIFFERENT, copied_seeds
from .looks import ALPHA
from .metric import Metric, two_scales
from .paired import PairedDifference
from .pooled import Pooled, pooled
from .related import related
from .verdict import ArmVerdict, Judgement
from .wording import percent, quantity, span

HELPS_ON_AVERAGE, HURTS_ON_AVERAGE, DEPENDS = "helps on average", "hurts on average", "it depends"
LEAST_DATA_SETS = 4  # for a mean
LEAST_COMPARISONS = 4  # for "it depends", which needs no mean
_MOST_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class Member:
    """One comparison of an arm with its baseline.

    Attributes:
        comparison, data_set: Names.
        num_pairs: Pairs up to the last look of the comparison's own schedule.
        mean_difference, standard_error, interval_95: Of these pairs, in the metric's unit; None where there is none.
        verdict: One of the four of a single comparison, the error shared among all comparisons and arms.
        left_out: Why it does not count; "" if it does.
    """

    comparison: str
    data_set: str
    num_pairs: int
    mean_difference: float | None
    standard_error: float | None
    interval_95: tuple[float, float] | None
    verdict: str = UNKNOWN
    left_out: str = ""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What the comparisons of one data set say together: the mean of their means.

    Attributes:
        name: Its name.
        num_comparisons: How many there are.
        mean_difference: The plain mean of their mean differences.
        standard_error: The plain mean of their standard errors, as if the comparisons were perfectly correlated: they
            share their images, so the true error is at most that.
        weight: Its share in the mean over all data sets.
        without, interval_without, verdict_without: Mean, interval that decides and verdict without this data set.
    """

    name: str
    num_comparisons: int
    mean_difference: float
    standard_error: float
    weight: float
    without: float
    interval_without: tuple[float, float]
    verdict_without: str


@dataclass(frozen=True, kw_only=True)
class AcrossArm:
    """The verdict on one arm over all comparisons that have it, in the metric's unit.

    Attributes:
        arm: Its name.
        verdict: "helps on average", "hurts on average", "no practical difference", "it depends" or "cannot tell yet".
        conclusion: The verdict as a sentence that says what to do.
        reason: The figures behind it.
        cautions: Sentences that a reader must know.
        is_control: Whether it is a positive control, an arm that is known to do worse.
        comparisons: Each comparison, those that do not count included.
        data_sets: Each data set that counts; empty with fewer than 4, as there is no mean then.
        mean_difference: Random-effects mean over the data sets (`Pooled`); None with fewer than 4, as all that follows.
        interval_95, prediction_interval: Of the mean, and of the effect in the next data set (95 %).
        level: Two-sided level of the test that the verdict is read at, after Holm's correction over the arms.
        deciding_interval: Of the mean, at that level.
        deviation_between: Standard deviation of the true effects between data sets, tau.
        p_difference, p_equivalence: As `Pooled` gives them.
    """

    arm: str
    verdict: str
    conclusion: str
    reason: str
    cautions: tuple[str, ...]
    comparisons: tuple[Member, ...]
    is_control: bool = False
    data_sets: tuple[DataSet, ...] = ()
    mean_difference: float | None = None
    interval_95: tuple[float, float] | None = None
    prediction_interval: tuple[float, float] | None = None
    level: float | None = None
    deciding_interval: tuple[float, float] | None = None
    deviation_between: float | None = None
    p_difference: float | None = None
    p_equivalence: float | None = None

    @property
    def headline(self) -> str:
        """The verdict, and whether it is on a positive control."""
        return f"{self.verdict} (positive control)" if self.is_control else self.verdict


@dataclass(frozen=True)
class Across:
    """One verdict on each arm over all comparisons.

    Attributes:
        metric: What is judged by.
        margin: The least difference that matters, in the metric's unit.
        baselines: The baseline of each comparison.
        arms: One verdict for each other arm.
        cautions: Sentences about the comparisons as a whole.
    """

    metric: Metric
    margin: float
    baselines: dict[str, str]
    arms: tuple[AcrossArm, ...]
    cautions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {"alpha": ALPHA, **asdict(self)}


def across(comparisons: Mapping[str, Judgement], data_sets: Mapping[str, str] | None = None) -> Across:
    """Return one verdict on each arm over several comparisons.

    A comparison counts with the pairs and the looks of its own verdict; one with fewer than 6 pairs, or whose pairs may
    not be independent, is shown and does not count. The comparisons of one data set are combined first (`DataSet`), so
    that it counts once; data sets on which the same networks were tested (`related`) are one, and a caution says so.
    Of the first that applies:

    1. a comparison helps and another hurts, each as the verdict of one comparison is made (`decide`), with one error
       of 5 % shared after Holm among all comparisons and arms: it depends, from 4 comparisons on;
    2. fewer than 4 data sets: cannot tell yet;
    3. the interval of the mean lies inside -+ margin: no practical difference;
    4. it lies on one side of 0: helps on average, or hurts on average;
    5. cannot tell yet.

    The interval is `Pooled.interval` of confidence 1 - level: 0.05 for all arms together (two-sided, so 0.025 for each
    direction), shared after Holm among the arms with 4 data sets or more, for claims of a difference and of none
    separately. Simulated, each wrong verdict comes up at most 2.5 % (`benchmarks/across.py`). That holds for one
    reading: reading again after each further data set errs more often.

    Args:
        comparisons: The verdict of `judge` on each comparison, by a name for it.
        data_sets: The data set of each comparison, by the same names; by default each is a data set of its own.

    Raises:
        UserError: Fewer than two comparisons, other metrics, units or margins, a baseline that is an arm elsewhere, a
            data set for a name that is none, a name in two spellings, or runs that stand in two comparisons.

    Example:
        >>> from whatwhere.experiment import Results, across, judge
        >>> def compared(effect):
        ...     results = Results()
        ...     for seed, noise in enumerate([0.4, -0.1, 0.2, -0.5, 0.1, -0.3]):
        ...         results.add("none", seed, {"accuracy": 0.9 + (seed + effect) / 500})
        ...         results.add("cbam", seed, {"accuracy": 0.9 + (seed + effect) / 500 + (effect + noise) / 100})
        ...     return judge(results)
        >>> verdict = across({name: compared(2 + number / 10) for number, name in enumerate("ABCD")})
        >>> [(arm.arm, arm.verdict, round(arm.mean_difference, 2)) for arm in verdict.arms]
        [('cbam', 'helps on average', 2.12)]
    """
    metric, margin = _shared_terms(comparisons)
    names = dict(data_sets or {})
    if odd := [name for name in names if name not in comparisons]:
        raise UserError(f"data_sets names {brief(odd[0])}, which is no comparison; there are: {few(list(comparisons))}")
    given = {name: names.get(name, name) for name in comparisons}
    _check_spelling("data sets", given.values())
    _check_spelling("arms", [arm.arm for judgement in comparisons.values() for arm in judgement.arms])
    _check_baselines(comparisons)
    _check_copies(comparisons, given)
    together = related(_differences(comparisons, given))
    one_set = {name: few(group, _MOST_NAMED, " + ") for group in together for name in group}
    given = {name: one_set.get(of, of) for name, of in given.items()}
    members, cases = _members(comparisons, given)
    told = decide([case for _, _, case in cases], margin, higher_is_better=bool(metric.higher_is_better))
    for (arm, index, _), case in zip(cases, told, strict=True):
        members[arm][index] = replace(members[arm][index], verdict=case.verdict)
    means = {arm: _by_data_set(found) for arm, found in members.items()}
    judged = {arm: _pooled(found) for arm, found in means.items() if len(found) >= LEAST_DATA_SETS}
    p_difference = [float(one.p_difference()) for one in judged.values()]
    p_equivalence = [float(one.p_equivalence(margin)) for one in judged.values()]
    differ, same = (step_down(p, lambda _, left: ALPHA / left) for p in (p_difference, p_equivalence))
    arms = []
    for arm, found in members.items():
        cautions = [f"{name}: {text}" for name, text in _told_of(arm, comparisons)]
        if arm in judged:
            index = list(judged).index(arm)
            rule = _Rule(metric, margin, ALPHA / same[1][index], ALPHA / differ[1][index])
            verdict = _verdict(arm, found, means[arm], judged[arm], rule, cautions)
        else:
            verdict = _without_mean(arm, found, len(means[arm]), cautions)
        arms.append(_as_control(verdict, comparisons))
    notes = [
        f"{few(group, _MOST_NAMED)} count as one data set: their differences go together from seed to seed, as those "
        "of the same trained networks do when they are tested on other images"
        for group in together
    ]
    if assumed := [name for name in comparisons if name not in names]:
        notes.append(
            f"taken for data sets of their own: {few(assumed, 6)}; if two "
            "comparisons use the same images, name the data sets with --data-sets, or the verdict is too sure"
        )
    if len(names_of := dict.fromkeys(one.baseline for one in comparisons.values())) > 1:
        notes.append(f"the baselines are called {few(list(names_of), 6)}: they are taken for the same network")
    notes += [f"{name}: {text}" for name, judgement in comparisons.items() for text in judgement.cautions]
    notes = [*_scales(comparisons, metric), *notes]
    baselines = {name: judgement.baseline for name, judgement in comparisons.items()}
    return Across(metric, margin, baselines, tuple(arms), tuple(notes))


def _shared_terms(comparisons: Mapping[str, Judgement]) -> tuple[Metric, float]:
    """Return the metric and the margin that all comparisons share."""
    if len(comparisons) < 2:
        raise UserError(f"a verdict across comparisons needs two or more, got {len(comparisons)}")
    first, *others = comparisons.items()
    metric, margin = first[1].metric, first[1].margin
    for name, judgement in others:
        other = judgement.metric
        if other.name != metric.name:
            raise UserError(
                f"{named(first[0])} is judged by {brief(metric.name)}, {named(name)} by {brief(other.name)}; name one "
                "figure that all have with --metric"
            )
        if (other.unit, other.higher_is_better) != (metric.unit, metric.higher_is_better):
            raise UserError(
                f"{named(metric.label)} has other units or another direction in {named(name)} than in "
                f"{named(first[0])}; give figures of one scale"
            )
        if judgement.margin != margin:
            raise UserError(
                f"the margin is {margin:g} in {named(first[0])} and {judgement.margin:g} in {named(name)}; give one "
                "for all with --margin"
            )
    return metric, margin


def _scales(comparisons: Mapping[str, Judgement], metric: Metric) -> list[str]:
    """Return the caution that tables may be in shares and in percentages; figures in points have one scale already."""
    middles = {
        name: median_low([value for arm in judgement.arms for value in arm.baseline] or [0.0])
        for name, judgement in comparisons.items()
    }
    found = None if metric.unit else two_scales(metric.name, middles.values())
    if found is None:
        return []
    share, percentage = (
        f"{value:g} in {named(next(name for name in middles if middles[name] == value))}" for value in found
    )
    return [
        f"{named(metric.label)} may have two scales, shares such as {share} and percentages such as {percentage}: if "
        "so, this verdict is wrong; give figures of one scale"
    ]


def _check_spelling(what: str, names: Iterable[str]) -> None:
    """Raise UserError if two names are spellings of one: an arm or a data set would count as two."""
    if alike := spelt_alike(names):
        raise UserError(f"the {what} {' and '.join(map(brief, alike[0]))} are spellings of one name; spell them alike")


def _check_baselines(comparisons: Mapping[str, Judgement]) -> None:
    """Raise UserError if the baseline of a comparison is an arm of another."""
    arms = {arm.arm: name for name, judgement in comparisons.items() for arm in judgement.arms}
    for name, judgement in comparisons.items():
        if judgement.baseline in arms:
            raise UserError(
                f"{brief(judgement.baseline)} is the baseline of {named(name)} and an arm of "
                f"{named(arms[judgement.baseline])}; name one baseline for all with --baseline"
            )


def _check_copies(comparisons: Mapping[str, Judgement], data_sets: Mapping[str, str]) -> None:
    """Raise UserError if runs stand in two comparisons: they would count twice."""
    for (name, one), (other_name, other) in itertools.combinations(comparisons.items(), 2):
        arms = {arm.arm: arm for arm in other.arms}
        for arm in one.arms:
            if arm.arm not in arms:
                continue
            pair = (arm, arms[arm.arm])
            if _are_copied([(of.seeds, of.treatment) for of in pair], one.metric):
                raise UserError(
                    f"{named(name)} and {named(other_name)} hold the same figures of {named(arm.arm)}: runs that stand "
                    "in two comparisons would count twice; leave one out"
                )
            is_one = data_sets[name] == data_sets[other_name]
            if not is_one and _are_copied([(of.seeds, of.baseline) for of in pair], one.metric):
                raise UserError(
                    f"{named(name)} and {named(other_name)} hold the same figures of their baseline, so they are of "
                    "one data set; say so with --data-sets"
                )


def _differences(
    comparisons: Mapping[str, Judgement], data_sets: Mapping[str, str]
) -> list[dict[str, dict[Hashable, float]]]:
    """Return for each arm the mean differences by seed in each data set, of seeds that all its comparisons have."""
    found: dict[str, dict[str, list[dict[Hashable, float]]]] = {}
    for name, judgement in comparisons.items():
        for arm in judgement.arms:
            by_seed: dict[Hashable, float] = dict(zip(map(str, arm.seeds), arm.differences, strict=True))
            found.setdefault(arm.arm, {}).setdefault(data_sets[name], []).append(by_seed)
    return [
        {
            name: {seed: fmean(one[seed] for one in of) for seed in set.intersection(*map(set, of))}
            for name, of in sets.items()
        }
        for sets in found.values()
    ]


def _are_copied(runs: Sequence[tuple[Sequence[Any], Sequence[float]]], metric: Metric) -> bool:
    """Return whether runs of two comparisons, as (seeds, figures), are alike by more than chance, or renumbered."""
    first, second = (dict(zip(map(str, seeds), values, strict=True)) for seeds, values in runs)
    if copied_seeds(first, second, metric.name):
        return True
    ordered = [sorted(values.values()) for values in (first, second)]
    return len({*ordered[0]}) >= LEAST_DIFFERENT and ordered[0] == ordered[1]


def _members(
    comparisons: Mapping[str, Judgement], data_sets: Mapping[str, str]
) -> tuple[dict[str, list[Member]], list[tuple[str, int, Case]]]:
    """Return the comparisons of each arm, and of each that counts (arm, index among these, its case)."""
    members: dict[str, list[Member]] = {}
    cases = []
    for name, judgement in comparisons.items():
        for arm in judgement.arms:
            found = members.setdefault(arm.arm, [])
            counts = arm.level is not None and arm.interval_95 is not None
            error = None
            if arm.interval_95 is not None and arm.standard_deviation is not None:
                error = arm.standard_deviation / math.sqrt(arm.num_pairs)
            if counts:
                cases.append((arm.arm, len(found), case_of(arm)))
            found.append(
                Member(
                    comparison=name,
                    data_set=data_sets[name],
                    num_pairs=arm.num_pairs,
                    mean_difference=arm.mean_difference,
                    standard_error=error,
                    interval_95=arm.interval_95,
                    left_out="" if counts else arm.reason,
                )
            )
    return members, cases


def case_of(arm: ArmVerdict) -> Case:
    """Return what `decide` needs of a verdict: the pairs up to its last look, and its looks."""
    end = arm.num_pairs
    return Case(arm.arm, PairedDifference(arm.seeds[:end], arm.baseline[:end], arm.treatment[:end]), arm.plan)


def _by_data_set(members: Sequence[Member]) -> dict[str, tuple[float, float]]:
    """Return the mean difference and its standard error in each data set (`DataSet`)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in members:
        if not one.left_out and one.mean_difference is not None and one.standard_error is not None:
            found.setdefault(one.data_set, []).append((one.mean_difference, one.standard_error))
    return {name: (fmean(mean for mean, _ in of), fmean(error for _, error in of)) for name, of in found.items()}


def _pooled(means: Mapping[str, tuple[float, float]]) -> Pooled:
    return pooled([mean for mean, _ in means.values()], [error**2 for _, error in means.values()])


def _told_of(arm: str, comparisons: Mapping[str, Judgement]) -> list[tuple[str, str]]:
    """Return (comparison, caution) for all that the verdicts on single comparisons say about an arm."""
    told = []
    for name, judgement in comparisons.items():
        for judged in judgement.arms:
            if judged.arm == arm:
                told += [(name, caution) for caution in judged.cautions]
                if judged.hardly_used:
                    told.append((name, f"the attention of {' and '.join(judged.hardly_used)} was hardly used"))
    return told


def _as_control(arm: AcrossArm, comparisons: Mapping[str, Judgement]) -> AcrossArm:
    """Return an arm that says, if it is a positive control, in which comparisons it is found by their own verdicts."""
    single = {name: one for name, of in comparisons.items() for one in of.arms if one.arm == arm.arm}
    if not any(one.is_control for one in single.values()):
        return arm
    counting = [one.comparison for one in arm.comparisons if not one.left_out]
    found = [name for name in counting if single[name].verdict == HURTS]
    missed = [name for name in counting if single[name].verdict == UNKNOWN]
    text = f"The positive control {named(arm.arm)} is found in {len(found)} of {counted(len(counting), 'comparison')}"
    if missed:
        text += f", not in {few(missed, _MOST_NAMED)}, which may be too weak for the other arms, too"
    return replace(arm, is_control=True, conclusion=text)


def _without_mean(arm: str, members: Sequence[Member], num: int, cautions: Sequence[str]) -> AcrossArm:
    here = f"{counted(num, 'data set')} {'counts' if num == 1 else 'count'}"
    helped, hurt = _decided(members)
    if helped and hurt and sum(not one.left_out for one in members) >= LEAST_COMPARISONS:
        verdict, conclusion = DEPENDS, _case_by_case(arm, helped, hurt)
        reason = f"{_both_ways(helped, hurt)}; {here}, and a mean needs {LEAST_DATA_SETS}"
    else:
        verdict, reason = UNKNOWN, f"{here}, and a verdict needs {LEAST_DATA_SETS}"
        more = counted(LEAST_DATA_SETS - num, "more data set", "more data sets")
        conclusion = f"Cannot tell about {named(arm)} yet: compare it on at least {more}"
    return AcrossArm(
        arm=arm,
        verdict=verdict,
        conclusion=conclusion,
        reason=reason + _left_out(members),
        cautions=tuple(cautions),
        comparisons=tuple(members),
    )


def _left_out(members: Sequence[Member]) -> str:
    left_out = [member.comparison for member in members if member.left_out]
    return f"; {few(left_out, _MOST_NAMED)} {'does' if len(left_out) == 1 else 'do'} not count" if left_out else ""


@dataclass(frozen=True)
class _Rule:
    """How the verdict on a mean is read: at which two levels, each an arm's share of the error of a kind of claim."""

    metric: Metric
    margin: float
    same_level: float
    differ_level: float

    def verdict(self, found: Pooled) -> str:
        if found.p_equivalence(self.margin) <= self.same_level:
            return SAME
        if found.p_difference() > self.differ_level:
            return UNKNOWN
        return HELPS_ON_AVERAGE if bool(found.mean > 0) is self.metric.higher_is_better else HURTS_ON_AVERAGE

    def level(self, verdict: str) -> float:
        return self.same_level if verdict == SAME else self.differ_level


def _ends(bounds: tuple[Any, Any]) -> tuple[float, float]:
    return float(bounds[0]), float(bounds[1])


def _verdict(
    arm: str,
    members: Sequence[Member],
    means: Mapping[str, tuple[float, float]],
    found: Pooled,
    rule: _Rule,
    cautions: Sequence[str],
) -> AcrossArm:
    helped, hurt = _decided(members)
    of_mean = rule.verdict(found)
    verdict, level = DEPENDS if helped and hurt else of_mean, rule.level(of_mean)
    weights = {name: 1 / (error**2 + float(found.tau_squared)) for name, (_, error) in means.items()}
    data_sets = []
    for name, (of_set, error) in means.items():
        rest = _pooled({other: of for other, of in means.items() if other != name})
        data_sets.append(
            DataSet(
                name=name,
                num_comparisons=sum(one.data_set == name and not one.left_out for one in members),
                mean_difference=of_set,
                standard_error=error,
                weight=weights[name] / sum(weights.values()),
                without=float(rest.mean),
                interval_without=_ends(rest.interval(1 - level)),
                verdict_without=rule.verdict(rest),
            )
        )
    hinges = [one.name for one in data_sets if one.verdict_without != verdict]
    if verdict not in (DEPENDS, UNKNOWN) and hinges:
        cautions = [f"the verdict would not stand without {few(hinges, _MOST_NAMED, ' or without ')}", *cautions]
    deciding, following = _ends(found.interval(1 - level)), _ends(found.prediction_interval())
    mean = quantity(float(found.mean), rule.metric, signed=True)
    return AcrossArm(
        arm=arm,
        verdict=verdict,
        conclusion=_conclusion(arm, verdict, deciding, rule, helped, hurt),
        reason=f"{named(rule.metric.label)} changes by {mean} on average over {found.num} data sets "
        f"({percent(1 - level)} interval: {span(deciding, rule.metric)}); {_meaning(verdict, rule, helped, hurt)}; "
        f"in the next data set it may lie anywhere from {span(following, rule.metric)} (95 % prediction interval)"
        f"{_left_out(members)}",
        cautions=tuple(cautions),
        comparisons=tuple(members),
        data_sets=tuple(data_sets),
        mean_difference=float(found.mean),
        interval_95=_ends(found.interval()),
        prediction_interval=following,
        level=level,
        deciding_interval=deciding,
        deviation_between=math.sqrt(float(found.tau_squared)),
        p_difference=float(found.p_difference()),
        p_equivalence=float(found.p_equivalence(rule.margin)),
    )


def _decided(members: Sequence[Member]) -> tuple[list[str], list[str]]:
    """Return the comparisons in which an arm helps, and those in which it hurts."""
    helped, hurt = ([one.comparison for one in members if one.verdict == verdict] for verdict in (HELPS, HURTS))
    return helped, hurt


def _case_by_case(arm: str, helped: Sequence[str], hurt: Sequence[str]) -> str:
    helps, hurts = few(helped, _MOST_NAMED), few(hurt, _MOST_NAMED)
    return f"Choose {named(arm)} case by case: it helps in {helps} and hurts in {hurts}"


def _both_ways(helped: Sequence[str], hurt: Sequence[str]) -> str:
    times = counted(len(helped), "comparison")
    return f"it helps in {times} and hurts in {len(hurt)}, which chance alone hardly explains"


def _conclusion(
    arm: str,
    verdict: str,
    deciding: tuple[float, float],
    rule: _Rule,
    helped: Sequence[str],
    hurt: Sequence[str],
) -> str:
    name = named(arm)
    if verdict == DEPENDS:
        return _case_by_case(arm, helped, hurt)
    if verdict == SAME:
        return f"{name} makes no practical difference on average; take the cheaper network"
    if verdict == HURTS_ON_AVERAGE:
        return f"Do not choose {name} untried: on average it does worse than the baseline"
    if verdict == UNKNOWN:
        return f"Cannot tell about {name} yet: compare it on more data sets, or add pairs where the intervals are wide"
    if min(map(abs, deciding)) < rule.margin:
        least = quantity(rule.margin, rule.metric)
        return f"{name} helps on average, but perhaps by less than {least}; try it if it costs little"
    return f"Try {name} first: on average it does better than the baseline"


def _meaning(verdict: str, rule: _Rule, helped: Sequence[str], hurt: Sequence[str]) -> str:
    limit = f"the margin of {quantity(rule.margin, rule.metric)}"
    if verdict == DEPENDS:
        return f"but {_both_ways(helped, hurt)}"
    if verdict == SAME:
        return f"any difference on average is smaller than {limit}"
    if verdict == UNKNOWN:
        return "on average there may be no difference" + (f", or one larger than {limit}" if rule.margin else "")
    return "chance alone hardly explains this"
