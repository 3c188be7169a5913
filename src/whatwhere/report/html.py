"""The page of a report: one file of HTML without scripts that asks nothing of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.files import write_bytes
from ..base.words import printable
from ..statistics.independence import LEAST_DIFFERENT
from ..statistics.looks import LEAST_PAIRS
from ..statistics.metric import Metric
from ..statistics.wording import percent, quantity
from .charts import KINDS, SIGNS, class_charts, curve_panels, pairs_chart, wins_chart
from .figures import (
    EPOCHS_FIRST,
    NONE,
    cost_basis,
    cost_columns,
    interval,
    p_value,
    plain,
    planned,
    ratio,
    seed_table,
    typeset,
    unit_of,
)

if TYPE_CHECKING:
    import jinja2

_MARK = '<meta name="generator" content="whatwhere">'


def is_page(path: Path) -> bool:
    """Return whether a file is a page of ours."""
    with path.open("rb") as file:
        return _MARK.encode() in file.read(4096)


def write_page(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page of a comparison, whole or not at all.

    Args:
        path: The HTML file.
        content: Everything that is shown, as JSON values.

    Raises:
        UserError: It cannot be written.
    """
    write_bytes(path, page(content).encode())


def page(content: Mapping[str, Any]) -> str:
    """Return the page of a comparison, the same for the same content."""
    return _environment().get_template("page.html").render(**view(content), mark=_MARK)


def _environment() -> jinja2.Environment:
    import jinja2

    def shown(value: Any) -> Any:
        # names may come from anywhere; lone surrogates, for one, cannot be encoded
        return printable(value) if type(value) is str else value

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("whatwhere.report"),
        autoescape=True,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["typeset"] = typeset
    return environment


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
