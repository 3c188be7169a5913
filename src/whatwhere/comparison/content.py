"""Everything that a report of a comparison shows: its page, its tables and `verdict.json` are written from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from ..base.errors import UserError
from ..base.words import brief, cause, counted, unsteady
from ..statistics.results import Results
from ..statistics.verdict import HELPS, HURTS, SAME, UNKNOWN, Judgement

Amount = Annotated[float, msgspec.Meta(ge=0, le=1e300)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Size = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Texts = tuple[str, ...]

# the files in the folder of a comparison
DESIGN, COST, RESULTS, VERDICT, REPORT = "compare.json", "cost.json", "results.csv", "verdict.json", "report.html"
SHORT = "short"  # the spec of a positive control begins so


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of one arm after each epoch: its mean, least and largest value over the seeds."""

    epochs: tuple[int, ...]
    mean: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


class Curves(msgspec.Struct, frozen=True, kw_only=True):
    """Learning curves by arm, with the names of the two axes."""

    x: str
    y: str
    arms: dict[str, Curve]


class ClassRow(msgspec.Struct, frozen=True, kw_only=True, rename={"name": "class"}):
    """The difference of one arm in the recall of one class, in points.

    Attributes:
        name: Name of the class.
        num_images: Images of the class in each run, their mean.
        num_pairs: Number of pairs; 0 in reports of old versions.
        interval_95, p_t_holm: None where the pairs may not be independent; p_t_holm also with fewer than 6 pairs.
    """

    arm: str
    name: str
    num_images: int
    num_pairs: int = 0
    baseline_mean: float
    arm_mean: float
    mean_difference: float
    interval_95: tuple[float, float] | None
    p_t_holm: float | None


class PerClass(msgspec.Struct, frozen=True, kw_only=True):
    """Differences by arm and class in a metric and its unit."""

    metric: str
    unit: str
    rows: tuple[ClassRow, ...]


class CostRow(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of one arm; None where it was not measured.

    Attributes:
        spread, steady: Whether the times mean something, as in `whatwhere.cost.Latency`.
    """

    arm: str
    num_params: Count | None
    macs: Count | None
    saved_bytes: Count | None
    forward_ms: Amount | None
    training_step_ms: Amount | None
    images_per_second: Amount | None
    spread: Amount | None = None
    steady: bool = True

    @property
    def is_doubtful(self) -> bool:
        """Whether the times mean little; files of earlier versions have them without `steady`."""
        forward, step = self.forward_ms, self.training_step_ms
        return not self.steady or (forward is not None and step is not None and step < forward)


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `cost.json`: the cost of each arm, and the conditions of the measurement.

    Attributes:
        num_images: Images in a batch.
        image_size: Height and width, px.
        precision: Mixed precision of the training step, as the option `amp`.
        device: Processor or GPU in words.
        rows: One for each arm.
    """

    num_images: Size
    image_size: Size
    precision: str = "none"
    device: str
    rows: tuple[CostRow, ...]

    @property
    def doubt(self) -> str:
        """The beginning of a sentence that doubts the times that are not steady; "" if all are."""
        rows = [row for row in self.rows if row.is_doubtful]
        spreads = [row.spread or (row.forward_ms or 0.0) / (row.training_step_ms or 1.0) for row in rows]
        return unsteady([row.arm for row in rows], max(spreads)) if rows else ""


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run: its figures by metric as shares, not points, its best epoch and its time in seconds."""

    arm: str
    seed: int | str
    figures: dict[str, float | None]
    best_epoch: int | None
    num_epochs: int | None = None
    seconds: float | None


class GateRow(msgspec.Struct, frozen=True, kw_only=True):
    """A gate of an arm that does not do what it is for, in `num_found` of the `num_runs` whose gates were looked at.

    `gate` is "" for the whole layer; `fault` and `advice` are those of gate health.
    """

    arm: str
    layer: str
    gate: str
    fault: str
    advice: str
    num_found: Count
    num_runs: Count


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a report of a comparison shows.

    Attributes:
        title, subtitle: Heads of the page.
        source: The paths of the table or the runs that `whatwhere verdict` judged, from the folder of the file.
        first: (arm, finding) of each arm that needs more epochs before it can be compared.
        judgement: The verdicts.
        terms: What they are judged by, as `judge` takes it; not of a table, and not in files of old versions.
        arms: Description of each arm.
        images: Size of the images that the networks take, and how they are made square.
        curves: Learning curves.
        per_class: Differences in each class.
        gates: What gate health found in the networks of each arm.
        cost: Cost of each arm.
        settings: (group, its (name, value) pairs) of each group of options.
        changes: Changes after the first verdict.
        environment: (name, value) of the machine and the versions.
        cautions: Sentences that a reader must know.
        runs: All finished runs.
        failures: Reason by run that failed.
    """

    title: str
    subtitle: str
    source: Texts = ()
    first: tuple[tuple[str, str], ...] = ()
    judgement: Judgement
    terms: dict[str, str | int | float | None] = {}
    arms: dict[str, str]
    images: str = ""
    curves: Curves | None = None
    per_class: PerClass | None = None
    gates: tuple[GateRow, ...] = ()
    cost: Costs | None = None
    settings: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    changes: Texts = ()
    environment: tuple[tuple[str, str], ...] = ()
    cautions: Texts = ()
    runs: tuple[RunRow, ...] = ()
    failures: dict[str, str] = {}

    def to_dict(self) -> dict[str, Any]:
        """Return the content as the JSON values of `verdict.json`."""
        found: dict[str, Any] = json.loads(
            json.dumps({**msgspec.to_builtins(self), "judgement": self.judgement.to_dict()})
        )
        return found

    @classmethod
    def of(cls, content: Content | Mapping[str, Any]) -> Content:
        """Return the content that JSON values, such as those of `verdict.json`, describe.

        Raises:
            UserError: They describe no content of a report.
        """
        if isinstance(content, Content):
            return content
        try:
            found = msgspec.convert(content, cls)
            strange = [arm.verdict for arm in found.judgement.arms if arm.verdict not in (HELPS, HURTS, SAME, UNKNOWN)]
            if strange:
                raise ValueError(f"there is no verdict {brief(strange[0])}")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"this is no content of a report ({cause(error)}); give that of a verdict.json") from error
        return found


def _with_epochs_first(judgement: Judgement, first: Mapping[str, str]) -> Judgement:
    """Return the judgement where arms that hardly learned are to be trained for more epochs before anything else."""
    arms = tuple(
        dataclasses.replace(
            arm,
            conclusion=f"Train for more epochs before you decide about {arm.arm}",
            advice=arm.advice and f"more epochs first, as said at the top; only then: {arm.advice}",
        )
        if first.keys() & {arm.arm, judgement.baseline} and not arm.is_control
        else arm
        for arm in judgement.arms
    )
    return dataclasses.replace(judgement, arms=arms)


def figures_content(
    judgement: Judgement, results: Results, title: str, changes: Sequence[str] = (), source: Texts = ()
) -> Content:
    """Return the content of a report on a table of figures alone."""
    judgement = _with_epochs_first(judgement, results.more_epochs)
    arms = counted(len(judgement.arms), "arm")
    return Content(
        title=title,
        subtitle=f"{arms} compared with {judgement.baseline} by {judgement.metric.label}",
        source=source,
        first=tuple(results.more_epochs.items()),
        judgement=judgement,
        arms=dict.fromkeys(results.arms, ""),
        changes=tuple(changes),
        cautions=judgement.cautions,
    )
