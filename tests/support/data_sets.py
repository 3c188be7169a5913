"""Simulated comparisons on several data sets, pooled and decided as `whatwhere.experiment.across` does."""

from collections import Counter

import numpy as np
from scipy.special import stdtrit

from simulations import paired
from whatwhere.experiment import Results, Schedule, judge
from whatwhere.statistics.across import LEAST_DATA_SETS
from whatwhere.statistics.decide import HELPS, HURTS, Case, decide, step_down
from whatwhere.statistics.looks import ALPHA
from whatwhere.statistics.pooled import pooled

# points in each data set
EFFECTS = {"cifar10": 1.0, "digits": 1.4, "flowers": 0.8, "pets": 1.2, "signs": 0.9}


def compared(seed, num_pairs=8, baseline="none", metric="accuracy", deviation=0.4, **effects):
    """The verdict on a comparison: arms with these effects in points, whose differences vary by `deviation`."""
    return judge(figures(seed, num_pairs, baseline, metric, deviation, **effects), metric=metric, baseline=baseline)


def figures(seed, num_pairs=8, baseline="none", metric="accuracy", deviation=0.4, **effects):
    """The figures of that comparison."""
    rng, results = np.random.default_rng(seed), Results()
    for number in range(num_pairs):
        base = rng.uniform(0.65, 0.75)
        results.add(baseline, str(number), {metric: base})
        for arm, effect in effects.items():
            results.add(arm, str(number), {metric: base + (effect + deviation * rng.standard_normal()) / 100})
    return results


def several(effects=EFFECTS, **options):
    """The verdict on a comparison with each of these effects."""
    return {name: compared(seed, cbam=effect, **options) for seed, (name, effect) in enumerate(effects.items())}


MARGIN = 0.5  # points, as all figures here
LOOKS = Schedule(12, 36)
# pairs of each comparison: all alike, drawn from 6 to 36, one or half of them many, or stopped at its own verdict
PAIRS = ("6", "6 to 36", "one 36, others 6", "half 36, half 6", "looks at 12, 24, 36")
# standard deviation of the differences: all alike, drawn (log-uniform), or one or half of them small
SPREADS = ("1", "0.5 to 3", "one 0.5, others 3", "half 0.5, half 3")


def num_pairs(pairs, shape, rng):
    """The pairs of each comparison."""
    if pairs == "6 to 36":
        return rng.integers(6, 37, shape)
    many = {"one 36, others 6": 1, "half 36, half 6": shape[1] // 2, "6": 0}[pairs]
    return np.broadcast_to(np.where(np.arange(shape[1]) < many, 36, 6), shape)


def deviations(spread, shape, rng):
    """The standard deviation of each comparison's differences."""
    if spread == "0.5 to 3":
        return np.exp(rng.uniform(np.log(0.5), np.log(3), shape))
    small = {"one 0.5, others 3": 1, "half 0.5, half 3": shape[1] // 2}.get(spread)
    return np.ones(shape) if small is None else np.broadcast_to(np.where(np.arange(shape[1]) < small, 0.5, 3.0), shape)


def drawn(pairs, spread, effects, rng):
    """Mean differences of simulated comparisons with these true effects, shape (count, k), and their squared errors."""
    deviation = deviations(spread, effects.shape, rng)
    if pairs.startswith("looks"):
        return _stopped(deviation, effects, rng)
    n = num_pairs(pairs, effects.shape, rng)
    means = effects + deviation / np.sqrt(n) * rng.standard_normal(effects.shape)
    return means, deviation**2 / n * rng.chisquare(n - 1) / (n - 1)


def _stopped(deviation, effects, rng):
    """The same where each comparison ends at the first look that gives a verdict."""
    shape, looks = effects.shape, list(LOOKS.looks())
    means, errors, total, squares, done = (np.zeros(shape) for _ in range(5))
    before = 0
    for look in looks:
        more = look - before
        new = effects + deviation / np.sqrt(more) * rng.standard_normal(shape)
        squares += deviation**2 * rng.chisquare(more - 1, shape)
        squares += (new - total / before) ** 2 * before * more / look if before else 0.0
        total, before = total + more * new, look
        error = squares / (look - 1) / look
        means, errors = np.where(done, means, total / look), np.where(done, errors, error)
        half = stdtrit(look - 1, 1 - LOOKS.level(look) / 2) * np.sqrt(error)
        done = (done > 0) | (abs(total / look) > half) | (abs(total / look) + half < MARGIN)
    return means, errors


def shares(num, pairs, spread, tau, effect, count, seed, kind="normal"):
    """How often the mean over `num` data sets is called what, and how often its intervals cover.

    `effect` and `tau` are mean and standard deviation of the true effects, which are normal or exponential.
    """
    rng = np.random.default_rng(seed)
    draw = rng.standard_normal if kind == "normal" else lambda shape: rng.exponential(size=shape) - 1
    found = pooled(*drawn(pairs, spread, effect + tau * draw((count, num)), rng))
    following = effect + tau * draw(count)
    half = stdtrit(num - 1, 1 - ALPHA / 2) * np.sqrt(found.tau_squared + found.error**2)
    return {
        **told(found, effect),
        "prediction_covers": _covers(found.prediction_interval(), following),
        "random_effects_prediction": _covers((found.mean - half, found.mean + half), following),
    }


def told(found, effect):
    """Shares of the verdicts on means, of intervals that miss the effect above and below, also of one method alone."""
    low, high = found.interval(1 - ALPHA)
    quantile = stdtrit(found.num - 1, 1 - ALPHA / 2)

    def misses(mean, error):
        ends = mean - quantile * error, mean + quantile * error
        return max(float(np.mean(ends[0] > effect)), float(np.mean(ends[1] < effect)))

    same = found.p_equivalence(MARGIN) <= ALPHA
    differ = (found.p_difference() <= ALPHA) & ~same
    return {
        "helps": float(np.mean(differ & (found.mean > 0))),
        "hurts": float(np.mean(differ & (found.mean < 0))),
        "same": float(np.mean(same)),
        "above": float(np.mean(low > effect)),
        "below": float(np.mean(high < effect)),
        "random_effects_alone": misses(found.mean, found.error),
        "plain_mean_alone": misses(found.plain_mean, found.plain_error),
    }


def _covers(bounds, values):
    return float(np.mean((bounds[0] <= values) & (values <= bounds[1])))


def clustered(correlation, count, seed, *, is_clustered=True, tau=1.0, between_networks=0.5):
    """The same for four data sets with one, one, two and four comparisons, of different networks, and no effect.

    The errors of the comparisons of one data set have this correlation, and its networks have effects of their own.
    `is_clustered` false: each comparison is taken for a data set.
    """
    rng, sizes = np.random.default_rng(seed), (1, 1, 2, 4)
    means, errors = [], []
    for size in sizes:
        shape = (count, size)
        n, deviation = num_pairs("6 to 36", shape, rng), deviations("0.5 to 3", shape, rng)
        effect = tau * rng.standard_normal((count, 1)) + between_networks * rng.standard_normal(shape)
        noise = np.sqrt(correlation) * rng.standard_normal((count, 1))
        noise = noise + np.sqrt(1 - correlation) * rng.standard_normal(shape)
        mean = effect + deviation / np.sqrt(n) * noise
        error = deviation * np.sqrt(rng.chisquare(n - 1) / (n - 1) / n)
        means.append(mean.mean(1, keepdims=True) if is_clustered else mean)
        errors.append(error.mean(1, keepdims=True) if is_clustered else error)
    assert len(sizes) == LEAST_DATA_SETS
    return told(pooled(np.hstack(means), np.hstack(errors) ** 2), 0.0)


def several_arms(num_arms, num, count, seed, tau=1.0):
    """How often any of several arms without an effect, on runs of one baseline, is said to help or to hurt."""
    rng, wrong = np.random.default_rng(seed), Counter()
    shape = (num_arms, count, num)
    effects = tau * rng.standard_normal(shape)
    shared = rng.standard_normal((count, num))
    means = effects + (rng.standard_normal(shape) + shared) / np.sqrt(2 * 8)
    errors = rng.chisquare(7, shape) / 7 / 8
    found = pooled(means, errors)
    for p, mean in zip(found.p_difference().T, found.mean.T, strict=True):
        claims, _ = step_down(list(p), lambda _, left: ALPHA / left)
        for name, side in ((HELPS, 1), (HURTS, -1)):
            wrong[name] += any(claim and value * side > 0 for claim, value in zip(claims, mean, strict=True))
    return {name: wrong[name] / count for name in (HELPS, HURTS)}


def depends(effects, pairs, margin, count, seed):
    """How often comparisons with these true effects are said to depend on the data set: one helps and another hurts."""
    rng, wrong, effects = np.random.default_rng(seed), 0, np.asarray(effects, float)
    for _ in range(count):
        deviation = deviations("0.5 to 3", (1, len(effects)), rng)[0]
        if pairs.startswith("looks"):
            cases = [_ended(effect, s, margin, rng) for effect, s in zip(effects, deviation, strict=True)]
        else:
            n = num_pairs(pairs, (1, len(effects)), rng)[0]
            cases = [
                Case("arm", paired(effect + s * rng.standard_normal(m)), Schedule(int(m), int(m)))
                for effect, s, m in zip(effects, deviation, n, strict=True)
            ]
        verdicts = {case.verdict for case in decide(cases, margin)}
        wrong += {HELPS, HURTS} <= verdicts
    return wrong / count


def _ended(effect, deviation, margin, rng):
    """One comparison that ends at the first look that gives a verdict."""
    values = effect + deviation * rng.standard_normal(LOOKS.last)
    for look in LOOKS.looks():
        case = Case("arm", paired(values[:look]), LOOKS)
        if decide([case], margin)[0].verdict in (HELPS, HURTS, "no practical difference"):
            break
    return case
