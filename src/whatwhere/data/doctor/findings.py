"""Findings: faults of files and classes, and images that are in several places."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from PIL import Image

from ...base.words import counted, few, printable, short, suggest
from ..images import FORMATS, SUFFIXES
from ..sources.source import SPLITS, Finding, Sample, Source
from .probe import Entry

# of an image in several splits, the copy with the lowest rank stays: the test set stays whole
_RANK = {"test": 0, "val": 1, "train": 2}
_MOST_UNEVEN = 10
_FEWEST = 3
_NUM_NAMED = 5
_CURE = "replace, or leave out with --skip-bad"

_FAULTS = {
    "truncated": "{n} cut short",
    "empty": "{n} of 0 bytes",
    "huge": "{n} with more than {limit:,} pixels, which would fill the memory",
    "unreadable": "{n} that cannot be read as JPEG, PNG or another of the formats",
    "permission": "{n} without the permission to read",
    "mode": "{n} with 32-bit or floating-point values, which have no known range",
    "missing": "{n} gone since they were listed",
}


def class_counts(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """Return the number of images by split ("all" without splits) and class, sorted."""
    counts = Counter((sample.split or "all", sample.label) for sample in samples)
    found = {split for split, _ in counts}
    return {
        split: {label: counts[split, label] for _, label in sorted(key for key in counts if key[0] == split)}
        for split in ("all", *SPLITS)
        if split in found
    }


def class_findings(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Yield findings on the classes of the usable images."""
    counts = class_counts(samples)
    if not samples:
        yield Finding("error", "no-image", "no image can be used; see the other findings")
        return
    train = counts.get("train", counts.get("all"))
    if train is None:
        yield Finding("error", "no-train", "no images to train on; add a train split, or give a folder without splits")
        return
    if len(train) == 1:
        only = short(next(iter(train)))
        message = f"only one class, {only}, to train on; there must be two or more, each in a folder of its name"
        yield Finding("error", "one-class", message)
    for split in ("val", "test"):
        if split in counts:
            yield from _compared(split, counts[split], train)
    if max(train.values()) > _MOST_UNEVEN * min(train.values()):
        small, large = min(train, key=lambda name: train[name]), max(train, key=lambda name: train[name])
        yield Finding(
            "warning",
            "uneven",
            f"uneven classes, from {counted(train[small], 'image')} ({short(small)}) to "
            f"{counted(train[large], 'image')} ({short(large)}); consider --class-weights",
        )
    rare = tuple(label for label, count in train.items() if count < _FEWEST)
    if rare and "all" in counts:
        classes = "1 class" if len(rare) == 1 else f"{len(rare):,} classes"
        message = f"{classes} with fewer than {_FEWEST} images, too few for train, val and test; add images"
        severity = "error" if len(rare) == len(train) else "warning"
        yield Finding(severity, "few", f"{message}: {few(rare, _NUM_NAMED)}", rare)


def _compared(split: str, classes: dict[str, int], train: dict[str, int]) -> Iterator[Finding]:
    lowered = {name.lower(): name for name in train}
    unknown = tuple(label for label in classes if label not in train)
    if unknown:
        near = suggest(unknown[0], list(lowered))
        names = "1 class" if len(unknown) == 1 else f"{len(unknown):,} classes"
        for low, name in lowered.items():
            near = near.replace(f" {low},", f" {name},").replace(f" {low}?", f" {name}?")
        hint = f" ({printable(near.removeprefix('; '))})" if near else ""
        message = f"{names} in {split} but not in train: {few(unknown, _NUM_NAMED)}{hint}; rename or remove"
        yield Finding("error", "unknown-class", message, unknown)
    lacking = tuple(label for label in train if label not in classes)
    if lacking:
        names = "1 class" if len(lacking) == 1 else f"{len(lacking):,} classes"
        message = f"{names} in train but not in {split}, so not measured there: {few(lacking, _NUM_NAMED)}"
        yield Finding("warning", "unmeasured-class", message, lacking)


def file_findings(source: Source, entries: Sequence[Entry]) -> Iterator[Finding]:
    """Yield findings on single files."""
    by_fault: dict[str, list[str]] = defaultdict(list)
    renamed = []
    for sample, entry in zip(source.samples, entries, strict=True):
        by_fault[entry.fault].append(sample.path)
        suffix = os.path.splitext(sample.path)[1].lower()
        if not entry.fault and suffix in SUFFIXES and suffix not in FORMATS.get(entry.format, (suffix,)):
            renamed.append(sample.path)
    for kind, message in _FAULTS.items():
        paths = by_fault.get(kind, [])
        if paths:
            number = counted(len(paths), "file")
            said = message.format(n=number, limit=Image.MAX_IMAGE_PIXELS or 0)
            yield Finding("error", kind, f"{said}; {_CURE}", tuple(paths))
    if renamed:
        message = f"{counted(len(renamed), 'file')} in another format than the suffix says; read by content; rename"
        yield Finding("warning", "wrong-suffix", message, tuple(renamed))


def identical_findings(samples: Sequence[Sample], groups: Sequence[Sequence[int]]) -> Iterator[Finding]:
    """Yield findings on byte-identical images: in several splits, in one split, under different labels."""
    across, within, contradicting = [], [], []
    for group in groups:
        members = [samples[index] for index in group]
        paths = " = ".join(sample.path for sample in members)
        if len({sample.split for sample in members}) > 1:
            across.append(paths)
        else:
            within.append(paths)
        if len({sample.label for sample in members}) > 1:
            contradicting.append(" = ".join(f"{sample.path} ({sample.label})" for sample in members))
    if across:
        message = (
            f"{counted(len(across), 'image')} in more than one split, byte for byte, which makes results too good; "
            "remove, or leave out the copy in train (or val) with --skip-bad"
        )
        yield Finding("error", "leak", message, tuple(across))
    if contradicting:
        message = (
            f"{counted(len(contradicting), 'image')} under different labels, byte for byte; remove the wrong copies"
        )
        yield Finding("warning", "contradiction", message, tuple(contradicting))
    if within:
        together = "" if any(sample.split for sample in samples) else ", which a split keeps together"
        message = f"{counted(len(within), 'image')} more than once, byte for byte{together}"
        yield Finding("note", "identical", message, tuple(within))


def near_findings(samples: Sequence[Sample], pairs: Sequence[tuple[int, int]]) -> Iterator[Finding]:
    """Yield findings on pairs of nearly identical images."""
    across: list[str] = []
    within: list[str] = []
    for first, second in pairs:
        a, b = samples[first], samples[second]
        (within if a.split == b.split else across).append(f"{a.path} ~ {b.path}")
    if across:
        message = (
            f"{counted(len(across), 'pair')} of nearly the same image in different splits, which may make results too "
            "good; look at them"
        )
        yield Finding("warning", "near-leak", message, tuple(across))
    if within:
        together = "" if any(sample.split for sample in samples) else ", which a split keeps together"
        yield Finding(
            "note", "near", f"{counted(len(within), 'pair')} of nearly the same image{together}", tuple(within)
        )


def surplus(samples: Sequence[Sample], groups: Sequence[Sequence[int]]) -> frozenset[str]:
    """Return the paths of copies to leave out, so that no image is in two splits: from train first, then from val."""
    paths = set()
    for group in groups:
        members = [samples[index] for index in group]
        ranks = [_RANK.get(sample.split or "", 0) for sample in members]
        paths |= {sample.path for sample, rank in zip(members, ranks, strict=True) if rank > min(ranks)}
    return frozenset(paths)
