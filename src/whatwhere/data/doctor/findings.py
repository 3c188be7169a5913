"""Findings: faults of files and classes, and images that are in several places."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal

from PIL import Image

from ...base.words import counted, few, short, suggest
from ..images import FORMATS, MAX_VALUE, SUFFIXES, levels
from ..sources.source import NOT_READ, RANK, SPLITS, Finding, Messages, Sample, Source, findings_of
from .probe import Entry, full_range

_MOST_UNEVEN = 10
_FEWEST = 3
_FLAT = 4  # levels of 255 by which nearly all values of a flat image differ at most
_NUM_NAMED = 5
_LOOK = "look at them"
_FAULTS: Messages = {
    **NOT_READ,
    "truncated": ("error", "file", "{n} cut short", "replace"),
    "empty": ("error", "file", "{n} of 0 bytes", "replace"),
    "huge": ("error", "file", "{n} with more than {limit:,} pixels, which would fill the memory", "replace"),
    "unreadable": ("error", "file", "{n} that cannot be read as JPEG, PNG or another of the formats", "replace"),
    "unknown": (
        "error",
        "file",
        "{n} with the beginning of an image (TIFF, BMP, ...), but damaged or of a kind that Pillow does not read",
        "save as PNG",
    ),
    "pointer": ("error", "pointer", "{n} of Git LFS in place of images", "`git lfs pull` fetches them"),
    "permission": ("error", "file", "{n} without the permission to read", "change the permissions"),
    "mode": ("error", "file", "{n} with signed, 32-bit or floating-point values, which have no known range", "replace"),
    "planes": (
        "error",
        "TIFF file",
        "{n} of 16-bit colour with one colour after the other, which Pillow cannot read",
        "convert to 8 bits",
    ),
    "missing": ("error", "file", "{n} gone since they were listed", "replace"),
    "flat-end": ("warning", "JPEG", "{n} with one colour in all of the last rows, as a damaged file has", _LOOK),
    "several": (
        "warning",
        "file",
        "{n} with several images, as an animation or pages, of which only the first is used",
        "save the others as files of their own where they matter",
    ),
    "wrong-suffix": ("warning", "file", "{n} in another format than the suffix says, read by content", "rename"),
}
_RANGES: Messages = {
    "dark": (
        "warning",
        "image",
        "{n} of 16-bit grey with values up to {largest:,} only, read as {level} of 255 at most",
        "if the camera has no larger ones, give --max-value {fit} ({bits} bits), or auto",
    ),
    "dark-colour": (
        "warning",
        "image",
        "{n} of 16-bit colour, or 16-bit grey with alpha, whose upper 8 bits, the only ones read, are {largest} of 255 "
        "at most",
        "scale to 8 bits, or store grey without alpha and give --max-value",
    ),
    "clipped": (
        "warning",
        "image",
        "{n} with values above --max-value {max_value}, read as white",
        "give {fit}, or auto",
    ),
    "zero-is-white": (
        "warning",
        "TIFF file",
        "{n} of 16-bit grey that say that 0 is white, read with 0 as black",
        "invert, unless all images are such",
    ),
    "flat": (
        "warning",
        "image",
        "{n} of one colour all over, such as black",
        "look at them, remove what is blank",
    ),
}
# least part of an image that the centre crop should keep: 3:2 and 16:10 keep more, 16:9 keeps 56 %
_LEAST_KEPT = 0.6
_SHAPES: Messages = {
    "cropped": (
        "warning",
        "image",
        "{n} so long that the centre crop leaves out more than 40 %",
        "train with --resize letterbox, or squash, to show all of each",
    ),
}
_COPIES: Messages = {
    "leak": (
        "error",
        "image",
        "{n} in more than one split, byte for byte, which makes results too good",
        "remove the copies in train (or val)",
    ),
    "contradiction": ("error", "image", "{n} under different labels, byte for byte", "remove the wrong copies"),
    "identical": ("note", "image", "{n} more than once, byte for byte{together}", ""),
    "near-leak": (
        "warning",
        "group",
        "{n} of nearly the same image in different splits ({apart}), which may make results too good",
        _LOOK,
    ),
    "near": ("note", "group", "{n} of nearly the same image ({alike}){together}", ""),
}


def unusable(findings: Iterable[Finding]) -> dict[str, str]:
    """Return the kind of error of each file, folder or row of a CSV file that cannot be used."""
    # the paths of these are groups
    bad = (finding for finding in findings if finding.can_skip and finding.kind not in ("leak", "contradiction"))
    return {path: finding.kind for finding in bad for path in finding.paths}


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
        yield Finding("error", "no-image", "no image can be used", cure="see the other findings")
        return
    train = counts.get("train", counts.get("all"))
    if train is None:
        cure = "add a train split, or give a folder without splits"
        yield Finding("error", "no-train", "no images to train on", cure=cure)
        return
    if len(train) == 1:
        message = f"only one class, {short(next(iter(train)))}, to train on"
        yield Finding("error", "one-class", message, cure="there must be two or more, each in a folder of its name")
    for split, by_class in counts.items():
        unknown = tuple(label for label in by_class if label not in train)
        if unknown:
            names = counted(len(unknown), "class", "classes")
            near = suggest(unknown[0], list(train)).removeprefix("; ")
            hint = f" ({near})" if near else ""
            message = f"{names} in {split} but not in train: {few(unknown, _NUM_NAMED)}{hint}"
            yield Finding("error", "unknown-class", message, unknown, "rename or remove")
        lacking = tuple(label for label in train if label not in by_class)
        if lacking:
            names = counted(len(lacking), "class", "classes")
            message = f"{names} in train but not in {split}, so not measured there: {few(lacking, _NUM_NAMED)}"
            yield Finding("warning", "unmeasured-class", message, lacking)
    if max(train.values()) > _MOST_UNEVEN * min(train.values()):
        small, large = min(train, key=lambda name: train[name]), max(train, key=lambda name: train[name])
        yield Finding(
            "warning",
            "uneven",
            f"uneven classes, from {counted(train[small], 'image')} ({short(small)}) to "
            f"{counted(train[large], 'image')} ({short(large)})",
            cure="consider --class-weights balanced",
        )
    rare = tuple(label for label, count in train.items() if count < _FEWEST)
    if rare and "all" in counts:
        classes = counted(len(rare), "class", "classes")
        message = f"{classes} with fewer than {_FEWEST} images, too few for train, val and test"
        severity = "error" if len(rare) == len(train) else "warning"
        yield Finding(severity, "few", f"{message}: {few(rare, _NUM_NAMED)}", rare, "add images")


def file_findings(source: Source, entries: Sequence[Entry]) -> list[Finding]:
    """Return findings on single files."""
    paths: dict[str, list[str]] = defaultdict(list)
    for sample, entry in zip(source.samples, entries, strict=True):
        suffix = os.path.splitext(sample.path)[1].lower()
        if entry.fault:
            paths[entry.fault].append(sample.path)
            continue
        if entry.has_more:
            paths["several"].append(sample.path)
        if entry.flat_end:
            paths["flat-end"].append(sample.path)
        if suffix in SUFFIXES and suffix not in FORMATS.get(entry.format, (suffix,)):
            paths["wrong-suffix"].append(sample.path)
    return findings_of(_FAULTS, paths, limit=Image.MAX_IMAGE_PIXELS or 0)


def resolved_range(entries: Iterable[Entry], max_value: int | Literal["auto"]) -> int:
    """Return the value of 16-bit grey that becomes 255; "auto" is that of the bits that the largest value needs."""
    if max_value != "auto":
        return max_value
    return full_range(max((entry.largest for entry in entries if entry.is_grey16), default=0))


def range_findings(samples: Sequence[Sample], entries: Sequence[Entry], max_value: int) -> list[Finding]:
    """Return findings on the range of values of all images together, and on images without contrast."""
    usable = [(sample.path, entry) for sample, entry in zip(samples, entries, strict=True) if not entry.fault]
    grey = {path: entry.largest for path, entry in usable if entry.is_grey16}
    colour = {path: entry.largest for path, entry in usable if entry.largest and not entry.is_grey16}
    largest = max(grey.values(), default=0)
    fit, findings = full_range(largest), []
    if max_value == MAX_VALUE > fit:
        level, bits = int(levels(max_value)[largest]), fit.bit_length()
        findings += findings_of(_RANGES, {"dark": list(grey)}, largest=largest, level=level, fit=fit, bits=bits)
    if colour and max(colour.values()) <= 255 // 2:
        findings += findings_of(_RANGES, {"dark-colour": list(colour)}, largest=max(colour.values()))
    clipped = [path for path, value in grey.items() if value > max_value]
    white = [path for path, entry in usable if entry.zero_is_white]
    # by the bits that are used: what a wrong range makes black or white is not flat
    flat = [path for path, entry in usable if entry.spread(fit) <= _FLAT]
    paths = {"clipped": clipped, "zero-is-white": white, "flat": flat}
    return findings + findings_of(_RANGES, paths, max_value=max_value, fit=fit)


def misfit(largest: Collection[int], max_value: int) -> str:
    """Return how images of 16-bit grey, by their largest values, miss the range of a network; "" if they do not."""
    if above := sum(value > max_value for value in largest):
        images = f"{counted(above, 'image')} {'has' if above == 1 else 'have'}"
        return f"{images} values above {max_value:,}, the largest that the network was trained for; read as white"
    if largest and 16 * max(largest) <= max_value + 1:
        images = f"{counted(len(largest), 'image')} of 16-bit grey {'has' if len(largest) == 1 else 'have'}"
        return f"{images} values up to {max(largest):,} only: almost black, as the network takes {max_value:,} as white"
    return ""


def shape_findings(samples: Sequence[Sample], entries: Sequence[Entry]) -> list[Finding]:
    """Return a finding on images of which the square in the centre is a small part; width and height may be swapped."""
    both = zip(samples, entries, strict=True)
    sizes = {sample.path: sorted((entry.width, entry.height)) for sample, entry in both if not entry.fault}
    cropped = [path for path, (short_side, long_side) in sizes.items() if short_side < _LEAST_KEPT * long_side]
    return findings_of(_SHAPES, {"cropped": cropped})


def copy_findings(
    samples: Sequence[Sample], identical: Sequence[Sequence[int]], near: Sequence[Sequence[int]]
) -> list[Finding]:
    """Return findings on groups of byte-identical images and on groups of nearly identical images."""
    paths: dict[str, list[str]] = defaultdict(list)
    for group in identical:
        members = [samples[index] for index in group]
        kind = "leak" if len({sample.split for sample in members}) > 1 else "identical"
        paths[kind].append(" = ".join(sample.path for sample in members))
        if len({sample.label for sample in members}) > 1:
            paths["contradiction"].append(" = ".join(f"{sample.path} ({sample.label})" for sample in members))
    num_near: Counter[str] = Counter()
    for group in near:
        members = [samples[index] for index in group]
        kind = "near-leak" if len({sample.split for sample in members}) > 1 else "near"
        paths[kind].append(" ~ ".join(sample.path for sample in members))
        num_near[kind] += len(group)
    apart, alike = (counted(num_near[kind], "image") for kind in ("near-leak", "near"))
    together = "" if any(sample.split for sample in samples) else ", which a split keeps together"
    return findings_of(_COPIES, paths, apart=apart, alike=alike, together=together)


def surplus(samples: Sequence[Sample], groups: Sequence[Sequence[int]]) -> dict[str, str]:
    """Return the copies to leave out: the kind of finding by path.

    So many that no image is in two splits, from train first, then from val; and of those that stay in one split under
    different labels, all.
    """
    paths: dict[str, str] = {}
    for group in groups:
        members = [samples[index] for index in group]
        ranks = [RANK.get(sample.split or "", 0) for sample in members]
        kept = [sample for sample, rank in zip(members, ranks, strict=True) if rank == min(ranks)]
        paths |= {sample.path: "leak" for sample in members if sample not in kept}
        if len({sample.label for sample in kept}) > 1:
            paths |= {sample.path: "contradiction" for sample in kept}
    return paths
