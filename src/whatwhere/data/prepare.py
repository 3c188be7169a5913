"""From DATA to what a run trains, validates and tests on."""

from __future__ import annotations

import hashlib
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..base.errors import UserError
from ..base.words import counted, few, printable
from .doctor.findings import class_findings
from .doctor.report import Report, examine
from .names import SPLITS
from .sources.find import find_source
from .sources.source import Finding, Sample, Source
from .split import split_samples

_NUM_HEADERS = 100
# what leaving out files does not mend
_CLASS_KINDS = {"few", "no-image", "no-train", "one-class", "unknown-class"}


@dataclass(frozen=True)
class Prepared:
    """What a run trains, validates and tests on.

    Attributes:
        source: where the images come from.
        classes: names, sorted; a sample's number is its label's place here.
        parts: samples by part, "train", "val" and "test"; the last may be empty.
        report: of the doctor, None if the data were not checked.
        left_out: paths of samples that `skip_bad` left out.
        median_side: median of the images' shorter sides, in pixels.
        drawn: the parts that the seed drew, which DATA did not have, of "val" and "test".
    """

    source: Source
    classes: tuple[str, ...]
    parts: dict[str, tuple[Sample, ...]]
    report: Report | None
    left_out: tuple[str, ...]
    median_side: int
    drawn: tuple[str, ...] = ()


def prepare(
    data: str,
    *,
    seed: int,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    group_from: str | None = None,
    skip_bad: bool = False,
    check: bool = True,
    path_column: str | None = None,
    label_column: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Find DATA, have the doctor examine it, and split it where it is not.

    `skip_bad` leaves out images that cannot be read, and of images that are in several splits byte for byte the copies
    in train (or val). Without `check` nothing is decoded but the headers of some images.

    Raises:
        UserError: DATA is not to be found, not sound, or not to be split as asked.
    """
    source = find_source(data, path_column=path_column, label_column=label_column, data_dir=data_dir, download=download)
    report = examine(source, progress=progress) if check else None
    errors = [item for item in (report or source).findings if item.severity == "error"]
    if errors and not skip_bad:
        raise _unsound(data, errors)
    left_out = report.bad | report.surplus if report is not None and skip_bad else frozenset()
    samples = [sample for sample in source.samples if sample.path not in left_out]
    # once more, because leaving out copies may leave a class without images
    errors = [finding for finding in class_findings(samples) if finding.severity == "error"]
    if errors:
        raise _unsound(data, errors)
    parts = split_samples(
        samples,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        group_from=group_from,
        twins=report.twins if report is not None else (),
    )
    given = {sample.split for sample in samples}
    return Prepared(
        source=source,
        classes=tuple(sorted({sample.label for sample in samples})),
        parts=parts,
        report=report,
        left_out=tuple(sorted(left_out)),
        median_side=report.median_side if report is not None else _median_side(source, samples),
        drawn=tuple(part for part in ("val", "test") if parts[part] and part not in given),
    )


def fingerprint(prepared: Prepared) -> str:
    """Return a hash of which image, by path, is in which part under which label."""
    lines = sorted((sample.path, sample.label, part) for part in SPLITS for sample in prepared.parts.get(part, ()))
    digest = hashlib.sha256()
    for line in lines:
        digest.update("\0".join((*line, "")).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _unsound(data: str, errors: Sequence[Finding]) -> UserError:
    first, *others = errors
    paths = f" ({few(first.paths)})" if first.paths and first.kind not in _CLASS_KINDS else ""
    more = f", and {counted(len(others), 'other error')}" if others else ""
    curable = any(finding.kind not in _CLASS_KINDS for finding in errors)
    skip = ", or leave out bad files with --skip-bad" if curable else ""
    return UserError(
        f"{printable(data)} is not sound: {first.message}{paths}{more}; "
        f"run `whatwhere check {printable(shlex.quote(data))}` for all of it{skip}"
    )


def _median_side(source: Source, samples: Sequence[Sample]) -> int:
    step = max(1, len(samples) // _NUM_HEADERS)
    sides = []
    for sample in samples[::step][:_NUM_HEADERS]:
        with source.open(sample) as image:
            sides.append(min(image.size))
    return round(statistics.median(sides))
