"""The folder of a run: its files, their types, and whether a run may begin or continue there."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from torch import Tensor

from ..base.documents import parse_json, read_json
from ..base.errors import UserError
from ..base.files import Unreadable, check_writable, locked, looking_into, read_file, write_bytes, write_json, writing
from ..base.limits import DOCUMENT_BYTES, IMAGE_LIST_BYTES
from ..base.tables import comma_separated
from ..base.words import brief, cause, command_line, few, option, printable, short, unescaped
from ..collect.result import RESULT, Amount, Count, Fraction, Result, check_is_of_run, run_digest
from ..data.doctor.report import Report
from ..data.preprocess import NewerError, Preprocessing
from ..data.sources.source import SPLITS, Sample, Source
from ..data.split import Prepared, fingerprint
from ..networks.spec import is_import_path
from .bundle import DESCRIPTION, Bundle, save_bundle
from .config import FREE, OPTIONS, Config, augmentation_in_words
from .plots import confusion_png, curves_png

RUN, METRICS, SPLIT = "run.json", "metrics.jsonl", "split.csv"
LAST, BEST = "last", "best"
CURVES, CONFUSION = "curves.png", "confusion.png"
_CONTENT = "blake2b"  # column of split.csv: BLAKE2b hash of the image's bytes; empty where images were not checked
_SPLIT_HEAD = ("path", "label", "split", _CONTENT)
_ANOTHER = "start again with another --out"


class RunDescription(msgspec.Struct, kw_only=True):
    """The content of `run.json`."""

    config: dict[str, Any]  # the options, as `Config` takes them
    given: list[str] | UnsetType = UNSET  # names of the options that were given at the start; not in old versions
    chosen: str | UnsetType = UNSET  # the augmentation for options that are not given, and why; not in old versions
    classes: list[str]
    num_images: dict[str, Count]  # of each part
    drawn: list[str] | UnsetType = UNSET  # parts that the seed drew; unset in runs of old versions
    # what --skip-bad left out: the doctor's kind of finding by path; a list of paths in runs of old versions
    left_out: dict[str, str] | list[str] = {}
    data_fingerprint: str  # SHA-256 of the images' paths and their split
    # SHA-256 of their paths and contents; unset where they were not checked, and in runs of old versions
    content_fingerprint: str | UnsetType = UNSET
    preprocessing: dict[str, Any] | UnsetType = UNSET  # what the network takes; unset in runs of old versions
    sessions: Annotated[list[dict[str, Any]], Meta(min_length=1)]  # machine and versions of each start

    def __post_init__(self) -> None:
        msgspec.convert(self.config, Config)
        if missing := {"data", "model"} - self.config.keys():
            raise ValueError(f"its config has no {min(missing)}")
        if unknown := set(self.given or ()) - self.options.keys():
            raise ValueError(f"there is no option {brief(min(unknown))}")
        if strange := {*(self.drawn or ()), *self.num_images} - set(SPLITS):
            raise ValueError(f"there is no part {brief(min(strange))}")

    @property
    def digest(self) -> str:
        """A hash of all that stays as it is from the start of the run to its end: the run's checkpoints keep it."""
        return run_digest(msgspec.to_builtins(self))

    @property
    def options(self) -> dict[str, Any]:
        """All options. A run of an older version lacks new ones: it ran with their defaults."""
        return {**asdict(Config()), **self.config}


class EpochLine(msgspec.Struct, kw_only=True):
    """A line of `metrics.jsonl`; losses are mean cross-entropies in nats."""

    epoch: Annotated[int, Meta(ge=1, lt=2**31)]
    step: Count
    lr: Amount
    train_loss: Amount  # of the augmented images, with label smoothing and class weights
    val_accuracy: Fraction
    val_balanced_accuracy: Fraction
    val_macro_f1: Fraction | UnsetType = UNSET  # not in runs of old versions
    val_loss: Amount | None  # None where it is not finite
    is_best: bool
    seconds: Amount  # of training so far, evaluations included


class Damaged(UserError):  # noqa: N818 - a UserError by its base
    """A file of a run is damaged: `reason` says which and how, without the advice, which is for a training alone."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason


class RunFolder:
    """The files of a run in `path`; only the process that has locked the folder may write.

    `run.json` (`RunDescription`), `split.csv` (part and hash of each image), `metrics.jsonl` (an `EpochLine` for each
    epoch), `last/` (checkpoints), `best/` (a bundle), and at the end `result.json` (`Result`) and pictures.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last, self.best = path / LAST, path / BEST

    @property
    def result(self) -> dict[str, Any] | None:
        """The checked content of `result.json`, by field; None where the run is not finished.

        Raises:
            OfAnotherRun: It is not of the run in this folder.
            UserError: It, or a file that it must fit, is damaged.
        """
        file = self.path / RESULT
        if not file.is_file():
            return None
        with _damage(file):
            content = read_json(file, dict[str, Any])
            result = msgspec.convert(content, Result)
        if (description := self.description) is None:
            raise self._strange([RESULT])
        check_is_of_run(result, self.path, msgspec.to_builtins(description), self.metrics())
        # what old versions did not write is None
        return {**content, **msgspec.to_builtins(result)}

    @property
    def description(self) -> RunDescription | None:
        """The content of `run.json`; None where there is none, or where it is not one of a run."""
        file = self.path / RUN
        with _damage(file):
            content: Any = read_json(file, Any) if os.path.lexists(file) else None
            is_run = isinstance(content, dict) and "data_fingerprint" in content
            return msgspec.convert(content, RunDescription) if is_run else None

    def fixed_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that a continuation with the options `given` takes over; none where there is no run.

        Raises:
            UserError: The run has an attention to import, and `given` does not name it again.
        """
        options = {} if (description := self.description) is None else description.config
        named = str(options.get("attention", ""))
        if "attention" not in given and is_import_path(named):
            text = short(named, 200)
            raise UserError(
                f"the run in {str(self.path)!r} has the attention {brief(text)}, and whatwhere never imports code that "
                f"a file names; give --attention {text} again"
            )
        return {name: value for name, value in options.items() if name in OPTIONS and name not in FREE}

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Create the folder and lock it for this process inside the block."""
        check_writable(self.path)
        return locked(self.path)

    def check_new(self) -> None:
        """Raise UserError if the folder holds a run, or files of something else that a run would replace."""
        if self._has_run():
            raise UserError(
                f"{str(self.path)!r} holds a run already; give --resume to continue it, or another folder with --out"
            )

    def _has_run(self) -> bool:
        """Return whether a run has written an epoch or a checkpoint; raise UserError at files of something else."""
        paths = [self.path / name for name in (METRICS, RESULT, LAST, BEST)]
        with looking_into(self.path):
            done = [p.name for p in paths if (any(p.iterdir()) if p.is_dir() else p.exists() and p.stat().st_size > 0)]
            taken = [*done, *(name for name in (RUN, SPLIT) if (self.path / name).exists())]
        if taken and self.description is None:
            raise self._strange(taken)
        return bool(done)

    def _strange(self, files: Sequence[str]) -> Damaged:
        """Return the error about `files` in a folder without the `run.json` of a run."""
        if (self.path / RUN).exists():
            return Damaged(f"{str(self.path / RUN)!r} is of something else", "give another folder with --out")
        reason = f"{str(self.path)!r} holds {files[0]} but no {RUN}"
        return Damaged(reason, f"put {RUN} back, or give another folder with --out")

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What the network of the run takes; None where there is no run, or one of an old version."""
        description = self.description if self._has_run() else None
        if description is None or description.preprocessing is UNSET:
            return None
        with _damage(self.path / RUN):
            return Preprocessing.of(description.preprocessing)

    def begin(
        self,
        config: Config,
        prepared: Prepared,
        preprocessing: Preprocessing,
        session: dict[str, Any],
        *,
        given: Iterable[str],
        resume: bool,
    ) -> None:
        """Write `run.json` and `split.csv`, or add a session to the run that is there.

        `given` names the options that were given, not chosen. A run without an epoch or a checkpoint is replaced, or,
        with `resume`, keeps its options.

        Raises:
            UserError: A run is there and `resume` is not set, or it has other options or other data.
        """
        if not resume:
            self.check_new()
        new = RunDescription(
            config=asdict(config),
            given=list(given),
            chosen=augmentation_in_words(config, len(prepared.parts["train"])),
            classes=list(prepared.classes),
            num_images={part: len(samples) for part, samples in prepared.parts.items()},
            drawn=list(prepared.drawn),
            left_out=prepared.left_out,
            data_fingerprint=fingerprint(prepared),
            content_fingerprint=UNSET if prepared.report is None else prepared.report.digest,
            preprocessing=preprocessing.to_dict(),
            sessions=[session],
        )
        has_begun = self._has_run()
        # a run that was stopped before its first checkpoint keeps its options too
        old = self.description if has_begun or resume else None
        if old is None:
            table = comma_separated(_SPLIT_HEAD, _rows(prepared))
            write_bytes(self.path / SPLIT, table.encode())
            write_json(self.path / RUN, msgspec.to_builtins(new))
            return
        self.check_same(config, prepared)
        contents = {old.content_fingerprint, new.content_fingerprint}
        if len(contents) > 1 and UNSET not in contents:
            named = few(self._changed(prepared))
            raise UserError(
                f"images of {brief(config.data, 200)} have another content than when the run in {str(self.path)!r} "
                f"began{f': {named}' if named else ''}; restore them, or start again with another --out"
            )
        if self.result is None:
            old.sessions.append(session)
            write_json(self.path / RUN, msgspec.to_builtins(old))

    def check_same(self, config: Config, prepared: Prepared) -> None:
        """Raise UserError if a run is here, and a continuation has other options or other images."""
        old = self.description
        if old is None:
            return
        has_other_images = old.data_fingerprint != fingerprint(prepared)
        is_done = self.result is not None and self.has_best
        differing = self._added_or_gone(prepared) if has_other_images else ""
        _check_same(
            self.path,
            old,
            asdict(config),
            has_other_images,
            differing,
            self.continued_by(config.data) if is_done else "",
        )

    def _added_or_gone(self, prepared: Prepared) -> str:
        """Return which images and labels `split.csv` lacks, and which only that has; "" where it does not say."""
        before = dict[str, str]()
        with contextlib.suppress(UserError):
            before = {row["path"]: row["label"] for row in _split(self.path)}
        now = {path: label for path, label, *_ in _rows(prepared)}
        root = os.path.join(os.path.abspath(prepared.source.name), "")
        both = [path for path in now if path in before]
        if not both:  # the folder was moved
            return ""
        kinds = {
            "new": [path for path in now if path not in before],
            "gone": [path for path in before if path not in now],
            "with another label": [path for path in both if now[path] != before[path]],
        }
        return "; ".join(
            f"{kind}: {few([brief(short(path.removeprefix(root), 50)) for path in paths], letters=80)}"
            for kind, paths in kinds.items()
            if paths
        )

    def _changed(self, prepared: Prepared) -> list[str]:
        """Return the images that differ from those in `split.csv`; none where that does not say so."""
        before = list[str]()
        with contextlib.suppress(UserError):
            before = [row.get(_CONTENT, "") for row in _split(self.path)]
        samples = [sample for samples in prepared.parts.values() for sample in samples]
        now = [row[-1] for row in _rows(prepared)]
        if len(before) != len(now):
            return []
        return [sample.path for sample, a, b in zip(samples, before, now, strict=True) if a != b]

    def metrics(self) -> list[EpochLine]:
        """Return the lines of `metrics.jsonl`, without a last line that a crash cut short."""
        lines = []
        for number, text in enumerate(texts := self._metrics_lines(), start=1):
            with _damage(self.path / METRICS, f"in line {number}, "):
                try:
                    lines.append(parse_json(text, EpochLine))
                except ValueError as error:
                    if number < len(texts) or not isinstance(error.__cause__, json.JSONDecodeError):
                        raise
                else:
                    if lines[-1].epoch != number:
                        raise ValueError(f"the epoch is {lines[-1].epoch:,}")
        return lines

    def _metrics_lines(self) -> list[bytes]:
        file = self.path / METRICS
        return read_file(file, DOCUMENT_BYTES).splitlines() if file.is_file() else []

    def metrics_digest(self, num_epochs: int) -> str:
        """Return the SHA-256 of the first lines of `metrics.jsonl`: the run's checkpoints keep it."""
        return hashlib.sha256(b"\n".join(self._metrics_lines()[:num_epochs])).hexdigest()

    def keep_metrics(self, num_epochs: int) -> None:
        """Remove the lines after `num_epochs`; the continuation writes them again."""
        write_bytes(self.path / METRICS, b"".join(text + b"\n" for text in self._metrics_lines()[:num_epochs]))

    def append_metrics(self, line: EpochLine) -> None:
        """Add a line to `metrics.jsonl`."""
        with writing(self.path / METRICS), open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(msgspec.to_builtins(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())  # on disk before the checkpoint that counts it

    @property
    def has_best(self) -> bool:
        """Whether a network was kept as the best one."""
        return (self.best / DESCRIPTION).is_file()

    def continued_by(self, data: str) -> str:
        """Return the command of a new run that starts from the best network."""
        out = next(path for number in count(2) if not (path := Path(f"{self.path}-{number}")).exists())
        return command_line(["whatwhere", "train", data, "--pretrained", str(self.path), "--out", str(out)])

    def save_best(self, bundle: Bundle) -> None:
        """Write the best network so far."""
        save_bundle(self.best, bundle)

    def draw(self, title: str, confusion: Tensor, classes: tuple[str, ...], part: str) -> None:
        """Write `curves.png` and `confusion.png`; `part` names the images of the confusion matrix."""
        write_bytes(self.path / CURVES, curves_png(self.metrics(), title))
        write_bytes(self.path / CONFUSION, confusion_png(confusion, classes, f"{title}: {part} images"))

    def pictures(self) -> list[Path]:
        """Return the pictures that the run has drawn."""
        return [path for name in (CURVES, CONFUSION) if (path := self.path / name).is_file()]

    def held_out_image(self) -> str | None:
        """Return the file of an image that the run has not trained on; None where no file is known."""
        with contextlib.suppress(UserError):
            held_out = (row["path"] for row in _split(self.path) if row["split"] != "train")
            spellings = (spelling for path in held_out for spelling in (path, unescaped(path)))
            return next((path for path in spellings if os.path.isfile(path)), None)
        return None

    def save_result(self, result: dict[str, Any]) -> None:
        """Write `result.json`; the run is then finished."""
        write_json(self.path / RESULT, result)


@dataclass(frozen=True)
class TrainedOn:
    """The images that a network was trained on."""

    paths: frozenset[str] = frozenset()  # of files, as `printable` writes them
    contents: frozenset[str] = frozenset()  # hashes; none where the images were not checked

    def count(self, source: Source, samples: Iterable[Sample], report: Report | None) -> int:
        """Return how many of the samples are among these images: by content, or by path where that is not known."""
        digests = {} if report is None else report.digests
        return sum(
            digests[sample.path] in self.contents
            if self.contents and sample.path in digests
            else printable(source.full_path(sample)) in self.paths
            for sample in samples
        )


def training_images(weights: Path) -> TrainedOn:
    """Return what the weights of a run were trained on; nothing where its `split.csv` is not beside them.

    `weights` is the folder of the run, that of its best network, or a file there.

    Raises:
        UserError: `split.csv` is damaged.
    """
    for folder in (weights, weights.parent, weights.parent.parent):
        if (folder / SPLIT).is_file() and (folder / RUN).is_file():
            rows = _split(folder, "put it there again, or move it away: nothing then says which images it trained on")
            train = [row for row in rows if row["split"] == "train"]
            return TrainedOn(
                # an image of a built-in set has no full path, and may have the name of one of another set
                frozenset(printable(row["path"]) for row in train if os.path.isabs(row["path"])),
                frozenset(row[_CONTENT] for row in train if row.get(_CONTENT)),
            )
    return TrainedOn()


def _split(folder: Path, advice: str = _ANOTHER) -> list[dict[str, str]]:
    """Return the rows of `split.csv`, by column; raise UserError, which ends with `advice`, where it is damaged."""
    with _damage(folder / SPLIT, advice=advice):
        # runs of old versions hold bytes that are not UTF-8 as they are
        text = read_file(folder / SPLIT, IMAGE_LIST_BYTES).decode("utf-8", "surrogateescape")
        try:
            head, *rows = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
        except csv.Error as error:
            raise ValueError(error) from error
        # runs of old versions lack the hash
        if tuple(head) not in (_SPLIT_HEAD, _SPLIT_HEAD[:3]):
            raise ValueError(f"it has not the columns {', '.join(_SPLIT_HEAD)}")
        for number, row in enumerate(rows, start=1):
            if len(row) != len(head) or row[2] not in SPLITS:
                raise ValueError(f"row {number:,} is no path, label and split")
        return [dict(zip(head, row, strict=True)) for row in rows]


def _rows(prepared: Prepared) -> list[tuple[str, str, str, str]]:
    """Return the rows of `split.csv`."""
    digests = {} if prepared.report is None else prepared.report.digests
    return [
        # full paths where the images are files, so that the table can be used as DATA
        (prepared.source.full_path(sample), sample.label, part, digests.get(sample.path, ""))
        for part, samples in prepared.parts.items()
        for sample in samples
    ]


@contextlib.contextmanager
def _damage(path: Path, where: str = "", advice: str = _ANOTHER) -> Iterator[None]:
    """Raise UserError, which ends with `advice`, where the content of a file cannot be read."""
    try:
        yield
    except NewerError as error:
        raise UserError(
            f"{str(path)!r} is of a newer version of whatwhere ({error}); pip install --upgrade whatwhere"
        ) from error
    except Unreadable:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{str(path)!r} is damaged ({where}{cause(error)})", advice) from error


def _check_same(
    path: Path,
    before: RunDescription,
    config: Mapping[str, Any],
    has_other_images: bool,
    differing_images: str,
    command: str,
) -> None:
    """Raise UserError if a continuation has other options or images; a `command` starts from the finished run."""
    options = before.options
    changed = [
        f"{option(name)} was {brief(options[name])}, is {brief(value)}"
        for name, value in config.items()
        if name not in FREE and name != "data" and options[name] != value
    ]
    data = config["data"]
    if has_other_images and options["data"] != data:
        changed.insert(0, f"DATA was {brief(options['data'], 200)}, is {brief(data, 200)}")
    if has_other_images and not changed:  # else it is the options that divide them in another way
        raise UserError(
            f"the images of {data!r} or their split have changed since the run in {str(path)!r} began"
            f"{f' ({differing_images})' if differing_images else ''}; restore them, or start again with another --out"
        )
    if changed:
        more = "; this one is finished, and a new run can start from its weights" if command else ""
        differing = few(changed, 5, "; ")
        raise UserError(
            f"the run in {str(path)!r} has other options: {differing}; give the same, or another --out{more}", command
        )
