"""The folder of a run: what is in it, whose it is, and whether a run may begin or go on there."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.errors import UserError
from ..base.files import check_writable, locked, write_bytes, write_json, writing
from ..base.words import brief, cause, few
from ..data.split import Prepared, fingerprint
from .bundle import Bundle, save_bundle
from .config import FREE, OPTIONS, Config, default_of
from .plots import confusion_png, curves_png

RUN, METRICS, SPLIT, RESULT = "run.json", "metrics.jsonl", "split.csv", "result.json"
LAST, BEST = "last", "best"


class RunFolder:
    """The files of a run in `path`; the caller holds its lock.

    `run.json` (options, classes, environment), `split.csv` (which image is in which part), `metrics.jsonl` (a line an
    epoch), `last/` (checkpoints), `best/` (a bundle), and at the end `result.json` and pictures.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last, self.best = path / LAST, path / BEST

    @property
    def result(self) -> dict[str, Any] | None:
        """What a finished run came to; None where it is not finished."""
        return _read(self.path / RESULT) if (self.path / RESULT).is_file() else None

    def fixed_options(self) -> dict[str, Any]:
        """Return the options that a continuation takes over; none where there is no run."""
        if not (self.path / RUN).is_file():
            return {}
        options = _read(self.path / RUN)["config"]
        return {name: value for name, value in options.items() if name in OPTIONS and name not in FREE}

    def check_new(self) -> None:
        """Raise UserError unless a run may begin here: nothing of another run, nothing of the user's is in the way."""
        if self._done():
            raise UserError(
                f"{str(self.path)!r} holds a run already; give --resume to continue it, or another folder with --out"
            )

    def _done(self) -> bool:
        """Return whether a run has come to anything here."""
        done = [name for name in (METRICS, RESULT, LAST, BEST) if _holds_something(self.path / name)]
        ours = (self.path / RUN).is_file() and "data_fingerprint" in _read(self.path / RUN)
        taken = [*done, *(name for name in (RUN, SPLIT) if (self.path / name).exists())]
        if taken and not ours:
            raise UserError(f"{str(self.path)!r} holds {taken[0]} of something else; give another folder with --out")
        return bool(done)

    def begin(self, config: Config, prepared: Prepared, session: dict[str, Any], *, resume: bool) -> None:
        """Write `run.json` and `split.csv`, or add a session to the run that is there.

        A run that came to nothing, without an epoch or a checkpoint, is replaced.

        Raises:
            UserError: A run is there and `resume` is not set, or it has other options or other data.
        """
        if not resume:
            self.check_new()
        current = {**asdict(config), "data_fingerprint": fingerprint(prepared)}
        if not self._done():
            write_bytes(self.path / SPLIT, _split_table(prepared).encode("utf-8", "surrogateescape"))
            write_json(
                self.path / RUN,
                {
                    "config": asdict(config),
                    "classes": list(prepared.classes),
                    "num_images": {part: len(samples) for part, samples in prepared.parts.items()},
                    "drawn": list(prepared.drawn),
                    "left_out": list(prepared.left_out),
                    "data_fingerprint": current["data_fingerprint"],
                    "sessions": [session],
                },
            )
            return
        run = _read(self.path / RUN)
        _check_same(self.path, {**run["config"], "data_fingerprint": run["data_fingerprint"]}, current)
        if self.result is None:
            write_json(self.path / RUN, {**run, "sessions": [*run["sessions"], session]})

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl`, but for one that a crash cut short."""
        records = []
        if (self.path / METRICS).is_file():
            for line in (self.path / METRICS).read_text(encoding="utf-8").splitlines():
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return records

    def keep_metrics(self, num_epochs: int) -> None:
        """Drop the lines after `num_epochs`, which the continuation will write again."""
        kept = [record for record in self.metrics() if record["epoch"] <= num_epochs]
        write_bytes(self.path / METRICS, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Create the folder and hold it for this process inside the block.

        Raises:
            UserError: It cannot be written, or another process holds it.
        """
        check_writable(self.path)
        return locked(self.path)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        with writing(self.path / METRICS), open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save_best(self, bundle: Bundle) -> None:
        """Write the best network so far."""
        save_bundle(self.best, bundle)

    def draw(self, title: str, confusion: Tensor, classes: tuple[str, ...], part: str) -> None:
        """Write `curves.png` and `confusion.png`; `part` names the images of the confusion matrix."""
        write_bytes(self.path / "curves.png", curves_png(self.metrics(), title))
        write_bytes(self.path / "confusion.png", confusion_png(confusion, classes, f"{title}: {part} images"))

    def save_result(self, result: dict[str, Any]) -> None:
        """Write `result.json`; the run is then finished."""
        write_json(self.path / RESULT, result)


def training_images(bundle: Path) -> frozenset[str]:
    """Return the paths of the images that the network of a run was trained on; none where no `split.csv` tells."""
    for folder in (bundle, bundle.parent, bundle.parent.parent):
        if (folder / SPLIT).is_file() and (folder / RUN).is_file():
            with open(folder / SPLIT, encoding="utf-8", errors="surrogateescape", newline="") as file:
                return frozenset(row["path"] for row in csv.DictReader(file) if row.get("split") == "train")
    return frozenset()


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size > 0


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({cause(error)}); start again with another --out") from error
    return content if isinstance(content, dict) else {}


def _check_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    if before["data_fingerprint"] != now["data_fingerprint"] and before["data"] == now["data"]:
        raise UserError(
            f"the images of {now['data']!r} or their split have changed since the run in {str(path)!r} began; restore "
            "them, or start anew with another --out"
        )
    # an option that a run of an older version did not have yet was as it is by default
    before = {**{name: default_of(name) for name in OPTIONS}, **before}
    changed = [
        f"{name} was {brief(before[name], 40)}, is {brief(value, 40)}"
        for name, value in now.items()
        if name not in FREE and name not in ("data_fingerprint", "data") and before[name] != value
    ]
    if before["data_fingerprint"] != now["data_fingerprint"]:
        changed.insert(0, f"data was {brief(before['data'])}, is {brief(now['data'])}")
    if changed:
        raise UserError(
            f"the run in {str(path)!r} has other options: {few(changed, 5, '; ')}; give the same, or another --out"
        )


def _split_table(prepared: Prepared) -> str:
    """Return the parts as a CSV that can itself be DATA, where the images are files."""
    root = prepared.source.root
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["path", "label", "split"])
    for part, samples in prepared.parts.items():
        for sample in samples:
            path = sample.path if root is None else str((root / sample.path).absolute())
            writer.writerow([path, sample.label, part])
    return target.getvalue()
