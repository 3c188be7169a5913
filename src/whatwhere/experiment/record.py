"""What was looked at before: kept beside the figures, so that the next verdict knows of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .plan import Plan
from .results import Results
from .verdict import Judgement, judge


@dataclass(frozen=True)
class Record:
    """An earlier verdict.

    Attributes:
        first_looks: Pairs at the first look, by arm; without those that had too few for one.
        max_pairs: Pairs at the last; None: open.
        num_pairs: How many had been seen.
        terms: Metric, direction, baseline and margin.
    """

    first_looks: dict[str, int]
    max_pairs: int | None
    num_pairs: int
    terms: dict[str, Any]


def read_record(path: Path) -> Record | None:
    """Return the record in the JSON of a verdict; None where there is none.

    Raises:
        UserError: The file is something else, or damaged.
    """
    try:
        return _record(json.loads(path.read_bytes())["judgement"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{str(path)!r} is no verdict of ours ({type(error).__name__}: {error}); it would say when the first look "
            "was: move it away, and give that with --first-look"
        ) from error


def record_of(judgement: Judgement) -> Record:
    """Return what the next verdict must know of this one."""
    return _record(judgement.to_dict())


def _record(judgement: dict[str, Any]) -> Record:
    arms, most = judgement["arms"], judgement["max_pairs"]
    plans = {str(arm["arm"]): Plan(**arm["plan"]) for arm in arms if arm["plan"] is not None}
    terms = _terms(judgement["metric"], judgement["baseline"], judgement["margin"])
    num_pairs = max((len(arm["differences"]) for arm in arms), default=0)
    return Record({arm: plan.first for arm, plan in plans.items()}, most, num_pairs, terms)


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
    """Return the verdict under the plan that was recorded, or is given, and what changed since, as sentences.

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
    if record is not None and record.first_looks:
        planned = (None, *record.first_looks.values())
        if first_look not in planned or max_pairs not in (None, record.max_pairs):
            looks = ", ".join(f"{arm} at {look}" for arm, look in record.first_looks.items())
            raise UserError(
                f"the first verdict was planned with {record.max_pairs or 'no number'} as the most pairs and its first "
                f"look ({looks}), and that stands: another plan would spend the error twice; leave it out"
            )
        firsts, max_pairs = record.first_looks, record.max_pairs
    judgement = judge(results, first_look=firsts, max_pairs=max_pairs, **terms)
    return judgement, [] if record is None else _changes(record, judgement)


def _changes(record: Record, judgement: Judgement) -> list[str]:
    now = _terms(asdict(judgement.metric), judgement.baseline, judgement.margin)
    return [
        f"after a verdict on {record.num_pairs} pairs: {name} was {before}, is {now[name]}"
        for name, before in record.terms.items()
        if now[name] != before
    ]
