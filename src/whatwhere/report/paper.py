"""The table of the arms for a paper, of one comparison or several, in LaTeX and Markdown."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import replace

from ..base.tables import Table
from ..base.words import printable
from ..comparison.content import Content
from ..statistics.across import Across, Member
from ..statistics.metric import Metric
from .figures import NONE, interval, plain, seed_table, unit_of

_IN_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~&$]")
_MINUS = re.compile(r"(?<![\w.)}-])-(?=\d)")
_OPENING = re.compile(r"(?m)^ *(?=[\[*])")  # an argument, or a star, of the end of the line before


def paper_table(content: Content) -> Table:
    """Return a line for each arm: verdict, mean, standard deviation, difference and its intervals, pairs, parameters.

    The baseline's figures are over the same pairs; where arms have different ones, the note has its mean for each.
    """
    judgement = content.judgement
    metric, baseline, arms = judgement.metric, judgement.baseline, judgement.arms
    figure, unit = metric.label + unit_of(metric), f", {metric.unit}" if metric.unit else ""
    columns: tuple[str, ...] = ("arm", "verdict", figure)
    columns += (f"difference{unit}", f"95 % interval{unit}", f"interval that decides{unit}", "pairs")
    judged = {tuple(arm.seeds[: arm.num_pairs]): arm.baseline[: arm.num_pairs] for arm in arms if arm.num_pairs}
    of_baseline = _mean(next(iter(judged.values())) if len(judged) == 1 else (), metric)
    rows: list[tuple[str, ...]] = [(baseline, "baseline", of_baseline, NONE, NONE, NONE, NONE)]
    rows += [
        (
            arm.arm,
            arm.headline,
            _mean(arm.treatment[: arm.num_pairs], metric),
            plain(arm.mean_difference, metric, signed=True),
            interval(arm.interval_95, metric),
            interval(arm.deciding_interval, metric),
            f"{arm.num_pairs}",
        )
        for arm in arms
    ]
    if content.cost is not None:
        params = {row.arm: row.num_params for row in content.cost.rows}
        columns += ("parameters",)
        rows = [(*row, NONE if (count := params.get(row[0])) is None else f"{count:,}") for row in rows]
    note = (
        f"mean ± standard deviation over seeds; difference to {baseline} pair by pair; the interval that decides is "
        "corrected for looks and arms"
    )
    if len(judged) > 1 and (seeds := seed_table(arms, metric)) is not None:
        note += f"; {seeds.note.partition('; ')[2]}"
    texts = [tuple(map(printable, row)) for row in rows]
    return Table(printable(content.title), tuple(map(printable, columns)), texts, 2, printable(note))


def across_paper_table(verdict: Across, title: str) -> Table:
    """Return a line for each arm: verdict, difference in each comparison, mean over data sets, and its intervals.

    A comparison that does not count has its difference in brackets.
    """
    metric = verdict.metric
    unit = f", {metric.unit}" if metric.unit else ""
    comparisons = list(verdict.baselines)
    rows = []
    for arm in verdict.arms:
        of = {one.comparison: _difference(one, metric) for one in arm.comparisons}
        rows.append(
            (
                arm.arm,
                arm.headline,
                *(of.get(name, NONE) for name in comparisons),
                plain(arm.mean_difference, metric, signed=True),
                interval(arm.interval_95, metric),
                interval(arm.deciding_interval, metric),
                interval(arm.prediction_interval, metric),
            )
        )
    columns = ("arm", "verdict", *comparisons, "mean", "95 % interval", "interval that decides", "next data set")
    better = "" if metric.higher_is_better else ", lower is better"
    note = (
        f"difference in {metric.label} to the baseline{unit}{better}: of each comparison, mean ± standard error over "
        "pairs, in brackets where it does not count; random-effects mean over data sets; the interval that decides is "
        "corrected for arms; the last column is the 95 % prediction interval"
    )
    texts = [tuple(map(printable, row)) for row in rows]
    return Table(printable(title), tuple(map(printable, columns)), texts, 2, printable(note))


def _difference(one: Member, metric: Metric) -> str:
    if one.mean_difference is None:
        return NONE
    error = "" if one.standard_error is None else f" ± {plain(one.standard_error, metric)}"
    text = plain(one.mean_difference, metric, signed=True) + error
    return f"({text})" if one.left_out else text


def _mean(figures: Sequence[float], metric: Metric) -> str:
    if not figures:
        return NONE
    spread = f" ± {plain(statistics.stdev(figures), metric)}" if len(figures) > 1 else ""
    return plain(statistics.fmean(figures), metric) + spread


def latex(table: Table) -> str:
    r"""Return a table for LaTeX with \usepackage{booktabs}; its note stands in comments before it."""
    comments = "".join(f"% {line}\n" for line in (table.title, table.note))
    rows = [tuple("--" if cell == NONE else cell for cell in row) for row in table.rows]
    text = _typeset(replace(table, rows=rows), "latex_booktabs")
    return comments + _OPENING.sub("{}", _MINUS.sub("$-$", text).replace("±", r"$\pm$"))


def markdown(table: Table) -> str:
    """Return a table in Markdown, with its note below."""
    rows = [tuple(map(_escaped, row)) for row in table.rows]
    escaped = replace(table, columns=tuple(map(_escaped, table.columns)), rows=rows)
    return f"{_typeset(escaped, 'pipe')}\n\n{_escaped(table.note)}"


def _escaped(text: str) -> str:
    return _IN_MARKDOWN.sub(r"\\\g<0>", text)


def _typeset(table: Table, kind: str) -> str:
    from tabulate import tabulate

    sides = ["left" if index < table.num_text_columns else "right" for index in range(len(table.columns))]
    text: str = tabulate(table.rows, table.columns, tablefmt=kind, disable_numparse=True, colalign=sides)
    return text
