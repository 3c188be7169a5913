"""Find rows and arms that were computed from others, such as means: they are not runs."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..base.words import brief, named, number_in, short, spelt_alike
from .metric import num_decimals

if TYPE_CHECKING:
    from .results import Results

# words that name such rows in several languages, without words that also name folds, such as delta or top
_WORD = re.compile(
    "means?|averages?|averaged|avg|ave|median|overall|aggregated?|summary|ensemble|total|sum|count|"
    "best|worst|max|maximum|min|minimum|std|stdev|stddev|stderr|variance|deviation|diff|difference|quantile|percentile|"
    "mittel|mittelwert|durchschnitt|schnitt|gesamt|summe|beste[rs]?|schlechteste[rs]?|(standard)?abweichung|"
    "moyenne|m[eé]diane|meilleure?|pire|écart|m[eé]dia|promedio|mediana|mejor|peor|melhor|pior|desvio|desviación|"
    "gemiddelde|średnia|среднее|медиана|лучший|худший|итого|всего|ortalama|ø|⌀|±"
)
_CHINESE = re.compile(
    "平均|均值|最大|最小|最好|最佳|最高|最差|最低|中位|标准差|標準偏差|標準差|方差|总|合计|合計|평균|최대|최소"
)
_PARTS = re.compile(r"[^\W\d_]+|[±⌀]")
_LEAST_NUMBERED = 3  # two names may share a stem by chance, as CIFAR10 and CIFAR100 do
_LEAST_OTHERS = 3
_LEAST_SEEDS = 4
_MOST_SEEDS = 200  # with more, one row decides nothing, and the time grows with their square
_MOST_DIGITS = 4000  # that Python reads as a whole number
_CHANCE = 1e-3  # a more probable coincidence is not reported

_STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "the mean": statistics.fmean,
    "the median": statistics.median,
    "the largest": max,
    "the smallest": min,
    "the standard deviation": statistics.stdev,
}


def odd_seed(seeds: Iterable[Hashable]) -> tuple[Hashable, str] | None:
    """Return the first seed that names no run, such as "mean" among 0, 1 and 2, and a sentence about it; else None.

    Such a seed is a word among numbers, a word without a number among names that differ in their number only (fold1,
    fold2, fold3), or a word for a statistic (mean, best, std, Ø) among words. Other words are names as good as numbers.
    So is one that is there in another spelling too (3 and 3.0).
    """
    seeds = list(dict.fromkeys(seeds))
    alike = next(iter(spelt_alike(map(str, seeds))), None)
    if alike is not None:
        told = " and ".join(map(brief, alike[:2]))
        return alike[0], f"seeds {told} are spellings of one, and their runs would make no pair; spell them alike"
    words = [seed for seed in seeds if as_number(seed) is None]
    # those that name a statistic are the ones to point at
    words.sort(key=lambda seed: not _is_statistic(seed))
    if not words:
        return None
    if len(words) < len(seeds):
        other = next(seed for seed in seeds if as_number(seed) is not None)
        return words[0], _sentence(words[0], f"is no number, as others are ({short(str(other))})")
    stems = Counter(re.sub(r"\d+", "#", str(seed)) for seed in seeds if re.search(r"\d", str(seed)))
    stem, count = stems.most_common(1)[0] if stems else ("", 0)
    without = [seed for seed in words if not re.search(r"\d", str(seed))]
    if without and count >= _LEAST_NUMBERED:
        return without[0], _sentence(without[0], f"has no number, as others have ({short(stem.replace('#', '1'))})")
    # a word in all names tells nothing, as in "5 min", "10 min"
    if _is_statistic(words[0]) and not _is_statistic(words[-1]):
        return words[0], _sentence(words[0], "is a word for figures computed from others")
    return None


def _sentence(seed: Hashable, why: str) -> str:
    return (
        f"seed {brief(str(seed))} {why}; take the row out if its figures are computed from those of other rows, "
        "otherwise name its seed like the others"
    )


def as_number(seed: Hashable) -> float | None:
    """Return the number that a seed spells; None where it is not a number."""
    text = str(seed).strip()
    if re.fullmatch(r"[+-]?[0-9]+", text) and len(text) < _MOST_DIGITS:
        return int(text)
    try:
        number = number_in(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _is_statistic(seed: Hashable) -> bool:
    name = str(seed).lower()
    return bool(any(map(_WORD.fullmatch, _PARTS.findall(name))) or _CHINESE.search(name))


def derived_notes(results: Results, metric: str) -> list[str]:
    """Return a sentence for each seed and each arm with figures of `metric` that can be computed from others.

    A seed is reported if in every arm it is the mean, the median, the largest, the smallest or the standard deviation
    of the other seeds, or of those above it in the table; an arm if with every seed it is the difference of two others,
    or the mean, the median, the largest or the smallest of all others. A match that is probably chance, as with coarse
    figures, is not reported.
    """
    # in the order of the table
    runs = {arm: results.runs(arm).items() for arm in results.arms}
    figures = {arm: {seed: run[metric] for seed, run in runs[arm] if metric in run} for arm in runs}
    notes = []
    for seed in results.seeds if len(results.seeds) <= _MOST_SEEDS else ():
        name = next((name for name in _STATISTICS if _is_computed(seed, name, figures)), None)
        if name is not None:
            notes.append(
                f"seed {named(str(seed))} is {name} of other seeds in every arm: if it was computed from them, it is "
                "not a run; take it out"
            )
    for arm in results.arms:
        if what := _computed_arm(arm, figures):
            notes.append(f"arm {named(arm)} is {what} with every seed: if it was computed from them, take it out")
    return notes


def _is_computed(seed: Hashable, name: str, figures: Mapping[str, Mapping[Hashable, float]]) -> bool:
    """Return whether a seed is a statistic of the others in every arm, and this is hardly chance."""
    arms = [values for values in figures.values() if seed in values]
    gap = smallest_gap(value for values in arms for other, value in values.items() if other != seed)
    for above in (False, True):
        chance = float(len(arms[0])) if arms else 1.0
        for values in arms:
            rows = itertools.takewhile(lambda other: other != seed, values) if above else values
            others = [values[other] for other in rows if other != seed]
            chance *= _chance(values[seed], name, others, gap) if len(others) >= _LEAST_OTHERS else 1.0
        if chance < _CHANCE:
            return True
    return False


def _chance(value: float, name: str, others: Sequence[float], gap: float) -> float:
    """Return the rough probability that a figure equals a statistic of others by chance; infinite where it differs."""
    if not _is_written(value, _STATISTICS[name](others)):
        return math.inf
    spread = max(others) - min(others)
    step = 10.0 ** -num_decimals(value)
    # figures of few test images stand on a grid however many digits they have, but the mean of m of them lies between
    if num_decimals(value) <= max(map(num_decimals, others)) and name != "the standard deviation":
        step = max(step, gap / len(others) if name == "the mean" else gap)
    return min(1.0, step / spread) if spread else 1.0


def _computed_arm(arm: str, figures: Mapping[str, Mapping[Hashable, float]]) -> str:
    """Return how an arm was computed from others, such as "a minus b"; "" where it was not."""
    values = figures[arm]
    others = [other for other in figures if other != arm and figures[other].keys() >= values.keys()]
    # arms that hardly vary agree in many ways
    if len(values) < _LEAST_SEEDS or len(set(values.values())) < _LEAST_SEEDS:
        return ""
    for a, b in itertools.permutations(others, 2):
        # c = a - b is b = a - c as well: the difference is the smaller one
        smaller = sum(map(abs, values.values())) < sum(abs(figures[b][seed]) for seed in values)
        if smaller and all(_is_written(v, figures[a][s] - figures[b][s]) for s, v in values.items()):
            return f"{named(a)} minus {named(b)}"
    distinct = sum(len({figures[other][seed] for other in others}) > 1 for seed in values)
    if distinct < _LEAST_SEEDS:
        return ""
    of_others = {seed: [figures[other][seed] for other in others] for seed in values}
    for name in ("the mean", "the median", "the largest", "the smallest"):
        computed = all(_is_written(value, _STATISTICS[name](of_others[seed])) for seed, value in values.items())
        # of arms that never change their order it is one of them
        if computed and dict(values) not in [{seed: figures[other][seed] for seed in values} for other in others]:
            return f"{name} of the others"
    return ""


def _is_written(value: float, computed: float) -> bool:
    """Return whether a figure is another one, rounded to the digits that it has."""
    return math.isclose(value, computed, rel_tol=1e-9, abs_tol=0.500001 * 10.0 ** -num_decimals(value))


def smallest_gap(values: Iterable[float]) -> float:
    """Return the least difference between two different figures, as a bound of what they are counted in."""
    ordered = sorted(set(values))
    return min((b - a for a, b in itertools.pairwise(ordered)), default=0.0)
