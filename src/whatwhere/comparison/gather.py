"""Gather the figures of a comparison's trainings for the verdict and the report."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..base.words import few, named
from ..collect.learned import unlearned
from ..collect.result import has_hardly_begun
from ..data.images import MAX_VALUE
from ..explain.health import advice_on
from ..statistics.decide import HURTS, holm
from ..statistics.looks import LEAST_PAIRS
from ..statistics.metric import METRICS, Metric
from ..statistics.results import Results, numbered
from ..statistics.verdict import ArmVerdict, Judgement, difference, judge
from ..training.config import OPTIONS
from .arms import describe, starting_as_identity
from .content import ClassRow, Content, Costs, Curve, Curves, GateRow, PerClass, RunRow, figures_content
from .design import Design
from .runs import Finished, Task

_RECALL = Metric("recall", "recall", 100, "points")


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
        known = {metric: value for metric, value in figures.items() if value is not None}
        self.results.add(task.arm, seed, known, has_hardly_begun=has_hardly_begun(run.result.largest_mix))
        self.finished[task.arm, seed] = run
        num_images = sum(row.num_images for row in run.result.per_class)
        self.same_num_images &= num_images == self.num_images or len(self.finished) == 1
        self.num_images = max(self.num_images, num_images)

    def spread(self) -> float | None:
        """Return the standard deviation of the differences to the baseline within an arm, in the unit shown.

        None with fewer than 5 degrees of freedom over all arms, as 6 pairs of one arm have.
        """
        metric, design = METRICS[self.design.metric], self.design
        paired = [self.results.paired(design.baseline, arm, metric.name, metric.scale) for arm in design.others]
        known = [(len(pairs) - 1, pairs.standard_deviation) for pairs in paired if pairs is not None]
        freedom = sum(number for number, _ in known)
        if freedom < LEAST_PAIRS - 1:
            return None
        return math.sqrt(sum(number * deviation**2 for number, deviation in known) / freedom)

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

    def judge(self) -> tuple[Judgement, dict[str, Any]]:
        """Return the verdicts at the looks of the design, and the terms that a table of the results is judged by.

        The results get notes on what a reader must know about the runs, and on arms that need more epochs.
        """
        design = self.design
        self.results.notes, self.results.more_epochs = self._cautions(), self._unlearned()
        terms: dict[str, Any] = {
            "metric": design.metric,
            "baseline": design.baseline,
            "margin": design.margin,
            "first_look": design.schedule.first,
            "max_pairs": design.max_seeds,
            "test_images": self.num_images,
        }
        controls = [arm.name for arm in design.arms if arm.is_short]
        judgement = judge(self.results, awaited=design.seeds(), controls=controls, **terms)
        judgement = dataclasses.replace(judgement, arms=tuple(map(self._with_start, judgement.arms)))
        if not self.same_num_images:  # a table has one number for all runs
            del terms["test_images"]
        return judgement, terms

    def _with_start(self, verdict: ArmVerdict) -> ArmVerdict:
        """Return the verdict on an arm; where it hurts, with the advice to try another start of its attention."""
        if verdict.verdict != HURTS or verdict.hardly_used or self.design.options["pretrained"]:
            return verdict
        arm = next(arm for arm in self.design.arms if arm.name == verdict.arm)
        if (other := starting_as_identity(arm)) is None:
            return verdict
        wanted = (other.attention, other.attention_kwargs)
        there = [one.name for one in self.design.arms if (one.attention, one.attention_kwargs) == wanted]
        typed = f"{other.name}={other.spec}"
        what = f"look at {named(there[0])}" if there else f"add the arm that starts as the identity, {typed}"
        return dataclasses.replace(
            verdict,
            advice=f"{named(arm.name)} starts as in its paper, which has cost several points in short trainings; "
            f"before you give it up, {what}",
        )

    def _cautions(self) -> list[str]:
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

    def _unlearned(self) -> dict[str, str]:
        """Return, by arm, the finding that its networks need more epochs before they can be compared.

        Short arms have fewer on purpose.
        """
        found = {}
        for arm in self.design.arms:
            if arm.is_short:
                continue
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

    def gates(self) -> tuple[GateRow, ...]:
        """Return what gate health found in the networks of each arm, and in how many of its runs."""
        rows: list[GateRow] = []
        for arm in self.design.arms:
            looked = [run.result.gates for (owner, _), run in self.finished.items() if owner == arm.name]
            known = [gates for gates in looked if isinstance(gates, list)]
            found = Counter(fault for gates in known for fault in dict.fromkeys(gates))
            rows += [
                GateRow(
                    arm=arm.name,
                    layer=fault.layer,
                    gate=fault.gate,
                    fault=fault.fault,
                    advice=advice_on(fault.fault, arm.spec.partition("{")[0]),
                    num_found=number,
                    num_runs=len(known),
                )
                for fault, number in found.most_common()
            ]
        return tuple(rows)

    def content(
        self, judgement: Judgement, title: str, cost: Costs | None, failures: Mapping[str, str], changes: Sequence[str]
    ) -> Content:
        """Return everything that the report shows."""
        design = self.design
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
            arms={arm.name: describe(design.arm_options[arm.name]) for arm in design.arms},
            images=_images(design.options),
            curves=self.curves(),
            per_class=self.per_class(judgement),
            gates=self.gates(),
            cost=cost,
            settings=_settings(design),
            environment=next((run.environment for run in self.finished.values()), ()),
            cautions=(*content.cautions, *(f"{label} failed: {why}" for label, why in failures.items())),
            runs=runs,
            failures=dict(failures),
        )


def _images(options: Mapping[str, Any]) -> str:
    """Return what the networks of a comparison take."""
    white = options["max_value"]
    grey = "" if white == MAX_VALUE else f", 16-bit grey with {white:,} as white"
    return f"{options['image_size']} px, {options['resize']}{grey}"


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
