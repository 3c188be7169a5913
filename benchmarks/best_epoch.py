"""Which epoch of a run to keep where few images validate it: test accuracy by rule, paired over seeds.

Each run trains on `size` images of DATA at 32 px, 15 % of them held out to choose the epoch, and is tested on all that
are left. The options are those that few images had until 2026-11: a rate of 0.1 at batch size 128, and `OPTIONS`.
All rules choose from the same epochs: the best validation accuracy (the first such epoch, or of those the one with the
lowest validation loss), the lowest validation loss, or the last.

    python benchmarks/best_epoch.py DATA --out best_epoch.csv [--size 200 600] [--seeds 12] [--epochs 100]
    python benchmarks/best_epoch.py --out best_epoch.csv --table > best_epoch.md

A line for each run is added to the CSV; runs that are there are left out, so that it can be stopped and called again.
"""

import argparse
import csv
import random
import statistics
import tempfile
from pathlib import Path

import torch
from scipy import stats

from whatwhere.base.screen import Silent
from whatwhere.data.sources.find import find_source
from whatwhere.training.distributed import Team
from whatwhere.training.evaluate import evaluate
from whatwhere.training.setup import (
    build_material,
    build_model,
    build_trainer,
    prepare_images,
    preprocessing_of,
    resolve,
)
from whatwhere.training.trainer import Trainer

RULES = {
    "accuracy, first": lambda epoch: (epoch["accuracy"], -epoch["epoch"]),
    "accuracy": lambda epoch: (epoch["accuracy"], -epoch["loss"]),
    "loss": lambda epoch: -epoch["loss"],
    "last": lambda epoch: epoch["epoch"],
}
OPTIONS = {"mixup": 0.1, "random_erasing": 0.1, "rand_augment": 5, "hflip": 0.5}
HEAD = ("size", "seed", "num_val", "num_ties", *(f"{name}: {what}" for name in RULES for what in ("epoch", "test")))


def split(data, size, seed):
    """Return lines of a table of DATA: `size` images to train on, the others to test on."""
    source = find_source(data)
    samples = sorted(source.samples, key=lambda sample: sample.path)
    random.Random(seed).shuffle(samples)
    return [
        f"{(source.root / sample.path).absolute()},{sample.label},{'train' if number < size else 'test'}"
        for number, sample in enumerate(samples)
    ]


def run(data, size, seed, epochs):
    """Train once; return the validation figures and the test accuracy after each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "images.csv"
        table.write_text("\n".join(["path,label,split", *split(data, size, seed)]))
        given = {"seed": seed, "epochs": epochs, "image_size": 32, "device": "cpu", "workers": 0, "check": False}
        team = Team(0, 1, 0, torch.device("cpu"))
        prepared = prepare_images(str(table), given, Silent())
        rate = 0.1 * resolve(str(table), given, prepared, team).batch_size / 128
        config = resolve(str(table), {**given, **OPTIONS, "lr": rate}, prepared, team)
        model, _ = build_model(config, len(prepared.classes))
        material = build_material(config, prepared, preprocessing_of(config), team, with_test=True)
        trainer = build_trainer(config, material.train, model, len(prepared.classes), team, Trainer)
        best, accuracies = dict[str, dict[str, float]](), list[float]()
        for ends in trainer.run(material.train):
            if not ends:
                continue
            val = figures(trainer, material.evaluation["val"], prepared.classes)
            accuracies.append(val.accuracy)
            epoch = {"epoch": trainer.epoch, "accuracy": val.accuracy, "loss": val.loss}
            better = [name for name, rule in RULES.items() if name not in best or rule(epoch) > rule(best[name])]
            if better != ["last"] or trainer.epoch == epochs:  # else no rule keeps this epoch
                epoch["test"] = figures(trainer, material.evaluation["test"], prepared.classes).accuracy
            best |= dict.fromkeys(better, epoch)
    num_ties = accuracies.count(max(accuracies))
    return [size, seed, val.num_images, num_ties, *(best[name][what] for name in RULES for what in ("epoch", "test"))]


def figures(trainer, batches, classes):
    """Return the figures of the network as it is now."""
    return evaluate(trainer.evaluated, batches, len(classes), trainer.team, autocast=trainer.autocast)


def table(path):
    """Return the table of the finished runs as Markdown: each rule against the one with the tie-break."""
    with open(path, newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    lines = [
        "| images | validation | seeds | epochs with the best accuracy | rule | epoch | test accuracy | difference |",
        "| ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for size in sorted({row["size"] for row in rows}):
        runs = [row for row in rows if row["size"] == size]
        ties = statistics.median(row["num_ties"] for row in runs)
        for rule in RULES:
            gains = [100 * (row[f"{rule}: test"] - row["accuracy: test"]) for row in runs]
            mean, gain = 100 * statistics.mean(row[f"{rule}: test"] for row in runs), statistics.mean(gains)
            half = stats.t.ppf(0.975, len(runs) - 1) * statistics.stdev(gains) / len(runs) ** 0.5
            told = "" if rule == "accuracy" else f"{gain:+.2f} ({gain - half:+.2f} to {gain + half:+.2f})"
            epoch = statistics.median(row[f"{rule}: epoch"] for row in runs)
            lines.append(
                f"| {size:.0f} | {runs[0]['num_val']:.0f} | {len(runs)} | {ties:g} | {rule} | {epoch:g} | {mean:.2f} % "
                f"| {told} |"
            )
    return "\n".join(lines)


def main():
    """Train what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--size", type=int, nargs="+", default=[200, 600])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=100)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.out))
        return
    if not arguments.out.exists():
        arguments.out.write_text(",".join(f'"{name}"' for name in HEAD) + "\n")
    with open(arguments.out, newline="") as file:
        done = {(int(row["size"]), int(row["seed"])) for row in csv.DictReader(file)}
    for seed in range(arguments.seeds):
        for size in arguments.size:
            if (size, seed) not in done:
                with open(arguments.out, "a", newline="") as file:
                    csv.writer(file).writerow(run(arguments.data, size, seed, arguments.epochs))


if __name__ == "__main__":
    main()
