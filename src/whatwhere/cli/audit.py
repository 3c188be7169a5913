"""`whatwhere audit`: its options, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.errors import UserError
from ..base.tables import Table, rich_tables, say, say_json, show
from ..base.words import counted
from .check import DataDir, Download
from .train import typed_command

if TYPE_CHECKING:
    from ..comparison.audit import Audit, Repeated

_MOST_MISMATCHES = 20  # on the screen; the JSON result lists all


def audit_command(
    comparison: Annotated[Path, typer.Argument(help="The folder of a comparison: its --out, or a copy.")],
    *,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="The images, where they lie elsewhere than compare.json says.")
    ] = None,
    arm: Annotated[str | None, typer.Option(metavar="ARM", help="Draw from the runs of this arm.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Draw from the runs with this seed.")] = None,
    runs: Annotated[int, typer.Option(metavar="N", help="Number of runs to train again.")] = 1,
    attention: Annotated[
        str | None, typer.Option(metavar="ARMS", help="The arms that are code of yours, NAME=MODULE:NAME, as compare.")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(metavar="WEIGHTS", help="The weights to start from, where they lie elsewhere.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the trainings; the same command goes on with them.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu, cuda, ...; by default as the run, if that is here.")
    ] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Threads that read images.")] = None,
    data_dir: DataDir = None,
    download: Download = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON; messages go to standard error.")] = False,
) -> None:
    """Check a comparison of somebody: its files agree, and a run drawn at random comes out the same, trained again.

    Exit status 0 if it passes, 1 if not.
    """
    from ..comparison.arms import parse_arms
    from ..comparison.audit import Asked, audit
    from .screen import TerminalScreen, kept_for_json

    for name, text in (("--data", data), ("--pretrained", pretrained), ("--data-dir", data_dir)):
        if text == "":
            raise UserError(f"{name} is empty; leave it out, or say where it is")
    arms = () if attention is None else parse_arms(attention)
    asked = Asked(data=data, arm=arm, seed=seed, num_runs=runs, arms=arms, pretrained=pretrained, out=out)
    given = {"device": device, "workers": workers, "data_dir": data_dir, "download": download or None}
    free = {name: value for name, value in given.items() if value is not None}
    with kept_for_json(json), TerminalScreen(to_stderr=json) as screen:
        outcome = audit(comparison, asked, free, command=typed_command(), screen=screen)
    if json:
        say_json(outcome.to_dict())
    else:
        _show(outcome)
    if not outcome.passed:
        raise typer.Exit(1)


def _show(outcome: Audit) -> None:
    mismatches = [*outcome.mismatches, *(found for run in outcome.runs for found in run.mismatches)]
    show(rich_tables([_figures(run) for run in outcome.runs if run.figures]))
    for found in mismatches[:_MOST_MISMATCHES]:
        say(found.sentence)
    if len(mismatches) > _MOST_MISMATCHES:
        say(f"and {counted(len(mismatches) - _MOST_MISMATCHES, 'other')}; all with --json")
    for sentence in outcome.sentences:
        say(sentence)


def _figures(run: Repeated) -> Table:
    """Return the table of a run's figures and of those of its repetition, as their files have them."""
    is_bounded = any(figure.bound is not None for figure in run.figures)
    rows = [
        (
            figure.name.replace("_", " "),
            f"{figure.there:.6f}",
            f"{figure.here:.6f}",
            "equal" if figure.here == figure.there else f"{figure.here - figure.there:+.6f}",
            *([f"{figure.bound:.6f}"] if figure.bound is not None else []),
        )
        for figure in run.figures
    ]
    columns = ("", "in the comparison", "trained again", "difference", *(["at most"] if is_bounded else []))
    return Table(f"{run.arm}, seed {run.seed}", columns, rows)
