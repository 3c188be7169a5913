"""What each image file holds, read once: decoded on all cores and remembered in the user's cache."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from ...base.processes import num_cores
from ..images import ImageError, orientation, quiet, read_image
from ..sources.source import Sample, Source

_VERSION = 1
_CHUNK = 64
# the file may be sound the next time, though its size and time are the same
_PASSING = {"permission", "missing", "unreadable"}
# a grey picture of 17 x 16 and a mean colour
LOOK_SIZE = (17, 16)
LOOK_BYTES = 17 * 16 + 3


@dataclass(frozen=True)
class Entry:
    """What an image file holds.

    Attributes:
        fault: what is wrong with it (`ImageError.kind`), or "".
        format: Pillow's name, "" in a built-in set.
        mode: as stored.
        turned: whether its EXIF header asks for a rotation or reflection.
        digest: of the file's bytes, or of the pixels in a built-in set.
        look: a small grey picture, 17 x 16, followed by the mean colour: what nearly equal images are found by.
    """

    fault: str
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    turned: bool = False
    digest: str = ""
    look: bytes = b""


def probe(source: Source, cache: Path | None, progress: Callable[[int, int], None] | None = None) -> list[Entry]:
    """Return an entry for each sample of `source`, from `cache` where a file's path, size and time have not changed."""
    store = _Store(source, cache)
    chunks = [source.samples[start : start + _CHUNK] for start in range(0, len(source.samples), _CHUNK)]
    entries: list[Entry] = []
    # entered here once, because the workers' warnings go by the whole process's filters
    # small images are bound by the interpreter, which more threads only slow down
    with quiet(), ThreadPoolExecutor(min(num_cores(), 16)) as pool:
        try:
            for found in pool.map(lambda chunk: [store.entry(sample) for sample in chunk], chunks):
                entries += found
                if progress is not None:
                    progress(len(entries), len(source.samples))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    store.save(source.samples, entries)
    return entries


def default_cache() -> Path | None:
    """Return the folder for what may be lost, "whatwhere" in $XDG_CACHE_HOME or ~/.cache; None for a user without."""
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "whatwhere"
    except RuntimeError:
        return None


def read_entry(source: Source, sample: Sample) -> Entry:
    """Decode an image and return what it holds."""
    entry: dict[str, Any] = {"fault": ""}
    try:
        with source.open(sample) as image:
            entry |= {"format": image.format or "", "mode": image.mode, "width": image.width, "height": image.height}
            # before decoding, in which Pillow turns a TIFF image and forgets about it
            entry["turned"] = orientation(image) > 1
            rgb = read_image(image)
        entry["digest"] = hashlib.blake2b(source.content(sample), digest_size=16).hexdigest()
    except ImageError as error:
        return Entry(**{**entry, "fault": error.kind})
    return Entry(**entry, look=_look(rgb))


def _look(image: Image.Image) -> bytes:
    grey = image.convert("L").resize(LOOK_SIZE, Image.Resampling.BILINEAR, reducing_gap=2.0)
    mean = image.resize((1, 1), Image.Resampling.BOX)
    return grey.tobytes() + mean.tobytes()


class _Store:
    """Entries by path, size and time of change, in one file for each DATA; damaged or unwritable, it is passed over."""

    def __init__(self, source: Source, cache: Path | None) -> None:
        self.source = source
        self.file = self._place(source, cache)
        self.marks: dict[str, list[int]] = {}
        self.is_changed = False
        self.known: dict[str, list[Any]] = {}
        # entries are void for another Pillow or another limit
        self.head = [_VERSION, PIL.__version__, Image.MAX_IMAGE_PIXELS]
        if self.file is not None:
            try:
                stored = json.loads(self.file.read_bytes())
                if stored["head"] == self.head:
                    self.known = dict(stored["entries"])
            except (OSError, ValueError, KeyError, TypeError):
                pass

    @staticmethod
    def _place(source: Source, cache: Path | None) -> Path | None:
        if cache is None or source.root is None:
            return None
        name = hashlib.sha256(os.path.realpath(source.name).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        inside = Path(os.path.realpath(cache)).is_relative_to(os.path.realpath(source.root))
        return None if inside else cache / f"images-{name}.json"

    def entry(self, sample: Sample) -> Entry:
        if self.file is None:
            return read_entry(self.source, sample)
        path = self.source.file(sample)
        try:
            status = path.stat()
        except OSError:
            return read_entry(self.source, sample)
        mark = [status.st_size, status.st_mtime_ns]
        entry = _restored(self.known.get(sample.path), mark)
        if entry is None:
            entry = read_entry(self.source, sample)
            self.is_changed = True
        if entry.fault not in _PASSING:
            self.marks[sample.path] = mark
        return entry

    def save(self, samples: Sequence[Sample], entries: Sequence[Entry]) -> None:
        if self.file is None or not self.is_changed:
            return
        stored = {
            sample.path: [*self.marks[sample.path], *astuple(entry)[:-1], base64.b64encode(entry.look).decode()]
            for sample, entry in zip(samples, entries, strict=True)
            if sample.path in self.marks
        }
        text = json.dumps({"head": self.head, "entries": stored}, separators=(",", ":"))
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.file.parent, suffix=".part")
            try:
                with os.fdopen(handle, "w", encoding="ascii") as target:
                    target.write(text)
                os.replace(name, self.file)
            except BaseException:
                os.unlink(name)
                raise
        except OSError:
            pass  # without a cache the next run takes longer, that is all


def _restored(stored: Any, mark: list[int]) -> Entry | None:
    try:
        if stored is None or stored[:2] != mark:
            return None
        fields: tuple[Any, ...] = (*stored[2:-1], base64.b64decode(stored[-1]))
        entry = Entry(*fields)
    except (TypeError, ValueError, LookupError):
        return None
    return entry if entry.fault or (len(entry.look) == LOOK_BYTES and entry.digest) else None
