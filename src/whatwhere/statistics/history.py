"""Read the previous verdict: the next one keeps its schedule and says what changed."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..base.documents import parse_json
from ..base.errors import UserError
from ..base.files import read_file
from ..base.limits import DOCUMENT_BYTES
from ..base.words import brief, cause, counted, few
from .independence import check_number_of_images
from .looks import ALPHA
from .results import Results, numbered
from .verdict import HELPS, HURTS, SAME, UNKNOWN, ArmVerdict, Judgement, judge
from .wording import percent

_ADVICE = "it would say when the first look was: move it away, and give that with --first-look"


class Record(msgspec.Struct, frozen=True):
    """An earlier verdict.

    Attributes:
        judgement: The verdicts.
        changes: All changes up to then, as sentences.
        title: The name of the results.
        source: The paths of the results, from the folder of the record; empty in records of old versions.
        terms: What a comparison is judged by, as `judge` takes it; empty for a table.
    """

    judgement: Judgement
    changes: tuple[str, ...]
    title: str = ""
    source: tuple[str, ...] = ()
    terms: dict[str, str | int | float | None] = {}

    def __post_init__(self) -> None:
        if not self.judgement.arms or not self.judgement.metric.name:
            raise ValueError(f"it has no {'name of a metric' if self.judgement.arms else 'arms'}")
        names = [self.judgement.baseline, *(arm.arm for arm in self.judgement.arms)]
        if len(set(names)) < len(names):
            raise ValueError("two of its arms have one name")
        for arm in self.judgement.arms:
            if not arm.num_pairs <= len(arm.seeds) == len(arm.baseline) == len(arm.treatment):
                raise ValueError(f"the seeds and figures of arm {arm.arm} do not match in number")
            if not all(type(seed) in (str, int) for seed in arm.seeds):
                raise ValueError(f"a seed of arm {arm.arm} is neither text nor an integer")
            if len(set(map(str, arm.seeds))) < len(arm.seeds):
                raise ValueError(f"a seed of arm {arm.arm} is there twice")
            if arm.verdict not in (HELPS, HURTS, SAME, UNKNOWN):
                raise ValueError(f"there is no verdict {brief(arm.verdict)}")
            # another schedule would spend the error a second time
            look = None if arm.plan is None else arm.plan.look_at(arm.num_pairs)
            if arm.level is not None and look != arm.num_pairs:
                raise ValueError(f"the {arm.num_pairs:,} pairs of arm {arm.arm} are no look of its plan")
            if arm.plan is not None and arm.plan.last != self.judgement.max_pairs:
                raise ValueError(f"the plan of arm {arm.arm} has other most pairs than the comparison")


def read_record(path: Path, advice: str = _ADVICE) -> Record | None:
    """Return the record in the JSON of a verdict; None where there is none.

    Raises:
        UserError: The file is something else, or damaged; `advice` says what to do.
    """
    if not os.path.exists(path):  # nor the end of a link
        return None
    content = read_file(path, DOCUMENT_BYTES)
    try:
        return parse_json(content, Record)
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not a verdict of whatwhere ({cause(error)}); {advice}") from error


def check_title(record: Record, path: Path, title: str) -> None:
    """Raise UserError if the record at `path` is of results of another name.

    Looks at those would count as looks at these, and their verdict would be lost.
    """
    if record.title not in ("", title):
        raise UserError(
            f"{str(path)!r} holds the verdict on {brief(record.title)}, not on {brief(title)}; give another "
            "file with --out, or, if these are the same results under a new name, the old name"
        )


def check_figures(record: Record, path: Path, results: Results, source: tuple[str, ...]) -> None:
    """Raise UserError if the record at `path` is of other results of the same name, by their paths and their figures.

    Results that were moved hold all figures that were judged before.
    """
    if record.source not in ((), source) and not _holds(results, record.judgement):
        before, now = (few([brief(name, 60) for name in names], 1) for names in (record.source, source))
        raise UserError(
            f"{str(path)!r} holds the verdict on {before}, whose figures are not in {now}; give another file with --out"
        )


def _holds(results: Results, judgement: Judgement) -> bool:
    """Return whether results hold all pairs that were judged."""
    metric, pairs = judgement.metric, [(arm.arm, _pairs(arm)) for arm in judgement.arms]
    for arm, before in pairs:
        values = [
            {str(seed): metric.scale * value for seed, value in results.values(name, metric.name).items()}
            for name in (judgement.baseline, arm)
        ]
        for seed, figures in before.items():
            if not all(seed in there for there in values) or not _equal(figures, (values[0][seed], values[1][seed])):
                return False
    return any(before for _, before in pairs)


def judge_again(
    results: Results,
    record: Record | None,
    *,
    first_look: int | None = None,
    max_pairs: int | None = None,
    controls: Collection[str] = (),
    terms: Mapping[str, Any],
) -> tuple[Judgement, list[str]]:
    """Return the verdict at the looks that were recorded, or are given, and all changes since the first one.

    Earlier arms stay in the comparison: an arm without figures now still takes its share of the error. `first_look` and
    `max_pairs` are those of `judge`, for the first verdict only; `terms` are its other arguments. Earlier
    positive controls stay so.

    Raises:
        UserError: Other looks than before, or as `judge`.
    """
    arms = () if record is None else record.judgement.arms
    if record is not None:
        # pairs count in the order in which they were judged
        results.put_first(dict.fromkeys(str(seed) for arm in arms for seed in arm.seeds))
        for name in (record.judgement.baseline, *(arm.arm for arm in arms)):
            results.add_arm(name)
    firsts: int | dict[str, int] | None = first_look
    fixed = {arm.arm: arm.plan.first for arm in arms if arm.plan is not None}
    if record is not None and fixed:
        before = record.judgement.max_pairs
        if first_look not in (None, *fixed.values()) or max_pairs not in (None, before):
            looks = few([f"{arm} at {look} pairs" for arm, look in fixed.items()], 6)
            raise UserError(
                f"the looks were fixed with the first verdict ({looks}; most pairs: {before or 'open'}) and stay, "
                "because another would spend the error twice; leave out --first-look and --max-pairs"
            )
        firsts, max_pairs = fixed, before
    controls = {*controls, *(arm.arm for arm in arms if arm.is_control)}.intersection(results.arms)
    if record is not None and terms.get("baseline") not in (None, record.judgement.baseline):
        controls = set()  # they are known to do worse than that baseline
    judgement = judge(results, first_look=firsts, max_pairs=max_pairs, controls=controls, **terms)
    check_number_of_images(results, judgement.metric.name, terms.get("test_images"))
    if record is None:
        return judgement, []
    return judgement, [*record.changes, *_changed_terms(record, judgement), *changed_figures(record, judgement)]


def _terms(judgement: Judgement) -> dict[str, str | float]:
    return {
        "metric": judgement.metric.name,
        "better": "higher" if judgement.metric.higher_is_better else "lower",
        "baseline": judgement.baseline,
        "margin": judgement.margin,
    }


def _changed_terms(record: Record, judgement: Judgement) -> list[str]:
    before, now = _terms(record.judgement), _terms(judgement)
    num_pairs = max(len(arm.seeds) for arm in record.judgement.arms)
    when = f"after a verdict on {counted(num_pairs, 'pair')}"
    changes = [f"{when}: {name} was {before[name]}, is {now[name]}" for name in now if now[name] != before[name]]
    known = {record.judgement.baseline, *(arm.arm for arm in record.judgement.arms)}
    changes += [
        f"{when}: arm {arm.arm} added; the {percent(ALPHA)} error does not cover early and later arms together"
        for arm in judgement.arms
        if arm.arm not in known
    ]
    return changes


def changed_figures(record: Record, judgement: Judgement) -> list[str]:
    """Return a sentence for each arm with figures that are gone or changed, and for each changed verdict."""
    before, now = _terms(record.judgement), _terms(judgement)
    if any(before[name] != now[name] for name in ("metric", "better", "baseline")):
        return []
    arms_before = {arm.arm: arm for arm in record.judgement.arms}
    changes = []
    for arm in judgement.arms:
        earlier = arms_before.get(arm.arm)
        if earlier is None:
            continue
        old, new = _pairs(earlier), _pairs(arm)
        gone = [seed for seed in old if seed not in new]
        other = [seed for seed in old if seed in new and not _equal(old[seed], new[seed])]
        for what, seeds in (("gone", gone), ("changed", other)):
            if seeds:
                changes.append(
                    f"after a verdict on them, figures of {arm.arm} or its baseline are {what}: {numbered(seeds)}"
                )
        if earlier.level is not None and earlier.verdict != arm.verdict and earlier.num_pairs < arm.num_pairs:
            changes.append(
                f"{arm.arm}: {earlier.verdict} at {earlier.num_pairs} pairs, {arm.verdict} at {arm.num_pairs}"
            )
    return changes


def _pairs(arm: ArmVerdict) -> dict[str, tuple[float, float]]:
    """Return (baseline's figure, arm's) by seed."""
    pairs = zip(arm.baseline, arm.treatment, strict=True)
    return dict(zip(map(str, arm.seeds), pairs, strict=True))


def _equal(before: tuple[float, float], now: tuple[float, float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(before, now, strict=True))
