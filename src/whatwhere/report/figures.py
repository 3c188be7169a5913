"""Figures of a comparison as text, the same on the page and in the terminal."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..base.words import counted, few
from ..comparison.content import ClassRow, CostRow, Costs, GateRow
from ..statistics.across import Across
from ..statistics.looks import Schedule
from ..statistics.metric import Metric
from ..statistics.verdict import ArmVerdict, Difference
from ..statistics.wording import quantity, span

NONE = "-"
EPOCHS_FIRST = (
    "train for more epochs, or with another learning rate, before you add pairs: networks that have hardly learned, or "
    "that still improve, say little about trained ones"
)
_MOST_LOOKS = 6  # named in a schedule


def plain(value: float | None, metric: Metric, *, signed: bool = False) -> str:
    """Return a figure without its unit."""
    return NONE if value is None else quantity(value, metric, signed=signed).removesuffix(metric.unit).strip()


def interval(bounds: tuple[float, float] | None, metric: Metric) -> str:
    """Return an interval without its unit."""
    return NONE if bounds is None else span(bounds, metric).removesuffix(metric.unit).strip()


def p_value(p: float | None) -> str:
    """Return a p-value with four decimals."""
    if p is None:
        return NONE
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def compared(row: Difference | ClassRow, metric: Metric, p: float | None) -> tuple[str, str, str, str, str]:
    """Return the baseline's mean, the arm's mean, the difference, its 95 % interval and p."""
    means = plain(row.baseline_mean, metric), plain(row.arm_mean, metric)
    return *means, plain(row.mean_difference, metric, signed=True), interval(row.interval_95, metric), p_value(p)


def without_one(verdict: Across) -> list[tuple[str, ...]]:
    """Return a row for each arm and data set: the arm, the data set, mean, interval and verdict without it."""
    return [
        (
            arm.arm,
            one.name,
            plain(one.without, verdict.metric, signed=True),
            interval(one.interval_without, verdict.metric),
            one.verdict_without,
        )
        for arm in verdict.arms
        for one in arm.data_sets
    ]


def unit_of(metric: Metric) -> str:
    """Return ", %" for figures in points (hundredths of a share), "" for others."""
    return ", %" if metric.unit == "points" else ""


def wins(arm: ArmVerdict, metric: Metric) -> str:
    """Return in how many judged pairs the arm is better: "7 of 8", ties apart.

    A dash without an interval: pairs that may not be independent are not counted.
    """
    differences = arm.differences[: arm.num_pairs]
    if not differences or arm.interval_95 is None:
        return NONE
    won = sum(difference > 0 if metric.higher_is_better else difference < 0 for difference in differences)
    tied = sum(difference == 0 for difference in differences)
    return f"{won} of {len(differences)}" + (f", {tied} tied" if tied else "")


def typeset(text: str) -> str:
    """Replace the hyphens of a terminal's text by minus and plus-minus signs."""
    return re.sub(r"(?<![\w.)-])-(?=\d)", "\N{MINUS SIGN}", text.replace("-+", "\N{PLUS-MINUS SIGN}"))


def scheduled(schedule: Schedule | None, alpha: str) -> str:
    """Return the looks of a schedule, and the part of `alpha` that each uses, in words."""
    if schedule is None:
        return "the first look is still to come"
    first, last = schedule.first, schedule.last
    if last == first:
        return f"one look, at {counted(first, 'pair')}, which uses all of the {alpha}"
    looks = [f"{look:,}" for look in itertools.islice(schedule.looks(), _MOST_LOOKS + 1)]
    if last is None:
        spent = f"the first uses four fifths of the {alpha}, the later ones the rest"
        return f"looks at {', '.join(looks[:_MOST_LOOKS])} pairs and so on, without an end; {spent}"
    if len(looks) > _MOST_LOOKS:
        looks = [*looks[: _MOST_LOOKS - 1], "...", f"{last:,}"]
    spent = f"each uses its part of the {alpha} by Pocock's spending function (Lan and DeMets)"
    return f"looks at {', '.join(looks[:-1])} and, at the end, {looks[-1]} pairs; {spent}"


_TIMES = ("forward_ms", "training_step_ms", "images_per_second")


@dataclass(frozen=True)
class CostTable:
    """The table of costs.

    Attributes:
        heads: Head of each column, with its unit.
        rows: Each arm with, by column, its figure and the ratio to the baseline's ("" where there is none). A time that
            means little has a question mark, and no ratio.
        basis: The conditions of the measurement, in a sentence.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    basis: str


def gate_rows(gates: Sequence[GateRow]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return what gate health found as rows, (arm, layer, gate, finding, runs), and what to try for each finding."""
    rows: list[tuple[str, ...]] = []
    for row in gates:
        rows.append((row.arm, row.layer or NONE, row.gate or "all", row.fault, f"{row.num_found} of {row.num_runs}"))
    return rows, [f"{fault}: {advice}" for fault, advice in {row.fault: row.advice for row in gates}.items()]


def cost_table(cost: Costs, baseline: str) -> CostTable:
    """Return the table of costs, with those columns alone that have figures."""
    largest = max((row.macs or 0 for row in cost.rows), default=0)
    size, letter = (1e9, "G") if largest >= 1e9 else (1e6, "M")
    columns = (
        ("num_params", "parameters", 1, ",.0f"),
        ("macs", f"MACs, {letter}", size, ",.3f"),
        ("saved_bytes", "kept for backward, MiB", 2**20, ",.2f"),
        ("forward_ms", "forward, ms", 1, ",.1f"),
        ("training_step_ms", "training step, ms", 1, ",.1f"),
        ("images_per_second", "training images/s", 1, ",.0f"),
    )
    shown = [column for column in columns if any(getattr(row, column[0]) is not None for row in cost.rows)]
    base = next((row for row in cost.rows if row.arm == baseline), None)

    def cell(row: CostRow, key: str, unit: float, form: str) -> tuple[str, str]:
        value, before = getattr(row, key), None if base is None else getattr(base, key)
        if value is None:
            return NONE, ""
        is_doubtful, is_base_doubtful = (key in _TIMES and one is not None and one.is_doubtful for one in (row, base))
        is_compared = before and row is not base and not (is_doubtful or is_base_doubtful)
        return f"{value / unit:{form}}{'?' * is_doubtful}", f"x{value / before:.3f}" if is_compared else ""

    rows = tuple((row.arm, tuple(cell(row, key, unit, form) for key, _, unit, form in shown)) for row in cost.rows)
    basis = (
        f"Parameters and MACs: one network, one image of {cost.image_size} px. Bytes and times: a batch of "
        f"{counted(cost.num_images, 'image')} of {cost.image_size} px on {cost.device}, the arms in turn within each "
        "round. Times move by some per cent from run to run."
    )
    if cost.doubt:
        basis += (
            f" ?: {cost.doubt}, so these times mean little; on a quiet machine, the same compare command measures them "
            "again."
        )
    return CostTable(tuple(head for _, head, _, _ in shown), rows, basis)


@dataclass(frozen=True)
class SeedTable:
    """Every pair: a row for each seed with the baseline's figure, and the figure and difference of each arm.

    Attributes:
        mean, deviation: Over the judged pairs of each arm.
        baseline_mean: Over the same pairs; a dash where the arms have different pairs.
        note: Which pairs the means are over; where they differ by arm, the baseline's mean for each.
    """

    arms: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]
    mean: tuple[tuple[str, str], ...]
    deviation: tuple[str, ...]
    baseline_mean: str
    note: str


def seed_table(arms: Sequence[ArmVerdict], metric: Metric) -> SeedTable | None:
    """Return the figures of every pair, those after the look with a *; None without pairs."""
    baseline = {seed: before for arm in arms for seed, before in zip(arm.seeds, arm.baseline, strict=True)}
    if not baseline:
        return None
    columns = []
    for arm in arms:
        each = enumerate(zip(arm.seeds, arm.treatment, arm.differences, strict=True))
        column = {
            seed: (plain(after, metric), plain(difference, metric, signed=True) + "*" * (index >= arm.num_pairs))
            for index, (seed, after, difference) in each
        }
        columns.append([column.get(seed, (NONE, NONE)) for seed in baseline])
    judged = [arm for arm in arms if arm.num_pairs]
    means = {arm.arm: plain(statistics.fmean(arm.baseline[: arm.num_pairs]), metric) for arm in judged}
    note = "mean and st. dev. are over the judged pairs"
    same = len({tuple(arm.seeds[: arm.num_pairs]) for arm in judged}) == 1
    if judged and not same:
        by_arm = few([f"{mean} for {name}" for name, mean in means.items()], 6)
        note += f"; the arms have different pairs: the baseline's mean is {by_arm}"
    return SeedTable(
        arms=tuple(arm.arm for arm in arms),
        rows=tuple(
            (str(seed), plain(before, metric), tuple(column[index] for column in columns))
            for index, (seed, before) in enumerate(baseline.items())
        ),
        mean=tuple(
            (
                plain(statistics.fmean(arm.treatment[: arm.num_pairs]) if arm.num_pairs else None, metric),
                plain(arm.mean_difference, metric, signed=True),
            )
            for arm in arms
        ),
        deviation=tuple(plain(arm.standard_deviation, metric) for arm in arms),
        baseline_mean=next(iter(means.values())) if same else NONE,
        note=note,
    )
