"""Find, check and split DATA: the images that a run trains, validates and tests on."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..base.errors import UserError
from ..base.randomness import stream_seed
from ..base.words import brief, cause, counted, few, printable
from .doctor.duplicates import joined
from .doctor.findings import class_findings, unusable
from .doctor.report import Report, examine, median_of
from .images import MAX_VALUE
from .sources.find import find_source
from .sources.source import SPLITS, Finding, Sample, Source, check_command

_NUM_HEADERS = 100


@dataclass(frozen=True)
class Prepared:
    """The images that a run trains, validates and tests on."""

    source: Source  # the images as found
    classes: tuple[str, ...]  # class names, sorted; the number of a class is its place here
    parts: dict[str, tuple[Sample, ...]]  # "train", "val" and "test"; "test" may be empty
    report: Report | None  # the doctor's report; None if the data were not checked
    left_out: dict[str, str]  # what `skip_bad` left out: the kind of finding by path, or by row of a CSV file
    median_side: int  # median of the images' shorter sides, in pixels
    drawn: tuple[str, ...] = ()  # which of "val" and "test" were drawn by the seed: DATA has no such split
    max_value: int = MAX_VALUE  # the value of 16-bit grey that becomes 255
    uneven: str = ""  # as a sentence, which sizes the parts have instead of those that were asked for
    median_long_side: int = 0  # median of the images' longer sides, in pixels


def prepare(
    data: str,
    *,
    seed: int,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    group_from: str | None = None,
    near_duplicates: str = "together",
    max_value: int | Literal["auto"] = MAX_VALUE,
    skip_bad: bool = False,
    check: bool = True,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Find DATA, let the doctor examine it, and draw the splits that it does not have.

    `find_source` explains the arguments that say where the images are, and `split_samples` those of the splits. With
    `skip_bad`, images that cannot be read are left out, and, if the same file is in several splits, the copies in train
    (or val). `near_duplicates` says whether images that are nearly the same stay "together" in one part, or "free", as
    pictures of a fixed camera should be; copies stay together always. `max_value` is as in `examine`; "auto" needs the
    check. With `check`, every image is decoded and checked; else only some headers are read. `progress` is called with
    the numbers of checked images and of all images.

    Raises:
        UserError: DATA is not found, is not sound, or cannot be split like this.
    """
    where = {
        "path_column": path_column,
        "label_column": label_column,
        "split_column": split_column,
        "data_dir": data_dir,
    }
    source = find_source(data, **where, download=download)
    report = examine(source, max_value=max_value, progress=progress) if check else None
    command = check_command(data, **where)
    left_out = _left_out(source, report, skip_bad, command)
    samples = [sample for sample in source.samples if sample.path not in left_out]
    # again, because leaving out copies may leave a class without images
    check_sound(data, class_findings(samples), command)
    division = _divide(
        samples,
        report,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        group_from=group_from,
        near_duplicates=near_duplicates,
    )
    sizes = _some_sizes(source, samples) if report is None else []
    return Prepared(
        source=source,
        classes=tuple(sorted({sample.label for sample in samples})),
        parts=division.parts,
        report=report,
        left_out=left_out,
        median_side=median_of(map(min, sizes)) if report is None else report.median_side,
        median_long_side=median_of(map(max, sizes)) if report is None else report.median_long_side,
        drawn=division.drawn,
        max_value=_max_value(report, max_value),
        uneven=division.uneven,
    )


def examine_for_training(source: Source, **options: Any) -> Report:
    """Return the doctor's report, and in it what a training without options would say of its division of the images.

    `options` are those of `examine`.
    """
    report = examine(source, **options)
    left_out = _bad(report)
    samples = [sample for sample in source.samples if sample.path not in left_out]
    if any(finding.severity == "error" for finding in class_findings(samples)):
        return report
    try:
        severity, sentence = "warning", _divide(samples, report).uneven
    except UserError as error:
        severity, sentence = "error", str(error)
    message, _, cure = sentence.partition("; ")
    return report.with_findings(Finding(severity, "division", message, cure=cure)) if sentence else report


def _left_out(source: Source, report: Report | None, skip_bad: bool, command: str) -> dict[str, str]:
    """Return what to leave out: the kind of finding by path. Without `skip_bad`, nothing may be wrong."""
    findings = (report or source).findings
    if not skip_bad:
        check_sound(source.name, findings, command)
        return {}
    return _bad(report or source)


def _bad(found: Report | Source) -> dict[str, str]:
    """Return what --skip-bad leaves out: the kind of finding by path."""
    surplus = found.surplus if isinstance(found, Report) else {}
    return dict(sorted((surplus | unusable(found.findings)).items()))


@dataclass(frozen=True)
class _Division:
    """The images of each part, as in `Prepared`."""

    parts: dict[str, tuple[Sample, ...]]
    drawn: tuple[str, ...]
    uneven: str


def _divide(
    samples: Sequence[Sample],
    report: Report | None,
    *,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    group_from: str | None = None,
    near_duplicates: str = "together",
) -> _Division:
    """Divide `samples` as `prepare` says; raise UserError where that cannot be."""
    twins, way_out = _kept_together(report, near_duplicates)
    parts = split_samples(
        samples,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        group_from=group_from,
        twins=twins,
        way_out=way_out,
    )
    drawn = tuple(part for part in ("val", "test") if parts[part] and part not in {item.split for item in samples})
    return _Division(parts, drawn, _uneven(parts, drawn, {"val": val_fraction, "test": test_fraction}, way_out))


def _kept_together(report: Report | None, near_duplicates: str) -> tuple[tuple[tuple[str, ...], ...], str]:
    """Return the groups of paths that stay in one part, and what to do where they should not."""
    if report is None:
        return (), ""
    if near_duplicates == "free" or report.twins == report.copies:
        return report.copies, ""
    return report.twins, "if they are pictures of one scene, as a fixed camera takes, train with --near-duplicates free"


def _max_value(report: Report | None, max_value: int | Literal["auto"]) -> int:
    if report is not None:
        return report.max_value
    if max_value == "auto":
        raise UserError("the largest value of all images is known only where they are checked; give it as a number")
    return max_value


def _uneven(
    parts: Mapping[str, Sequence[Sample]], drawn: Sequence[str], fractions: Mapping[str, float], way_out: str
) -> str:
    """Return which sizes the drawn parts have instead of those that were asked for; "" where they are near."""
    divided = sum(len(parts[part]) for part in ("train", *drawn))
    num_classes = len({sample.label for sample in parts["train"]})
    wanted = {part: round(fractions[part] * divided) for part in drawn}
    # each class is divided by whole images
    if all(abs(len(parts[part]) - number) <= num_classes + divided // 20 for part, number in wanted.items()):
        return ""
    sizes = ", ".join(f"{len(parts[part]):,} {part}" for part in drawn)
    return (
        f"groups of images that must stay in one part make the parts uneven: {sizes} images, instead of "
        f"{' and '.join(f'{number:,}' for number in wanted.values())}{f'; {way_out}' if way_out else ''}"
    )


def fingerprint(prepared: Prepared) -> str:
    """Return a SHA-256 of the path, label and part of every image."""
    lines = sorted((sample.path, sample.label, part) for part in SPLITS for sample in prepared.parts.get(part, ()))
    text = "".join(f"{path}\0{label}\0{part}\0" for path, label, part in lines)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_sound(data: str, findings: Iterable[Finding], command: str) -> None:
    """Refuse DATA in which something is wrong; `command` shows all of it."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    first, *others = errors
    paths = f" ({few(first.paths)})" if first.paths and first.can_skip else ""
    more = f", and {counted(len(others), 'other error')}" if others else ""
    skip = ["leave out what is bad with --skip-bad"] if any(finding.can_skip for finding in errors) else []
    cures = ", or ".join([*filter(None, [first.cure]), *skip, "see all of it with"])
    raise UserError(f"{printable(data)} is not sound: {first.message}{paths}{more}; {cures}", command)


def _some_sizes(source: Source, samples: Sequence[Sample]) -> list[tuple[int, int]]:
    step = max(1, len(samples) // _NUM_HEADERS)
    sizes = []
    for sample in samples[::step][:_NUM_HEADERS]:
        with source.open(sample) as image:
            sizes.append(image.size)
    return sizes


def split_samples(
    samples: Sequence[Sample],
    *,
    seed: int,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    group_from: str | None = None,
    twins: Iterable[Sequence[str]] = (),
    way_out: str = "",
) -> dict[str, tuple[Sample, ...]]:
    """Return the samples of "train", "val" and "test", each sorted by path.

    Splits that the samples have are kept. Without splits, or with train only, val and test are drawn. If only val is
    missing, `val_fraction` of train is drawn for it. If only test is missing, it is empty.

    Drawing is stratified: each part has its share of each class, within one image, and at least one image if the class
    has enough; train has the first claim. Samples of one group stay in one part, even if the shares then differ.

    The draw depends on `seed` and the paths only: samples are sorted by `stream_seed(seed, "split.PATH")`, which is the
    same on every platform.

    `val_fraction` and `test_fraction` are shares of all images, from 0 to below 1. Paths in which the regular
    expression `group_from` finds the same text (its group, or the whole match) are one group. So is each sequence of
    `twins`, paths of images that are nearly the same. `way_out` ends the message that there are too few groups.

    Raises:
        UserError: A fraction is out of range, the pattern does not fit a path, there are too few groups, or there is no
            train split.
    """
    given: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    pool: list[Sample] = []
    for sample in sorted(samples, key=lambda item: item.path):
        (pool if sample.split is None else given[sample.split]).append(sample)
    if not pool and not given["train"]:
        raise UserError("DATA has no training images; it needs a train split, or none at all")
    fractions = _fractions(given, val_fraction, test_fraction)
    if given["val"]:
        return {split: tuple(given[split]) for split in SPLITS}
    # groups of images that must stay together, sorted by path
    by_path = {sample.path: sample for sample in pool or given["train"]}
    groups = [*twins, *(_groups(by_path, group_from) if group_from is not None else ())]
    inside = [[path for path in group if path in by_path] for group in groups]
    units = [[by_path[path] for path in unit] for unit in joined([*([path] for path in by_path), *inside])]
    # large groups first: the small ones then even out the shares
    units.sort(key=lambda unit: (-len(unit), stream_seed(seed, f"split.{printable(unit[0].path)}"), unit[0].path))
    parts = _divided(units, {split: fraction for split, fraction in fractions.items() if fraction})
    empty = [split for split, fraction in fractions.items() if fraction and not parts[split]]
    if empty:
        hint = (", or choose other groups" if group_from else "") + (f"; {way_out}" if way_out else "")
        raise UserError(
            f"the images form {counted(len(units), 'group')} that must stay whole, as copies and near duplicates must: "
            f"too few to fill {', '.join(parts)}: {' and '.join(empty)} would be empty; add images{hint}"
        )
    if given["test"]:
        parts["test"] = given["test"]
    return {split: tuple(sorted(parts[split], key=lambda item: item.path)) for split in SPLITS}


def _fractions(given: Mapping[str, Sequence[Sample]], val_fraction: float, test_fraction: float) -> dict[str, float]:
    """Return the share of each part in the images that are divided; those of `given` splits stay as they are."""
    for name, value in (("validation", val_fraction), ("test", test_fraction)):
        if not 0 <= value < 1:
            raise UserError(f"the fraction of {name} images must be at least 0 and below 1, got {brief(value)}")
    if given["val"]:
        return {}
    if not val_fraction:
        raise UserError("the fraction of validation images is 0, but DATA has no val split; give one above 0")
    drawn_test = 0.0 if given["test"] else test_fraction
    if val_fraction + drawn_test > 1 - 1e-9:
        raise UserError(
            f"validation and test images, {val_fraction} and {drawn_test} of all, leave nothing to train on"
        )
    return {"train": 1 - val_fraction - drawn_test, "val": val_fraction, "test": drawn_test}


def _divided(units: Sequence[Sequence[Sample]], fractions: dict[str, float]) -> dict[str, list[Sample]]:
    """Put groups into parts, one by one, each into the part that brings the classes closest to their shares."""
    splits = list(fractions)
    sizes = Counter(sample.label for unit in units for sample in unit)
    units_left = Counter(label for unit in units for label in {sample.label for sample in unit})
    # by class: number of images that each part still needs, and the parts without an image of it
    needs = {
        label: dict(zip(splits, _shares(size, list(fractions.values())), strict=True)) for label, size in sizes.items()
    }
    without = {label: set(splits) for label in sizes}
    parts: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for unit in units:
        counts, choices = Counter(sample.label for sample in unit), splits
        for label in counts:
            # the last groups of a class go to parts without an image of it
            if units_left[label] <= len(without[label]):
                choices = [split for split in choices if split in without[label]] or choices
        # every class gets training images
        if any(units_left[label] == 1 and splits[0] in without[label] for label in counts):
            choices = splits[:1]
        # growth of the squared deviations from the targets, each divided by the size of its class
        growth = {
            split: sum(count * (count - 2 * needs[label][split]) / sizes[label] for label, count in counts.items())
            for split in choices
        }
        best = min(growth, key=lambda split: growth[split])
        parts[best] += unit
        units_left.subtract(counts.keys())
        for label, count in counts.items():
            needs[label][best] -= count
            without[label].discard(best)
    return parts


def _shares(size: int, fractions: Sequence[float]) -> list[int]:
    """Divide `size` by `fractions` into whole numbers, by the largest remainders.

    No number is 0 if `size` is large enough; the first one, of the training part, is 0 only if `size` is.
    """
    shares = [int(size * fraction + 1e-9) for fraction in fractions]
    by_remainder = sorted(range(len(shares)), key=lambda index: shares[index] - size * fractions[index])
    for index in by_remainder[: size - sum(shares)]:
        shares[index] += 1
    while 0 in shares and (size >= len(shares) or not shares[0]):
        shares[shares.index(max(shares))] -= 1
        shares[shares.index(0)] += 1
    return shares


def _groups(paths: Iterable[str], pattern: str) -> list[list[str]]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--group-from {brief(pattern)} is no regular expression: {cause(error)}") from error
    if expression.groups > 1:
        raise UserError(
            f"--group-from {brief(pattern)} has {expression.groups} groups in brackets; use one, (?:...) otherwise"
        )
    groups: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        match = expression.search(path)
        key = match.group(expression.groups) if match else None
        if key is None:
            raise UserError(f"--group-from {brief(pattern)} finds nothing in {printable(path)}; it must fit every path")
        groups[key].append(path)
    return list(groups.values())
