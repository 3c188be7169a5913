"""Verdicts in words."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from ..base.words import counted
from .decide import HELPS, HURTS, SAME, UNKNOWN, Case, Decision
from .looks import LEAST_PAIRS
from .metric import Metric
from .paired import PairedDifference
from .results import numbered

SKEWED = 2.0  # standard errors


def quantity(value: float, metric: Metric, *, signed: bool = False) -> str:
    """Return a figure or a difference with its unit: "+1.25 points"."""
    kind = ".2f" if metric.unit == "points" else ".4g"
    text = f"{value:{'+' if signed else ''}{kind}}"
    # a rounded nothing has no sign
    text = text.replace("-", "").replace("+", "") if not float(text) else text
    return f"{text} {metric.unit}".strip()


def span(interval: tuple[float, float], metric: Metric) -> str:
    """Return "-0.40 to +1.10 points"."""
    low, high = (quantity(bound, metric, signed=True) for bound in interval)
    return f"{low.removesuffix(metric.unit).strip()} to {high}"


def percent(share: float) -> str:
    """Return a share as a percentage of at most two decimals: "95 %", "97.74 %"."""
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + " %"


def reason(case: Case, decision: Decision, metric: Metric, margin: float) -> str:
    """Return the sentence behind a verdict."""
    paired, level = case.paired, decision.level
    if case.blocked or paired is None or level is None:
        return case.blocked
    if case.doubt is not None:
        return case.doubt.reason
    mean, around = quantity(paired.mean, metric, signed=True), f"{quantity(margin, metric)} either way"
    low, high = paired.interval(1 - level)
    has_0 = low <= 0 <= high
    if decision.verdict == SAME:
        found_text = f"within the margin of {around}" + ("" if has_0 else ", though not nothing")
    elif decision.verdict in (HELPS, HURTS):
        found_text = "does not hold 0" + (", perhaps less than the margin" if min(abs(low), abs(high)) < margin else "")
    elif -margin < low and high < margin:
        found_text = f"within the margin of {around}, but not once the error is shared among the arms"
    else:
        found_text = f"holds 0, and more than the margin of {around}"
    return f"{mean} on average, {percent(1 - level)} interval {span((low, high), metric)}: {found_text}"


def advice(case: Case, decision: Decision, settle: tuple[int, int | None] | None) -> str:
    """Return what to do about a verdict that is not there yet."""
    if decision.verdict != UNKNOWN or (case.doubt is not None and not case.blocked):
        return "" if case.doubt is None else case.doubt.advice
    if case.blocked or case.plan is None or case.paired is None:
        least = LEAST_PAIRS if case.plan is None else case.plan.first
        return (
            f"{least} pairs are the least" if case.paired is None or len(case.paired) < least else "complete the pairs"
        )
    next_look = case.plan.next_after(len(case.paired))
    if next_look is None:
        return f"the plan ends at {case.plan.last} pairs; pairs added to them can change nothing in the verdict"
    when = f"the next look is planned at {next_look} pairs"
    if settle is None:
        return when
    low, high = settle
    if high is None:
        return f"probably not settled even with {low:,} pairs; {when}"
    return f"probably settled with {low:,} to {high:,} pairs in all; {when}"


def cautions(case: Case, everything: PairedDifference | None, missing: Mapping[str, Sequence[Hashable]]) -> list[str]:
    """Return what a reader of the verdict must know."""
    notes = [
        f"{name} lacks {counted(len(seeds), 'run')} ({numbered(seeds)}) that other arms have: complete pairs alone are "
        f"judged, and where a run failed, leaving it out flatters {name}"
        for name, seeds in missing.items()
    ]
    plan, paired = case.plan, case.paired
    if paired is None or everything is None or case.blocked or plan is None:
        return notes
    if case.waiting:
        notes.append(
            f"the next look waits for {numbered(case.waiting)}; until then the verdict is read from the first "
            f"{len(paired)} pairs"
        )
    elif len(everything) > len(paired):
        following = plan.next_after(len(everything))
        until = "and the plan ends there" if following is None else f"and the next look is at {following}"
        notes.append(
            f"{counted(len(everything) - len(paired), 'pair')} more than the plan has for this look: the verdict is "
            f"read from the first {len(paired)}, {until}"
        )
    if case.doubt is not None:
        return notes
    if abs(paired.skewness()) > SKEWED:
        notes.append(
            f"the differences look skewed ({paired.skewness():+.1f} standard errors): the interval takes them for "
            "normal, so it may be off; more pairs mend that"
        )
    num_ties = sum(difference == 0 for difference in paired.differences)
    if 0 < num_ties < len(paired) and num_ties * 4 >= len(paired):
        notes.append(
            f"{num_ties} of {len(paired)} pairs are exactly equal: the figure may be too coarse, as with few test "
            "images"
        )
    return notes
