"""`whatwhere collect`: the table for `verdict` from the folders of finished runs."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..base.errors import UserError
from ..base.files import check_can_write, write_bytes, writing
from ..base.tables import Table, rich_tables, say, say_json, show
from ..base.words import command_line, counted, few

if TYPE_CHECKING:
    from ..statistics.columns import Reading
    from ..statistics.results import Results

# what programs judge by themselves, to propose
_USUAL = (
    *("metrics/mAP50-95(M)", "metrics/mAP50-95(P)", "metrics/mAP50-95(B)", "metrics/accuracy_top1"),
    *("eval_top1", "accuracy", "test_acc", "test_accuracy", "val_acc", "val_accuracy"),
)

Metric = Annotated[str | None, typer.Option(metavar="NAME", help="Figure to judge by, if there are several.")]
LowerIsBetter = Annotated[bool, typer.Option("--lower-is-better", help="For errors and losses.")]
HigherIsBetter = Annotated[bool, typer.Option("--higher-is-better", help="Where the name does not tell it.")]
Epoch = Annotated[
    Literal["last", "best"] | None,
    typer.Option(
        help="Which epoch of each run counts (default: last). The best by --metric, on the images that are reported, "
        "is too high.",
        show_default=False,
    ),
]
ArmColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Setting, or column of a CSV, that names the arm.")]
SeedColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Setting, or column of a CSV, with the seed.")]
ArmFrom = Annotated[
    str | None,
    typer.Option(metavar="PATTERN", help="Where the arm stands in the path: '{arm}-{seed}', '{arm}/version_*'."),
]
SeedFrom = Annotated[
    str | None, typer.Option(metavar="PATTERN", help="Where the seed stands in the path: 'seed{seed}'.")
]
MayDiffer = Annotated[
    str | None,
    typer.Option(metavar="NAME,...", help="Settings that may differ within a pair; epochs: runs may end early."),
]


def reading_for(
    *,
    metric: str | None,
    lower_is_better: bool,
    higher_is_better: bool,
    epoch: Literal["last", "best"] | None,
    arm_column: str | None,
    seed_column: str | None,
    arm_from: str | None,
    seed_from: str | None,
    may_differ: str | None,
) -> Reading:
    """Return what the options say about reading runs."""
    from ..statistics.columns import Reading

    if lower_is_better and higher_is_better:
        raise UserError("--lower-is-better and --higher-is-better contradict each other; give one of them")
    return Reading(
        metric=metric,
        lower_is_better=True if lower_is_better else False if higher_is_better else None,
        epoch=epoch,
        arm_column=arm_column,
        seed_column=seed_column,
        arm_from=arm_from,
        seed_from=seed_from,
        may_differ=frozenset(name.strip() for name in (may_differ or "").split(",") if name.strip()),
    )


def collect_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, folders that hold some, or CSV files.")],
    *,
    out: Annotated[str, typer.Option(metavar="FILE", help="The table.")] = "results.csv",
    metric: Metric = None,
    lower_is_better: LowerIsBetter = False,
    higher_is_better: HigherIsBetter = False,
    epoch: Epoch = None,
    arm_column: ArmColumn = None,
    seed_column: SeedColumn = None,
    arm_from: ArmFrom = None,
    seed_from: SeedFrom = None,
    may_differ: MayDiffer = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """One table, a line for each run, from the folders of Ultralytics, timm, Lightning and whatwhere, or from CSVs.

    The seed is the setting of that name; the arm is the one setting in which runs with one seed differ. Otherwise
    name both: --arm-column attention, or --arm-from '{arm}-{seed}' for folders such as cbam-0, cbam-1.
    """
    from ..collect.collect import collect
    from ..statistics.metric import tells_direction, usual_metric
    from ..statistics.verdict import known_baseline

    table = _checked_table(out)
    collected = collect(
        runs,
        reading_for(
            metric=metric,
            lower_is_better=lower_is_better,
            higher_is_better=higher_is_better,
            epoch=epoch,
            arm_column=arm_column,
            seed_column=seed_column,
            arm_from=arm_from,
            seed_from=seed_from,
            may_differ=may_differ,
        ),
    )
    results = collected.results
    write_bytes(Path(os.path.realpath(table)), collected.to_csv().encode())
    if json:
        content = {"arms": {arm: list(results.runs(arm)) for arm in results.arms}, "figures": results.metrics}
        say_json({**content, "notes": results.notes, "table": str(table)})
        return
    rows = []
    # where the arm is not called by its attention, as with --arm-from
    tells = any(names != [arm] for arm, names in collected.attentions.items())
    for arm in results.arms:
        there = sorted((str(seed) for seed, figures in results.runs(arm).items() if figures), key=_by_number)
        missing = sorted({str(seed) for seed in results.seeds} - set(there), key=_by_number)
        attention = few(collected.attentions.get(arm, []), 3)
        rows.append((arm, *([attention] if tells else []), few(there, 12), few(missing, 12) or "-", f"{len(there):,}"))
    title = f"{counted(sum(len(results.runs(arm)) for arm in results.arms), 'run')} in {table}"
    doubts = [f"Check: {note}." for note in collected.doubts]
    told = [f"{note[0].upper()}{note[1:]}." for note in results.notes if note not in collected.doubts]
    head = ("arm", *(["attention"] if tells else []), "seeds", "missing", "runs")
    show(rich_tables([Table(title, head, rows, num_text_columns=len(head) - 1, note="\n".join(told + doubts))]))
    usual = usual_metric(results.metrics)
    likely = [name for name in _USUAL if name in results.metrics and (name != "accuracy" or usual)]
    judged = metric or next(iter(results.metrics if len(results.metrics) == 1 else likely), "NAME")
    say(f"Figures: {few(results.metrics, 12)}")
    lower = True if lower_is_better else False if higher_is_better else None
    direction = {True: " --lower-is-better", False: " --higher-is-better", None: ""}[lower]
    margin = " --margin X" if _needs_margin(results, judged, lower_is_better=lower) else ""
    baseline = " --baseline ARM" if known_baseline(results.arms) is None else ""
    is_open = lower is None and judged in results.metrics and not tells_direction(judged)
    either = ", with --lower-is-better or --higher-is-better" if is_open else ""
    command = command_line(["whatwhere", "verdict", str(table), "--metric", judged])
    say(f"Next: {command}{direction}{margin}{baseline}{either}")


def _needs_margin(results: Results, metric: str, *, lower_is_better: bool | None) -> bool:
    """Return whether `verdict` must be told what difference matters, because the figures are not in points."""
    from ..statistics.verdict import measure_of

    with contextlib.suppress(UserError):  # `verdict` says what is wrong with the figures
        return metric in results.metrics and measure_of(results, metric, bool(lower_is_better)).unit != "points"
    return False


def _by_number(seed: str) -> tuple[float, str]:
    from ..statistics.derived import as_number

    number = as_number(seed)
    return (math.inf if number is None else number), seed


def _checked_table(out: str) -> Path:
    """Return where the table goes, if it takes the place of nothing but such a table."""
    from ..collect.collect import is_collected

    path = Path(out)
    if not path.name or "\0" in out:
        raise UserError(f"--out {'holds a null character' if path.name else 'is empty'}; give the file of the table")
    with writing(path):
        if path.is_dir() or (path.exists() and not is_collected(path)):
            raise UserError(
                f"--out {out!r} is there already, and is no table of `whatwhere collect`; give another file"
            )
        if not path.parent.is_dir():
            raise UserError(f"--out {out!r} stands in a folder that does not exist; create {str(path.parent)!r}")
    check_can_write(path)
    return path
