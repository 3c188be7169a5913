"""`whatwhere verdict`: the verdict on figures from elsewhere."""

from __future__ import annotations

import json as json_format
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.errors import UserError, check_integer

if TYPE_CHECKING:
    from ..comparison.content import Content


def verdict_command(
    results: Annotated[Path, typer.Argument(help="A CSV with columns arm, seed and the figure to judge by.")],
    *,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column to judge by, if there are several.")
    ] = None,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="For errors and losses.")] = False,
    higher_is_better: Annotated[
        bool, typer.Option("--higher-is-better", help="Where the name does not tell it.")
    ] = False,
    baseline: Annotated[
        str | None, typer.Option(metavar="ARM", help="Compare with this arm; by default none, baseline, or the first.")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(metavar="X", help="Least difference that matters; by default 0.5 points.")
    ] = None,
    max_pairs: Annotated[
        int | None, typer.Option(metavar="N", help="Pairs at which you will stop, whatever comes; by default open.")
    ] = None,
    first_look: Annotated[
        int | None, typer.Option(metavar="N", help="Pairs at the first look, if that verdict is not here any more.")
    ] = None,
    test_images: Annotated[
        int | None, typer.Option(metavar="N", help="Images each run was tested on: tells runs that differ too little.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="The page; by default RESULTS.verdict.html, a .json beside it.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """The same verdict for trainings that whatwhere does not run, from a table of their figures."""
    from ..base.files import write_json
    from ..comparison.content import figures_content
    from ..statistics.history import judge_again, read_record
    from ..statistics.looks import LEAST_PAIRS, MOST_SEEDS
    from ..statistics.results import read_results

    if out is not None and (not out or "\0" in out):
        raise UserError(f"--out {'holds a null character' if out else 'is empty'}; give the file of the page")
    if lower_is_better and higher_is_better:
        raise UserError("--lower-is-better and --higher-is-better contradict each other; give one of them")
    for name, pairs in (("--first-look", first_look), ("--max-pairs", max_pairs)):
        if pairs is not None:
            check_integer(name, pairs, least=LEAST_PAIRS, most=MOST_SEEDS)
    if test_images is not None:
        check_integer("--test-images", test_images)
    figures = read_results(results, metric)
    page = Path(out) if out else results.with_suffix(".verdict.html")
    record_path = _checked_targets(page, results)
    terms = {
        "metric": metric,
        "lower_is_better": True if lower_is_better else False if higher_is_better else None,
        "baseline": baseline,
        "margin": margin,
        "test_images": test_images,
    }
    judgement, changes = judge_again(
        figures, read_record(record_path), first_look=first_look, max_pairs=max_pairs, terms=terms
    )
    content = figures_content(judgement, figures, results.name, changes)
    write_json(Path(os.path.realpath(record_path)), content.to_dict())
    show_comparison(content, page, json)


def _checked_targets(page: Path, results: Path) -> Path:
    """Return where the record goes, beside the page, if both can be written without taking the place of anything else.

    What stands in the record's place is left to `read_record`.
    """
    from ..base.files import writing
    from ..report import is_page

    with writing(page):
        if page.suffix == ".json" or not page.name or page.is_dir():
            raise UserError(f"--out {str(page)!r} cannot be the page; give a file such as verdict.html")
        record_path = page.with_suffix(".json")
        if os.path.realpath(results) in (os.path.realpath(page), os.path.realpath(record_path)):
            raise UserError(f"--out {str(page)!r} would write over the results; give another file")
        for path in (page, record_path):
            # a link whose end is missing is written through, one that leads round to itself cannot be
            end = Path(os.path.realpath(path))
            if end.is_symlink() or (end.exists() and not end.is_file()):
                raise UserError(f"{str(path)!r} cannot be overwritten; give another file with --out")
        if page.exists() and page.stat().st_size and not is_page(page):
            raise UserError(f"{str(page)!r} is not a report of whatwhere; move it away, or give another --out")
    return record_path


def show_comparison(content: Content, page: Path, as_json: bool) -> None:
    """Write the page of a comparison, and print its tables or its JSON."""
    from ..base.tables import rich_tables, show
    from ..report import tables, write_page

    write_page(Path(os.path.realpath(page)), content)
    if as_json:
        typer.echo(json_format.dumps(content.to_dict(), indent=2))
    else:
        show(rich_tables(tables(content)))
        show(f"The report: {page}")
