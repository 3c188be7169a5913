from __future__ import annotations

import json

import typer

from ..base.tables import rich_tables, show
from ..data.doctor.report import examine
from ..data.sources.find import find_source
from .screen import TerminalScreen


def print_check(
    data: str,
    *,
    as_json: bool,
    path_column: str | None = None,
    label_column: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
) -> bool:
    """Examine DATA, print the report, and return whether it is sound."""
    source = find_source(data, path_column=path_column, label_column=label_column, data_dir=data_dir, download=download)
    with TerminalScreen(to_stderr=True) as screen:
        report = examine(source, progress=lambda done, total: screen.progress("examining images", done, total))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        show(rich_tables(report.tables()))
    return report.sound
