"""Compare arms that a function of the user trains."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import UserError, check_integer
from ..base.files import locked, write_bytes, write_json
from ..base.words import brief, cause, few, printable, short, suggest
from ..statistics.history import Record, judge_again, read_record
from ..statistics.independence import check_number_of_images, check_still_independent
from ..statistics.looks import LEAST_PAIRS, MOST_SEEDS, Schedule
from ..statistics.metric import METRICS, Metric, check_direction, margin_for, usual_metric
from ..statistics.results import Results, check_length
from ..statistics.table import read_results
from ..statistics.verdict import UNKNOWN, Judgement, check_controls, default_baseline, metric_and_margin
from .content import figures_content


def compare(
    run: Callable[[str, int], float | Mapping[str, float]],
    arms: Iterable[str],
    seeds: int | Iterable[int],
    *,
    metric: str | None = None,
    lower_is_better: bool | None = None,
    baseline: str | None = None,
    margin: float | None = None,
    max_seeds: int | None = None,
    results: str | Path | None = None,
    title: str = "comparison",
    progress: Callable[[str, int, Mapping[str, float]], None] | None = None,
    test_images: int | None = None,
    controls: Collection[str] = (),
) -> Comparison:
    """Train every arm with every seed and return the verdict on each arm against the baseline.

    `run(arm, seed)` trains and returns its figures on the test images. For a fair pair everything but the arm must
    follow from the seed: split, order, augmentation, initial values of the layers that the arms share.

    Args:
        run: Returns one figure, called `metric` (or accuracy), or figures by name.
        arms: Names, the baseline among them.
        seeds: How many (0, 1, ...), at most 10,000, or which.
        metric: What to judge by; by default accuracy, or the only one.
        lower_is_better: As in `judge`.
        baseline: As in `judge`.
        margin: As in `judge`.
        max_seeds: Train up to so many seeds, look by look (`Schedule`), while the verdict on an arm is "cannot tell
            yet"; needs `seeds` as a number.
        results: A CSV to which every run is added as it ends; runs in it are not repeated. The verdict is written
            beside it (.verdict.json), so that a later call with more seeds knows the earlier looks.
        title: Of the report.
        progress: Called with arm, seed and figures after each run.
        test_images: As in `judge`.
        controls: As in `judge`.

    Raises:
        UserError: Bad arms, seeds or terms (before the first run, or after it where they depend on its figures), a
            return value that is no number, more seeds with equal figures than chance explains, or a CSV that is no
            table of results or that another process is writing.

    Example:
        >>> import random
        >>> from whatwhere.experiment import compare
        >>> def run(arm, seed):  # trains; here it draws an accuracy
        ...     luck = random.Random(seed).gauss(0, 0.02) + random.Random(f"{arm} {seed}").gauss(0, 0.01)
        ...     return 0.80 + luck + (0.03 if arm == "cbam" else 0)
        >>> comparison = compare(run, ["none", "cbam"], seeds=8)
        >>> [(arm.arm, arm.verdict) for arm in comparison.judgement.arms]
        [('cbam', 'helps')]
    """
    keep = None if results is None else Path(results)
    beside = None if keep is None else keep.with_suffix(".verdict.json")
    terms: dict[str, Any] = {
        "metric": metric,
        "lower_is_better": lower_is_better,
        "baseline": baseline,
        "margin": margin,
        "test_images": test_images,
    }
    # refuse bad arguments before the first run
    names, first = _names(arms), _seeds(seeds)
    if len(names) < 2 or not first:
        raise UserError(f"a comparison needs two arms or more and some seeds, got {len(names)} and {len(first)}")
    first_look = None
    if max_seeds is not None:
        if isinstance(seeds, Iterable):
            raise UserError("max_seeds needs a number of seeds to begin with, such as seeds=8")
        # the number of seeds, or the least for a verdict
        first_look = Schedule(max(LEAST_PAIRS, len(first)), max_seeds).first
    _check_terms(names, terms)
    check_controls(controls, [name for name in names if name != (baseline or default_baseline(names))])
    with contextlib.nullcontext() if keep is None else locked(keep, is_file=True):
        done = read_results(keep, may_be_empty=True) if keep is not None and keep.exists() else Results()
        record = None if beside is None else read_record(beside, "restore it, or give another file of results")
        wanted = dict.fromkeys(names, first)
        while True:
            for seed in max(wanted.values(), key=len):
                for arm in names:
                    if seed in wanted[arm] and str(seed) not in done.runs(arm):
                        figures = _figures(run(arm, seed), metric)
                        _add(done, arm, seed, figures, terms)
                        if keep is not None:
                            write_bytes(keep, done.to_csv().encode())
                        if progress is not None:
                            progress(arm, seed, figures)
                _check_seeds(done, metric, keep, test_images)
            # arms and runs of earlier calls count too: what has been seen cannot be left out
            judgement, changes = judge_again(
                done, record, first_look=first_look, max_pairs=max_seeds, controls=controls, terms=terms
            )
            content = figures_content(judgement, done, title, changes).to_dict()
            if beside is not None:
                write_json(beside, content)
            further = {} if max_seeds is None else _further(judgement, {arm: len(wanted[arm]) for arm in names})
            if not further:
                return Comparison(judgement, content)
            # only arms without a verdict go on, and the baseline with them
            further[judgement.baseline] = max(further.values())
            wanted |= {arm: list(range(count)) for arm, count in further.items()}
            record = Record(judgement, tuple(changes))


def _add(done: Results, arm: str, seed: int, figures: Mapping[str, float], terms: Mapping[str, Any]) -> None:
    """Add a run; raise UserError for terms that do not fit its figures: not after the last run, all would be lost."""
    known = done.metrics
    done.add(arm, str(seed), figures)
    if done.metrics != known:
        metric_and_margin(done, **{name: terms[name] for name in ("metric", "lower_is_better", "margin")})


def _check_terms(names: list[str], terms: Mapping[str, Any]) -> None:
    """Raise UserError for terms that are wrong whatever the figures are."""
    metric, margin, baseline = terms["metric"], terms["margin"], terms["baseline"]
    if terms["test_images"] is not None:
        check_integer("test_images", terms["test_images"])
    if metric is not None:
        _check_name("a figure", metric)
        check_direction(metric, terms["lower_is_better"])
    if metric in METRICS or margin is not None:
        margin_for(METRICS.get(metric or "", Metric("", "")), margin)
    if baseline is not None and baseline not in names:
        raise UserError(f"no arm is called {brief(baseline)}{suggest(baseline, names)}; there are: {few(names, 10)}")


def _check_seeds(done: Results, metric: str | None, keep: Path | None, test_images: int | None) -> None:
    """Raise UserError as soon as runs are copies of one another."""
    if not done.metrics:
        return
    name = metric or usual_metric(done.metrics) or done.metrics[0]
    kept = "" if keep is None else f"; what ran is in {str(keep)!r}, take out its rows before you run again"
    hint = "" if test_images is not None else ", or give test_images if there are only a few"
    check_number_of_images(done, name, test_images)
    check_still_independent(done, name, f"let run use its seed{hint}{kept}", test_images)


def _names(arms: Iterable[str]) -> list[str]:
    if isinstance(arms, (str, bytes)) or not isinstance(arms, Iterable):
        raise UserError(f"arms must be a list of names, such as ['none', 'cbam'], got {brief(arms)}")
    names = list(arms)
    for name in names:
        _check_name("an arm", name)
    return list(dict.fromkeys(names))


def _check_name(what: str, name: Any) -> None:
    if not isinstance(name, str) or not name or printable(name.strip()) != name:
        raise UserError(f"{what}'s name must be printable text without blanks around it, got {brief(name)}")
    check_length(name)
    if what == "a figure" and name.lower() in ("arm", "seed"):
        raise UserError(f"a figure cannot be called {brief(name)}, a column of the table; give it another name")


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    # a tensor is an Iterable and has __index__, but may be neither a list nor an integer
    with contextlib.suppress(TypeError):
        if isinstance(seeds, Iterable) and not isinstance(seeds, (str, bytes)):
            return list(dict.fromkeys(map(_integer, seeds)))
        count = _integer(seeds)
        check_integer("seeds", count, least=0, most=MOST_SEEDS)
        return list(range(count))
    raise UserError(f"seeds must be how many there are, such as 8, or a list of integers, got {brief(seeds)}")


def _integer(value: Any) -> int:
    """Return an int; raise TypeError for anything else and for more than 64 bits."""
    number = operator.index(value)
    if isinstance(value, bool) or abs(number) >= 2**63:
        raise TypeError
    return number


def _further(judgement: Judgement, num_seeds: Mapping[str, int]) -> dict[str, int]:
    """Return how many seeds each arm without a verdict needs for its next look, where there is one.

    Where a run gave no figure, another seed replaces its pair, up to twice as many seeds as the look has pairs.
    """
    further = {}
    for arm in judgement.arms:
        if arm.verdict != UNKNOWN or arm.plan is None or arm.arm not in num_seeds:
            continue
        num_pairs = len(arm.differences)
        look = arm.plan.next_after(num_pairs)
        if look is not None and num_seeds[arm.arm] < 2 * look:
            further[arm.arm] = num_seeds[arm.arm] + look - num_pairs
    return further


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        judgement: The verdicts.
        content: Everything that a report shows, as JSON values: `whatwhere.report.write_page` takes it.
    """

    judgement: Judgement
    content: dict[str, Any]


def _figures(returned: float | Mapping[str, float], metric: str | None) -> Mapping[str, float]:
    given = returned if isinstance(returned, Mapping) else {metric or "accuracy": returned}
    figures = {}
    for name, value in given.items():
        _check_name("a figure", name)
        if isinstance(value, (str, bytes, bool)) or not hasattr(type(value), "__float__"):
            what = f"{brief(value)} as {short(name)}" if isinstance(returned, Mapping) else f"a {type(value).__name__}"
            raise UserError(f"run must return a number, or numbers by name, got {what}")
        try:
            figures[name] = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # a tensor of several numbers
            raise UserError(
                f"run must return a number, or numbers by name, but {short(name)} is none: {cause(error)}"
            ) from error
    return figures
