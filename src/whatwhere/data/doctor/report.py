"""Examine DATA: decode every image, and report counts and findings."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ...base.tables import Table
from ...base.words import counted, printable, short
from ..images import MAX_VALUE, READ_AS
from ..sources.source import Finding, Sample, Source, findings_of
from .duplicates import joined, near_groups
from .findings import (
    class_counts,
    class_findings,
    copy_findings,
    file_findings,
    range_findings,
    resolved_range,
    shape_findings,
    surplus,
)
from .probe import Entry, default_cache, probe

_SEVERITIES = ("error", "warning", "note")
_LOST = {
    "lost-class": ("warning", "class", "{n} of which no image can be used: {names}", ""),
    "lost-split": ("warning", "split", "{n} of which no image can be used: {names}", ""),
}
_MOST_PATHS = 10
_MOST_LETTERS = 300  # a group of equal images may have thousands of paths
_MOST_CLASSES = 50


@dataclass(frozen=True)
class Report:
    """The result of the doctor."""

    name: str  # DATA as the user gave it
    num_images: int  # number of listed images, usable or not
    counts: dict[str, dict[str, int]]  # number of usable images by split ("all" if DATA has no splits) and class
    findings: tuple[Finding, ...]  # errors first, then warnings and notes
    surplus: dict[str, str]  # copies that --skip-bad leaves out: the kind of finding by path, "leak" or "contradiction"
    twins: tuple[tuple[str, ...], ...]  # groups of paths with the same, or nearly the same, image
    copies: tuple[tuple[str, ...], ...]  # groups of paths with the same image, byte for byte
    median_side: int  # median of the images' shorter sides, in pixels; 0 if none is usable
    median_long_side: int  # and of their longer sides
    # number of images by Pillow's mode, without plain RGB; those with an EXIF rotation count again
    modes: dict[str, int]
    digest: str = ""  # SHA-256 of every image's path and content
    digests: dict[str, str] = field(default_factory=dict, repr=False)  # hash of each usable image's content, by path
    max_value: int = MAX_VALUE  # the value of 16-bit grey that becomes 255
    largest: dict[str, int] = field(default_factory=dict)  # by path, the largest value of an image of 16-bit grey

    @property
    def sound(self) -> bool:
        """Whether there is no error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def with_findings(self, *more: Finding) -> Report:
        """Return the report with `more` findings."""
        return replace(self, findings=_sorted((*self.findings, *more)))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON, with every path."""
        return {
            "data": printable(self.name),
            "sound": self.sound,
            "num_images": self.num_images,
            "counts": self.counts,
            "median_side": self.median_side,
            "modes": {
                mode: {"num_images": number, "read_as": self._read_as(mode)} for mode, number in self.modes.items()
            },
            "findings": [
                {
                    "severity": finding.severity,
                    "kind": finding.kind,
                    "message": finding.sentence(),
                    "paths": [printable(path) for path in finding.paths],
                    "cure": finding.cure,
                }
                for finding in self.findings
            ],
        }

    def tables(self) -> list[Table]:
        """Return the report as tables: counts, how images are read, and findings with up to 10 paths each."""
        splits = list(self.counts)
        classes = sorted({label for by_class in self.counts.values() for label in by_class})
        rows: list[tuple[str, ...]] = [
            (label, *(f"{self.counts[split].get(label, 0):,}" for split in splits)) for label in classes[:_MOST_CLASSES]
        ]
        if len(classes) > _MOST_CLASSES:
            rows.append((f"and {len(classes) - _MOST_CLASSES:,} more classes", *("" for _ in splits)))
        rows.append(("total", *(f"{sum(self.counts[split].values()):,}" for split in splits)))
        images, number = counted(self.num_images, "image"), counted(len(classes), "class", "classes")
        left = self.num_images - sum(sum(by_class.values()) for by_class in self.counts.values())
        notes = [f"Not counted, as they cannot be used: {left:,} of the {images}."] if left else []
        notes += [f"Median of the shorter sides: {self.median_side:,} pixels."] if self.median_side else []
        columns = ("class", *("images" if split == "all" else split for split in splits))
        tables = [Table(f"{printable(self.name)}: {images} of {number}", columns, rows, note="\n".join(notes))]
        if self.modes:
            rows = [(mode, self._read_as(mode), f"{number:,}") for mode, number in self.modes.items()]
            tables.append(Table("How images are read that are not plain RGB", ("stored", "read", "images"), rows, 2))
        rows = []
        for finding in self.findings:
            rows.append((finding.severity, finding.sentence()))
            rows += [("", f"  {short(path, _MOST_LETTERS)}") for path in finding.paths[:_MOST_PATHS]]
            if len(finding.paths) > _MOST_PATHS:
                rows.append(("", f"  and {len(finding.paths) - _MOST_PATHS:,} more; all with --json"))
        totals = Counter(finding.severity for finding in self.findings)
        found = ", ".join(counted(totals[severity], severity) for severity in _SEVERITIES if totals[severity])
        verdict = "The data are sound." if self.sound else "The data are not sound: each error would spoil a result."
        if self.sound and totals["warning"]:
            verdict = f"No error; see the {counted(totals['warning'], 'warning')} above."
        title, rows = f"Findings: {found or 'none'}", rows or [("", "nothing")]
        return [*tables, Table(title, ("", "finding"), rows, 2, verdict)]

    def _read_as(self, mode: str) -> str:
        if mode == "EXIF rotation":
            return "turned as the header says"
        return READ_AS.get(mode, "not at all").format(max_value=self.max_value)


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity)))


def median_of(sides: Iterable[int]) -> int:
    """Return the median in whole pixels; 0 of none."""
    found = list(sides)
    return round(statistics.median(found)) if found else 0


def examine(
    source: Source,
    *,
    max_value: int | Literal["auto"] = MAX_VALUE,
    cache: Path | Literal["user"] | None = "user",
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Decode every image of `source`, and report what is there and what is wrong.

    Nothing is ever written among the user's data.

    Args:
        source: The images as found.
        max_value: The value of 16-bit grey that becomes 255; "auto": that of as many bits as the largest value of all
            images needs, such as 4095 for 4000.
        cache: Folder that keeps the result for each file until its size or time changes: by default "whatwhere" in
            $XDG_CACHE_HOME or ~/.cache; None for no cache.
        progress: Called with the numbers of images done and of all images.
    """
    entries = probe(source, default_cache() if cache == "user" else cache, progress)
    samples = source.samples
    both = list(zip(samples, entries, strict=True))
    by_digest: dict[str, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if not entry.fault:
            by_digest[entry.digest].append(index)
    max_value = resolved_range(entries, max_value)
    identical, near = [group for group in by_digest.values() if len(group) > 1], near_groups(entries, max_value)
    usable = [sample for sample, entry in both if not entry.fault]
    sound = [entry for entry in entries if not entry.fault]
    findings = [*_findings(source, entries, usable, max_value), *copy_findings(samples, identical, near)]

    def paths_of(groups: Iterable[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(samples[index].path for index in group) for group in groups)

    contents = sorted(f"{sample.path}\0{entry.digest}" for sample, entry in both)
    return Report(
        name=source.name,
        num_images=len(samples),
        counts=class_counts(usable),
        findings=_sorted(findings),
        surplus=surplus(samples, identical),
        twins=paths_of(joined([*identical, *near])),
        copies=paths_of(joined(identical)),
        median_side=median_of(min(entry.width, entry.height) for entry in sound),
        median_long_side=median_of(max(entry.width, entry.height) for entry in sound),
        modes=_modes(sound),
        digests={sample.path: entry.digest for sample, entry in both if not entry.fault},
        digest=hashlib.sha256("\0".join(contents).encode("utf-8", "surrogatepass")).hexdigest(),
        max_value=max_value,
        largest={sample.path: entry.largest for sample, entry in both if entry.is_grey16 and not entry.fault},
    )


def _findings(source: Source, entries: Sequence[Entry], usable: Sequence[Sample], max_value: int) -> list[Finding]:
    """Return the findings of the listing, and those on files, values, shapes and classes."""
    samples = source.samples
    lost = sorted({sample.label for sample in samples} - {sample.label for sample in usable})
    lost_splits = sorted({sample.split or "" for sample in samples} - {sample.split or "" for sample in usable})
    return [
        *source.findings,
        *file_findings(source, entries),
        *range_findings(samples, entries, max_value),
        *shape_findings(samples, entries),
        *class_findings(usable),
        *findings_of(_LOST, {"lost-class": lost, "lost-split": [split for split in lost_splits if split]}),
    ]


def _modes(sound: Sequence[Entry]) -> dict[str, int]:
    modes = Counter(entry.mode for entry in sound if entry.mode != "RGB")
    num_turned = sum(entry.turned for entry in sound)
    return dict(sorted(modes.items())) | ({"EXIF rotation": num_turned} if num_turned else {})
