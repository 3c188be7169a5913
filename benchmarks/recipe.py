"""Which options suit few images and few steps: test accuracy by recipe.

Each run trains on `size` images of DATA, 15 % of them held out to choose the epoch, and is tested on at most 2,000 of
the images that are left (of the folder `test`, where DATA has one). All recipes of a seed have the same images, order
and initial values.

    python benchmarks/recipe.py DATA --out recipe.csv [--name NAME] [--size 600] [--epochs 40] [--seeds 0 1]
        [--recipe before bare] [--model NAME] [--optimizer adamw] [--image-size 96] [--pretrained FILE]
    python benchmarks/recipe.py --out recipe.csv --table > recipe.md

`--epochs 0` leaves their number to the recipe. The name says what differs between sets: `--name "digits, AdamW"`. A
line for each run is added to the CSV; runs that are there are left out, so that it can be stopped and called again.
"""

import argparse
import copy
import csv
import re
import statistics
from functools import partial
from pathlib import Path

from trainings import add_missing, drawn, training
from whatwhere.data.sources.find import find_source
from whatwhere.training.evaluate import merit

MOST_TESTED = 2000
STRONG = {"mixup": 0.1, "rand_augment": 5, "random_erasing": 0.1, "hflip": 0.5}
LIGHT = {"mixup": 0.0, "rand_augment": 3, "random_erasing": 0.0, "hflip": 0.5}
KINDS = {"bare": {}, "before": STRONG, "strong": STRONG, "light": LIGHT}
HEAD = ("set", "size", "model", "epochs", "recipe", "seed", "num_train", "num_steps", "best_epoch", "test")


def options_of(recipe):
    """Return the options of a recipe: bare, before, or an augmentation with a rate, as in "light 0.1, no flips"."""
    kind, rate, no_flips = re.fullmatch(r"(\w+)(?: ([\d.]+))?(, no flips)?", recipe).groups()
    options = dict(KINDS[kind])
    if kind != "bare":
        options["lr"] = None if kind == "before" else float(rate)  # `training` says what a rate of None is
    return {**options, "hflip": 0.0} if no_flips else options


def _order(recipe):
    kind, _, rest = recipe.partition(" ")
    rate, _, flips = rest.partition(",")
    return list(KINDS).index(kind), float(rate or 0), flips


def run(data, size, seed, options):
    """Train once; return the number of training images and steps, the best epoch and its test accuracy."""
    source = find_source(data)
    parts = drawn(source, size, seed, MOST_TESTED)
    best = None
    with training(source, parts, {"seed": seed, **options}) as (trainer, batches, figures):
        for ends in trainer.run(batches):
            if ends:
                rank = merit(figures("val"), "accuracy")
                if best is None or rank > best[0]:
                    best = rank, trainer.epoch, copy.deepcopy(trainer.evaluated)
        return [trainer.order.num_samples, trainer.num_steps, best[1], figures("test", best[2]).accuracy]


def table(path):
    """Return the table of the finished runs as Markdown."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [
        "| set | images | network | epochs | steps | recipe | seeds | test accuracy | lowest |",
        "| --- | ---: | --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    kinds = list(
        dict.fromkeys(tuple(row[name] for name in ("set", "size", "model", "epochs", "recipe")) for row in rows)
    )
    for kind in sorted(kinds, key=lambda kind: (kind[0], int(kind[1]), kind[2], int(kind[3]), _order(kind[4]))):
        runs = [row for row in rows if all(row[name] == value for name, value in zip(HEAD, kind, strict=False))]
        tests = [100 * float(row["test"]) for row in runs]
        name, size, model, epochs, recipe = kind
        lines.append(
            f"| {name} | {int(size):,} | {model} | {epochs} | {int(runs[0]['num_steps']):,} | {recipe} | {len(runs)} "
            f"| {statistics.mean(tests):.1f} % | {min(tests):.1f} % |"
        )
    return "\n".join(lines)


def main():
    """Train what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--name")
    parser.add_argument("--size", type=int, nargs="+", default=[600])
    parser.add_argument("--epochs", type=int, nargs="+", default=[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--recipe", nargs="+", default=["bare", "before", "strong 0.1", "light 0.1", "light 0.1, no flips"]
    )
    parser.add_argument("--model", default="cbam_resnet20")
    parser.add_argument("--optimizer", choices=["sgd", "adamw"], default="sgd")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--pretrained", default="")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.out))
        return
    if arguments.data is None:
        parser.error("DATA is missing")
    name = arguments.name or Path(arguments.data).name
    same = {key: getattr(arguments, key) for key in ("model", "optimizer", "image_size", "pretrained")}
    add_missing(
        arguments.out,
        HEAD,
        (
            ((name, size, arguments.model, epochs, recipe, seed), partial(run, arguments.data, size, seed, options))
            for seed in arguments.seeds
            for size in arguments.size
            for epochs in arguments.epochs
            for recipe in arguments.recipe
            for options in [same | options_of(recipe) | ({"epochs": epochs} if epochs else {})]
        ),
    )


if __name__ == "__main__":
    main()
