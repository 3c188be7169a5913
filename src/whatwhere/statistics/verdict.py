"""The verdict on each arm against the baseline: helps, hurts, no practical difference, cannot tell yet."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from msgspec import Meta

from ..base.errors import UserError, check_integer
from ..base.limits import ARMS
from ..base.words import brief, counted, few, listed, named, short, spelling, suggest
from . import wording
from .decide import HELPS, HURTS, SAME, UNKNOWN, Case, decide, holm, pairs_to_settle
from .derived import derived_notes, odd_seed
from .direction import is_called_best, is_of_training
from .epochs import CHOSEN
from .independence import cautions_about, doubt_about
from .looks import ALPHA, LEAST_PAIRS, MOST_SEEDS, Schedule
from .metric import METRICS, Metric, check_direction, margin_for, metric_for, usual_metric
from .paired import PairedDifference
from .plausible import doubt_about_zeros, fault_of
from .results import Results, by_number, numbered

# bounds that hold where a verdict is read from a file
_Name = Annotated[str, Meta(min_length=1)]
_Figures = tuple[Annotated[float, Meta(ge=-1e100, le=1e100)], ...]
_Count = Annotated[int, Meta(ge=0, le=MOST_SEEDS)]

BASELINES = ("none", "baseline")  # names of the arm that the others are compared with

__all__ = ["HELPS", "HURTS", "SAME", "UNKNOWN", "ArmVerdict", "Judgement", "judge"]


@dataclass(frozen=True, kw_only=True)
class ArmVerdict:
    """The verdict on one arm against the baseline; figures and differences in the metric's unit as shown.

    Attributes:
        arm: Its name.
        verdict: One of the four.
        conclusion: The verdict as a sentence that says what to do; "" in files of old versions.
        reason: The figures behind it, as a sentence.
        advice: What to do where there is no verdict yet.
        cautions: Sentences that a reader must know.
        hardly_used: Which of the two arms have an attention that has hardly begun in most of the judged runs.
        is_control: Whether it is a positive control, an arm that is known to do worse.
        num_pairs: Complete pairs that the verdict is read from.
        plan: The schedule of its looks, as the files call it; None while there are fewer than 6 pairs.
        seeds, baseline, treatment, differences: Pair by pair, those after the look included.
        mean_difference, standard_deviation: Arm minus baseline; None with fewer than 2 pairs, as all that follows.
        interval_95: Paired-t interval; None where the pairs may not be independent (`doubt_about`), as all that
            follows but level.
        level: Two-sided level of the test that the verdict is read at, after looks and arms; None where there can be
            no verdict.
        deciding_interval: The t interval at that level.
        p_t, p_t_holm: Paired t-test, two-sided, and corrected over the arms after Holm.
        p_sign_flip, p_sign_flip_holm: The same for the sign-flip test.
        p_equivalence: Twice the p-value of two one-sided tests against the margin.
        win_probability, win_interval: That the arm is better in a random pair, and its 95 % interval.
        skewness: Of the differences, in standard errors.
        pairs_to_settle: (low, high): total pairs likely to settle it; high is None above 1,000. None where the verdict
            is there, or cannot come.
    """

    arm: _Name
    verdict: _Name
    reason: str
    conclusion: str = ""
    advice: str = ""
    cautions: tuple[str, ...] = ()
    hardly_used: tuple[_Name, ...] = ()
    is_control: bool = False
    num_pairs: _Count = 0
    plan: Schedule | None = None
    seeds: tuple[Hashable, ...] = ()
    baseline: _Figures = ()
    treatment: _Figures = ()
    differences: tuple[float, ...] = ()
    mean_difference: float | None = None
    standard_deviation: float | None = None
    interval_95: tuple[float, float] | None = None
    level: float | None = None
    deciding_interval: tuple[float, float] | None = None
    p_t: float | None = None
    p_t_holm: float | None = None
    p_sign_flip: float | None = None
    p_sign_flip_holm: float | None = None
    p_equivalence: float | None = None
    win_probability: float | None = None
    win_interval: tuple[float, float] | None = None
    skewness: float | None = None
    pairs_to_settle: tuple[int, int | None] | None = None

    @property
    def headline(self) -> str:
        """The verdict in a few words, and whether it is on a positive control or an attention that was hardly used."""
        notes = ["positive control"] * self.is_control + ["attention hardly used"] * bool(self.hardly_used)
        return f"{self.verdict} ({', '.join(notes)})" if notes else self.verdict


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean difference of one arm from the baseline in one metric, without a verdict.

    Attributes:
        metric: Name, label and unit.
        arm: Name of the arm.
        num_pairs: Number of pairs.
        baseline_mean, arm_mean, mean_difference: Over the pairs, in the metric's unit.
        interval_95, p_t: Paired t; None where the pairs may not be independent (`doubt_about`), or zeros may be failed
            runs (`doubt_about_zeros`). p_t is also None with fewer than 6 pairs, as in the verdict.
    """

    metric: Metric
    arm: str
    num_pairs: int
    baseline_mean: float
    arm_mean: float
    mean_difference: float
    interval_95: tuple[float, float] | None
    p_t: float | None

    @property
    def better(self) -> str:
        """Which is better, "higher" or "lower"; "" where it is not known."""
        known = self.metric.higher_is_better
        return "" if known is None else "higher" if known else "lower"


@dataclass(frozen=True)
class Judgement:
    """All arms against the baseline by one metric, and their other figures beside.

    Attributes:
        metric: What is judged by.
        baseline: Name of the baseline.
        margin: The least difference that matters, in the metric's unit.
        max_pairs: Pairs at the last look; None: open.
        arms: One verdict for each other arm.
        others: Differences in the other metrics, without a verdict.
        cautions: Sentences about the figures as a whole.
    """

    metric: Metric
    baseline: _Name
    margin: Annotated[float, Meta(ge=0, le=1e100)]
    max_pairs: Annotated[int, Meta(ge=1, le=MOST_SEEDS)] | None
    arms: tuple[ArmVerdict, ...]
    others: tuple[Difference, ...]
    cautions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.metric.higher_is_better is None:
            raise ValueError("the metric judged by does not say whether higher is better")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {"alpha": ALPHA, **asdict(self)}


def judge(
    results: Results,
    *,
    metric: str | None = None,
    lower_is_better: bool | None = None,
    baseline: str | None = None,
    margin: float | None = None,
    first_look: int | Mapping[str, int] | None = None,
    max_pairs: int | None = None,
    awaited: Mapping[str, Sequence[Hashable]] | None = None,
    test_images: int | None = None,
    controls: Collection[str] = (),
) -> Judgement:
    """Return the verdict on each arm against the baseline.

    Of the first that applies:

    1. fewer than 6 complete pairs, or than the first look has, or runs missing that it awaits, or pairs that are
       not independent (`doubt_about`): cannot tell yet;
    2. the t interval lies inside -+ margin: no practical difference (also where it excludes 0);
    3. it lies on one side of 0: helps or hurts;
    4. cannot tell yet.

    Pairs are judged up to the last look of the schedule that they allow, with all that it awaits; those after it wait
    for the next.

    The interval is that of confidence 1 - level. The level is 0.05 (two-sided, so 0.025 for each of "helps" and
    "hurts") for all looks and arms together: what the schedule gives for this look (`Schedule.level`), and of that to
    each arm its share after Holm (Scandinavian Journal of Statistics 6, 1979), for claims of a difference and of none
    separately. With looks, Holm's shares are shares of what may be spent (Ye et al., Statistics in Medicine 32, 2013).
    The t interval takes the differences for normal; the sign-flip test beside it does not.

    Args:
        results: Figures by arm and seed.
        metric: What to judge by; by default accuracy, if no val_accuracy or the like stands beside it, or the only one.
        lower_is_better: Must be given for metrics that whatwhere does not know, unless the name tells that higher is
            better, as accuracy, mAP or F1 do.
        baseline: By default the arm called none or baseline, else the first.
        margin: In the unit shown (`metric_for`); by default 0.5 points.
        first_look: Pairs at the first look (`Schedule`), or these by arm; by default all there are, as this is the
            first look. Later verdicts, on more pairs, must be told it (`ArmVerdict.plan.first`).
        max_pairs: Pairs at the last look; None leaves it open.
        awaited: Seeds, by arm, that the present look waits for.
        test_images: How many images each run was tested on, where known: finds runs that differ too little for that.
        controls: Positive controls among the arms: known to do worse. A comparison that does not find that may be too
            weak for the other arms, and says so.

    Raises:
        UserError: An unknown metric or baseline, no other arm, a direction that is missing or contradicts a known
            metric, a margin that is missing or is no number, shares and percentages in one metric (`two_scales`), a
            seed that names no run (`odd_seed`), or a control that is no arm with a baseline.

    Example:
        >>> from whatwhere.experiment import Results, judge
        >>> results = Results()
        >>> for seed, (none, cbam) in enumerate([(91, 92), (90, 93), (89, 91), (92, 96), (90, 95), (91, 94)]):
        ...     results.add("none", seed, {"accuracy": none / 100})
        ...     results.add("cbam", seed, {"accuracy": cbam / 100})
        >>> [(arm.arm, arm.verdict, round(arm.mean_difference, 2)) for arm in judge(results).arms]
        [('cbam', 'helps', 3.0)]
    """
    if test_images is not None:
        check_integer("test_images", test_images)
    if len(results.seeds) > MOST_SEEDS:
        raise UserError(f"there are {len(results.seeds):,} seeds; at most {MOST_SEEDS:,} can be judged; leave some out")
    odd = odd_seed(results.seeds)
    if odd is not None:
        raise UserError(odd[1])
    if len(results.arms) > ARMS:
        raise UserError(
            f"there are {len(results.arms):,} arms, {few([short(arm, 20) for arm in results.arms])}; at most "
            f"{ARMS} can be compared: name the column of the arms with --arm-column, or leave arms out"
        )
    measure, margin = metric_and_margin(results, metric=metric, lower_is_better=lower_is_better, margin=margin)
    given, baseline = baseline, _baseline(results, baseline)
    compared = [arm for arm in results.arms if arm != baseline]
    check_controls(controls, compared)
    first_looks = first_look if isinstance(first_look, Mapping) else dict.fromkeys(compared, first_look)
    cases = []
    for arm in compared:
        case = _case(results, measure, baseline, arm, first_looks.get(arm), max_pairs, (awaited or {}).get(arm, ()))
        if case.paired is not None:
            pairs = (results, measure, baseline, arm, case.paired.seeds)
            doubt = doubt_about_zeros(*pairs) or doubt_about(*pairs, test_images)
            idle = tuple(name for name in (baseline, arm) if results.hardly_used(name, case.paired.seeds))
            case = replace(case, doubt=doubt, hardly_used=idle)
        cases.append(replace(case, is_control=arm in controls))
    cases = decide(cases, margin, higher_is_better=bool(measure.higher_is_better))
    cases = [replace(case, outlook=pairs_to_settle(case, margin)) for case in cases]
    p_t = holm([1.0 if case.judged is None else case.judged.p_t() for case in cases])
    p_sign_flip = holm([1.0 if case.judged is None else case.judged.p_sign_flip() for case in cases])
    verdicts = []
    for case, *holm_p in zip(cases, p_t, p_sign_flip, strict=True):
        # the reason names the runs that a look waits for, and says that arms share no seed
        is_said = awaited or _share_no_seed(results, baseline, case.arm, measure.name)
        is_final = case.verdict != UNKNOWN and first_looks.get(case.arm) is not None
        missing = {} if is_said else _missing(results, measure, baseline, case, is_final=is_final)
        cautions = wording.cautions(case, measure, missing)
        if case.judged is not None:
            cautions += cautions_about(results, measure, baseline, case.arm, case.judged.seeds, test_images)
        verdicts.append(_verdict(case, measure, margin, holm_p, cautions))
    differences, notes = _others(results, measure.name, baseline, cases, test_images)
    missed = [case for case in cases if case.is_control and case.judged is not None and case.verdict == UNKNOWN]
    best = [wording.chosen_epoch(measure)] if is_called_best(measure.name) and CHOSEN not in results.notes else []
    seen = [wording.of_training(measure)] if is_of_training(measure.name) else []
    values = [abs(value) for arm in results.arms for value in results.values(arm, measure.name).values()]
    large = [wording.of_margin(measure, margin)] if margin > measure.scale * max(values, default=margin) else []
    notes = [*results.notes, *best, *seen, *large, *map(wording.missed_control, missed), *notes]
    notes += derived_notes(results, measure.name)
    if given is None and known_baseline(results.arms) is None:
        notes.insert(
            0,
            f"no arm is called none or baseline: {named(baseline)}, the first arm, is taken as the baseline; "
            "--baseline names another",
        )
    return Judgement(measure, baseline, margin, max_pairs, tuple(verdicts), tuple(differences), tuple(notes))


def check_controls(controls: Collection[str], arms: Sequence[str]) -> None:
    """Raise UserError unless the positive controls are arms with a baseline."""
    if isinstance(controls, str):
        raise UserError(f"controls must be a list of names, such as ['short'], got {brief(controls)}")
    for name in controls:
        if name not in arms:
            raise UserError(f"{brief(name)} cannot be a positive control; arms with a baseline are: {few(arms, 10)}")


def _others(
    results: Results, judged_by: str, baseline: str, cases: Sequence[Case], test_images: int | None
) -> tuple[list[Difference], list[str]]:
    """Return the differences in the other metrics, and a sentence for each metric that is left out."""
    found, notes = [], []
    for name in results.metrics:
        if name == judged_by:
            continue
        if fault := fault_of(results, name):
            notes.append(f"{fault.what}; it is left out")
            continue
        shown = measure_of(results, name)
        # which way is better is known for metrics of whatwhere only
        shown = shown if name in METRICS else replace(shown, higher_is_better=None)
        fewer = []
        for case in cases:
            # the runs that the verdict uses; all of them where there is no pair
            used = results if case.paired is None else results.only([baseline, case.arm], case.paired.seeds)
            differing = difference(used, baseline, case.arm, shown, test_images)
            if differing is not None:
                there = used.values(case.arm, name)
                seeds = [seed for seed in used.values(baseline, name) if seed in there]
                zeros = doubt_about_zeros(used, shown, baseline, case.arm, seeds)
                found.append(replace(differing, interval_95=None, p_t=None) if zeros else differing)
            num_judged, num_there = len(case.paired or ()), 0 if differing is None else differing.num_pairs
            fewer += [f"{named(case.arm)} ({num_there} of {num_judged})"] if num_there < num_judged else []
        if fewer:
            notes.append(f"{named(name)} is missing in some judged pairs: {few(fewer, 4)}")
    return found, notes


def metric_and_margin(
    results: Results,
    *,
    metric: str | None = None,
    lower_is_better: bool | None = None,
    margin: float | None = None,
) -> tuple[Metric, float]:
    """Return the metric to judge by and the margin in its unit.

    Raises:
        UserError: As `judge`, as far as the runs so far tell.
    """
    names = results.metrics
    if metric is None:
        if not names:
            raise UserError("the results hold no figures; there is nothing to compare")
        metric = usual_metric(names) or names[0]
        if len(names) > 1 and not usual_metric(names):
            raise UserError(f"there are several figures, {listed(names)}; choose the one to judge by with --metric")
    elif metric not in names:
        known = listed(names) or "none"
        raise UserError(f"no run has the figure {brief(metric)}{suggest(metric, names)}; there are: {known}")
    lower = check_direction(metric, lower_is_better)
    if fault := fault_of(results, metric):
        raise UserError(f"{fault.what}; {fault.advice}")
    chosen = measure_of(results, metric, lower)
    return chosen, margin_for(chosen, margin)


def _baseline(results: Results, given: str | None) -> str:
    arms = results.arms
    if given is not None and given not in arms:
        raise UserError(f"no arm is called {brief(given)}{suggest(given, arms)}; there are: {listed(arms) or 'none'}")
    if len(arms) < 2:
        raise UserError(f"a comparison needs two arms or more, got {', '.join(map(brief, arms)) or 'none'}")
    return given or default_baseline(arms)


def known_baseline(arms: Sequence[str]) -> str | None:
    """Return the arm that its name tells to be the baseline; None where no name does.

    That is the arm called none or baseline, or else the one whose name is part of all others, as resnet is of
    resnet_cbam and resnet-se.
    """
    called = [arm for arm in arms if arm.lower() in BASELINES]
    parts = {arm: {*filter(None, re.split(r"[^0-9a-z]+", arm.lower()))} for arm in arms}
    within = [arm for arm in arms if parts[arm] and all(parts[arm] < parts[other] for other in arms if other != arm)]
    return next(iter([*called, *within]), None)


def default_baseline(arms: Sequence[str]) -> str:
    """Return the known baseline, else the first arm."""
    return known_baseline(arms) or arms[0]


def measure_of(results: Results, name: str, lower_is_better: bool = False) -> Metric:
    """Return the metric `name` with the unit of its figures; `lower_is_better` is for names whatwhere does not know."""
    if name in METRICS:
        # a metric of whatwhere says which way is better
        lower_is_better = not METRICS[name].higher_is_better
    values = [value for arm in results.arms for value in results.values(arm, name).values()]
    return metric_for(name, values, lower_is_better=lower_is_better)


def _case(
    results: Results,
    metric: Metric,
    baseline: str,
    arm: str,
    first_look: int | None,
    max_pairs: int | None,
    awaited: Sequence[Hashable],
) -> Case:
    """Return an arm's pairs up to its last look, or all of them and why there can be no verdict."""
    before, after = (results.values(name, metric.name) for name in (baseline, arm))
    num_pairs = len(before.keys() & after.keys())
    everything = results.paired(baseline, arm, metric.name, metric.scale)
    if first_look is None and num_pairs >= LEAST_PAIRS:
        first_look = min(num_pairs, max_pairs or num_pairs)
    schedule = None if first_look is None else Schedule(first_look, max_pairs)
    waiting = tuple(seed for seed in awaited if seed not in before or seed not in after)
    case = Case(arm, everything, schedule, waiting=waiting, num_pairs=num_pairs, everything=everything)
    # while a look waits for runs, the one before it stands
    look = schedule and schedule.look_at(awaited.index(waiting[0]) if waiting else num_pairs)
    if look and schedule and everything:
        pairs = PairedDifference(everything.seeds[:look], everything.baseline[:look], everything.treatment[:look])
        following = schedule.next_after(num_pairs)
        return replace(case, paired=pairs, num_to_look=None if following is None else following - num_pairs)
    first = LEAST_PAIRS if schedule is None else schedule.first
    if waiting:
        blocked = f"{len(awaited) - len(waiting)} of {len(awaited)} pairs are complete; missing: {numbered(waiting)}"
    elif not num_pairs and before and after:
        blocked = f"{named(arm)} and {named(baseline)} have no seed in common{_spelt(baseline, arm)}"
    elif not num_pairs:
        blocked = f"no seed has a run of both {named(arm)} and {named(baseline)}"
    elif num_pairs < LEAST_PAIRS:
        blocked = (
            f"there {'is' if num_pairs == 1 else 'are'} {counted(num_pairs, 'pair')}: with fewer than {LEAST_PAIRS}, "
            "even the largest difference may be chance (the p-value of the sign-flip test is at least "
            f"{min(1.0, 2 / 2**num_pairs):.2g})"
        )
    else:
        blocked = f"there are {num_pairs} pairs; the first look is at {first}"
    return replace(case, blocked=blocked, num_to_look=first - num_pairs)


def _missing(
    results: Results, metric: Metric, baseline: str, case: Case, *, is_final: bool
) -> dict[str, dict[Hashable, str]]:
    """Return `Results.missing`; after a verdict at a planned look, which ends the runs, without the seeds after it."""
    missing = results.missing(baseline, case.arm, metric.name)
    if not is_final or case.paired is None:
        return missing
    # by number: seeds that were judged before stand first in results.seeds, whatever is missing among them
    place = {seed: number for number, seed in enumerate(sorted(results.seeds, key=by_number))}
    last = max(place[seed] for seed in case.paired.seeds)
    early = {arm: {seed: why for seed, why in of.items() if place[seed] < last} for arm, of in missing.items()}
    return {arm: seeds for arm, seeds in early.items() if seeds}


def _share_no_seed(results: Results, baseline: str, arm: str, metric: str) -> bool:
    """Return whether both arms have figures, and no seed has a run of both."""
    have_figures = results.values(baseline, metric) and results.values(arm, metric)
    return bool(have_figures) and not results.runs(baseline).keys() & results.runs(arm).keys()


def _spelt(baseline: str, arm: str) -> str:
    """Return a hint where one arm, such as none and None, may have two spellings."""
    if spelling(arm) != spelling(baseline):
        return ""
    return f"; {named(arm)} and {named(baseline)} may be meant to be one arm: spell it alike"


def _verdict(case: Case, metric: Metric, margin: float, holm_p: Sequence[float], cautions: Sequence[str]) -> ArmVerdict:
    paired, everything, level = case.paired, case.everything, case.level
    verdict = ArmVerdict(
        arm=case.arm,
        plan=case.schedule,
        verdict=case.verdict,
        conclusion=wording.conclusion(case, metric, margin),
        reason=wording.reason(case, metric, margin),
        advice=wording.advice(case),
        cautions=tuple(cautions),
        hardly_used=case.hardly_used,
        is_control=case.is_control,
    )
    if paired is None or everything is None:
        return verdict
    verdict = replace(
        verdict,
        num_pairs=len(paired),
        seeds=everything.seeds,
        baseline=everything.baseline,
        treatment=everything.treatment,
        differences=everything.differences,
        mean_difference=paired.mean,
        standard_deviation=paired.standard_deviation,
        level=level,
    )
    if case.doubt is not None:
        return verdict
    win, low, high = paired.win_probability()
    if not metric.higher_is_better:
        win, low, high = 1 - win, 1 - high, 1 - low
    return replace(
        verdict,
        interval_95=paired.interval(),
        deciding_interval=None if level is None else paired.interval(1 - level),
        p_t=None if case.blocked else paired.p_t(),
        p_t_holm=None if case.blocked else holm_p[0],
        p_sign_flip=None if case.blocked else paired.p_sign_flip(),
        p_sign_flip_holm=None if case.blocked else holm_p[1],
        p_equivalence=None if case.blocked else paired.p_equivalence(margin),
        win_probability=win,
        win_interval=(low, high),
        skewness=paired.skewness(),
        pairs_to_settle=case.outlook and case.outlook[:2],
    )


def difference(
    results: Results, baseline: str, arm: str, metric: Metric, test_images: int | None = None
) -> Difference | None:
    """Return the mean difference between two arms, without a verdict; None with fewer than two pairs."""
    paired = results.paired(baseline, arm, metric.name, metric.scale)
    if paired is None:
        return None
    is_sound = not doubt_about(results, metric, baseline, arm, paired.seeds, test_images)
    return Difference(
        metric=metric,
        arm=arm,
        num_pairs=len(paired),
        baseline_mean=sum(paired.baseline) / len(paired),
        arm_mean=sum(paired.treatment) / len(paired),
        mean_difference=paired.mean,
        interval_95=paired.interval() if is_sound else None,
        p_t=paired.p_t() if is_sound and len(paired) >= LEAST_PAIRS else None,
    )
