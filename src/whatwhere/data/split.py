"""Find, check and split DATA: the images that a run trains, validates and tests on."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
_UNUSED = ""  # the part of the images that are in no part, because there are more than `train_images`


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
    num_unused: int = 0  # sound images that are in no part, because only some were wanted to train on


def prepare(
    data: str,
    *,
    seed: int,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    train_images: int = 0,
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
        train_images=train_images,
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
        num_unused=len(samples) - sum(map(len, division.parts.values())),
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
    train_images: int = 0,
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
        train_images=train_images,
        group_from=group_from,
        twins=twins,
        way_out=way_out,
    )
    divided = [sample for sample in samples if sample.split in (None, "train")]
    fractions = _fractions(
        {sample.split for sample in samples}, val_fraction, test_fraction, train_images, len(divided)
    )
    drawn = tuple(part for part in ("val", "test") if fractions.get(part) and parts[part])
    told = ("train", *drawn) if train_images else drawn
    wanted = {part: round(fractions[part] * len(divided)) for part in told}
    return _Division(parts, drawn, _uneven(parts, wanted, len(divided), way_out))


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


def _uneven(parts: Mapping[str, Sequence[Sample]], wanted: Mapping[str, int], divided: int, way_out: str) -> str:
    """Return which sizes parts have instead of those that were asked for; "" where they are near."""
    num_classes = len({sample.label for sample in parts["train"]})
    # each class is divided by whole images
    if all(abs(len(parts[part]) - number) <= num_classes + divided // 20 for part, number in wanted.items()):
        return ""
    sizes = ", ".join(f"{len(parts[part]):,} {part}" for part in wanted)
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
    train_images: int = 0,
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

    `val_fraction` and `test_fraction` are shares of all images, from 0 to below 1. With `train_images`, so many train
    (0: all that the fractions leave), and validation images are drawn in the same proportion to them as without it; the
    images beyond are in no part. Test images, and a val split that the samples have, stay. Paths in which the regular
    expression `group_from` finds the same text (its group, or the whole match) are one group. So is each sequence of
    `twins`, paths of images that are nearly the same. `way_out` ends the message that there are too few groups.

    Raises:
        UserError: A fraction or `train_images` is out of range, the pattern does not fit a path, there are too few
            groups, or there is no train split.
    """
    given: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    pool: list[Sample] = []
    for sample in sorted(samples, key=lambda item: item.path):
        (pool if sample.split is None else given[sample.split]).append(sample)
    if not pool and not given["train"]:
        raise UserError("DATA has no training images; it needs a train split, or none at all")
    by_path = {sample.path: sample for sample in pool or given["train"]}
    splits = {split for split, samples in given.items() if samples}
    fractions = _fractions(splits, val_fraction, test_fraction, train_images, len(by_path))
    if list(fractions) == ["train"]:
        return {split: tuple(given[split]) for split in SPLITS}
    # groups of images that must stay together, sorted by path
    groups = [*twins, *(_groups(by_path, group_from) if group_from is not None else ())]
    inside = [[path for path in group if path in by_path] for group in groups]
    units = [[by_path[path] for path in unit] for unit in joined([*([path] for path in by_path), *inside])]
    # large groups first: the small ones then even out the shares
    units.sort(key=lambda unit: (-len(unit), stream_seed(seed, f"split.{printable(unit[0].path)}"), unit[0].path))
    parts = _divided(units, {split: fraction for split, fraction in fractions.items() if fraction}, train_images)
    empty = [split for split, fraction in fractions.items() if split != _UNUSED and fraction and not parts[split]]
    if empty:
        hint = (", or choose other groups" if group_from else "") + (f"; {way_out}" if way_out else "")
        raise UserError(
            f"the images form {counted(len(units), 'group')} that must stay whole, as copies and near duplicates must: "
            f"too few to fill {', '.join(SPLITS)}: {' and '.join(empty)} would be empty; add images{hint}"
        )
    parts |= {split: given[split] for split in ("val", "test") if given[split]}
    return {split: tuple(sorted(parts[split], key=lambda item: item.path)) for split in SPLITS}


def _fractions(
    given: Collection[str | None], val_fraction: float, test_fraction: float, train_images: int, total: int
) -> dict[str, float]:
    """Return the share of each part in the `total` images that are divided; given val and test stay as they are."""
    for name, value in (("validation", val_fraction), ("test", test_fraction)):
        if not 0 <= value < 1:
            raise UserError(f"the fraction of {name} images must be at least 0 and below 1, got {brief(value)}")
    if "val" in given:
        fractions = {"train": 1.0}
    elif not val_fraction:
        raise UserError("the fraction of validation images is 0, but DATA has no val split; give one above 0")
    else:
        drawn_test = 0.0 if "test" in given else test_fraction
        if val_fraction + drawn_test > 1 - 1e-9:
            raise UserError(
                f"validation and test images, {val_fraction} and {drawn_test} of all, leave nothing to train on"
            )
        fractions = {"train": 1 - val_fraction - drawn_test, "val": val_fraction, "test": drawn_test}
    if not train_images:
        return fractions
    part, most = train_images / total / fractions["train"], round(fractions["train"] * total)
    if train_images > most:
        raise UserError(
            f"--train-images {train_images:,} is more than the {most:,} that there are; give at most {most}"
        )
    fractions |= {split: part * fractions[split] for split in ("train", "val") if split in fractions}
    # rounding must leave no part of nothing
    return {**fractions, **({_UNUSED: unused} if (unused := 1 - sum(fractions.values())) > 1e-9 else {})}


def _divided(
    units: Sequence[Sequence[Sample]], fractions: dict[str, float], train_images: int
) -> dict[str, list[Sample]]:
    """Put groups into parts, one by one, each into the part that brings the classes closest to their shares."""
    splits = list(fractions)
    sizes = Counter(sample.label for unit in units for sample in unit)
    units_left = Counter(label for unit in units for label in {sample.label for sample in unit})
    # by class: number of images that each part still needs, and the parts without an image of it
    needs = {
        label: dict(zip(splits, shares, strict=True))
        for label, shares in _shares_by_class(sizes, fractions, train_images).items()
    }
    without = {label: set(splits) - {_UNUSED} for label in sizes}
    parts: dict[str, list[Sample]] = {split: [] for split in (*SPLITS, _UNUSED)}
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


def _shares_by_class(
    sizes: Mapping[str, int], fractions: Mapping[str, float], train_images: int
) -> dict[str, list[int]]:
    """Return, for each class, how many of its images each part gets; with `train_images`, exactly so many train."""
    if not train_images:
        return {label: _shares(size, list(fractions.values())) for label, size in sizes.items()}
    if train_images < len(sizes):
        raise UserError(
            f"--train-images {train_images} is less than the {len(sizes)} classes; give an image or more for each"
        )
    total = sum(sizes.values())
    trained_on = _shares(train_images, [size / total for size in sizes.values()])
    rest = {part: fraction for part, fraction in fractions.items() if part != "train"}
    left = sum(rest.values()) or 1.0
    return {
        label: [number, *_shares(size - number, [fraction / left for fraction in rest.values()])]
        for (label, size), number in zip(sizes.items(), trained_on, strict=True)
    }


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
