"""Verdicts in words."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from ..base.words import counted, few, named, short
from .decide import HELPS, HURTS, SAME, UNKNOWN, Case
from .looks import LEAST_PAIRS
from .metric import Metric
from .results import numbered

SKEWED = 2.0  # standard errors


def quantity(value: float, metric: Metric, *, signed: bool = False) -> str:
    """Return a figure or a difference with its unit: "+1.25 points"."""
    kind = ".2f" if metric.unit == "points" else ".4g"
    text = f"{value:{'+' if signed else ''}{kind}}"
    # zero after rounding has no sign
    text = text.replace("-", "").replace("+", "") if not float(text) else text
    return f"{text} {metric.unit}".strip()


def span(interval: tuple[float, float], metric: Metric) -> str:
    """Return "-0.40 to +1.10 points"."""
    low, high = (quantity(bound, metric, signed=True) for bound in interval)
    return f"{low.removesuffix(metric.unit).strip()} to {high}"


def percent(share: float) -> str:
    """Return a share as a percentage of at most two decimals: "95 %", "97.74 %"."""
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + " %"


def conclusion(case: Case, metric: Metric, margin: float) -> str:
    """Return the verdict as a sentence that says what to do."""
    if case.hardly_used:
        used = f"The attention of {' and '.join(map(named, case.hardly_used))} was hardly used"
        return f"{used}: train for more steps before you decide about {named(case.arm)}"
    if case.verdict == UNKNOWN:
        return _next_step(case)
    return _control(case.arm, case.verdict) if case.is_control else _choice(case, metric, margin)


def _control(arm: str, verdict: str) -> str:
    """Return what a verdict on a positive control says about the comparison."""
    if verdict == HURTS:
        return f"The positive control {named(arm)} is found: it does worse than the baseline"
    found = "makes no practical difference" if verdict == SAME else "does better than the baseline"
    return f"{named(arm)} {found}: it is no positive control here, and says nothing about the other arms"


def missed_control(case: Case) -> str:
    """Return the caution on a positive control that is not found."""
    yet = "" if case.num_to_look is None else " yet"
    return (
        f"the positive control {named(case.arm)} is not found{yet}: where this comparison cannot tell about another "
        "arm, it may be too weak to tell"
    )


def chosen_epoch(metric: Metric) -> str:
    """Return the caution on a figure whose name says that it is the best of several."""
    return (
        f"{named(metric.label)} is the best of several by its name: if they are the epochs of a run, chosen by this "
        "figure, it is that of the luckiest epoch, too high, and more so for an arm whose figures vary more between "
        "epochs; the figure of the last epoch would be fair"
    )


def of_training(metric: Metric) -> str:
    """Return the caution on a figure of the training images."""
    return (
        f"{named(metric.label)} is of the training images by its name: a network that has learned them by heart does "
        "best there, and may do worse on others; a figure of images that it has not seen would tell"
    )


def of_margin(metric: Metric, margin: float) -> str:
    """Return the caution on a margin that is larger than the figures themselves."""
    return (
        f"the margin of {margin:g} is larger than any figure of {named(metric.label)}: if it is in another unit, give "
        "one in that of the figures, as smaller differences count as none"
    )


def _choice(case: Case, metric: Metric, margin: float) -> str:
    arm = named(case.arm)
    if case.verdict == SAME:
        return f"{arm} makes no practical difference; take the cheaper network"
    if case.verdict == HURTS:
        less = f", but perhaps by less than {quantity(margin, metric)}" if _may_be_small(case, margin) else ""
        return f"Do not choose {arm}: it does worse than the baseline{less}"
    small = f"{arm} helps, but perhaps by less than {quantity(margin, metric)}; keep it if it costs little"
    return small if _may_be_small(case, margin) else f"Keep {arm}: it does better than the baseline"


def _next_step(case: Case) -> str:
    arm, outlook = named(case.arm), case.outlook
    if case.doubt is not None and not case.blocked:
        return f"Cannot tell about {arm}: check its runs and those of the baseline first"
    if case.waiting:
        next_step = "finish the missing runs"
    elif case.num_to_look is None or (outlook is not None and outlook.is_hopeless):
        if case.is_control:
            return f"The positive control {arm} is not found, and more pairs will hardly change that"
        return f"Do not choose {arm} on this evidence"
    elif case.blocked and not case.num_pairs:
        next_step = f"train {arm} and the baseline with the same seeds"
    else:
        least = max(case.num_to_look, 0 if outlook is None else outlook.low - case.num_pairs)
        next_step = f"train at least {counted(least, 'more seed')}"
    return f"Cannot tell about {arm} yet: {next_step}"


def reason(case: Case, metric: Metric, margin: float) -> str:
    """Return the figures behind a verdict as a sentence."""
    paired, level = case.paired, case.level
    if case.blocked or paired is None or level is None:
        return case.blocked
    if case.doubt is not None:
        return case.doubt.reason
    low, high = paired.interval(1 - level)
    limit = f"the margin of {quantity(margin, metric)}"
    if case.verdict == SAME:
        meaning = f"any difference is smaller than {limit}" + ("" if low <= 0 <= high else ", though probably not zero")
    elif case.verdict in (HELPS, HURTS):
        less = f", but it may be smaller than {limit}" if _may_be_small(case, margin) else ""
        meaning = f"chance alone hardly explains this difference{less}"
    elif -margin < low and high < margin:
        meaning = f"any difference seems smaller than {limit}, but with so many arms that is not certain enough"
    else:
        meaning = "there may be no difference" + (f", or one larger than {limit}" if margin else "")
    mean = quantity(paired.mean, metric, signed=True)
    changes = f"{named(metric.label)} changes by {mean} on average over {len(paired)} pairs"
    return f"{changes} ({percent(1 - level)} interval: {span((low, high), metric)}); {meaning}"


def _may_be_small(case: Case, margin: float) -> bool:
    """Return whether the interval that decides holds differences smaller than the margin."""
    assert case.paired is not None
    assert case.level is not None
    return min(map(abs, case.paired.interval(1 - case.level))) < margin


def advice(case: Case) -> str:
    """Return what to do where there is no verdict yet."""
    following = _advice(case)
    return f"more steps first; only then: {following}" if following and case.hardly_used else following


def _advice(case: Case) -> str:
    if case.verdict != UNKNOWN or (case.doubt is not None and not case.blocked):
        return "" if case.doubt is None else case.doubt.advice
    if case.blocked or case.schedule is None or case.paired is None:
        least = LEAST_PAIRS if case.schedule is None else case.schedule.first
        is_short = case.paired is None or len(case.paired) < least
        if case.num_pairs == 0 and not case.waiting:
            return f"number runs that belong together alike, or train both arms with {least} seeds or more in common"
        return f"train at least {least} seeds of each arm" if is_short else "train the missing runs"
    next_look = case.schedule.next_after(len(case.paired))
    when = f"the next look is at {next_look} pairs"
    if next_look is None:
        when = f"the schedule ends at {case.schedule.last} pairs; more pairs cannot change the verdict"
    outlook = case.outlook
    if outlook is None:
        return when
    if outlook.high is None:
        return f"even {outlook.last:,} pairs may not tell; {when}"
    likely = f"{outlook.low:,}" if outlook.low == outlook.high else f"{outlook.low:,} to {outlook.high:,}"
    return f"{likely} pairs in all will probably tell; {when}"


def cautions(case: Case, metric: Metric, missing: Mapping[str, Mapping[Hashable, str]]) -> list[str]:
    """Return what a reader of the verdict must know; `missing` is that of `Results.missing`."""
    notes = [
        f"{named(name)} has no {named(metric.label)} for {counted(len(seeds), 'seed')} "
        f"({few([f'{short(str(seed), 20)}: {why}' for seed, why in seeds.items()], 6)}): only complete pairs are "
        f"judged, and if a run failed, leaving it out makes {named(name)} look better than it is"
        for name, seeds in missing.items()
    ]
    # where nothing can be judged yet, the reason says so, and the doubt about the pairs that are there comes here
    if case.blocked and case.doubt is not None:
        notes.append(f"{case.doubt.reason}; {case.doubt.advice}")
    schedule, paired = case.schedule, case.paired
    if paired is None or case.blocked or schedule is None:
        return notes
    if case.waiting:
        notes.append(
            f"the next look waits for {numbered(case.waiting)}; until then the verdict uses the first "
            f"{len(paired)} pairs"
        )
    elif case.num_pairs > len(paired):
        following = schedule.next_after(case.num_pairs)
        until = "the schedule ends there" if following is None else f"the next look is at {following}"
        notes.append(
            f"{counted(case.num_pairs - len(paired), 'pair')} more than this look has: the verdict uses the first "
            f"{len(paired)}, and {until}"
        )
    if case.doubt is not None:
        return notes
    if abs(paired.skewness()) > SKEWED:
        notes.append(
            f"the differences look skewed ({paired.skewness():+.1f} standard errors): the interval assumes a normal "
            "distribution, so it may be off; more pairs reduce the error"
        )
    num_ties = sum(difference == 0 for difference in paired.differences)
    if 0 < num_ties < len(paired) and num_ties * 4 >= len(paired):
        notes.append(
            f"{num_ties} of {len(paired)} pairs are exactly equal: the metric may be too coarse, for example because "
            "there are few test images"
        )
    return notes
