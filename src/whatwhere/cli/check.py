from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

import typer

from ..data.doctor import examine
from ..data.find import find_source
from ..tables import rich_tables, show


def print_check(
    data: str,
    *,
    as_json: bool,
    path_column: str | None = None,
    label_column: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
) -> bool:
    """Print what the doctor finds in DATA, and return whether it is sound."""
    source = find_source(data, path_column=path_column, label_column=label_column, data_dir=data_dir, download=download)
    with progress_bar("examining images") as progress:
        report = examine(source, progress=progress)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        show(rich_tables(report.tables()))
    return report.sound


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Give a function (done, total) that moves a bar on standard error; None where that is not a terminal."""
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
