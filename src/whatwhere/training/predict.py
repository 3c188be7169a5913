"""Use a trained network: predict the classes of files, evaluate on labelled images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import UserError
from ..base.processes import num_cores
from ..base.words import brief, few, printable, short, suggest
from ..data.ahead import read_ahead
from ..data.batches import EvaluationBatches, Reader, label_numbers
from ..data.doctor.findings import misfit, unusable
from ..data.doctor.report import examine
from ..data.images import ImageError, absent_format, grey_values, has_unknown_range, open_image
from ..data.preprocess import Preprocessing
from ..data.sources.find import find_source
from ..data.sources.folders import ARCHIVES, TABLES, list_images, reasons
from ..data.sources.source import NOT_READ, Finding, check_command, findings_of
from ..data.split import check_sound
from .bundle import Bundle
from .distributed import Team
from .evaluate import evaluate
from .run_folder import TrainedOn
from .trainer import autocast

# preparing a network takes as long as 17 to 42 of them (ResNeXt-50 at 224 px, a small one at 32 px), and one batch more
MANY_FILES = 1000


@dataclass(frozen=True)
class Prediction:
    """The predicted classes of an image, or why it could not be read."""

    path: str
    classes: tuple[tuple[str, float], ...] = ()  # with their probabilities, the most probable first
    largest: int = 0  # largest value of an image of 16-bit grey, else 0
    error: str = ""  # a sentence that names the image; empty if it could be read


def image_files(paths: Sequence[Path]) -> tuple[list[Path], list[Finding]]:
    """Return the files in `paths` and all images in its folders, and what was left out there, as `check` finds it.

    Raises:
        UserError: A path that does not exist, or no images.
    """
    files: list[Path] = []
    findings: list[Finding] = []
    not_read: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if path.is_dir():
            images, found = list_images(path)
            files += [path / image for image in images]
            for finding in found:
                names = [str(path / one) for one in finding.paths]
                if finding.kind in NOT_READ:
                    not_read[finding.kind] += names
                else:
                    findings.append(replace(finding, paths=tuple(names)))
        elif path.suffix.lower() in TABLES | ARCHIVES and path.is_file():
            of_table = "; for labelled images there is `whatwhere evaluate`" if path.suffix.lower() in TABLES else ""
            raise UserError(
                f"{brief(printable(str(path)), 200)} is no image; give image files, or folders of them{of_table}"
            )
        elif path.exists():
            if kind := absent_format(path):
                not_read[kind].append(str(path))
            else:
                files.append(path)
        else:
            raise UserError(f"no image or folder {brief(printable(str(path)), 200)}")
    findings += findings_of(NOT_READ, not_read)
    if not files:
        raise UserError(f"no images in {few([str(path) for path in paths])}{reasons(findings)}")
    return files, findings


def read_pixels(
    preprocessing: Preprocessing, files: Sequence[Path], *, batch_size: int = 64, num_threads: int | None = None
) -> Iterator[list[tuple[Path, tuple[Tensor, int] | ImageError]]]:
    """Yield batches of (file, (pixels, largest value)), or (file, why it could not be read); threads read ahead.

    Pixels are uint8 (3, image_size, image_size); the largest value is that of an image of 16-bit grey, else 0.

    Raises:
        ImageError: No image was read for a minute.
    """

    def read(file: Path) -> tuple[Tensor, int] | ImageError:
        try:
            with open_image(file) as image:
                is_unsure = has_unknown_range(image)
                pixels = preprocessing.pixels(image)
                values = grey_values(image) if is_unsure else None
                return pixels, 0 if values is None else int(values.max())
        except ImageError as error:
            return error

    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    for batch, contents in zip(batches, read_ahead(read, batches, num_threads or num_cores()), strict=True):
        yield list(zip(batch, contents, strict=True))


def predict(
    bundle: Bundle, files: Sequence[Path], *, top: int = 5, batch_size: int = 64, num_threads: int | None = None
) -> Iterator[Prediction]:
    """Yield a prediction for each file, in order; several threads read ahead.

    For many files the network is prepared by `optimize_for_inference`, in its own dtype.

    Args:
        bundle: The network.
        files: Images.
        top: Number of classes to return for each image.
        batch_size: Images in a forward pass; results differ by rounding only.
        num_threads: Number of threads that read; one for each core by default.

    Raises:
        ImageError: No image was read for a minute.
    """
    to_prepare = len(files) >= MANY_FILES
    for batch in read_pixels(bundle.preprocessing, files, batch_size=batch_size, num_threads=num_threads):
        readable = [content[0] for _, content in batch if not isinstance(content, ImageError)]
        rows: Iterator[Tensor] = iter(())
        if readable and to_prepare:
            bundle, probabilities = bundle.prepared(torch.stack(readable))
            rows, to_prepare = iter(probabilities), False
        elif readable:
            rows = iter(bundle.probabilities(torch.stack(readable)))
        for file, content in batch:
            if isinstance(content, ImageError):
                yield Prediction(str(file), error=str(content))
            else:
                values, indices = next(rows).topk(min(top, len(bundle.classes)))
                names = [bundle.classes[number] for number in indices.tolist()]
                yield Prediction(str(file), tuple(zip(names, values.tolist(), strict=True)), content[1])


def evaluate_bundle(
    bundle: Bundle,
    data: str,
    *,
    split: str | None = None,
    skip_bad: bool = False,
    batch_size: int = 128,
    num_workers: int = 0,
    amp: str = "none",
    trained_on: TrainedOn | None = None,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] = lambda sentence: None,
    **source_options: Any,
) -> dict[str, Any]:
    """Evaluate a network on labelled images; return figures as in `result.json`, under "images".

    The classes of the images and of the network are matched by name.

    Args:
        bundle: The network.
        data: As `find_source` takes it.
        split: "train", "val", "test" or "all"; by default the test images, or else val, or else all.
        skip_bad: Leave out images, and rows of a CSV file, that cannot be used.
        batch_size: Images in a forward pass.
        num_workers: Number of threads that read.
        amp: "none", "bf16" or "fp16".
        trained_on: Training images; the result says how many of the images are among them.
        progress: Called with the number of images done and the number of all images.
        warn: Called with a sentence on each kind of what `skip_bad` left out.
        **source_options: Further arguments of `find_source`.

    Raises:
        UserError: No images in the split, images that cannot be read, or a class that the network does not know.
    """
    source = find_source(data, **source_options)
    chosen = split or next((part for part in ("test", "val") if part in source.splits), "all")
    samples = [sample for sample in source.samples if chosen in ("all", sample.split)]
    if not samples:
        has = f"it has {', '.join(source.splits)}" if source.splits else "it has no splits"
        raise UserError(f"{printable(data)} has no {short(chosen)} images ({has}); give another --split, or all")
    chosen_source = replace(source, samples=tuple(samples))
    report = examine(chosen_source, max_value=bundle.preprocessing.max_value, progress=progress)
    bad = unusable(report.findings)
    faults = [finding for finding in report.findings if bad.keys() & finding.paths]
    names = ("path_column", "label_column", "split_column", "data_dir")
    where = {name: source_options.get(name) for name in names}
    if not skip_bad:
        check_sound(data, faults, check_command(data, **where))
    for finding in faults:
        warn(f"--skip-bad left out {finding.message}: {few(finding.paths, 5)}")
    samples = [sample for sample in samples if sample.path not in bad]
    if not samples:
        raise UserError(
            f"--skip-bad leaves no image of {printable(data)} (split: {chosen}); see what is wrong with them with",
            check_command(data, **where),
        )
    unknown = sorted({sample.label for sample in samples} - set(bundle.classes))
    if unknown:
        hint = suggest(unknown[0], list(bundle.classes)) or f"; it knows {few(bundle.classes, 5)}"
        table = "".join(f"; {finding.sentence()}" for finding in source.findings if finding.kind == "table")
        raise UserError(f"the network does not know the class {brief(unknown[0])}{hint}{table}")
    device = next(bundle.model.parameters()).device
    reader = Reader(source, samples, bundle.preprocessing, whole=False)
    labels = label_numbers(samples, bundle.classes)
    figures = evaluate(
        bundle.model,
        EvaluationBatches(reader, labels, bundle.preprocessing, batch_size, device, num_workers),
        len(bundle.classes),
        Team(0, 1, 0, device),
        autocast=lambda: autocast(device, amp),
        on_batch=None if progress is None else lambda done: progress(done, len(samples)),
        collect=len(samples),
    )
    return {
        "data": data,
        "split": chosen,
        "num_trained_on": 0 if trained_on is None else trained_on.count(source, samples, report),
        "left_out": dict(sorted(bad.items())),
        "misfit": misfit(
            [report.largest[sample.path] for sample in samples if sample.path in report.largest],
            bundle.preprocessing.max_value,
        ),
        "images": figures.summary(),
        "judged_on": "images",
        "classes": list(bundle.classes),
        "per_class": figures.per_class(bundle.classes),
        "confusion": figures.confusion.tolist(),
    }
