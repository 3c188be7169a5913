"""Comparisons of small networks, with real or pretended training."""

import itertools
import json
from collections import Counter

import msgspec

from whatwhere.collect.result import RESULT
from whatwhere.comparison.arms import parse_arms
from whatwhere.comparison.content import CostRow, Costs
from whatwhere.comparison.design import Design
from whatwhere.comparison.planning import Request
from whatwhere.comparison.run import collect, run_comparison
from whatwhere.comparison.runs import Share
from whatwhere.training import config
from whatwhere.training.distributed import team
from whatwhere.training.run_folder import EpochLine, RunFolder
from whatwhere.training.setup import prepare_images, preprocessing_of, resolve
from whatwhere.training.train import run_training

BACKBONE = "resnext11_8x8d"
OPTIONS = {"image_size": 16, "epochs": 1, "batch_size": 16, "device": "cpu", "workers": 0}


def design_of(**changes):
    """A design that was never begun: ResNet-18 plain, with SE and with CBAM, 8 seeds."""
    shared = config.FREE | config.TELLS_APART
    options = {name: field.default for name, field in config.OPTIONS.items() if name not in shared}
    design = Design(
        data="photos",
        data_fingerprint="0" * 64,
        began="2026-11-25T10:00+00:00",
        backbone="resnet18",
        arms=parse_arms("none,se,cbam"),
        baseline="none",
        num_seeds=8,
        max_seeds=None,
        metric="accuracy",
        margin=0.5,
        lr_search=(),
        options={**options, "epochs": 30, "lr": 0.1},
        arm_options={"none": {"model": "resnet18"}, "se": {"model": "se_resnet18"}, "cbam": {"model": "cbam_resnet18"}},
    )
    return msgspec.structs.replace(design, **changes)


class WithoutPictures(RunFolder):
    """The folder of a run, without curves and confusion matrix, which take long to draw."""

    def draw(self, *arguments): ...


class Comparisons:
    """Comparisons in the folder `out`; runs draw no pictures.

    Attributes:
        trained: Folders of the runs that the latest one began, under `out`.
        figures: Stands in for training where it is set: called with arm and seed (or learning rate), returns
            accuracy, or accuracy and loss.
        num_images: Test images of each class that a pretended run says it has.
        before: Called with arm and seed before each run.
        measure: Measures the costs; pretended unless it is set.
        clock: Returns the time in seconds; a minute passes between two calls.
        lines, warnings, done: What the screen heard; done counts by text what came to its end.
    """

    def __init__(self, data, out):
        self.data, self.out = data, out
        self.trained, self.lines, self.warnings, self.done = [], [], [], Counter()
        self.figures, self.before, self.measure = None, lambda arm, seed: None, pretended_costs
        self.num_images = 4
        self.clock = itertools.count(0, 60).__next__

    def run_comparison(self, *arguments, **named):
        """Compare, with the training, costs and clock of this object."""
        return run_comparison(
            *arguments, **named, train=self._train, measure=self.measure, clock=lambda: float(self.clock())
        )

    def __call__(self, arms="none,again=none", seeds=2, shard=None, data=None, given=(), dry_run=False, **request):
        """Return the result of a comparison."""
        self.trained.clear()
        arms = None if arms is None else parse_arms(arms)
        asked = Request(**{"backbone": BACKBONE, "arms": arms, "num_seeds": seeds, **request})
        given, own = {**OPTIONS, **dict(given)}, Share(self.out, shard)
        content = self.run_comparison(
            str(data or self.data), given, asked, own, command="whatwhere compare", screen=self, dry_run=dry_run
        )
        return None if content is None else content.to_dict()

    def collect(self, data=None, **request):
        return collect(str(data or self.data), self.out, Request(**request), self).to_dict()

    def read(self, name):
        return json.loads((self.out / name).read_text())

    def run(self, arm, seed, name="run.json"):
        return self.read(f"runs/{arm}/seed-{seed}/{name}")

    def line(self, text):
        self.lines.append(text)

    def warn(self, text):
        self.warnings.append(text)

    def progress(self, what, done, total):
        self.done[what] += done == total

    def _train(self, data, given, *, out, screen, **others):
        self.trained.append(out.relative_to(self.out).as_posix())
        arm, seed = out.parent.name, out.name.partition("-")[2]
        self.before(arm, seed)
        if self.figures is None:
            return run_training(data, given, out=out, screen=screen, folder_class=WithoutPictures, **others)
        return pretend(data, given, out, self.figures(arm, seed), self.num_images, screen)


def pretend(data, given, out, figures, num_images, screen):
    """Leave the folder of a finished run with these figures, as far as a comparison reads it."""
    accuracy, loss = figures if isinstance(figures, tuple) else (figures, 1 - figures)
    prepared = prepare_images(data, given, screen)
    with team("cpu") as processes:
        config = resolve(data, given, prepared, processes)
    out.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(out)
    session = dict.fromkeys(("device", "processor", "torch", "torchvision", "pillow", "python"), "pretended")
    folder.begin(config, prepared, preprocessing_of(config), session, given=given, resume=True)
    line = EpochLine(
        epoch=1, step=1, lr=0.0, train_loss=0.0, val_accuracy=accuracy, val_balanced_accuracy=accuracy, val_loss=loss,
        is_best=True, seconds=0.0,
    )  # fmt: skip
    folder.append_metrics(line)
    figures = {"num_images": num_images * len(prepared.classes), "accuracy": accuracy, "loss": loss}
    rows = [{"class": name, "num_images": num_images, "recall": accuracy} for name in prepared.classes]
    result = {"status": "finished", "best_epoch": 1, "num_epochs": 1, "seconds": 0.0, "val": figures, "test": figures}
    result |= {"judged_on": "test", "classes": list(prepared.classes), "per_class": rows}
    (out / RESULT).write_text(json.dumps(result))
    return result


def verdict(out):
    """Return the verdict without what a clock decides."""
    content = json.loads((out / "verdict.json").read_text())
    runs = [{**run, "seconds": 0} for run in content["runs"]]
    settings = [
        [panel, [[name, value] for name, value in values if name != "began"]] for panel, values in content["settings"]
    ]
    return {**content, "cost": None, "runs": runs, "settings": settings}


def pretended_costs(design, num_classes, device, progress=None):
    figures = {"num_params": 1, "macs": 1, "saved_bytes": 1}
    figures |= {"forward_ms": 1.0, "training_step_ms": 3.0, "images_per_second": 1000.0}
    rows = tuple(CostRow(arm=arm.name, **figures) for arm in design.arms)
    return Costs(num_images=16, image_size=16, device="cpu", rows=rows)
