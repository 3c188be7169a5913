"""`whatwhere check`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..base.tables import rich_tables, say_json, show

PathColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Column of the paths in a CSV.")]
LabelColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Column of the labels in a CSV.")]
SplitColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of train, val and test in a CSV; none: no splits.")
]
DataDir = Annotated[str | None, typer.Option(metavar="DIR", help="Folder of torchvision's data sets.")]
Download = Annotated[bool, typer.Option("--download", help="Download a torchvision data set.")]


def check_command(
    data: Annotated[str, typer.Argument(help="Images: a folder, a CSV, `digits`, or a torchvision data set by name.")],
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    data_dir: DataDir = None,
    max_value: Annotated[
        str, typer.Option(metavar="N|auto", help="Value of 16-bit grey images that is white, as for train.")
    ] = "65535",
    download: Download = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Look for everything that would spoil a result; exit status 0 if images are sound, 1 if not. Changes no file."""
    from ..data.sources.find import find_source
    from ..data.split import examine_for_training
    from ..training.config import Config
    from .screen import TerminalScreen
    from .train import number_or_word

    checked = Config(max_value=number_or_word(max_value))
    source = find_source(
        data,
        path_column=path_column,
        label_column=label_column,
        split_column=split_column,
        data_dir=data_dir,
        download=download,
    )
    with TerminalScreen(to_stderr=True) as screen:
        report = examine_for_training(
            source,
            max_value=checked.max_value,
            progress=lambda done, total: screen.progress("examining images", done, total),
        )
    if json:
        say_json(report.to_dict())
    else:
        show(rich_tables(report.tables()))
    if not report.sound:
        raise typer.Exit(1)
