"""Which arms hardly learned, or still learn: the figures of their runs of whatwhere tell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from .result import Result

_DEVIATIONS = 2.0  # standard deviations of guessing; a network above them has learned something
_NEAR = 0.1  # or this share of the way from guessing to everything right: with few images the deviations reach further
_SHARE_OF_RUNS = 0.25  # an arm is reported if so many of its runs guess
_FIFTH = 0.2
_FAST = 0.5  # of the average speed of learning


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
