"""Which epoch of a run counts where it has figures of several."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..base.errors import UserError
from ..base.words import brief
from .columns import Reading
from .metric import check_direction

LAST = "the figures of each run are those of its last epoch"
CHOSEN = (
    "the epoch of each run was chosen by the figures that are reported, on the same images: they are those of the "
    "luckiest epoch, so they are too high, and more so for an arm whose figures vary more between epochs; the last "
    "epoch, or other images, would be fair"
)
_MOST_EPOCHS = 2**53  # larger ones are not exact
EPOCHS = "epochs"  # what --may-differ calls the number of epochs


@dataclass(frozen=True)
class Row:
    """A line of a table: a run, or an epoch of one.

    Attributes:
        line: Its number in the file; 0 where the run is a folder, or has no line.
        figures: By name. None: the cell says that the figure is missing. A figure that was not logged in this line is
            not in the dict.
        settings: The settings that the table holds, by column, as texts.
        has_hardly_begun: Whether the attention changes hardly anything at the end of the run.
        more_epochs: Why its arm needs more epochs before it can be compared; "" where it does not.
    """

    arm: str
    seed: str
    path: Path
    line: int
    epoch: float | None
    figures: dict[str, float | None]
    settings: dict[str, str] = field(default_factory=dict)
    has_hardly_begun: bool = False
    more_epochs: str = ""


def best_by(reading: Reading) -> tuple[str, bool]:
    """Return the metric that chooses the best epoch, and whether lower is better; "" where the last epoch counts.

    Raises:
        UserError: The best is asked for without a metric, or which way is better is not known.
    """
    if reading.epoch != "best":
        return "", False
    if reading.metric is None:
        raise UserError("the best epoch needs a figure to choose it by; give --metric too")
    return reading.metric, check_direction(reading.metric, reading.lower_is_better)


def one_a_run(rows: Sequence[Row], reading: Reading, notes: list[str], *, ends_are_checked: bool = False) -> list[Row]:
    """Return one row for each run of tables: its last epoch or its best, and a note that says which.

    Rows without epochs stay as they are. `ends_are_checked`: the runs may end at different epochs, as `collect` found
    when it wrote the table.

    Raises:
        UserError: An epoch that is no finite number, one run in two tables, runs or figures to judge by that end at
            different epochs, one epoch of a run twice, or a choice of epochs where each run has one line.
    """
    runs = defaultdict(list)
    for row in rows:
        if row.epoch is not None and not abs(row.epoch) < _MOST_EPOCHS:
            raise UserError(f"line {row.line} of {str(row.path)!r} has the epoch {row.epoch:g}; give it a number")
        runs[row.arm, row.seed].append(row)
        check_path(runs[row.arm, row.seed][0].path, row)
    if rows and reading.epoch is not None and all(row.epoch is None for row in rows):
        raise UserError(f"{str(rows[0].path)!r} has no column epoch; leave out --epoch")
    if all(row.epoch is None for row in rows):
        return list(rows)
    metric, lower = best_by(reading)
    if metric and len(runs) == len(rows):
        raise UserError(
            f"{str(rows[0].path)!r} has one line for each run, so there is no best epoch to choose; leave out --epoch"
        )
    taken = []
    run_ends, figure_ends = dict[str, float](), defaultdict[str, dict[str, float]](dict)
    for (arm, seed), group in runs.items():
        if len(group) == 1 and group[0].epoch is None:  # a table without lines
            taken += group
            continue
        merged, run = _by_epoch(group), f"{arm}, seed {seed}"
        # a line may hold the figures of the training alone, and another one those of the validation
        last = {name: (value, row.epoch or 0.0) for row in merged for name, value in row.figures.items()}
        if last:  # else the run counts as missing
            run_ends[run] = merged[-1].epoch or 0.0
        for name, (_, epoch) in last.items():
            figure_ends[name][run] = epoch
        scored = [
            (-value if lower else value, row)
            for row in merged
            if (value := row.figures.get(metric)) is not None and math.isfinite(value)
        ]
        figures = {name: value for name, (value, _) in last.items()}
        taken.append(max(scored, key=lambda pair: pair[0])[1] if scored else replace(merged[-1], figures=figures))
    if not ends_are_checked:
        _compare_ends(run_ends, figure_ends, reading, notes)
    if len(runs) < len(rows):
        notes.append(CHOSEN if metric else LAST)
    return taken


def _compare_ends(
    runs: Mapping[str, float], figures: Mapping[str, Mapping[str, float]], reading: Reading, notes: list[str]
) -> None:
    """Check that runs, and the figures to judge by, end at one epoch; add a note where they do not, as asked."""
    check_ends(runs, reading)
    for name, ends in figures.items():
        if reading.metric in (None, name):
            check_ends(ends, reading, name)
    if len(set(runs.values())) > 1:
        notes.append(f"the runs end at different epochs, {min(runs.values()):g} to {max(runs.values()):g}, as asked")


def check_path(before: Path, row: Row) -> None:
    """Raise UserError if the run of `row` was found under another path before."""
    if before != row.path:
        raise UserError(
            f"{str(before)!r} and {str(row.path)!r} are both arm {brief(row.arm)} with seed {brief(row.seed)}; a pair "
            "needs one run of each arm: leave one out, or tell them apart with --arm-column, --arm-from or --seed-from"
        )


def _by_epoch(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each epoch of a run, in order."""
    merged: dict[float, Row] = {}
    for row in rows:
        if row.epoch is None:
            raise UserError(f"line {row.line} of {str(row.path)!r} has no epoch, and its run has several lines")
        before = merged.get(row.epoch)
        if before is not None and before.figures.keys() & row.figures.keys():
            raise UserError(
                f"line {before.line} of {str(before.path)!r} and line {row.line} of {str(row.path)!r} are both epoch "
                f"{row.epoch:g} of arm {brief(row.arm)} with seed {brief(row.seed)}; keep one of them"
            )
        merged[row.epoch] = row if before is None else replace(row, figures={**before.figures, **row.figures})
    return [merged[epoch] for epoch in sorted(merged)]


def check_ends(ends: Mapping[str, float], reading: Reading, figure: str = "") -> None:
    """Raise UserError if runs, or their values of a figure, end at different epochs, and may not."""
    if len(set(ends.values())) < 2 or EPOCHS in reading.may_differ:
        return
    first = min(ends, key=ends.__getitem__)
    most = max(ends, key=ends.__getitem__)
    shorter = sum(end < ends[most] for end in ends.values())
    what = f"the values of {brief(figure)} in the runs end" if figure else "the runs end"
    raise UserError(
        f"{what} at different epochs, such as {ends[first]:g} ({first}) and {ends[most]:g} ({most}; {shorter} of "
        f"{len(ends)} runs end before that); leave out runs that are not finished, or, if they were to end so, give "
        f"--may-differ {EPOCHS}"
    )
