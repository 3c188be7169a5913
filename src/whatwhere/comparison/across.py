"""Read several comparisons for one verdict: tables, folders of runs, and what `whatwhere compare` leaves."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..base.documents import read_json
from ..base.errors import UserError
from ..base.words import cause, counted, few, listed, named
from ..collect.collect import Collected, collect, find_some, is_collected
from ..statistics.columns import Reading
from ..statistics.history import Record, judge_again, read_record
from ..statistics.verdict import Judgement, known_baseline
from .content import DESIGN, RESULTS, SHORT, VERDICT


class NamedArm(msgspec.Struct, frozen=True):
    """An arm of `compare.json`: its name, and what it is."""

    name: str
    spec: str


class Compared(msgspec.Struct, frozen=True):
    """What `compare.json` says about a comparison as a whole; `Design` has the rest."""

    data: str
    data_fingerprint: str
    backbone: str
    arms: tuple[NamedArm, ...]
    baseline: str
    metric: str
    margin: float
    options: dict[str, Any]

    @property
    def controls(self) -> list[str]:
        """Names of the positive controls."""
        return [arm.name for arm in self.arms if arm.spec.partition(":")[0] == SHORT]

    @property
    def images(self) -> str:
        """What tells its images from others: the hash of their contents, or where that is missing, of their paths."""
        return self.data_fingerprint.rpartition(":")[2]


@dataclass(frozen=True)
class _Place:
    """Where a comparison lies: its table or its runs, the earlier verdict, and, of `whatwhere compare`, its design."""

    path: Path
    results: Path
    record: Path
    design: Compared | None

    @property
    def name(self) -> str:
        """Its data and backbone, or the name of its file or folder."""
        if self.design is not None:
            return f"{Path(self.design.data).name}: {self.design.backbone}"
        return self.path.name if self.path.is_dir() else self.path.stem


def read_comparisons(
    paths: Sequence[Path],
    reading: Reading | None = None,
    *,
    baseline: str | None = None,
    margin: float | None = None,
    data_sets: Sequence[str] = (),
) -> tuple[dict[str, Judgement], dict[str, str]]:
    """Return the verdict on each comparison and the data set of each, by its name, as `across` takes them.

    A verdict that was read before, beside a table or in the folder of a comparison, says which looks it had.

    Args:
        paths: A table or a folder of runs for each comparison, as `collect` takes them; folders of `whatwhere compare`,
            which know their data set, metric, baseline and margin; or folders that hold several of those.
        reading: How to read tables and runs.
        baseline: For all comparisons; by default as `judge` chooses it.
        margin: For all comparisons.
        data_sets: The name of each comparison's data set, in order; by default only that of `whatwhere compare`.

    Raises:
        UserError: No comparison, one that stands there twice, a number of data sets that does not fit, or as `collect`
            and `judge`.
    """
    places = [place for path in paths for place in _places(path)]
    paths_of = Counter(os.path.realpath(place.results) for place in places)
    if twice := [place for place in places if paths_of[os.path.realpath(place.results)] > 1]:
        raise UserError(f"{str(twice[0].path)!r} is there twice; give each comparison once")
    names_of = Counter(place.name for place in places)
    names = [place.name if names_of[place.name] == 1 else f"{place.name} ({place.path})" for place in places]
    if data_sets and (len(data_sets) != len(places) or not all(data_sets)):
        raise UserError(
            f"there are {counted(len(places), 'comparison')} and {counted(sum(map(bool, data_sets)), 'data set')}; "
            f"give one for each, in this order: {few(names, 6)}"
        )
    judgements = {
        name: _judged(place, reading or Reading(), baseline, margin) for name, place in zip(names, places, strict=True)
    }
    for told_of in (_other_specs, _other_starts):
        for name, told in told_of(names, places).items():
            judgements[name] = dataclasses.replace(judgements[name], cautions=(*told, *judgements[name].cautions))
    return judgements, dict(zip(names, data_sets, strict=True)) if data_sets else _data_sets(names, places)


def _places(path: Path) -> list[_Place]:
    """Return the comparisons at a path: those in the folder if it is none itself."""
    folder = path.parent if path.name == RESULTS else path
    if (folder / DESIGN).is_file():
        return [_compared(path, folder)]
    find_some([path])
    is_folder = path.is_dir()
    if is_folder and (inner := sorted(found.parent for found in path.glob(f"*/{DESIGN}"))):
        return [_compared(one, one) for one in inner]
    record = path.with_name(f"{path.name}.{VERDICT}") if is_folder else path.with_suffix(f".{VERDICT}")
    return [_Place(path, path, record, None)]


def read_compared(path: Path) -> tuple[Path, Record | None, list[str]]:
    """Return what `whatwhere compare` left at a path, its table or its folder: table, verdict with its looks, controls.

    Its runs stand for the table where it has none yet. (path, None, []) for any other path.
    """
    folder = path.parent if path.name == RESULTS else path
    if not (folder / DESIGN).is_file():
        return path, None, []
    table = folder / RESULTS
    return table if table.is_file() else path, read_record(folder / VERDICT), _read_design(folder).controls


def _read_design(folder: Path) -> Compared:
    design = folder / DESIGN
    try:
        return read_json(design, Compared)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{str(design)!r} is damaged ({cause(error)}); restore it, or give the table alone") from error


def _compared(path: Path, folder: Path) -> _Place:
    compared = _read_design(folder)
    if not (folder / RESULTS).is_file():
        raise UserError(f"the comparison in {str(folder)!r} has no {RESULTS} yet; finish its runs first")
    return _Place(path, folder / RESULTS, folder / VERDICT, compared)


def _judged(place: _Place, reading: Reading, baseline: str | None, margin: float | None) -> Judgement:
    record, design = read_record(place.record), place.design
    terms: dict[str, Any] = {"baseline": baseline, "margin": margin}
    if design is None:
        if record is not None and record.title not in ("", place.path.name):
            raise UserError(
                f"{str(place.record)!r} is the verdict on other results than {str(place.path)!r}; move it away"
            )
    else:
        reading = Reading(metric=reading.metric or design.metric, lower_is_better=reading.lower_is_better)
        terms = {
            "baseline": baseline or design.baseline,
            "margin": design.margin if margin is None else margin,
            "test_images": None if record is None else record.terms.get("test_images"),
        }
    collected = collect([place.results], reading)
    if terms["baseline"] is None:
        check_has_baseline(collected, place.results)
    terms |= {"metric": reading.metric, "lower_is_better": reading.lower_is_better}
    try:
        controls = [] if design is None else design.controls
        judgement, changes = judge_again(collected.results, record, controls=controls, terms=terms)
    except UserError as error:
        raise UserError(f"{str(place.path)!r}: {error}") from error
    longer = [f"{arm}: {why}" for arm, why in collected.results.more_epochs.items()]
    return dataclasses.replace(judgement, cautions=(*longer, *judgement.cautions, *changes))


def check_has_baseline(collected: Collected, first: Path) -> None:
    """Raise UserError unless an arm is the baseline by its name: runs in folders have no first arm.

    `first` is the first of the paths that were collected; in a table that people wrote, the first arm is one.
    """
    arms = collected.results.arms
    is_of_folders = len(set(collected.paths.values())) > 1 or is_collected(first)
    if is_of_folders and known_baseline(arms) is None and len(arms) > 1:
        raise UserError(f"no arm is called none or baseline; give the one to compare with, --baseline: {listed(arms)}")


def _other_specs(names: Sequence[str], places: Sequence[_Place]) -> dict[str, list[str]]:
    """Return, by comparison, a sentence for each arm that is something else than the arm of that name before it."""
    first: dict[str, tuple[str, str]] = {}
    told: dict[str, list[str]] = {}
    for name, place in zip(names, places, strict=True):
        for arm in () if place.design is None else place.design.arms:
            spec, other = first.setdefault(arm.name, (arm.spec, name))
            if spec != arm.spec:
                sentence = f"the arm {named(arm.name)} is {named(arm.spec)} here and {named(spec)} in {named(other)}"
                told.setdefault(name, []).append(f"{sentence}: the mean is over both")
    return told


def _other_starts(names: Sequence[str], places: Sequence[_Place]) -> dict[str, list[str]]:
    """Return, by comparison, that its networks start from weights and those of others do not."""
    designs = {name: place.design for name, place in zip(names, places, strict=True) if place.design is not None}
    loaded = [name for name, design in designs.items() if design.options.get("pretrained")]
    if len(loaded) == len(designs):
        return {}
    sentence = "its networks start from weights, so attention starts as the identity there, and elsewhere it may not"
    return {name: [f"{sentence}: the mean is over both"] for name in loaded}


def _data_sets(names: Sequence[str], places: Sequence[_Place]) -> dict[str, str]:
    """Return the data set of each comparison of `whatwhere compare`: the same images have one name."""
    found: dict[str, str] = {}
    sets: dict[str, str] = {}
    for name, place in zip(names, places, strict=True):
        if place.design is not None:
            title, images = Path(place.design.data).name, place.design.images
            if images not in found:
                number = sum(title in (known, known.rpartition(" (")[0]) for known in found.values())
                found[images] = f"{title} ({number + 1})" if number else title
            sets[name] = found[images]
    return sets
