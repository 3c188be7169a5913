"""`whatwhere demo`: what CBAM costs, the article's table beside the truth, a small paired comparison, a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import nn

from ..base.errors import UserError
from ..base.files import check_writable, write_bytes, write_json
from ..base.screen import Remaining, about
from ..base.tables import Table, printable_lines, rich_tables, say, show
from ..cost import Cost, compare_costs
from ..data.batches import ImageSet
from ..data.digits import NUM_CLASSES, draw_balanced, load_digits
from ..experiment import compare
from ..explain import spatial_gates
from ..explain.picture import gate_figure, png
from ..networks import create_model
from ..report import tables, write_page
from ..training.config import Recipe
from ..training.evaluate import accuracy
from ..training.trainer import train
from .screen import TerminalScreen
from .summary import measure_costs

BACKBONE = "resnet8"
ARMS = {"plain": BACKBONE, "cbam": f"cbam_{BACKBONE}"}
NUM_SEEDS = 6
IMAGES_PER_CLASS = 20
RECIPE = Recipe()
NUM_PICTURED = 5
PICTURE, FIGURES, REPORT = "gates.png", "demo.json", "report.html"
MIB = 2**20


def run_demo(out: Path) -> None:
    """Run all parts, print them, and write `demo.json`, `gates.png` and `report.html` into `out`."""
    check_writable(out)
    for name in (PICTURE, FIGURES, REPORT):
        if (out / name).is_dir():
            raise UserError(f"cannot write to {str(out)!r}: {name} there is a folder; give another folder with --out")
    _heading("1. What does CBAM cost?", "Parameters, arithmetic, and memory for training.")
    costs = measure_costs(_pair("resnext50_32x4d", 1000), (3, 224, 224), 1)
    comparison = compare_costs(*costs)
    show(rich_tables(comparison.tables()))

    _heading("2. What did the article report?", "Its own network, its figures and the true ones.")
    article = measure_costs(_pair("article_resnext50", 10), (3, 224, 224), 1)
    show(rich_tables([_article_table(*article)]))

    pool, test = load_digits()
    _heading(
        "3. Does it help?",
        f"{BACKBONE} with and without CBAM on scikit-learn's handwritten digits:\n"
        f"{IMAGES_PER_CLASS * NUM_CLASSES} training images, {len(test)} test images, {NUM_SEEDS} seeds.",
    )
    content, attentive = _compare(pool, test)
    show(rich_tables(tables(content)))
    say("This is one small network on one small set of images, with one recipe tuned for neither arm.")

    write_bytes(out / PICTURE, png(_picture(attentive, test)))
    result = {
        "cost": comparison.to_dict(),
        "article": [item.to_dict() for item in article],
        "accuracy": {
            "backbone": BACKBONE,
            "num_train": IMAGES_PER_CLASS * NUM_CLASSES,
            "num_test": len(test),
            "recipe": asdict(RECIPE),
            "torch": torch.__version__,
            "num_threads": torch.get_num_threads(),
            "judgement": content["judgement"],
        },
    }
    write_json(out / FIGURES, result)
    write_page(out / REPORT, content)
    _heading("4. Where does it look?", f"{out / PICTURE} shows it; all figures are in {out / FIGURES}.")
    say(f"The report of the comparison, to read in a browser: {out / REPORT}")


def _pair(backbone: str, num_classes: int) -> list[tuple[str, nn.Module]]:
    """Return a network without and with CBAM, each with its name."""
    return [(name, create_model(name, num_classes=num_classes, seed=0)) for name in (backbone, f"cbam_{backbone}")]


def _heading(question: str, detail: str) -> None:
    show(Text.assemble("\n", (question, "bold"), f"  {printable_lines(detail)}\n"))


def _article_table(plain: Cost, cbam: Cost) -> Table:
    """Return the article's parameter sizes beside the true ones, torchsummary's way of counting worked out."""
    networks = (plain, cbam)
    sizes = {
        "counted once per call, as the article": [
            sum(layer.own.param_bytes * layer.num_calls for layer in network.layers) for network in networks
        ],
        "counted once": [network.total.param_bytes for network in networks],
    }
    rows = [
        (label, f"{a / MIB:.2f} MB", f"{b / MIB:.2f} MB", f"+{(b - a) / MIB:.2f} MB") for label, (a, b) in sizes.items()
    ]
    return Table(
        "Parameters of the article's ResNeXt-50, 10 classes (an MB there is 2^20 bytes)",
        ("", "without CBAM", "with CBAM", "difference"),
        rows,
        note="torchsummary adds a layer's parameters at every call, and CBAM calls its shared MLP twice:\n"
        "half of what the article reports is not there.",
    )


def _compare(pool: ImageSet, test: ImageSet) -> tuple[dict[str, Any], Any]:
    """Train both arms with every seed; return what the report shows and the last network with CBAM."""
    last: dict[str, Any] = {}
    done, total = 0, NUM_SEEDS * len(ARMS) * RECIPE.epochs
    remaining = Remaining()
    left: float | None = None

    def run(arm: str, seed: int) -> float:
        images = draw_balanced(pool, IMAGES_PER_CLASS, seed)
        last[arm] = create_model(ARMS[arm], num_classes=NUM_CLASSES, in_channels=1, seed=seed)
        train(last[arm], images, RECIPE, seed=seed, after_epoch=after_epoch)
        return accuracy(last[arm], test, NUM_CLASSES)

    def after_epoch(loss: float) -> None:
        nonlocal done, left
        done += 1
        left = remaining.seconds("training", done, total)
        screen.progress("training", done, total)

    def after_run(arm: str, seed: int, figures: Mapping[str, float]) -> None:
        message = f"seed {seed}, {arm}: {figures['accuracy']:.1%} of the test images"
        screen.line(f"{message}; {about(left)} left" if left else message)

    with TerminalScreen() as screen:
        comparison = compare(run, ARMS, NUM_SEEDS, title=f"Handwritten digits: {BACKBONE}", progress=after_run)
    caution = "the test images are the same for every seed: the interval does not hold the choice of test images"
    settings = [(name, str(value)) for name, value in asdict(RECIPE).items()]
    content = {
        **comparison.content,
        "arms": ARMS,
        "cautions": [*comparison.content["cautions"], caution],
        "settings": [("every run", settings)],
    }
    return content, last["cbam"]


def _picture(model: Any, test: ImageSet) -> Any:
    """Return the figure of the last spatial gate of each stage for the first test images of different digits."""
    chosen = [int((test.labels == label).nonzero()[0]) for label in range(NUM_PICTURED)]
    images = test.images[chosen]
    gates = {f"stage {name[5]}": gate for name, gate in spatial_gates(model, images).items()}
    predictions = model.eval()(images).argmax(1).tolist()
    captions = [f"{label}, taken for {prediction}" for label, prediction in enumerate(predictions)]
    return gate_figure(images, gates, captions, f"Where CBAM looks: the spatial gate of each stage of {BACKBONE}")
