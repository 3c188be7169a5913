"""Gather the figures of a comparison's trainings for the verdict and the report; tell which arms hardly learned."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..base.words import few
from ..collect.result import Result
from ..data.images import MAX_VALUE
from ..statistics.decide import holm
from ..statistics.metric import METRICS, Metric
from ..statistics.results import Results, numbered
from ..statistics.verdict import Judgement, difference
from ..training.config import OPTIONS
from .arms import describe
from .content import ClassRow, Content, Costs, Curve, Curves, PerClass, RunRow, figures_content
from .design import Design
from .runs import Finished, Task

_RECALL = Metric("recall", "recall", 100, "points")
_DEVIATIONS = 2.0  # standard deviations of guessing; a network above them has learned something
_NEAR = 0.1  # or this share of the way from guessing to everything right: with few images the deviations reach further
_SHARE_OF_RUNS = 0.25  # an arm is reported if so many of its runs guess
_FIFTH = 0.2
_FAST = 0.5  # of the average speed of learning


class Gathered:
    """The finished runs among `tasks`.

    Attributes:
        results: Their figures by arm and seed, as the statistics take them.
        finished: The runs by arm and seed.
        num_images: Images that each run was judged on; the largest number where they differ.
        same_num_images: Whether they do not differ.
    """

    def __init__(self, design: Design, tasks: Sequence[Task]) -> None:
        self.design = design
        self.results = Results()
        self.finished: dict[tuple[str, int], Finished] = {}
        self.num_images, self.same_num_images = 1, True
        for arm in design.arms:
            self.results.add_arm(arm.name)
        for task in tasks:
            self.add(task)

    def add(self, task: Task) -> None:
        """Add a run if it is finished and not there yet."""
        run, seed = task.finished(), int(task.options["seed"])
        if run is None or (task.arm, seed) in self.finished:
            return
        figures = {metric: getattr(run.result.judged, metric) for metric in METRICS}
        self.results.add(task.arm, seed, {metric: value for metric, value in figures.items() if value is not None})
        self.finished[task.arm, seed] = run
        num_images = sum(row.num_images for row in run.result.per_class)
        self.same_num_images &= num_images == self.num_images or len(self.finished) == 1
        self.num_images = max(self.num_images, num_images)

    def differing_images(self) -> list[str]:
        """Return the runs with other images, or another split, than the baseline's run with the same seed."""
        prints = {key: run.description.data_fingerprint for key, run in self.finished.items()}
        baseline = self.design.baseline
        return [
            f"{arm}, seed {seed}"
            for (arm, seed), value in prints.items()
            if prints.get((baseline, seed), value) != value
        ]

    @property
    def _has_test(self) -> bool:
        return all(run.result.judged_on == "test" for run in self.finished.values())

    def cautions(self) -> list[str]:
        """Return what a reader must know about the runs, in sentences."""
        notes = []
        runs = list(self.finished.values())
        if not self._has_test:
            notes.append(
                "DATA has no test images: the figures are those of the validation images, which also chose the epoch"
            )
        elif any("test" not in run.drawn for run in runs):
            notes.append(
                "the test images are the same for every seed, because DATA came with them: the intervals cover the "
                "variation between trainings, not between test sets"
            )
        else:
            notes.append(
                "every seed draws its own split of the same images: the intervals cover trainings and splits of these "
                "images, and are too narrow for images from elsewhere"
            )
        if self.design.left_out:
            notes.append(
                f"left out by request: {numbered(self.design.left_out)}; an arm with a failed run among them looks "
                "better than it is"
            )
        if self.design.lr_search:
            notes.append(
                "a single run at each learning rate chose the rate of each arm: the verdict is on arm and rate "
                "together, and the intervals do not cover the luck of that one run"
            )
        for arm, options in self.design.arm_options.items():
            rates = self.design.lr_search
            if len(rates) > 1 and options.get("lr") in (min(rates), max(rates)):
                end = "lowest" if options["lr"] == min(rates) else "highest"
                notes.append(f"{arm} chose the {end} learning rate of the search, {options['lr']:g}; search beyond it")
        kinds = list(dict.fromkeys(" ".join(value for _, value in run.environment) for run in runs))
        if len(kinds) > 1:
            notes.append(f"the runs had {len(kinds)} different environments: {few(kinds, between='; ')}")
        return notes

    def curves(self) -> Curves | None:
        """Return the validation accuracy after each epoch: mean, least and largest over the seeds; None without any."""
        arms = {}
        for arm in self.design.arms:
            by_epoch: dict[int, list[float]] = {}
            for (owner, _), run in self.finished.items():
                for epoch, share in run.curve if owner == arm.name else ():
                    by_epoch.setdefault(epoch, []).append(100 * share)
            if by_epoch:
                epochs = sorted(by_epoch)
                values = [by_epoch[epoch] for epoch in epochs]
                arms[arm.name] = Curve(
                    epochs=tuple(epochs),
                    mean=tuple(sum(found) / len(found) for found in values),
                    low=tuple(map(min, values)),
                    high=tuple(map(max, values)),
                )
        return Curves(x="epoch", y="validation accuracy, %", arms=arms) if arms else None

    def unlearned(self) -> dict[str, str]:
        """Return, by arm, the finding that its networks need more epochs before they can be compared."""
        found = {}
        for arm in self.design.arms:
            runs = [run for (owner, _), run in self.finished.items() if owner == arm.name]
            curves = [[share for _, share in run.curve] for run in runs]
            if why := unlearned([run.result for run in runs], curves):
                found[arm.name] = why
        return found

    def per_class(self, judgement: Judgement) -> PerClass | None:
        """Return the difference in the recall of each class over the judged pairs; None where there is none.

        p is corrected over the classes of an arm after Holm. Interval and p are None where the pairs may not be
        independent.
        """
        classes: dict[str, Results] = {}
        for (arm, seed), run in self.finished.items():
            for row in run.result.per_class:
                recalls = classes.setdefault(row.name, Results())
                if row.recall is not None:
                    recalls.add(arm, seed, {_RECALL.name: row.recall, "images": row.num_images})
        rows: list[ClassRow] = []
        for judged in judgement.arms:
            found = []
            for name, recalls in classes.items():
                pairs = recalls.only([judgement.baseline, judged.arm], judged.seeds[: judged.num_pairs])
                counts = [count for arm in pairs.arms for count in pairs.values(arm, "images").values()]
                num_images = round(statistics.fmean(counts)) if counts else 0
                differing = difference(pairs, judgement.baseline, judged.arm, _RECALL, num_images or None)
                if differing is not None:
                    found.append((name, num_images, differing))
            corrected = holm([1.0 if differing.p_t is None else differing.p_t for _, _, differing in found])
            rows += [
                ClassRow(
                    arm=judged.arm,
                    name=name,
                    num_images=num_images,
                    num_pairs=differing.num_pairs,
                    baseline_mean=differing.baseline_mean,
                    arm_mean=differing.arm_mean,
                    mean_difference=differing.mean_difference,
                    interval_95=differing.interval_95,
                    p_t_holm=None if differing.p_t is None else p,
                )
                for (name, num_images, differing), p in zip(found, corrected, strict=True)
            ]
        return PerClass(metric=_RECALL.name, unit=_RECALL.unit, rows=tuple(rows)) if rows else None

    def content(
        self, judgement: Judgement, title: str, cost: Costs | None, failures: Mapping[str, str], changes: Sequence[str]
    ) -> Content:
        """Return everything that the report shows."""
        design, first = self.design, self.unlearned()
        judgement = _with_epochs_first(judgement, first)
        runs = tuple(
            RunRow(
                arm=arm,
                seed=seed,
                figures={name: getattr(run.result.judged, name) for name in METRICS},
                best_epoch=run.result.best_epoch,
                num_epochs=run.result.num_epochs,
                seconds=run.result.seconds,
            )
            for (arm, seed), run in self.finished.items()
        )
        content = figures_content(judgement, self.results, title, changes)
        return msgspec.structs.replace(
            content,
            subtitle=f"{content.subtitle} on the {'test' if self._has_test else 'validation'} images",
            first=tuple(first.items()),
            arms={arm.name: describe(design.arm_options[arm.name]) for arm in design.arms},
            images=_images(design.options),
            curves=self.curves(),
            per_class=self.per_class(judgement),
            cost=cost,
            settings=_settings(design),
            environment=next((run.environment for run in self.finished.values()), ()),
            cautions=(
                *content.cautions,
                *self.cautions(),
                *(f"{label} failed: {why}" for label, why in failures.items()),
            ),
            runs=runs,
            failures=dict(failures),
        )


def _images(options: Mapping[str, Any]) -> str:
    """Return what the networks of a comparison take."""
    white = options["max_value"]
    grey = "" if white == MAX_VALUE else f", 16-bit grey with {white:,} as white"
    return f"{options['image_size']} px, {options['resize']}{grey}"


def _with_epochs_first(judgement: Judgement, first: Mapping[str, str]) -> Judgement:
    """Return the judgement where arms that hardly learned are to be trained for more epochs before anything else."""
    arms = tuple(
        dataclasses.replace(
            arm,
            conclusion=f"Train for more epochs before you decide about {arm.arm}",
            advice=arm.advice and f"more epochs first, as said at the top; only then: {arm.advice}",
        )
        if first.keys() & {arm.arm, judgement.baseline}
        else arm
        for arm in judgement.arms
    )
    return dataclasses.replace(judgement, arms=arms)


def _settings(design: Design) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    comparison = (
        ("data", design.data),
        ("began", design.began),
        ("backbone", design.backbone),
        ("seeds", str(design.num_seeds)),
        ("most seeds", str(design.max_seeds or "open")),
        ("margin", f"{design.margin:g}"),
        ("judged by", design.metric),
        ("learning rates searched", ", ".join(f"{rate:g}" for rate in design.lr_search) or "none"),
    )
    panels: dict[str, tuple[tuple[str, str], ...]] = {}
    for name, field in OPTIONS.items():
        if name in design.options:
            panel = field.metadata["panel"].lower()
            panels[panel] = (*panels.get(panel, ()), (name, str(design.options[name])))
    own = tuple(
        (f"{arm}: {name}", str(value)) for arm, options in design.arm_options.items() for name, value in options.items()
    )
    return ("comparison", comparison), ("arms", own), *panels.items()


def unlearned(results: Sequence[Result], curves: Sequence[Sequence[float]]) -> str:
    """Return what shows that an arm's networks have hardly learned, or still learn; "" where nothing does.

    Args:
        results: The content of `result.json` of each run.
        curves: The validation accuracy of each epoch, run by run.
    """
    guessing = sum(map(_guesses, results))
    if guessing and guessing >= _SHARE_OF_RUNS * len(results):
        num_classes = sum(row.num_images > 0 for row in results[0].per_class)
        be = "is" if guessing == 1 else "are"
        return f"{guessing} of {len(results)} runs {be} no better than guessing one of {num_classes} classes"
    # the accuracy of a network that always says the most frequent class
    counts = [[row.num_images for row in result.per_class] for result in results]
    gain = _gain(curves, [max(count, default=0) / max(1, sum(count)) for count in counts])
    if gain:
        return f"still improving: {100 * gain:+.1f} points of validation accuracy over the last epochs"
    return ""


def _guesses(result: Result) -> bool:
    """Return whether a run's network is no better than one that does not look at the images.

    Of C classes with n_i images, such a network has a mean recall of 1 / C, whatever class it prefers and however
    unequal the classes are. The margin is 2 binomial standard deviations, sqrt(p (1 - p) sum(1 / n_i)) / C with
    p = 1 / C, at most a tenth of what is left to learn.
    """
    recalls = [(row.num_images, row.recall) for row in result.per_class if row.num_images and row.recall is not None]
    if len(recalls) < 2:
        return False
    chance = 1 / len(recalls)
    deviation = math.sqrt(chance * (1 - chance) * sum(1 / num_images for num_images, _ in recalls)) / len(recalls)
    margin = min(_DEVIATIONS * deviation, _NEAR * (1 - chance))
    return bool(statistics.fmean(recall for _, recall in recalls) <= chance + margin)


def _gain(curves: Sequence[Sequence[float]], starts: Sequence[float]) -> float:
    """Return what the last fifth of the epochs brought to the accuracy on average; 0 where learning has slowed down.

    It has not where the gain is at least half of what a fifth of the epochs brought on average, counted from the
    accuracy of the most frequent class, and more than 2 standard errors over the runs. A curve that approaches its end
    like 1 - exp(-t / T) is told where training ended before 1.5 T (10 epochs) or 1.65 T (50 and more), with a fifth of
    the way still to go; at the end of a cosine schedule, curves of networks that have learned rise by less.
    """
    gains, needed = [], []
    for curve, start in zip(curves, starts, strict=True):
        num_epochs = len(curve)
        if num_epochs < 2:
            continue
        # a tenth of the epochs each, so that one epoch's noise decides nothing
        width = max(1, num_epochs // 10)
        shift = max(1, round(_FIFTH * num_epochs))
        last = statistics.fmean(curve[-width:])
        gains.append(last - statistics.fmean(curve[-width - shift : -shift]))
        needed.append(_FAST * shift / num_epochs * (last - start))
    if len(gains) < 2:
        return 0.0
    gain, error = statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(len(gains))
    return gain if gain > 2 * error and gain >= max(0.0, statistics.fmean(needed)) else 0.0
