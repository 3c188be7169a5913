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
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from scipy import stats

from trainings import add_missing, drawn, training
from whatwhere.data.sources.find import find_source
from whatwhere.training.evaluate import merit

RULES = {
    "accuracy, first": lambda epoch: (epoch["val"].accuracy, -epoch["epoch"]),
    "accuracy": lambda epoch: merit(epoch["val"], "accuracy"),
    "loss": lambda epoch: merit(epoch["val"], "loss"),
    "last": lambda epoch: epoch["epoch"],
}
OPTIONS = {"mixup": 0.1, "random_erasing": 0.1, "rand_augment": 5, "hflip": 0.5}
HEAD = ("size", "seed", "num_val", "num_ties", *(f"{name}: {what}" for name in RULES for what in ("epoch", "test")))


def run(data, size, seed, epochs):
    """Train once; return the validation images, the epochs with the best accuracy, and what each rule keeps."""
    source = find_source(data)
    parts = drawn(source, size, seed)
    best, accuracies = dict[str, dict[str, Any]](), list[float]()
    with training(source, parts, {"seed": seed, "epochs": epochs, "lr": None, **OPTIONS}) as (
        trainer,
        batches,
        figures,
    ):
        for ends in trainer.run(batches):
            if not ends:
                continue
            val = figures("val")
            accuracies.append(val.accuracy)
            epoch = {"epoch": trainer.epoch, "val": val}
            better = [name for name, rule in RULES.items() if name not in best or rule(epoch) > rule(best[name])]
            if better != ["last"] or trainer.epoch == epochs:  # else no rule keeps this epoch
                epoch["test"] = figures("test").accuracy
            best |= dict.fromkeys(better, epoch)
    num_ties = accuracies.count(max(accuracies))
    return [val.num_images, num_ties, *(best[name][what] for name in RULES for what in ("epoch", "test"))]


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
            told = "" if rule == "accuracy" else f"{gain:+.2f}"
            if told and len(runs) > 1:
                half = stats.t.ppf(0.975, len(runs) - 1) * statistics.stdev(gains) / len(runs) ** 0.5
                told += f" ({gain - half:+.2f} to {gain + half:+.2f})"
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
    if arguments.data is None:
        parser.error("DATA is missing")
    add_missing(
        arguments.out,
        HEAD,
        (
            ((size, seed), partial(run, arguments.data, size, seed, arguments.epochs))
            for seed in range(arguments.seeds)
            for size in arguments.size
        ),
    )


if __name__ == "__main__":
    main()
