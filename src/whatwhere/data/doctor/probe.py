"""Decode every image once, on all cores, and keep a summary of each in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from ...base.documents import read_json
from ...base.errors import UserError
from ...base.files import write_bytes
from ...base.limits import CACHE_BYTES
from ...base.processes import num_cores
from ..ahead import read_ahead
from ..images import FORMATS, MAX_VALUE, ImageError, decode, grey_values, has_unknown_range, levels
from ..sources.source import Sample, Source

# what the entries say changes with it: 6 has whether a file holds several images
_VERSION = 6
# of an image's values so many of a thousand may lie outside its range, as hot pixels and dust do
_OUTLIERS = 1
_AHEAD = 64  # images that are asked for together
# formats whose files may hold several images of equal rank, of which the first is read
_SERIES = {"GIF", "TIFF", "WEBP", "PNG", "AVIF"}
# faults that may be gone the next time, though the file's size and time are the same
_PASSING = {"permission", "missing", "unreadable"}
# an entry's look: a grey picture of 17 x 16 pixels, and a mean colour
LOOK_SIZE = (17, 16)
LOOK_BYTES = 17 * 16 + 3

_PHOTOMETRIC = 262  # tag of TIFF
_Value = Annotated[int, msgspec.Meta(ge=0, le=MAX_VALUE)]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A summary of one image; mode and size as stored."""

    fault: str  # what is wrong with the image (`ImageError.kind`), or ""
    format: str = ""  # Pillow's name of the format; "" in a built-in set
    mode: str = ""
    width: int = 0
    height: int = 0
    turned: bool = False  # whether the EXIF header asks for a rotation or reflection
    digest: str = ""  # BLAKE2b hash of the file's bytes, or of the pixels in a built-in set
    flat_end: bool = False  # whether a JPEG ends in rows of one colour, with which a decoder fills what is damaged
    # largest value of a file with 16 bits for a value, of which it may use fewer; in colour only the upper 8 bits count
    largest: _Value = 0
    # nearly all values are from low to high: of 16-bit grey as stored, else in the 8-bit channel where they differ most
    low: _Value = 0
    high: _Value = 0
    zero_is_white: bool = False  # whether a TIFF file says so of 16-bit grey, which Pillow reads with 0 as black
    has_more: bool = False  # whether the file holds more images, as an animation and a TIFF file of several pages do
    look: bytes = b""  # a grey picture of 17 x 16 pixels and the mean colour, by which nearly equal images are found

    @property
    def is_grey16(self) -> bool:
        """Whether the image is 16-bit grey, which `max_value` scales."""
        return self.largest > 0 and self.mode.startswith("I")

    def spread(self, max_value: int) -> int:
        """Return by how many of 255 levels nearly all values differ, where `max_value` of 16-bit grey becomes 255."""
        if not self.is_grey16:
            return self.high - self.low
        return int(levels(max_value)[self.high]) - int(levels(max_value)[self.low])


def full_range(largest: int) -> int:
    """Return the largest value of as many bits as `largest` has: 4095 for 4000; 65535 for 0, an image of zeros."""
    return (1 << largest.bit_length()) - 1 or MAX_VALUE


def probe(source: Source, cache: Path | None, progress: Callable[[int, int], None] | None = None) -> list[Entry]:
    """Return an entry for each sample, from the folder `cache` if a file's path, size and time have not changed."""
    store = _Store(source, cache)
    batches = [source.samples[start : start + _AHEAD] for start in range(0, len(source.samples), _AHEAD)]
    entries: list[Entry] = []
    # with small images the interpreter is the limit, and more threads slow it down
    with contextlib.closing(read_ahead(store.entry, batches, min(num_cores(), 16))) as read:
        for found in read:
            entries += found
            if progress is not None:
                progress(len(entries), len(source.samples))
    store.save()
    return entries


def default_cache() -> Path | None:
    """Return the cache folder, "whatwhere" in $XDG_CACHE_HOME or ~/.cache; None if the user has no home."""
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "whatwhere"
    except RuntimeError:
        return None


def read_entry(source: Source, sample: Sample) -> Entry:
    """Decode an image and return its entry."""
    entry: dict[str, Any] = {"fault": ""}
    try:
        with source.open(sample) as image:
            entry |= {"format": image.format or "", "mode": image.mode, "width": image.width, "height": image.height}
            is_unsure = has_unknown_range(image)
            with contextlib.suppress(Exception):  # damage behind the first image, which may be sound
                entry["has_more"] = image.format in _SERIES and bool(getattr(image, "is_animated", False))
            rgb, entry["turned"] = decode(image)
            entry["flat_end"] = image.format == "JPEG" and _has_flat_end(image)
            if is_unsure and (values := grey_values(image)) is not None:
                entry["largest"] = int(values.max())
                entry["low"], entry["high"] = _range(np.bincount(values.ravel()))
                entry["zero_is_white"] = isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0
                # by the bits that it uses: the look of a dark image would tell nothing
                rgb = decode(image, full_range(entry["largest"]))[0]
            else:
                counts = np.array(rgb.histogram()).reshape(3, 256)
                entry["low"], entry["high"] = max(map(_range, counts), key=lambda ends: ends[1] - ends[0])
                if is_unsure and image.mode in {"RGB", "RGBA"}:
                    entry["largest"] = int(np.asarray(image)[..., :3].max())
        entry["digest"] = hashlib.blake2b(source.content(sample), digest_size=16).hexdigest()
    except ImageError as error:
        return Entry(**{**entry, "fault": error.kind})
    grey = rgb.convert("L").resize(LOOK_SIZE, Image.Resampling.BILINEAR, reducing_gap=2.0)
    mean = rgb.resize((1, 1), Image.Resampling.BOX)
    return Entry(**entry, look=grey.tobytes() + mean.tobytes())


def _range(counts: NDArray[np.int64]) -> tuple[int, int]:
    """Return the lowest and the highest value but for a thousandth of all at either end; `counts` are by value."""
    total = np.cumsum(counts)
    few = int(total[-1]) * _OUTLIERS // 1000
    return int(np.searchsorted(total, few, side="right")), int(np.searchsorted(total, int(total[-1]) - few))


def _has_flat_end(image: Image.Image) -> bool:
    """Return whether the last eighth of the stored rows, at least 8, is one colour, but not black or white."""
    width, height = image.size
    found = image.crop((0, max(0, height - max(8, height // 8)), width, height)).convert("RGB").getcolors(1)
    # black and white are the frames of sound pictures
    is_frame = found is None or found[0][1] in ((0, 0, 0), (255, 255, 255))
    return not is_frame and image.convert("RGB").getcolors(1) is None


class _Cache(msgspec.Struct):
    """The cache file of one DATA."""

    # version of this format, Pillow's version, the limit of pixels, and the formats that are read, HEIC or not; under
    # another head no entry counts
    head: tuple[int, str, int | None, tuple[str, ...]]
    # by path: the file's size, its time of change in nanoseconds, and its entry
    entries: dict[str, tuple[int, int, Entry]]
    digest: str  # of the entries: a damaged one would be taken for what the image holds


def _digest(entries: Any) -> str:
    return hashlib.blake2b(json.dumps(entries).encode("ascii"), digest_size=16).hexdigest()


class _Store:
    """Returns entries from the cache if a file's size and time have not changed. A damaged cache is ignored."""

    def __init__(self, source: Source, cache: Path | None) -> None:
        self.source = source
        self.file: Path | None = None
        # no cache for a built-in set, nor among the user's images
        root = None if source.root is None else os.path.realpath(source.root)
        if cache is not None and root is not None and not Path(os.path.realpath(cache)).is_relative_to(root):
            data = os.path.realpath(source.name).encode("utf-8", "surrogatepass")
            self.file = cache / f"images-{hashlib.sha256(data).hexdigest()[:32]}.json"
        self.head = (_VERSION, PIL.__version__, Image.MAX_IMAGE_PIXELS, tuple(FORMATS))
        self.old: dict[str, tuple[int, int, Entry]] = {}
        self.new: dict[str, tuple[int, int, Entry]] = {}
        self.is_changed = False
        if self.file is not None:
            # only the module json can read and write paths that are not UTF-8
            with contextlib.suppress(ValueError):  # a UserError too
                content = read_json(self.file, dict[str, Any], most_bytes=CACHE_BYTES)
                stored = msgspec.convert(content, _Cache)
                is_sound = (stored.head, stored.digest) == (self.head, _digest(content["entries"]))
                self.old = stored.entries if is_sound else {}

    def entry(self, sample: Sample) -> Entry:
        try:
            status = None if self.file is None else self.source.file(sample).stat()
        except OSError:
            status = None
        if status is None:
            return read_entry(self.source, sample)
        size, time, entry = self.old.get(sample.path, (0, 0, None))
        # a damaged cache may lack the digest or the look of a usable image
        is_complete = entry and (entry.fault or (entry.digest and len(entry.look) == LOOK_BYTES))
        if entry is None or (size, time) != (status.st_size, status.st_mtime_ns) or not is_complete:
            entry = read_entry(self.source, sample)
            self.is_changed = True
        if entry.fault not in _PASSING:
            self.new[sample.path] = status.st_size, status.st_mtime_ns, entry
        return entry

    def save(self) -> None:
        if self.file is None or not self.is_changed:
            return
        entries = msgspec.to_builtins(self.new)
        text = json.dumps({"head": self.head, "entries": entries, "digest": _digest(entries)}, separators=(",", ":"))
        # without a cache the next run only takes longer
        with contextlib.suppress(OSError, UserError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.file, text.encode("ascii"), mode=0o600)
