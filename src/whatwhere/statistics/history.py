"""What was judged before: kept beside the figures, so that the next verdict knows of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..base.errors import UserError
from ..base.words import cause, counted, few
from .independence import check_number_of_images
from .looks import ALPHA, MOST_SEEDS, Plan
from .results import Results, numbered
from .shape import integer, number, record, text, texts
from .verdict import Judgement, judge
from .wording import percent

_ADVICE = "it would say when the first look was: move it away, and give that with --first-look"


@dataclass(frozen=True)
class Record:
    """An earlier verdict.

    Attributes:
        first_looks: Pairs at the first look, by arm; without those that had too few for one.
        max_pairs: Pairs at the last; None: open.
        terms: Metric, direction, baseline and margin.
        seeds: In the order in which they were judged.
        figures: (baseline's, arm's) of each seed as a text, by arm, in the unit shown.
        verdicts: The verdict and its number of pairs, by arm, where there was a look.
        changes: What had been changed by then.
    """

    first_looks: dict[str, int]
    max_pairs: int | None
    terms: dict[str, Any]
    seeds: list[str]
    figures: dict[str, dict[str, tuple[float, float]]]
    verdicts: dict[str, tuple[str, int]]
    changes: list[str]

    @property
    def num_pairs(self) -> int:
        """How many pairs of an arm had been seen, at most."""
        return max(map(len, self.figures.values()), default=0)


def read_record(path: Path, advice: str = _ADVICE) -> Record | None:
    """Return the record in the JSON of a verdict; None where there is none.

    Args:
        path: The file.
        advice: What to do where it is something else.

    Raises:
        UserError: The file is something else, or damaged.
    """
    try:
        content = json.loads(path.read_bytes())
        return _record(_checked(content["judgement"]), list(texts(content["changes"], "changes")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{str(path)!r} is no verdict of ours ({type(error).__name__}: {cause(error)}); {advice}"
        ) from error


def _checked(judgement: Any) -> dict[str, Any]:
    """Return the judgement if `_record` can take it.

    Raises:
        ValueError, TypeError, KeyError: It is damaged.
    """
    content = record(judgement, "judgement")
    text(content["baseline"], "baseline")
    number(content["margin"], "margin", least=0)
    text(record(content["metric"], "metric")["name"], "metric")
    if not isinstance(content["metric"]["higher_is_better"], bool):
        raise ValueError("higher_is_better is neither true nor false")
    if content["max_pairs"] is not None:
        integer(content["max_pairs"], "max_pairs", least=1, most=MOST_SEEDS)
    if not isinstance(content["arms"], list) or not content["arms"]:
        raise ValueError("it has no arms")
    for arm in content["arms"]:
        text(record(arm, "arm")["arm"], "arm")
        text(arm["verdict"], "verdict")
        integer(arm["num_pairs"], "num_pairs", least=0, most=len(arm["seeds"]))
        for figure in (*arm["baseline"], *arm["treatment"]):
            number(figure, "figure")
        for seed in arm["seeds"]:
            if not isinstance(seed, (str, int)):
                raise ValueError("a seed is neither text nor a number")
    return content


def record_of(judgement: Judgement, changes: list[str]) -> Record:
    """Return what the next verdict must know of this one."""
    return _record(judgement.to_dict(), changes)


def _record(judgement: dict[str, Any], changes: list[str]) -> Record:
    arms = {str(arm["arm"]): arm for arm in judgement["arms"]}
    plans = {name: Plan(**arm["plan"]) for name, arm in arms.items() if arm["plan"] is not None}
    figures = {
        name: {
            str(seed): (float(baseline), float(treatment))
            for seed, baseline, treatment in zip(arm["seeds"], arm["baseline"], arm["treatment"], strict=True)
        }
        for name, arm in arms.items()
    }
    return Record(
        first_looks={name: plan.first for name, plan in plans.items()},
        max_pairs=judgement["max_pairs"],
        terms=_terms(judgement["metric"], judgement["baseline"], judgement["margin"]),
        seeds=list(dict.fromkeys(seed for pairs in figures.values() for seed in pairs)),
        figures=figures,
        verdicts={
            name: (str(arm["verdict"]), int(arm["num_pairs"])) for name, arm in arms.items() if arm["level"] is not None
        },
        changes=changes,
    )


def _terms(metric: dict[str, Any], baseline: str, margin: float) -> dict[str, Any]:
    way = "higher" if metric["higher_is_better"] else "lower"
    return {"metric": metric["name"], "better": way, "baseline": baseline, "margin": margin}


def judge_again(
    results: Results,
    record: Record | None,
    *,
    first_look: int | None = None,
    max_pairs: int | None = None,
    terms: Mapping[str, Any],
) -> tuple[Judgement, list[str]]:
    """Return the verdict under the plan that was recorded, or is given, and all that changed since the first one.

    Arms that were compared before stay in the comparison: one whose figures are gone counts among those that share the
    error.

    Args:
        results: Figures by arm and seed.
        record: Of the verdict before.
        first_look: Pairs at the first look, where nothing recorded it; by default all there are.
        max_pairs: Pairs at the last look of a plan that ends.
        terms: As `judge` takes them: metric, lower_is_better, baseline, margin.

    Raises:
        UserError: Another plan than before, or as `judge`.
    """
    firsts: int | dict[str, int] | None = first_look
    if record is not None:
        results.put_first(record.seeds)
        for arm in (record.terms["baseline"], *record.figures):
            results.add_arm(arm)
    if record is not None and record.first_looks:
        planned = (None, *record.first_looks.values())
        if first_look not in planned or max_pairs not in (None, record.max_pairs):
            looks = few([f"{arm} at {look} pairs" for arm, look in record.first_looks.items()], 6)
            raise UserError(
                f"the plan was made with the first verdict ({looks}; most pairs: {record.max_pairs or 'open'}) and "
                "stays as it is, because another would spend the error twice; leave out --first-look and --max-pairs"
            )
        firsts, max_pairs = record.first_looks, record.max_pairs
    judgement = judge(results, first_look=firsts, max_pairs=max_pairs, **terms)
    check_number_of_images(results, judgement.metric.name, terms.get("test_images"))
    if record is None:
        return judgement, []
    changes = [*_changed_terms(record, judgement), *changed_figures(record, judgement)]
    return judgement, [*record.changes, *changes]


def _changed_terms(record: Record, judgement: Judgement) -> list[str]:
    now = _terms(asdict(judgement.metric), judgement.baseline, judgement.margin)
    when = f"after a verdict on {counted(record.num_pairs, 'pair')}"
    changes = [
        f"{when}: {name} was {before}, is {now[name]}" for name, before in record.terms.items() if now[name] != before
    ]
    known = {record.terms["baseline"], *record.figures}
    changes += [
        f"{when}: arm {arm.arm} added; the {percent(ALPHA)} do not hold for early and later arms together"
        for arm in judgement.arms
        if arm.arm not in known
    ]
    return changes


def changed_figures(record: Record, judgement: Judgement) -> list[str]:
    """Return, as sentences, which figures of the verdict before are gone or other ones, and which verdicts turned."""
    now = _terms(asdict(judgement.metric), judgement.baseline, judgement.margin)
    if any(record.terms[name] != now[name] for name in ("metric", "better", "baseline")):
        return []
    changes = []
    for arm in judgement.arms:
        figures = {str(seed): pair for seed, *pair in zip(arm.seeds, arm.baseline, arm.treatment, strict=True)}
        before = record.figures.get(arm.arm, {})
        gone = [seed for seed in before if seed not in figures]
        other = [seed for seed in before if seed in figures and not _equal(before[seed], figures[seed])]
        for what, seeds in (("gone", gone), ("other ones", other)):
            if seeds:
                named = numbered(seeds)
                changes.append(f"after a verdict on them, figures of {arm.arm} or its baseline are {what}: {named}")
        verdict, num_pairs = record.verdicts.get(arm.arm, (arm.verdict, 0))
        if verdict != arm.verdict and num_pairs < arm.num_pairs:
            changes.append(f"{arm.arm}: {verdict} at {num_pairs} pairs, {arm.verdict} at {arm.num_pairs}")
    return changes


def _equal(before: tuple[float, float], now: list[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(before, now, strict=True))
