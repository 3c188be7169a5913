"""The page of a report: one file of HTML without scripts that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import UserError
from ..base.files import check_can_write, check_replaceable, write_bytes, writing
from ..base.words import printable
from ..comparison.content import Content, RunRow
from ..statistics.across import HELPS_ON_AVERAGE, HURTS_ON_AVERAGE, LEAST_COMPARISONS, LEAST_DATA_SETS, Across
from ..statistics.independence import LEAST_DIFFERENT
from ..statistics.looks import ALPHA, LEAST_PAIRS
from ..statistics.metric import Metric
from ..statistics.verdict import ArmVerdict, Difference
from ..statistics.wording import percent, quantity
from .charts import KINDS, class_charts, curve_panels, forest_chart, pairs_chart, wins_chart
from .figures import (
    EPOCHS_FIRST,
    NONE,
    compared,
    cost_table,
    gate_rows,
    interval,
    p_value,
    plain,
    scheduled,
    seed_table,
    typeset,
    unit_of,
    without_one,
)

if TYPE_CHECKING:
    import jinja2

_MARK = '<meta name="generator" content="whatwhere">'
_SIGNS = {
    "helps": "\N{CHECK MARK}",
    "hurts": "\N{MULTIPLICATION X}",
    "same": "=",
    "depends": "\N{LEFT RIGHT ARROW}",
    "unknown": "?",
}


def is_page(path: Path) -> bool:
    """Return whether a file is a page that this package wrote."""
    with path.open("rb") as file:
        return _MARK.encode() in file.read(4096)


def check_page(path: Path) -> None:
    """Raise UserError unless a page can be written at `path` without taking the place of anything but a page."""
    with writing(path):
        check_replaceable(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise UserError(f"{str(path)!r} is to be a page of HTML; give an --out that ends with .html")
        if path.exists() and path.stat().st_size and not is_page(path):
            raise UserError(f"{str(path)!r} is not a report of whatwhere; move it away, or give another --out")
    check_can_write(path, makes_folders=True)


def write_page(path: Path, content: Content | Mapping[str, Any]) -> None:
    """Write the page of a comparison, whole or not at all; `content` may be the JSON values of a `verdict.json`.

    Raises:
        UserError: The file cannot be written, or the JSON values are no content of a report.
    """
    write_bytes(path, page(content).encode())


def page(content: Content | Mapping[str, Any]) -> str:
    """Return the page of a comparison; the same content gives the same page."""
    content = Content.of(content)
    judgement = content.judgement
    arms, baseline, margin, metric = judgement.arms, judgement.baseline, judgement.margin, judgement.metric
    alpha = percent(ALPHA)
    template = environment().get_template("page.html")
    return template.render(
        content=content,
        metric=metric,
        baseline=baseline,
        epochs_first=EPOCHS_FIRST,
        kinds=KINDS,
        signs=_SIGNS,
        alpha=alpha,
        margin=quantity(margin, metric),
        least_pairs=LEAST_PAIRS,
        least_different=LEAST_DIFFERENT,
        pairs=pairs_chart(arms, baseline, margin, metric),
        has_late=any(arm.num_pairs < len(arm.seeds) for arm in arms),
        has_interval=any(arm.interval_95 for arm in arms),
        has_deciding=any(arm.deciding_interval for arm in arms),
        seeds=seed_table(arms, metric),
        wins=wins_chart(arms, metric),
        tests=_tests(arms, metric),
        others=_others(judgement.others),
        curves=curve_panels(content.curves, baseline) if content.curves else [],
        cost=cost_table(content.cost, baseline) if content.cost and content.cost.rows else None,
        gates=gate_rows(content.gates),
        classes=class_charts(content.per_class, baseline, ALPHA)
        if content.per_class and content.per_class.rows
        else None,
        schedules=_schedules(arms, alpha),
        runs=_runs(content.runs, [metric, *(other.metric for other in judgement.others)]),
    )


def write_across_page(path: Path, verdict: Across, title: str) -> None:
    """Write the page of a verdict across comparisons, whole or not at all."""
    write_bytes(path, across_page(verdict, title).encode())


def across_page(verdict: Across, title: str) -> str:
    """Return the page of a verdict across comparisons; the same verdict gives the same page."""
    metric, margin = verdict.metric, verdict.margin
    return (
        environment()
        .get_template("across.html")
        .render(
            title=title,
            across=verdict,
            metric=metric,
            baselines=list(dict.fromkeys(verdict.baselines.values())),
            arms=[(arm, forest_chart(arm, number, margin, metric)) for number, arm in enumerate(verdict.arms)],
            averages=(HELPS_ON_AVERAGE, HURTS_ON_AVERAGE),
            kinds=KINDS,
            signs=_SIGNS,
            without=without_one(verdict),
            num_cases=sum(not one.left_out for arm in verdict.arms for one in arm.comparisons),
            alpha=percent(ALPHA),
            half_alpha=percent(ALPHA / 2),
            margin=quantity(margin, metric),
            least_pairs=LEAST_PAIRS,
            least_data_sets=LEAST_DATA_SETS,
            least_comparisons=LEAST_COMPARISONS,
        )
    )


def environment() -> jinja2.Environment:
    """Return the environment of the templates: every value is escaped and printable."""
    import jinja2

    def shown(value: Any) -> Any:
        # a name may hold control characters, or lone surrogates, which cannot be encoded
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
    environment.globals["mark"] = _MARK
    return environment


def _schedules(arms: Sequence[ArmVerdict], alpha: str) -> list[tuple[list[str], str, int | None]]:
    """Return (arms, schedule in words, pairs at the look of the verdict) for each group of arms that share both."""
    together: dict[tuple[str, int | None], list[str]] = {}
    for arm in arms:
        look = None if arm.level is None else arm.num_pairs
        together.setdefault((scheduled(arm.plan, alpha), look), []).append(arm.arm)
    return [(names, schedule, look) for (schedule, look), names in together.items()]


def _tests(arms: Sequence[ArmVerdict], metric: Metric) -> list[tuple[str, ...]]:
    """Return the p-values behind the verdicts, a row for each arm; none if no arm has any."""
    if all(arm.p_t is None for arm in arms):
        return []
    return [
        (
            arm.arm,
            plain(arm.mean_difference, metric, signed=True),
            interval(arm.interval_95, metric),
            *map(p_value, (arm.p_t, arm.p_t_holm, arm.p_sign_flip, arm.p_sign_flip_holm, arm.p_equivalence, arm.level)),
        )
        for arm in arms
    ]


def _others(others: Sequence[Difference]) -> list[tuple[str, str, list[tuple[str, ...]]]]:
    """Return (label, direction, rows by arm) of each metric that decides no verdict."""
    groups: dict[str, tuple[str, str, list[tuple[str, ...]]]] = {}
    for other in others:
        metric = other.metric
        direction = f"{other.better} is better" if other.better else ""
        rows = groups.setdefault(metric.name, (metric.label + unit_of(metric), direction, []))[2]
        rows.append((other.arm, *compared(other, metric, other.p_t), str(other.num_pairs)))
    return list(groups.values())


def _runs(runs: Sequence[RunRow], known: Sequence[Metric]) -> tuple[tuple[str, ...], list[tuple[str, ...]]] | None:
    """Return (heads, rows) of the table of all runs; None without runs."""
    if not runs:
        return None
    by_name = {metric.name: metric for metric in reversed(known)}
    metrics = [by_name[name] for name in dict.fromkeys(name for run in runs for name in run.figures) if name in by_name]
    heads = ("arm", "seed", *(metric.label + unit_of(metric) for metric in metrics), "best epoch", "seconds")
    rows = [
        (
            run.arm,
            str(run.seed),
            *(
                NONE if (figure := run.figures.get(metric.name)) is None else plain(metric.scale * figure, metric)
                for metric in metrics
            ),
            NONE if run.best_epoch is None else str(run.best_epoch),
            NONE if run.seconds is None else f"{run.seconds:,.0f}",
        )
        for run in runs
    ]
    return heads, rows
