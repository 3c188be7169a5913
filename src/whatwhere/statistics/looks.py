"""The looks of a comparison, and the part of its error that each look may spend."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..base.errors import UserError, check_integer

ALPHA = 0.05  # two-sided, over all looks and arms
MOST_SEEDS = 10_000  # and pairs
LEAST_PAIRS = 6  # with 5, the sign-flip test cannot go below 2 / 2**5 > 0.05
_FIRST_SHARE = 0.8
# with few pairs the significance-level approach exceeds alpha by up to 6 % of it (benchmarks/calibration.py)
_RESERVE = 0.94
_NUM_NODES = 200
_gauss_legendre = functools.cache(np.polynomial.legendre.leggauss)  # each time an eigenvalue problem


@dataclass(frozen=True)
class Schedule:
    """Looks at a growing number of pairs, fixed in advance; how much of alpha each spends, after Lan and DeMets.

    Verdicts are read at these looks alone, so that when and how often one looks in between changes nothing:

    - with a last look: at first, twice, three times first, ... and last pairs;
    - open, without one: at first, 1.5, 2, 3, 4, 6, 8, ... times first (rounded up), for ever.

    How much of alpha is spent by the time of n pairs is a function of n (Lan and DeMets, Biometrika 70, 1983):

    - with a last look theirs after Pocock, 0.94 alpha log(1 + (e - 1) n / last); with a single look all of alpha;
    - open, alpha (1 - first / (5 n)): 0.8 of it at the first look, the rest for pairs added later.

    From what a look adds follows the level of its test, by integration over the paths of a Brownian motion that no
    earlier look has stopped, and the t-test's p-value is compared with it (Pocock's significance-level approach;
    Jennison and Turnbull, Group Sequential Methods, 2000, sections 3.8 and 7.2). With few pairs that approach spends up
    to 6 % more than it should; hence 0.94. In the open schedule it does not show.

    Attributes:
        first: Pairs at the first look, from 6 to 10,000.
        last: Pairs at the last one; None leaves it open.

    Raises:
        UserError: Not an integer in these bounds, or last below first.
    """

    first: int
    last: int | None = None

    def __post_init__(self) -> None:
        check_integer("the pairs at the first look", self.first, least=LEAST_PAIRS, most=MOST_SEEDS)
        if self.last is not None:
            check_integer("the most pairs", self.last, most=MOST_SEEDS)
            if self.last < self.first:
                raise UserError(f"the most pairs, {self.last}, are fewer than those of the first look, {self.first}")

    def looks(self) -> Iterator[int]:
        """Yield the number of pairs at each look; without end for an open schedule."""
        if self.last is not None:
            yield from range(self.first, self.last, self.first)
            yield self.last
            return
        for doubling in itertools.count():
            yield self.first * 2**doubling
            yield -(-3 * self.first * 2**doubling // 2)

    def look_at(self, num_pairs: int) -> int | None:
        """Return the last look at `num_pairs` or fewer; None before the first."""
        return max(itertools.takewhile(lambda look: look <= num_pairs, self.looks()), default=None)

    def next_after(self, num_pairs: int) -> int | None:
        """Return the first look at more than `num_pairs`; None after the last."""
        return next((look for look in self.looks() if look > num_pairs), None)

    def spent(self, num_pairs: int, alpha: float = ALPHA) -> float:
        """Return the part of `alpha` that is spent up to the look at `num_pairs`."""
        if self.last is None:
            return alpha * (1 - (1 - _FIRST_SHARE) * self.first / num_pairs)
        if self.last == self.first:
            return alpha
        return _RESERVE * alpha * math.log1p((math.e - 1) * num_pairs / self.last)

    def level(self, look: int, alpha: float = ALPHA) -> float:
        """Return the two-sided level of the test at a look, where all looks together spend `alpha`."""
        looks = tuple(itertools.takewhile(lambda pairs: pairs <= look, self.looks()))
        assert looks[-1] == look, f"{look} is no look of {self}"
        return boundary_levels(looks, tuple(self.spent(num_pairs, alpha) for num_pairs in looks))[-1]


@functools.lru_cache(maxsize=4096)
def boundary_levels(looks: tuple[int, ...], spent: tuple[float, ...]) -> tuple[float, ...]:
    """Return the level of each look.

    That is the two-sided tail of the bound which a Brownian motion crosses there first with the probability to be spent
    there. The density of the paths not yet stopped is kept at Gauss-Legendre nodes between the bounds.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    if len(looks) == 1:
        return spent
    levels = boundary_levels(looks[:-1], spent[:-1])
    nodes, mass = _unstopped(looks[:-1], levels)
    increment = math.sqrt(looks[-1] - looks[-2])
    to_spend = spent[-1] - spent[-2]

    def excess(bound: float) -> float:
        edge = bound * math.sqrt(looks[-1])
        crossing = mass @ (ndtr((nodes - edge) / increment) + ndtr((-nodes - edge) / increment))
        return float(crossing) - to_spend

    if to_spend <= 0 or excess(0.0) <= 0:
        return (*levels, 0.0)
    bound = brentq(excess, 0.0, 40.0, xtol=1e-10)
    return (*levels, 2 * float(ndtr(-bound)))


@functools.lru_cache(maxsize=1024)
def _unstopped(looks: tuple[int, ...], levels: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and the probability mass there of the paths that no look up to the last of `looks` has stopped."""
    from scipy.special import ndtri

    x, weights = _gauss_legendre(_NUM_NODES)
    # a level of 0 has no bound; beyond 9 standard deviations nothing is left
    edge = min(9.0, -float(ndtri(levels[-1] / 2)) if levels[-1] > 0 else 9.0) * math.sqrt(looks[-1])
    nodes = edge * x
    if len(looks) == 1:
        density = _normal_density(nodes, math.sqrt(looks[0]))
    else:
        before, mass = _unstopped(looks[:-1], levels[:-1])
        density = _normal_density(nodes[:, None] - before, math.sqrt(looks[-1] - looks[-2])) @ mass
    return nodes, density * weights * edge


def _normal_density(x: np.ndarray, deviation: float) -> np.ndarray:
    return np.asarray(np.exp(-0.5 * (x / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi)))
