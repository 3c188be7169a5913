"""Shared by the benchmarks that train: a training on a few images, and a table of trainings that can be resumed."""

import csv
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from whatwhere.base.screen import Silent
from whatwhere.data.batches import TrainBatches
from whatwhere.data.sources.source import Sample, Source
from whatwhere.training.distributed import Team
from whatwhere.training.evaluate import Figures, evaluate
from whatwhere.training.setup import (
    build_material,
    build_model,
    build_trainer,
    prepare_images,
    preprocessing_of,
    resolve,
)
from whatwhere.training.trainer import Trainer

RATE = 0.1 / 128  # for an image of the batch: the learning rate was in proportion to the batch size alone


@contextmanager
def training(
    source: Source, parts: dict[str, Sequence[Sample]], given: dict[str, Any]
) -> Iterator[tuple[Trainer, TrainBatches, Callable[..., Figures]]]:
    """Yield a training on a CPU: its trainer, its batches, and a function that evaluates on a part.

    Images are of 32 px unless `given` says otherwise. `parts` are the samples of `source` to train on, of which some
    are held out, and to test on. A rate of None is `RATE` times the batch size.
    """
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "images.csv"
        rows = [(source.file(sample).absolute(), sample.label, part) for part in parts for sample in parts[part]]
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label", "split"), *rows])
        given = {"image_size": 32, "device": "cpu", "workers": 0, "check": False, **given}
        team = Team(0, 1, 0, torch.device("cpu"))
        prepared = prepare_images(str(table), given, Silent())
        if given.get("lr", 0) is None:
            del given["lr"]
            given["lr"] = RATE * resolve(str(table), given, prepared, team).batch_size
        config = resolve(str(table), given, prepared, team)
        num_classes = len(prepared.classes)
        model, _ = build_model(config, num_classes)
        material = build_material(config, prepared, preprocessing_of(config), team, with_test=True)
        trainer = build_trainer(config, material.train, model, num_classes, team, Trainer)

        def figures(part: str, network: nn.Module | None = None) -> Figures:
            network = trainer.evaluated if network is None else network
            return evaluate(network, material.evaluation[part], num_classes, team, autocast=trainer.autocast)

        yield trainer, material.train, figures


def drawn(source: Source, size: int, seed: int, most_tested: int | None = None) -> dict[str, list[Sample]]:
    """Return `size` images to train on, drawn by the seed, and to test on those that are left, or the source's own."""
    samples = sorted(source.samples, key=lambda sample: sample.path)
    random.Random(seed).shuffle(samples)
    own = [sample for sample in samples if sample.split == "test"]
    others = [sample for sample in samples if sample.split != "test"]
    return {"train": others[:size], "test": (own or others[size:])[:most_tested]}


def add_missing(
    path: Path, head: Sequence[str], runs: Iterable[tuple[tuple[Any, ...], Callable[[], list[Any]]]]
) -> None:
    """Do the runs that a table lacks, and add the line of each: its key, and what it returns."""
    if not path.exists():
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(head)
    for key, run in runs:
        with path.open(newline="") as file:
            is_done = any(row[: len(key)] == [str(part) for part in key] for row in csv.reader(file))
        if not is_done:
            line = [*key, *run()]
            with path.open("a", newline="") as file:
                csv.writer(file).writerow(line)
