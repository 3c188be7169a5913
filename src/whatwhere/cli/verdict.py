"""`whatwhere verdict`: the verdict on figures from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from ..base.errors import UserError, check_integer
from ..base.files import check_can_write, check_replaceable, write_json, writing
from ..base.tables import rich_tables, say, say_json, show
from ..base.words import command_line, few, option
from .collect import (
    ArmColumn,
    ArmFrom,
    Epoch,
    HigherIsBetter,
    LowerIsBetter,
    MayDiffer,
    Metric,
    SeedColumn,
    SeedFrom,
    reading_for,
)
from .train import as_arguments

if TYPE_CHECKING:
    from ..base.tables import Table
    from ..comparison.content import Content
    from ..statistics.columns import Reading


LATEX = "Print one table of the arms for a paper (booktabs); all else goes to standard error."
MARKDOWN = "Print that table in Markdown."


def verdict_command(
    results: Annotated[
        list[Path],
        typer.Argument(help="A CSV with columns arm, seed and the figure to judge by; or runs, as `collect` takes."),
    ],
    *,
    metric: Metric = None,
    lower_is_better: LowerIsBetter = False,
    higher_is_better: HigherIsBetter = False,
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
    across: Annotated[
        bool, typer.Option("--across", help="One verdict over several comparisons, RESULTS being one each.")
    ] = False,
    data_sets: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="With --across: the data set of each comparison, in order.")
    ] = None,
    test_images: Annotated[
        int | None, typer.Option(metavar="N", help="Images each run was tested on: tells runs that differ too little.")
    ] = None,
    epoch: Epoch = None,
    arm_column: ArmColumn = None,
    seed_column: SeedColumn = None,
    arm_from: ArmFrom = None,
    seed_from: SeedFrom = None,
    may_differ: MayDiffer = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="The page, a .json beside it; by default RESULTS.verdict.html.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help=LATEX)] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help=MARKDOWN)] = False,
) -> None:
    """The same verdict for trainings that whatwhere does not run, from their folders or a table of their figures.

    With --across one verdict over several comparisons, from 4 data sets on: each a table, a folder of runs, or a
    folder that `compare` wrote. Its page is across.html beside them.
    """
    from ..collect.collect import collect
    from ..comparison.across import check_has_baseline, read_compared
    from ..comparison.content import figures_content
    from ..statistics.history import check_figures, check_title, judge_again, read_record
    from ..statistics.looks import LEAST_PAIRS, MOST_SEEDS

    if out is not None and (not out or "\0" in out):
        raise UserError(f"--out {'holds a null character' if out else 'is empty'}; give the file of the page")
    reading = reading_for(
        metric=metric,
        lower_is_better=lower_is_better,
        higher_is_better=higher_is_better,
        epoch=epoch,
        arm_column=arm_column,
        seed_column=seed_column,
        arm_from=arm_from,
        seed_from=seed_from,
        may_differ=may_differ,
    )
    for name, pairs in (("--first-look", first_look), ("--max-pairs", max_pairs)):
        if pairs is not None:
            check_integer(name, pairs, least=LEAST_PAIRS, most=MOST_SEEDS)
    if test_images is not None:
        check_integer("--test-images", test_images)
    form = chosen_form(json=json, latex=latex, markdown=markdown)
    if data_sets is not None and not across:
        raise UserError("--data-sets names those of several comparisons; give --across too")
    if across:
        of_one = {"--first-look": first_look, "--max-pairs": max_pairs, "--test-images": test_images}
        for name, value in of_one.items():
            if value is not None:
                raise UserError(f"{name} is for one comparison: leave it out with --across, or judge each alone first")
        _verdict_across(results, reading, baseline, margin, data_sets, out, form)
        return
    page = Path(out) if out else _page_beside(results)
    record_path = _checked_targets(page, results)
    title = results[0].name if len(results) == 1 else page.name.partition(".")[0]
    record = read_record(record_path)
    if record is not None:
        check_title(record, record_path, title)
    table, compared, controls = read_compared(results[0]) if len(results) == 1 else (None, None, [])
    # runs are read, which may take long, once it is known that their verdict can be written
    collected = collect(results if table is None else [table], reading)
    figures = collected.results
    given = {"metric": metric, "baseline": baseline, "margin": margin, "test_images": test_images}
    before = {} if compared is None else compared.terms
    terms = {name: before.get(name) if value is None else value for name, value in given.items()}
    terms["lower_is_better"] = reading.lower_is_better
    if terms["baseline"] is None:
        check_has_baseline(collected, table or results[0])
    source = tuple(sorted(_path_from(record_path.parent, path) for path in results))
    if record is not None:
        check_figures(record, record_path, figures, source)
    if compared is not None:  # it has the looks of the design; what was changed in judging here is kept
        record = msgspec.structs.replace(compared, changes=(*compared.changes, *(record.changes if record else ())))
    judgement, changes = judge_again(
        figures, record, first_look=first_look, max_pairs=max_pairs, controls=controls, terms=terms
    )
    # from the terms of the design, a change of terms is told each time
    told = changes if compared is None else list(dict.fromkeys(changes))
    content = figures_content(judgement, figures, title, told, source)
    with writing(page):
        page.parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(os.path.realpath(record_path)), content.to_dict())
    show_comparison(content, page, form)


def _verdict_across(
    results: list[Path],
    reading: Reading,
    baseline: str | None,
    margin: float | None,
    data_sets: str | None,
    out: str | None,
    form: str,
) -> None:
    """Print one verdict over several comparisons, and write its page and its JSON."""
    from ..comparison.across import read_comparisons
    from ..report import across_paper_table, across_tables, write_across_page
    from ..statistics.across import across

    page = Path(out) if out else _folder_of(results) / "across.html"
    record_path = _checked_targets(page, results)
    if record_path.exists():
        _check_is_across(record_path)
    names = [] if data_sets is None else [name.strip() for name in data_sets.split(",")]
    judgements, known = read_comparisons(results, reading, baseline=baseline, margin=margin, data_sets=names)
    verdict, title = across(judgements, known), few(list(judgements), 4)
    content = {"title": title, "across": verdict.to_dict()}
    with writing(page):
        page.parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(os.path.realpath(record_path)), content)
    write_across_page(Path(os.path.realpath(page)), verdict, title)
    if form == "json":
        say_json(content)
    else:
        _show_tables(across_tables(verdict, title), lambda: across_paper_table(verdict, title), page, form)


def _check_is_across(path: Path) -> None:
    """Raise UserError if a file is something else than the JSON of a verdict across comparisons."""
    from ..base.documents import read_json

    try:
        is_ours = "across" in read_json(path, dict[str, Any])
    except ValueError:  # a UserError too
        is_ours = False
    if not is_ours:
        raise UserError(f"{str(path)!r} is no verdict across comparisons; move it away, or give another --out")


def verdict_again(results: Path, terms: Mapping[str, Any]) -> str:
    """Return the command that judges a table by these terms of `judge`, each of which is an option here."""
    options = [text for name, value in terms.items() if value is not None for text in as_arguments(name, value)]
    return command_line(["whatwhere", "verdict", str(results), *options])


def _page_beside(results: list[Path]) -> Path:
    """Return where the page goes: beside the table, or beside the folder that holds all runs."""
    from ..collect.collect import find_some

    if len(results) == 1 and not results[0].is_dir():
        return results[0].with_suffix(".verdict.html")
    folder = _folder_of(results)
    if not folder.name or folder == Path.cwd():
        find_some(results)
        raise UserError(
            "the runs have no folder of their own beside which the page could stand; give its file with --out"
        )
    return folder.with_name(f"{folder.name}.verdict.html")


def _folder_of(paths: list[Path]) -> Path:
    """Return the folder that holds all paths, or the only one itself; the current one where there is none."""
    try:
        common = Path(os.path.commonpath([path.absolute() for path in paths]))
    except ValueError:  # on several drives of Windows
        return Path()
    return common.parent if common.is_file() else common


def _path_from(folder: Path, path: Path) -> str:
    """Return a path as it is from a folder, so that both may be moved together."""
    try:
        return Path(os.path.relpath(os.path.realpath(path), os.path.realpath(folder))).as_posix()
    except ValueError:  # on another drive of Windows
        return Path(os.path.realpath(path)).as_posix()


def _checked_targets(page: Path, results: list[Path]) -> Path:
    """Return where the record goes, beside the page, if both can be written without taking the place of anything else.

    What stands in the record's place is left to `read_record`.
    """
    from ..report import check_page

    with writing(page):
        if page.suffix == ".json" or not page.name or page.is_dir():
            raise UserError(f"--out {str(page)!r} cannot be the page; give a file such as verdict.html")
        record_path = page.with_suffix(".json")
        targets = (os.path.realpath(page), os.path.realpath(record_path))
        if any(os.path.realpath(path) in targets for path in results):
            raise UserError(f"--out {str(page)!r} would write over the results; give another file")
        check_replaceable(record_path)
    check_page(page)
    check_can_write(record_path, makes_folders=True)
    return record_path


def chosen_form(**forms: bool) -> str:
    """Return the name of the one form in which the result is printed, "" for tables.

    Raises:
        UserError: There are several.
    """
    chosen = [name for name, is_chosen in forms.items() if is_chosen]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(map(option, chosen))} print the same result; give one of them")
    return "".join(chosen)


def show_comparison(content: Content, page: Path, form: str) -> None:
    """Write the page of a comparison, and print its tables; or JSON alone, or a table for a paper after them.

    What is no part of the table for a paper, such as cautions, goes to standard error.
    """
    from ..report import paper_table, tables, write_page

    write_page(Path(os.path.realpath(page)), content)
    if form == "json":
        say_json(content.to_dict())
    else:
        _show_tables(tables(content), lambda: paper_table(content), page, form)


def _show_tables(tables: list[Table], for_paper: Callable[[], Table], page: Path, form: str) -> None:
    from ..report import latex, markdown
    from .screen import kept_for_json

    with kept_for_json(bool(form)):
        show(rich_tables(tables))
        say(f"The report: {page}")
    if form:
        say((latex if form == "latex" else markdown)(for_paper()))
