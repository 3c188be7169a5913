"""From the content of a report to what its page shows, section by section; None or nothing where there is no data."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..base.words import few
from ..statistics.independence import LEAST_DIFFERENT
from ..statistics.looks import LEAST_PAIRS
from ..statistics.metric import Metric
from ..statistics.wording import percent, quantity
from .charts import KINDS, SIGNS, class_charts, pairs_chart, wins_chart
from .curves import curve_panels
from .figures import EPOCHS_FIRST, NONE, cost_basis, cost_columns, interval, p_value, plain, planned, ratio, unit_of

_PLAIN_VERBS = ("helps", "hurts")


@dataclass(frozen=True)
class Card:
    """The verdict on one arm in words."""

    arm: str
    heading: str
    kind: str
    sign: str
    about: str
    reason: str
    advice: str
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table: heads of the columns, and rows whose first cell is their head."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def view(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of the page's template."""
    judgement = content["judgement"]
    metric = Metric(**judgement["metric"])
    arms, baseline, alpha = judgement["arms"], judgement["baseline"], judgement["alpha"]
    margin = judgement["margin"]
    return {
        "title": content["title"],
        "subtitle": content["subtitle"],
        "metric": metric,
        "baseline": baseline,
        "about_baseline": content["arms"].get(baseline, ""),
        "changes": content["changes"],
        "first": content.get("first", []),  # verdicts of earlier versions have none
        "epochs_first": EPOCHS_FIRST,
        "cards": [_card(arm, content["arms"]) for arm in arms],
        "cautions": content["cautions"],
        "pairs": pairs_chart(arms, baseline, margin, metric),
        "has_late": any(arm["num_pairs"] < len(arm["seeds"]) for arm in arms),
        "has_interval": any(arm["interval_95"] and arm["standard_deviation"] for arm in arms),
        "has_deciding": any(arm["deciding_interval"] and arm["standard_deviation"] for arm in arms),
        "margin": quantity(margin, metric),
        "has_margin": margin > 0,
        "seeds": seed_table(arms, metric),
        "wins": wins_chart(arms, metric),
        "tests": _tests(arms, metric),
        "others": _others(judgement["others"]),
        "curves": [panels for panels in _curves(content, baseline) if panels.arms],
        "y_label": content["curves"]["y"] if content["curves"] else "",
        "x_label": content["curves"]["x"] if content["curves"] else "",
        "cost": _cost(content["cost"], baseline),
        "classes": class_charts(content["per_class"], baseline, alpha)
        if content["per_class"] and content["per_class"]["rows"]
        else None,
        "alpha": percent(alpha),
        "least_pairs": LEAST_PAIRS,
        "least_different": LEAST_DIFFERENT,
        "plans": _plans(arms, percent(alpha)),
        "num_arms": len(arms),
        "settings": content["settings"],
        "environment": content["environment"],
        "runs": _runs(content, metric),
    }


@dataclass(frozen=True)
class Planned:
    """The plan in words, the look that the verdicts are read at, and the arms that share both."""

    arms: tuple[str, ...]
    plan: str
    look: int | None


def _plans(arms: Sequence[Mapping[str, Any]], alpha: str) -> list[Planned]:
    together: dict[tuple[str, int | None], list[str]] = {}
    for arm in arms:
        look = None if arm["level"] is None else arm["num_pairs"]
        together.setdefault((planned(arm["plan"], alpha), look), []).append(arm["arm"])
    return [Planned(tuple(names), plan, look) for (plan, look), names in together.items()]


def _card(arm: Mapping[str, Any], abouts: Mapping[str, str]) -> Card:
    name, verdict = arm["arm"], arm["verdict"]
    heading = f" {verdict}" if verdict in _PLAIN_VERBS else f": {verdict}"
    kind = KINDS[verdict]
    return Card(
        name,
        heading,
        kind,
        SIGNS[kind],
        abouts.get(name, ""),
        arm["reason"],
        arm["advice"],
        tuple(arm["cautions"]),
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


def _tests(arms: Sequence[Mapping[str, Any]], metric: Metric) -> list[tuple[str, ...]]:
    """Return the p-values behind the verdicts, a row for each arm."""
    if all(arm["p_t"] is None for arm in arms):
        return []
    return [
        (
            arm["arm"],
            plain(arm["mean_difference"], metric, signed=True),
            interval(arm["interval_95"], metric),
            *(p_value(arm[key]) for key in ("p_t", "p_t_holm", "p_sign_flip", "p_sign_flip_holm", "p_equivalence")),
            p_value(arm["level"]),
        )
        for arm in arms
    ]


@dataclass(frozen=True)
class Other:
    """Another metric: its rows by arm, one cell for each column."""

    name: str
    direction: str
    rows: tuple[tuple[str, ...], ...]


def _others(others: Sequence[Mapping[str, Any]]) -> list[Other]:
    """Return the metrics that are not judged by."""
    groups: dict[str, tuple[Metric, list[tuple[str, ...]]]] = {}
    for other in others:
        metric = Metric(**other["metric"])
        groups.setdefault(metric.name, (metric, []))[1].append(
            (
                other["arm"],
                plain(other["baseline_mean"], metric),
                plain(other["arm_mean"], metric),
                plain(other["mean_difference"], metric, signed=True),
                interval(other["interval_95"], metric),
                p_value(other["p_t"]),
                str(other["num_pairs"]),
            )
        )
    return [
        Other(
            metric.label + unit_of(metric),
            {True: "higher is better", False: "lower is better"}.get(metric.higher_is_better, ""),
            tuple(rows),
        )
        for metric, rows in groups.values()
    ]


def _curves(content: Mapping[str, Any], baseline: str) -> list[Any]:
    return curve_panels(content["curves"], baseline) if content["curves"] else []


@dataclass(frozen=True)
class CostTable:
    """What each arm costs: for every figure its value and its ratio to the baseline's."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    basis: str


def _cost(cost: Mapping[str, Any] | None, baseline: str) -> CostTable | None:
    if cost is None or not cost["rows"]:
        return None
    columns = cost_columns(cost["rows"])
    base = next((row for row in cost["rows"] if row["arm"] == baseline), None)
    rows = tuple(
        (
            row["arm"],
            tuple(
                (NONE if row[column.key] is None else column.text(row[column.key]), ratio(row, base, column.key))
                for column in columns
            ),
        )
        for row in cost["rows"]
    )
    return CostTable(tuple(column.head for column in columns), rows, cost_basis(cost))


def _runs(content: Mapping[str, Any], judged: Metric) -> Grid | None:
    """Return every run with all its figures."""
    runs = content["runs"]
    if not runs:
        return None
    metrics = {judged.name: judged}
    for other in content["judgement"]["others"]:
        metrics.setdefault(other["metric"]["name"], Metric(**other["metric"]))
    names = list(dict.fromkeys(name for run in runs for name in run["figures"] if name in metrics))
    columns = (
        "arm",
        "seed",
        *(metrics[name].label + unit_of(metrics[name]) for name in names),
        "best epoch",
        "seconds",
    )
    rows = tuple(
        (
            run["arm"],
            str(run["seed"]),
            *(_scaled(run["figures"].get(name), metrics[name]) for name in names),
            NONE if run["best_epoch"] is None else str(run["best_epoch"]),
            NONE if run["seconds"] is None else f"{run['seconds']:,.0f}",
        )
        for run in runs
    )
    return Grid(columns, rows)


def _scaled(figure: float | None, metric: Metric) -> str:
    return NONE if figure is None else plain(metric.scale * figure, metric)
