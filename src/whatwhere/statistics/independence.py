"""Check whether pairs are independent: each seed must change its run, and no run may be a copy of another.

Live runs repeat a figure now and then, the more often the fewer test images there are. How often at most follows from
the least spread that is expected of live seeds: each test image has its own probability of being classified right, so
seeds vary less than a binomial count does, but not below 0.3 of its standard deviation (`benchmarks/independence.py`
simulates it). Runs that repeat one another further than that are taken for one run.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..base.errors import UserError
from ..base.words import counted, few, named
from .derived import smallest_gap
from .metric import METRICS, Metric, num_decimals
from .order import chance_of_order
from .results import Results, numbered

LEAST_DIFFERENT = 4  # with fewer different differences there is no verdict
LIMIT = 1 / 10_000  # a repetition that is less probable than this has another cause than chance
_LIMIT_TO_GO_ON = 1 / 500  # the same, before more runs are trained
_LIMIT_TO_CAUTION = 1 / 200  # the same, where the verdict stands, with a caution
_LEAST_SPREAD = 0.3  # least standard deviation of live seeds, as a share of the binomial one
_LOW_SPREAD = 0.15  # of the binomial one: a lower standard deviation is reported
_LEAST_ERRORS = 100  # num_images * accuracy * (1 - accuracy): with less, the spread of a count is not judged
_LEAST_ERRORS_TO_REPEAT = 30  # the same: with less, all live runs may have the same count
_MOST_IMAGES = 20_000  # assumed number of test images where it is not known
_MANY_IMAGES = 64  # with fewer, a figure may repeat
_MANY_RUNS = 7  # with fewer, all but one may have the same figure of four decimals
_LEAST_RELATIVE_SPREAD = 0.003  # of losses and other figures that are no shares
_MODE = 0.4  # 1 / sqrt(2 pi): the likeliest of values a step apart has this probability, times step / deviation
_MOST_DECIMALS = 6  # of a share that was rounded to be printed; more are the digits of k / n
_COUNTED = re.compile(r"acc|^macro_f1$|^recall$|top.?[15]", re.IGNORECASE)  # metrics whose spread is that of a count
_ALIKE = 1e-9  # figures are alike up to this share of their size: the last bits

_CAUSES = "the seed is not passed to the trainer, or files were copied, or the networks ignore the images"
_ADVICE = (
    "check that the seed sets everything random in a run and that each run wrote its own figures; then train again"
)
_ADVICE_ON_ORDER = (
    "a pair needs two runs that share their seed: give each figure the seed of its run, or train with other seeds"
)


@dataclass(frozen=True)
class Doubt:
    """Why there can be no verdict on pairs, and what to do."""

    reason: str
    advice: str = _ADVICE


def doubt_about(
    results: Results, metric: Metric, baseline: str, arm: str, seeds: Sequence[Hashable], num_images: int | None = None
) -> Doubt | None:
    """Return why pairs of `arm` and `baseline` are not independent; None where they may be.

    Of the first that applies:

    0. all runs have one figure, or, where higher is better, all runs of an arm have 0: they learned nothing;
    1. the runs of one arm, or of both together, repeat one another, in the metric or in whole rows, further than chance
       does in 1 of 10,000 comparisons; or, where `num_images` is not known, all runs of an arm (4 or more; of 7 or more
       all but one) have one figure of four decimals or more that 64 test images or more make;
    2. the runs of `arm` and of another have the same figures, with more seeds than chance brings about in 1 of 10,000;
       all pairs are equal, or all differences are while the figures vary;
    3. there are fewer than 4 different differences; with fewer than 4 pairs, two are equal;
    4. both arms rise, or fall, from seed to seed, more clearly than chance does in 1 of 10,000: they were sorted;
    5. `num_images` is known, and an arm's runs differ so little that chance would make that in 1 of 10,000 comparisons.

    `seeds` are those of the pairs that are judged.
    """
    if doubt := _with_nothing_learned(results, metric, baseline, arm, seeds):
        return doubt
    for arms in ([baseline], [arm], [baseline, arm]):
        repeats = _repeats(results, metric.name, arms, seeds, num_images)
        if repeats.log_chance <= math.log(LIMIT):
            return Doubt(
                f"{' and '.join(map(named, arms))} gave {counted(repeats.num_different, 'different result')} in "
                f"{len(seeds)} runs, alike for {numbered(repeats.alike)}, too few to be chance: {_CAUSES}"
            )
    doubt = _copied_from(results, metric.name, baseline, arm, seeds, num_images)
    doubt = doubt or _with_few_differences(results, metric.name, baseline, arm, seeds)
    if doubt is None:
        how, chance = _order(results, metric.name, baseline, arm, seeds)
        doubt = Doubt(how, _ADVICE_ON_ORDER) if chance <= LIMIT else None
    if doubt is not None or num_images is None:
        return doubt
    narrow = _narrow_arms(results, metric, (baseline, arm), seeds, num_images)
    return next((Doubt(f"{how}: {_CAUSES}") for how, is_chance in narrow if not is_chance), None)


def _with_nothing_learned(
    results: Results, metric: Metric, baseline: str, arm: str, seeds: Sequence[Hashable]
) -> Doubt | None:
    by_seed = {name: results.values(name, metric.name) for name in (baseline, arm)}
    figures = {name: {values[seed] for seed in seeds} for name, values in by_seed.items()}
    advice = "check what the networks predict, and that the figure is the right one; then train again"
    together = figures[baseline] | figures[arm]
    if len(together) == 1:
        return Doubt(
            f"all runs of {named(baseline)} and {named(arm)} have one figure, {together.pop():g}: their networks "
            f"learned nothing, or {_CAUSES}, or {named(arm)} was not switched on, or the test set is at its ceiling",
            advice,
        )
    dead = [name for name, values in figures.items() if values == {0}] if metric.higher_is_better else []
    if dead:
        return Doubt(
            f"{named(metric.label)} is 0 in all runs of {named(dead[0])}: its networks learned nothing", advice
        )
    return None


def _with_few_differences(
    results: Results, metric: str, baseline: str, arm: str, seeds: Sequence[Hashable]
) -> Doubt | None:
    before, after = (results.values(name, metric) for name in (baseline, arm))
    differences = [after[seed] - before[seed] for seed in seeds]
    size = max(map(abs, (*(before[seed] for seed in seeds), *(after[seed] for seed in seeds))))
    num_different = _num_different(differences, size)
    if num_different == 1 and abs(differences[0]) <= _ALIKE * size:
        return Doubt(
            f"all {len(seeds)} pairs are exactly equal: {named(arm)} was not switched on, or files were copied, or the "
            "test set is too small",
            f"check that {named(arm)} was switched on in its runs, and take more test images",
        )
    if num_different == 1 and _num_different([before[seed] for seed in seeds], size) > 1:
        return Doubt(
            f"the figures vary, but all {len(seeds)} differences are the same: one arm's figures were computed from "
            "the other's",
            "give the figures as the runs wrote them",
        )
    if num_different < min(LEAST_DIFFERENT, len(seeds)):
        return Doubt(
            f"{counted(num_different, 'different difference')} in {len(seeds)} pairs, at least {LEAST_DIFFERENT} are "
            f"needed: the test set is too small or at its ceiling, or {_CAUSES}",
            "take more test images, or a metric that is not at its ceiling; check that the trainer uses the seed",
        )
    return None


def cautions_about(
    results: Results, metric: Metric, baseline: str, arm: str, seeds: Sequence[Hashable], num_images: int | None = None
) -> list[str]:
    """Return what about pairs is unusual: runs of an arm that differ little, figures that follow the seeds."""
    narrow = _narrow_arms(results, metric, (baseline, arm), seeds, num_images)
    told = [f"{how}; check that the seed sets everything random in a run" for how, _ in narrow]
    how, chance = _order(results, metric.name, baseline, arm, seeds)
    return [*told, f"{how}; {_ADVICE_ON_ORDER}"] if LIMIT < chance <= _LIMIT_TO_CAUTION else told


def _order(results: Results, metric: str, baseline: str, arm: str, seeds: Sequence[Hashable]) -> tuple[str, float]:
    """Return that both arms follow the seeds, as a sentence, and how probable that is by chance."""
    way, chance = chance_of_order([results.values(name, metric) for name in (baseline, arm)], seeds)
    return (
        f"the figures of {named(baseline)} and of {named(arm)} {way} from seed to seed: they were sorted, or the seeds "
        "count the steps of one training"
    ), chance


def check_still_independent(results: Results, metric: str, what_to_do: str, num_images: int | None = None) -> None:
    """Raise UserError if the runs so far are copies of one another, so that more runs would be useless.

    The limit is 1 in 500: higher than for a verdict, because a mistake costs only a question. Where `num_images` is not
    known, it also raises if all runs of each arm, 4 at least, have the same figures.

    `what_to_do` ends the sentence.
    """
    found = {}
    for arm in results.arms:
        seeds = list(results.values(arm, metric))
        if len(seeds) > 1:
            found[arm] = _repeats(results, metric, [arm], seeds, num_images)
    logs = sorted(repeats.log_chance for repeats in found.values())
    # of all sets of so many arms, the one that repeats most
    chances = [sum(logs[:count]) + math.log(math.comb(len(logs), count)) for count in range(1, len(logs) + 1)]
    if min(chances, default=0.0) <= math.log(_LIMIT_TO_GO_ON):
        arm, repeats = min(found.items(), key=lambda item: item[1].log_chance)
        raise UserError(f"{numbered(repeats.alike)} of {arm} ended alike to the last digit: {_CAUSES}; {what_to_do}")
    rows = {arm: list(results.runs(arm).values()) for arm in results.arms}
    if num_images is None and all(
        len(runs) >= LEAST_DIFFERENT and runs.count(runs[0]) == len(runs) for runs in rows.values()
    ):
        raise UserError(
            f"all seeds of {few(list(rows), 6)} ended alike to the last digit: {_CAUSES}, or the test set is at its "
            f"ceiling; {what_to_do}"
        )


class _Repeats(NamedTuple):
    num_different: int
    alike: tuple[Hashable, ...]  # seeds of the result that most runs have
    log_chance: float  # log of an upper bound on the probability that chance leaves so few different results


def _repeats(
    results: Results, metric: str, arms: Sequence[str], seeds: Sequence[Hashable], num_images: int | None
) -> _Repeats:
    """Return how often runs repeat in the metric alone, or in whole rows, whichever is less probable."""
    # other figures, such as parameters or seconds, may be alike, or differ, whatever the seed does
    names = [name for name in results.metrics if name == metric or name in METRICS or "loss" in name.lower()]
    candidates = []
    for columns in ([metric], names):
        labels: list[tuple[Hashable, ...]] = [()] * len(seeds)
        chance = 1.0
        for arm in arms:
            chances = [1.0]
            for name in columns:
                values = results.values(arm, name)
                if all(seed in values for seed in seeds):
                    figures = [values[seed] for seed in seeds]
                    chances.append(_chance(figures, name, num_images))
                    labels = [(*label, group) for label, group in zip(labels, _groups(figures), strict=True)]
            chance *= min(chances)
        num_different, most = len(set(labels)), max(labels, key=labels.count)
        alike = tuple(seed for seed, label in zip(seeds, labels, strict=True) if label == most)
        log_chance = _log_chance(len(labels), num_different, chance)
        if len(arms) == 1 and num_images is None and len(alike) >= max(4, len(seeds) - (len(seeds) >= _MANY_RUNS)):
            values = results.values(arms[0], metric)
            if _is_fine([values[seed] for seed in alike if seed in values]):
                log_chance = -math.inf
        candidates.append(_Repeats(num_different, alike, log_chance))
    return min(candidates, key=lambda repeats: repeats.log_chance)


def _copied_from(
    results: Results, metric: str, baseline: str, arm: str, seeds: Sequence[Hashable], num_images: int | None
) -> Doubt | None:
    """Return the doubt that another arm has the same figures as `arm`, with more seeds than chance brings about."""
    of_arm = results.values(arm, metric)
    judged = {seed: of_arm[seed] for seed in seeds if seed in of_arm}
    for other in results.arms:
        of_other = results.values(other, metric)
        alike = copied_seeds(judged, of_other, metric, num_images)
        # all pairs equal is a finding of its own
        if other != arm and alike and not (other == baseline and len(alike) == len(judged.keys() & of_other.keys())):
            return Doubt(
                f"{named(other)} and {named(arm)} have the same figure for {numbered(alike)}, too often to be chance: "
                f"runs were copied, or {named(arm)} was not switched on in them"
            )
    return None


def copied_seeds(
    first: Mapping[Any, float], second: Mapping[Any, float], metric: str, num_images: int | None = None
) -> list[Hashable]:
    """Return the seeds with which two arms have the same figure, if that is more often than chance brings about.

    Arms that differ by a few test images, because they share what the seed decides, are alike now and then: a pair is
    with the probability of the likeliest difference, given those that are not 0.
    """
    both = [seed for seed in first if seed in second]
    alike = [seed for seed in both if math.isclose(first[seed], second[seed], rel_tol=_ALIKE)]
    if not alike:
        return []
    figures = [[values[seed] for seed in both] for values in (first, second)]
    chance = max(_chance(values, metric, num_images) for values in figures)
    if others := [first[seed] - second[seed] for seed in both if seed not in alike]:
        gap = smallest_gap([*figures[0], *figures[1]])
        chance = max(chance, min(1.0, _MODE * gap / math.sqrt(statistics.fmean(d * d for d in others))))
    log_chance = math.log(math.comb(len(both), len(alike))) + len(alike) * math.log(max(chance, 1e-300))
    return alike if log_chance <= math.log(LIMIT) else []


def _is_fine(figures: Sequence[float]) -> bool:
    """Return whether a figure is of four decimals or more and no simple fraction, as few images would make it."""
    if not figures or not 0 <= figures[0] <= 100:
        return False
    scale = 1.0 if figures[0] <= 1 else 0.01
    step = scale * 10.0 ** -num_decimals(figures[0])
    return step <= 1e-4 * (1 + _ALIKE) and _least_images((scale * figures[0],), step) >= _MANY_IMAGES


def _log_chance(n: int, k: int, chance: float) -> float:
    """Return the log of an upper bound on the probability of at most k different results of n.

    n runs fall into k groups in S(n, k) ways (Stirling's number of the second kind), at most k**n / k! and
    C(n, k) k**(n - k) / 2 of them; a group of g runs is alike with a probability of at most chance**(g - 1).
    """
    if n == k:
        return 0.0
    of_pairs = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - math.log(2) + (n - k) * math.log(k)
    ways = min(n * math.log(k) - math.lgamma(k + 1), of_pairs)
    return min(0.0, ways + (n - k) * math.log(max(chance, 1e-300)))


def _chance(figures: Sequence[float], name: str, num_images: int | None) -> float:
    """Return an upper bound on the probability of a live run's likeliest figure.

    With n test images, accuracy p and a step h to which figures were rounded, a live run's figure has a standard
    deviation of at least 0.3 sqrt(p (1 - p) / n) and values max(1 / n, h) apart. Of an unknown n the least that makes
    such figures and 20,000 are tried. Of a known one with n p (1 - p) below 30 nothing is concluded: with so few images
    that are not always right or always wrong, the least deviation need not hold.
    """
    mean, decimals = statistics.fmean(figures), max(map(num_decimals, figures))
    is_share = min(figures) >= 0 and max(figures) <= 100 and "loss" not in name.lower()
    if not is_share:
        return min(1.0, _MODE / _LEAST_RELATIVE_SPREAD * 10.0**-decimals / abs(mean)) if mean else 1.0
    scale = 1.0 if max(figures) <= 1 else 0.01
    binomial = math.sqrt(max(0.0, scale * mean * (1 - scale * mean)))
    if not binomial or (num_images and num_images * binomial**2 < _LEAST_ERRORS_TO_REPEAT):
        return 1.0
    step = scale * 10.0**-decimals
    step = step if step >= 10.0**-_MOST_DECIMALS else 0.0
    numbers = [num_images] if num_images else [_least_images(tuple(scale * f for f in figures), step), _MOST_IMAGES]
    worst = max(max(1 / math.sqrt(n), step * math.sqrt(n)) for n in (numbers if step else numbers[:1]))
    return min(1.0, _MODE / (_LEAST_SPREAD * binomial) * worst)


@functools.lru_cache(maxsize=1024)
def _least_images(shares: tuple[float, ...], step: float) -> int:
    """Return the least n of which all shares are k / n, up to rounding to `step`; at most 20,000."""
    numbers = np.arange(1, _MOST_IMAGES)
    counts = np.unique(np.asarray(shares))[:, None] * numbers
    fits = (np.abs(counts - np.rint(counts)) <= max(step / 2, 1e-7) * numbers).all(0)
    return int(numbers[fits.argmax()]) if fits.any() else _MOST_IMAGES


def _groups(figures: Sequence[float]) -> list[int]:
    """Return a group number for each figure; figures equal up to the last bits share one."""
    numbers: dict[float, int] = {}
    last = math.inf
    for value in sorted(figures):
        is_new = not math.isclose(value, last, rel_tol=_ALIKE)
        numbers[value] = len(set(numbers.values())) if is_new else numbers[last]
        last = value
    return [numbers[value] for value in figures]


def _num_different(differences: Sequence[float], size: float) -> int:
    """Count the different values, up to rounding errors of figures of this size."""
    ordered = sorted(differences)
    return 1 + sum(after - before > _ALIKE * size for before, after in itertools.pairwise(ordered))


def _narrow_arms(
    results: Results, metric: Metric, arms: Sequence[str], seeds: Sequence[Hashable], num_images: int | None
) -> list[tuple[str, bool]]:
    """Return, for each arm with runs that differ less than usual, how much, and whether that may be chance.

    It may not where even at the least spread of live seeds it comes up in fewer than 1 of 10,000 comparisons. Metrics
    that are no count of images, and counts with few errors, have no usual spread.
    """
    from scipy.special import chdtr

    found = []
    for arm in arms if _COUNTED.search(metric.name) else ():
        values = results.values(arm, metric.name)
        shares = [metric.scale * values[seed] / 100 for seed in seeds]
        mean, deviation, images = statistics.fmean(shares), statistics.stdev(shares), num_images or _MOST_IMAGES
        if not 0 < mean < 1 or images * mean * (1 - mean) < _LEAST_ERRORS:
            continue
        binomial = math.sqrt(mean * (1 - mean) / images)
        if deviation < _LOW_SPREAD * binomial:
            degrees = len(shares) - 1
            square = degrees * (deviation / (_LEAST_SPREAD * binomial)) ** 2
            how = (
                f"the runs of {named(arm)} differ by only {100 * deviation:.3f} points (standard deviation), "
                f"where chance alone makes {100 * binomial:.2f} with "
                f"{images:,} test images{'' if num_images else ' or fewer'}"
            )
            found.append((how, float(chdtr(degrees, square)) > LIMIT))
    return found


def check_number_of_images(results: Results, metric: str, num_images: int | None) -> None:
    """Raise UserError if an accuracy is no whole number of `num_images` images, up to its rounding."""
    if num_images is None or metric != "accuracy":
        return
    figures = {(arm, seed): value for arm in results.arms for seed, value in results.values(arm, metric).items()}
    scale = 1.0 if max(figures.values(), default=0.0) <= 1 else 0.01
    for (arm, seed), figure in figures.items():
        right, rounding = scale * figure * num_images, scale * 0.5 * 10.0 ** -num_decimals(figure)
        if abs(right - round(right)) > num_images * (rounding + 1e-9):
            raise UserError(
                f"with {num_images:,} test images no accuracy is {figure:g} (arm {arm}, seed {seed}), because a whole "
                "number of images is right; correct the number of test images, or leave it out"
            )
