"""Comparisons of simulated pairs, decided as `whatwhere.experiment` decides real ones."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from whatwhere.experiment import PairedDifference, Results, Schedule
from whatwhere.statistics.decide import UNKNOWN, Case, decide, pairs_to_settle
from whatwhere.statistics.history import Record, judge_again

BUDGET = 128  # pairs; nobody in these simulations trains more


def differences(kind, shape, effect, rng):
    """Differences of mean `effect` and standard deviation 1."""
    if kind == "normal":
        return effect + rng.standard_normal(shape)
    if kind == "exponential":
        return effect + rng.exponential(size=shape) - 1
    assert kind == "lognormal", kind
    return effect + (np.exp(rng.standard_normal(shape)) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)


def paired(values):
    return PairedDifference(tuple(range(len(values))), (0.0,) * len(values), tuple(map(float, values)))


@dataclass
class Tally:
    """Counts over simulated comparisons."""

    verdicts: Counter = field(default_factory=Counter)
    num_pairs: int = 0
    covered_95: int = 0  # by the 95 % interval at the last look
    covered: int = 0  # by the interval that decides there
    skewed: int = 0
    total: int = 0

    def add(self, verdict, pairs, level, effect):
        self.total += 1
        self.verdicts[verdict] += 1
        self.num_pairs += len(pairs)
        for name, confidence in (("covered_95", 0.95), ("covered", 1 - level)):
            low, high = pairs.interval(confidence)
            setattr(self, name, getattr(self, name) + (low <= effect <= high))
        self.skewed += abs(pairs.skewness()) > 2

    def share(self, verdict):
        return self.verdicts[verdict] / self.total


def simulate(policy, first, count, *, kind="normal", effect=0.0, margin=0.0, last=None, seed=2026):
    """Return the tally of `count` comparisons whose pairs are looked at under Schedule(first, last).

    `policy`: "once" looks at `first` pairs and ends; the others add pairs while it cannot be told: "next" up to the
    next look, "low" and "high" up to the lower and the upper end of the range that is advised.
    """
    rng, schedule, tally = np.random.default_rng(seed), Schedule(first, last), Tally()
    most = first if policy == "once" else last or BUDGET
    for values in differences(kind, (count, most), effect, rng):
        num_pairs = first
        while True:
            pairs = paired(values[: schedule.look_at(num_pairs)])
            case = Case("arm", pairs, schedule)
            (decision,) = decide([case], margin)
            if decision.verdict != UNKNOWN or num_pairs == most:
                break
            num_pairs = min(_further(policy, decision, num_pairs, margin), most)
        tally.add(decision.verdict, pairs, decision.level, effect)
    return tally


def _further(policy, case, num_pairs, margin):
    following = case.schedule.next_after(num_pairs)
    advised = pairs_to_settle(case, margin) if policy in ("low", "high") else None
    if advised is None:
        return BUDGET if following is None else following
    return advised[0] if policy == "low" else advised[1] or BUDGET


def simulate_arms(num_arms, first, last, count, *, stops_early, seed=2026):
    """Return how many of `count` comparisons of arms that all equal the baseline call any arm helping, or hurting.

    Judged look by look as files are, from Results and the record of the verdict before; the arms share the baseline's
    runs. `stops_early`: an arm that is told keeps the pairs it has, as `whatwhere compare` leaves it.
    """
    rng, wrong = np.random.default_rng(seed), Counter()
    terms = {"metric": "score", "lower_is_better": False, "baseline": "none", "margin": 0.0}
    arms = [f"arm{index}" for index in range(num_arms)]
    for values in rng.standard_normal((count, last, num_arms + 1)):
        results, record, going_on, there = Results(), None, list(arms), 0
        for look in range(first, last + 1, first):
            for number in range(there, look):
                for arm, value in zip(["none", *arms], values[number], strict=True):
                    if arm == "none" or arm in going_on:
                        results.add(arm, str(number), {"score": value})
            there = look
            judgement, changes = judge_again(
                results, record, first_look=None if record else first, max_pairs=last, terms=terms
            )
            record = Record(judgement, tuple(changes))
            told = [arm.arm for arm in judgement.arms if arm.verdict != UNKNOWN]
            if stops_early:
                going_on = [arm for arm in arms if arm not in told]
            if len(told) == num_arms:
                break
        for verdict in {arm.verdict for arm in judgement.arms}:
            wrong[verdict] += 1
    return wrong
