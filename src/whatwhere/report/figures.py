"""Figures of a comparison as text, alike on the page and in the terminal."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..base.words import counted, few
from ..statistics.looks import Plan
from ..statistics.metric import Metric
from ..statistics.wording import quantity, span

NONE = "-"
EPOCHS_FIRST = (
    "more epochs, or another learning rate, before more pairs: a verdict on networks that have hardly learned, or that "
    "still improve, says little of trained ones"
)
_MOST_LOOKS = 6  # that are named


def plain(value: float | None, metric: Metric, *, signed: bool = False) -> str:
    """Return a figure without its unit."""
    return NONE if value is None else quantity(value, metric, signed=signed).removesuffix(metric.unit).strip()


def interval(bounds: Sequence[float] | None, metric: Metric) -> str:
    """Return an interval without its unit; differences that are all equal have none."""
    if bounds is None:
        return NONE
    low, high = bounds
    return "none: all equal" if low == high else span((low, high), metric).removesuffix(metric.unit).strip()


def p_value(p: float | None) -> str:
    """Return a p-value with four decimals."""
    if p is None:
        return NONE
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def unit_of(metric: Metric) -> str:
    """Return ", %" for figures in points, which are hundredths of a share; "" where no unit is known."""
    return ", %" if metric.unit == "points" else ""


def wins(arm: Mapping[str, Any], metric: Metric) -> str:
    """Return in how many of the pairs that are judged the arm is better: "7 of 8", ties apart.

    That too has a meaning for independent pairs only, which have an interval.
    """
    differences = arm["differences"][: arm["num_pairs"]]
    if not differences or arm["interval_95"] is None:
        return NONE
    won = sum(difference > 0 if metric.higher_is_better else difference < 0 for difference in differences)
    tied = sum(difference == 0 for difference in differences)
    return f"{won} of {len(differences)}" + (f", {tied} tied" if tied else "")


def typeset(text: str) -> str:
    """Return text with minus and plus-minus signs for the hyphens that stand for them in a terminal."""
    return re.sub(r"(?<![\w.)-])-(?=\d)", "\N{MINUS SIGN}", text.replace("-+", "\N{PLUS-MINUS SIGN}"))


def planned(plan: Mapping[str, Any] | None, alpha: str) -> str:
    """Return when a comparison is looked at, and what each look spends of `alpha`, in words."""
    if plan is None:
        return "the first look is still to come"
    first, last = plan["first"], plan["last"]
    if last == first:
        return f"one look, at {counted(first, 'pair')}, which spends all of the {alpha}"
    looks = [f"{look:,}" for look in itertools.islice(Plan(first, last).looks(), _MOST_LOOKS + 1)]
    if last is None:
        spent = f"the first spends four fifths of the {alpha}, those that follow the rest"
        return f"looks at {', '.join(looks[:_MOST_LOOKS])} pairs and so on, without an end; {spent}"
    if len(looks) > _MOST_LOOKS:
        looks = [*looks[: _MOST_LOOKS - 1], "...", f"{last:,}"]
    spent = f"how much of the {alpha} is spent by then grows after Pocock's function, as Lan and DeMets have it"
    return f"looks at {', '.join(looks[:-1])} and, at the end, {looks[-1]} pairs; {spent}"


@dataclass(frozen=True)
class CostColumn:
    """One figure of what arms cost: its key, its head with the unit, and how it is written."""

    key: str
    head: str
    text: Callable[[float], str]


def cost_columns(rows: Iterable[Mapping[str, Any]]) -> list[CostColumn]:
    """Return the columns of the table of costs, those alone for which there are figures."""
    rows = list(rows)
    largest = max((row["macs"] or 0 for row in rows), default=0)
    size, letter = (1e9, "G") if largest >= 1e9 else (1e6, "M")
    columns = (
        CostColumn("num_params", "parameters", lambda value: f"{value:,.0f}"),
        CostColumn("macs", f"MACs, {letter}", lambda value: f"{value / size:,.3f}"),
        CostColumn("saved_bytes", "kept for backward, MiB", lambda value: f"{value / 2**20:,.2f}"),
        CostColumn("forward_ms", "forward, ms", lambda value: f"{value:,.1f}"),
        CostColumn("training_step_ms", "training step, ms", lambda value: f"{value:,.1f}"),
        CostColumn("images_per_second", "training images/s", lambda value: f"{value:,.0f}"),
    )
    return [column for column in columns if any(row[column.key] is not None for row in rows)]


def ratio(row: Mapping[str, Any], baseline: Mapping[str, Any] | None, key: str) -> str:
    """Return a figure's ratio to the baseline's; "" for the baseline itself and where there is none."""
    if baseline is None or row is baseline or row[key] is None or not baseline[key]:
        return ""
    return f"x{row[key] / baseline[key]:.3f}"


def cost_basis(cost: Mapping[str, Any]) -> str:
    """Return what the costs were measured on."""
    size, num_images = cost["image_size"], counted(cost["num_images"], "image")
    return (
        f"Parameters and MACs: one network, one image of {size} px. Bytes and times: a batch of {num_images} of {size} "
        f"px on {cost['device']}, the arms in turn within each round. Times move by some per cent from run to run."
    )


@dataclass(frozen=True)
class SeedTable:
    """Every pair: a row for each seed with the baseline's figure, and figure and difference of each arm.

    Attributes:
        mean, deviation: Over the pairs of each arm that are judged.
        baseline_mean: Over the same pairs; a dash where they are not the same for all arms.
        note: Which pairs the means are of, and then the baseline's mean over each arm's pairs.
    """

    arms: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]
    mean: tuple[tuple[str, str], ...]
    deviation: tuple[str, ...]
    baseline_mean: str
    note: str


def seed_table(arms: Sequence[Mapping[str, Any]], metric: Metric) -> SeedTable | None:
    """Return the figures of every pair; None where there is none. Those after the look bear a *."""
    baseline: dict[Hashable, float] = {}
    cells: dict[str, dict[Hashable, tuple[str, str]]] = {}
    for arm in arms:
        cells[arm["arm"]] = {}
        each = zip(arm["seeds"], arm["baseline"], arm["treatment"], arm["differences"], strict=True)
        for index, (seed, before, after, difference) in enumerate(each):
            baseline[seed] = before
            late = "*" if index >= arm["num_pairs"] else ""
            cells[arm["arm"]][seed] = (plain(after, metric), plain(difference, metric, signed=True) + late)
    if not baseline:
        return None
    rows = tuple(
        (str(seed), plain(before, metric), tuple(cells[name].get(seed, (NONE, NONE)) for name in cells))
        for seed, before in baseline.items()
    )
    judged = {arm["arm"]: tuple(arm["seeds"][: arm["num_pairs"]]) for arm in arms if arm["num_pairs"]}
    means = [
        (
            statistics.fmean(arm["treatment"][: arm["num_pairs"]]) if arm["arm"] in judged else None,
            arm["mean_difference"],
        )
        for arm in arms
    ]
    before_by_arm = {
        name: plain(statistics.fmean(baseline[seed] for seed in seeds), metric) for name, seeds in judged.items()
    }
    note = "mean and st. dev. are over the pairs that are judged"
    same = len(set(judged.values())) == 1
    if len(judged) > 1 and not same:
        by_arm = few([f"{mean} for {name}" for name, mean in before_by_arm.items()], 6)
        note += f"; these are not the same for all arms: the baseline's mean is {by_arm}"
    return SeedTable(
        tuple(cells),
        rows,
        tuple((plain(after, metric), plain(difference, metric, signed=True)) for after, difference in means),
        tuple(plain(arm["standard_deviation"], metric) for arm in arms),
        next(iter(before_by_arm.values())) if same else NONE,
        note,
    )
