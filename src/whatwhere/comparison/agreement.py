"""Do the files of a comparison agree? Figures in the runs, the table and the verdict, each against what it is from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..base.documents import parse_json
from ..base.errors import UserError
from ..base.files import Unreadable, read_csv, read_file
from ..base.limits import DOCUMENT_BYTES
from ..base.words import brief, cause
from ..collect.result import RESULT
from ..statistics.columns import ARM, SEED
from ..statistics.history import Record
from ..statistics.metric import METRICS
from ..training.run_folder import RUN
from .content import DESIGN, RESULTS, VERDICT
from .costs import read_costs
from .design import Design
from .gather import Gathered
from .runs import Runs

# texts of verdict.json and result.json that are no sentences: those may be worded otherwise in another version
_NAMES = {"verdict", "name", "baseline", "weights"}
_PAIRED = ("baseline", "treatment", "differences")
_JUDGED = "judging the runs again"


class Mismatch(msgspec.Struct, frozen=True, kw_only=True):
    """A figure in a file that is not the one that it should be.

    Attributes:
        file: The file, from the folder of the comparison.
        figure: Which figure; a whole sentence where the file cannot be read.
        arm, seed: Of which run; "" and None where it is of no single one.
        said: What the file says; None for nothing.
        found: What it should say.
        by: Where that is from.
        bound: How far the two may be apart; None where they must be equal.
    """

    file: str
    figure: str
    arm: str = ""
    seed: int | str | None = None
    said: Any = None
    found: Any = None
    by: str = ""
    bound: float | None = None

    @property
    def sentence(self) -> str:
        """In words."""
        of = ", ".join(filter(None, [self.arm, "" if self.seed is None else f"seed {self.seed}"]))
        if not self.by:
            return f"{self.file}{f' ({of})' if of else ''}: {self.figure}"
        said, found = ("nothing" if value is None else brief(value) for value in (self.said, self.found))
        further = "" if self.bound is None else f", further away than the {self.bound:g} that chance allows"
        return f"{self.file} says {said} for {self.figure}{f' of {of}' if of else ''}, {self.by} gives {found}{further}"


def check_agreement(folder: Path, design: Design) -> tuple[Gathered, list[Mismatch]]:
    """Return the finished runs of a comparison, and what its files say differently from each other.

    The figures of results.csv must be those of the runs, and verdict.json must follow from them; the runs must have the
    options of compare.json, and images as the others.

    Raises:
        UserError: A file cannot be read, or results.csv is no table.
    """
    mismatches, gathered = [], Gathered(design, ())
    for task in Runs(folder).tasks(design):
        try:
            gathered.add(task)
        except Unreadable:
            raise
        except UserError as error:
            file, why = task.folder.relative_to(folder).as_posix(), str(error).partition("; ")[0]
            mismatches.append(Mismatch(file=file, figure=why, arm=task.arm, seed=task.options["seed"]))
    mismatches += [*_of_runs(gathered), *_of_table(folder / RESULTS, gathered)]
    if not mismatches and gathered.finished:
        mismatches += _of_verdict(folder, gathered)
    return gathered, mismatches


def _of_runs(gathered: Gathered) -> Iterator[Mismatch]:
    """Compare the images of the runs with those of the comparison and of the baseline, and their number."""
    design = gathered.design
    contents = design.data_fingerprint.partition(":")[2]
    for (arm, seed), run in gathered.finished.items():
        described, result, folder = run.description, run.result, f"runs/{arm}/seed-{seed}"
        partner = gathered.finished.get((design.baseline, seed), run).description
        found: list[tuple[str, str, Any, Any, str]] = [
            (RUN, "data_fingerprint", described.data_fingerprint, partner.data_fingerprint, "the run of its pair")
        ]
        if contents and described.content_fingerprint is not msgspec.UNSET:
            found.append((RUN, "content_fingerprint", described.content_fingerprint, contents, DESIGN))
        for part, figures in (("val", result.val), ("test", result.test)):
            if figures is not msgspec.UNSET:
                number = described.num_images.get(part, 0)
                found.append((RESULT, f"{part} num_images", figures.num_images, number, RUN))
        for file, figure, said, other, by in found:
            if said != other:
                yield Mismatch(
                    file=f"{folder}/{file}", figure=figure, arm=arm, seed=seed, said=said, found=other, by=by
                )


def _of_table(path: Path, gathered: Gathered) -> Iterator[Mismatch]:
    """Compare results.csv with the figures of the runs."""
    _, lines = read_csv(path)
    (_, head), *rows = lines or [(1, [])]
    names = dict.fromkeys([*(name for name in head if name in METRICS), gathered.design.metric])
    lacking = {(arm, str(seed)): gathered.results.runs(arm)[seed] for arm, seed in gathered.finished}
    for number, cells in rows:
        row = dict(zip(head, cells, strict=False))
        arm, seed = row.get(ARM, ""), row.get(SEED, "")
        figures = lacking.pop((arm, seed), None)
        if figures is None:
            why = f"line {number} has no finished run in runs/{arm}/seed-{seed}, or is there twice"
            yield Mismatch(file=path.name, figure=why, arm=arm, seed=seed)
            continue
        for name in names:
            said, found = _number(row.get(name, "")), figures.get(name)
            if not _same(said, found):
                yield Mismatch(file=path.name, figure=name, arm=arm, seed=seed, said=said, found=found, by=RESULT)
    for arm, seed in lacking:
        why = "it lacks this finished run, or was not written since"
        yield Mismatch(file=path.name, figure=why, arm=arm, seed=seed)


def _number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def _of_verdict(folder: Path, gathered: Gathered) -> list[Mismatch]:
    """Compare verdict.json, and the verdicts in compare.json, with what follows from the runs."""
    text = read_file(folder / VERDICT, DOCUMENT_BYTES)
    try:
        parse_json(text, Record)
        told = parse_json(text, dict[str, Any])
    except ValueError as error:
        return [Mismatch(file=VERDICT, figure=f"it is damaged ({cause(error)})")]
    costs = read_costs(folder)
    try:
        judgement, _ = gathered.judge()
    except UserError as error:
        return [Mismatch(file=VERDICT, figure=f"the runs give no verdict: {error}")]
    content = gathered.content(judgement, "", costs, {}, ()).to_dict()
    sections = ("judgement", "runs", "curves", "per_class", *(["cost"] if costs else []))
    said, found = ({name: each.get(name) for name in sections} for each in (told, content))
    mismatches = differing(VERDICT, said, found, by=_JUDGED)
    for arm in judgement.arms:
        known = gathered.design.verdicts.get(arm.arm)
        if arm.level is not None and known != (arm.verdict, arm.num_pairs):
            was = None if known is None else f"{known[0]} at {known[1]} pairs"
            follows = f"{arm.verdict} at {arm.num_pairs} pairs"
            mismatches.append(Mismatch(file=DESIGN, figure="verdict", arm=arm.arm, said=was, found=follows, by=_JUDGED))
    return mismatches


def differing(
    file: str, said: Any, found: Any, *, by: str, exact: bool = False, arm: str = "", seed: int | None = None
) -> list[Mismatch]:
    """Return the values of JSON that differ: those that were computed again by more than rounding, unless `exact`.

    `arm` and `seed` are those of values that do not say theirs. A field that one of the two has nowhere is of another
    version.
    """
    there, here = dict(_values(said, (), arm, seed)), dict(_values(found, (), arm, seed))
    both = {names for names, *_ in there} & {names for names, *_ in here}
    return [
        Mismatch(
            file=file, figure=" ".join(key[0]), arm=key[1], seed=key[2], said=there.get(key), found=here.get(key), by=by
        )
        for key in dict.fromkeys([*there, *here])
        if key[0] in both and not _same(there.get(key), here.get(key), exact=exact)
    ]


_Key = tuple[tuple[str, ...], str, int | str | None]  # names of the fields, arm, seed


def _values(value: Any, names: tuple[str, ...], arm: str, seed: int | str | None) -> Iterator[tuple[_Key, Any]]:
    """Yield the numbers, names and verdicts in JSON values, each by its place; an item of a list by what names it."""
    if isinstance(value, dict):
        arm, seed, seeds = value.get("arm", arm), value.get("seed", seed), value.get("seeds", ())
        for name, inner in value.items():
            if name in _PAIRED and isinstance(inner, list):
                yield from (
                    (((*names, name), arm, number), paired) for number, paired in zip(seeds, inner, strict=True)
                )
            elif not isinstance(inner, str) or name in _NAMES:
                yield from _values(inner, (*names, name), arm, seed)
    elif isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        for number, inner in enumerate(value, start=1):
            label = _label(inner) if isinstance(inner, dict) else str(number)
            yield from _values(inner, (*names, label) if label else names, arm, seed)
    elif not (isinstance(value, list) and any(isinstance(inner, str) for inner in value)):
        yield (names, arm, seed), value


def _label(item: dict[str, Any]) -> str:
    """Return what names an item of a list besides its arm and seed."""
    metric = item.get("metric")
    named = [item.get("class"), metric.get("name") if isinstance(metric, dict) else None]
    return " ".join(str(name) for name in named if name) + (f"epoch {item['epoch']}" if "epoch" in item else "")


def _same(said: Any, found: Any, *, exact: bool = False) -> bool:
    if not exact and isinstance(said, list) and isinstance(found, list) and len(said) == len(found):
        return all(map(_same, said, found))
    if exact or not all(type(value) in (int, float) for value in (said, found)):
        return bool(said == found)
    return math.isclose(said, found, rel_tol=1e-9, abs_tol=1e-12)
