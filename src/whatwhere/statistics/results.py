"""Figures by arm and seed."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType

from ..base.errors import UserError
from ..base.limits import NAME_LETTERS
from ..base.tables import comma_separated
from ..base.words import brief, few
from .columns import ARM, BETWEEN_NOTES, COMPARED, HARDLY_BEGUN, MORE_EPOCHS, SEED, USE
from .derived import as_number
from .metric import check_figure
from .paired import PairedDifference


class Results:
    """The figures of each run: by arm, seed and metric.

    Arms stand in the order in which they were added, seeds by number, then text. The order of the seeds decides which
    pairs are the first, so it must not depend on any figure. A figure that is missing or not finite is a missing run;
    `missing` counts them all, with the reason of each.

    Attributes:
        notes: What the reader of the table left out, and what else a reader must know, as sentences.
        more_epochs: By arm, why it needs more epochs before it can be compared.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.more_epochs: dict[str, str] = {}
        self._figures: dict[str, dict[Hashable, dict[str, float]]] = {}
        self._not_finite: dict[tuple[str, Hashable, str], float] = {}
        self._seeds: set[Hashable] = set()
        self._first: list[Hashable] = []
        self._hardly_begun: set[tuple[str, Hashable]] = set()

    def put_first(self, seeds: Iterable[Hashable]) -> None:
        """Put these seeds before all others, in this order."""
        self._first = list(seeds)

    def add_arm(self, arm: str) -> None:
        """Add an arm without runs, if it is not there yet."""
        check_length(arm)
        self._figures.setdefault(arm, {})

    def add(self, arm: str, seed: Hashable, figures: Mapping[str, float], *, has_hardly_begun: bool = False) -> None:
        """Add a run. `has_hardly_begun` says that its attention changes hardly anything at its end.

        Raises:
            UserError: The run is there already, a figure is beyond 1e-100 and 1e100, or a name is too long.
        """
        for name in (arm, str(seed), *figures):
            check_length(name)
        for name, value in figures.items():
            if math.isfinite(value):
                check_figure(value, f"{name} of arm {brief(arm)} with seed {brief(seed)}")
        runs = self._figures.setdefault(arm, {})
        if seed in runs:
            raise UserError(f"arm {brief(arm)} has seed {brief(seed)} twice; a pair needs one run of each arm")
        runs[seed] = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
        self._not_finite |= {(arm, seed, name): figures[name] for name in figures.keys() - runs[seed].keys()}
        self._seeds.add(seed)
        if has_hardly_begun:
            self._hardly_begun.add((arm, seed))

    @property
    def arms(self) -> list[str]:
        """The arms, in order."""
        return list(self._figures)

    @property
    def seeds(self) -> list[Hashable]:
        """The seeds of any arm, in order."""
        first = [seed for seed in self._first if seed in self._seeds]
        return first + sorted(self._seeds - set(first), key=by_number)

    @property
    def metrics(self) -> list[str]:
        """The metrics of any run, in order."""
        runs = (figures for arm in self._figures.values() for figures in arm.values())
        return list(dict.fromkeys(name for figures in runs for name in figures))

    def runs(self, arm: str) -> Mapping[Hashable, dict[str, float]]:
        """Return the figures of an arm's runs, by seed."""
        return MappingProxyType(self._figures.get(arm, {}))  # no copy: it is asked for with each run

    def only(self, arms: Iterable[str], seeds: Iterable[Hashable]) -> Results:
        """Return the runs of these arms and seeds, in this order."""
        chosen, wanted = Results(), list(seeds)
        for arm in arms:
            chosen.add_arm(arm)
            for seed in wanted:
                if seed in self._figures.get(arm, {}):
                    idle = (arm, seed) in self._hardly_begun
                    chosen.add(arm, seed, self._figures[arm][seed], has_hardly_begun=idle)
        return chosen

    def hardly_used(self, arm: str, seeds: Sequence[Hashable]) -> bool:
        """Return whether the attention has hardly begun in half of an arm's runs with these seeds, or in more."""
        return 0 < len(seeds) <= 2 * sum((arm, seed) in self._hardly_begun for seed in seeds)

    def values(self, arm: str, metric: str) -> dict[Hashable, float]:
        """Return an arm's figures by seed."""
        runs = self._figures.get(arm, {})
        return {seed: runs[seed][metric] for seed in self.seeds if metric in runs.get(seed, {})}

    def paired(self, baseline: str, arm: str, metric: str, scale: float = 1.0) -> PairedDifference | None:
        """Return the complete pairs of two arms, in the order of the seeds; None if there are fewer than two."""
        a, b = self.values(baseline, metric), self.values(arm, metric)
        seeds = [seed for seed in a if seed in b]
        if len(seeds) < 2:
            return None
        return PairedDifference(
            tuple(seeds), tuple(scale * a[seed] for seed in seeds), tuple(scale * b[seed] for seed in seeds)
        )

    def missing(self, baseline: str, arm: str, metric: str) -> dict[str, dict[Hashable, str]]:
        """Return, for each of the two arms, the seeds without its figure, each with the reason, as "nan" or "no run".

        Seeds are those of any run of any arm, so that one that both arms lack is counted too.
        """
        lacking = {}
        for name in (baseline, arm):
            there = self.values(name, metric)
            lacking[name] = {seed: self._why_missing(name, seed, metric) for seed in self.seeds if seed not in there}
        return {name: seeds for name, seeds in lacking.items() if seeds}

    def _why_missing(self, arm: str, seed: Hashable, metric: str) -> str:
        if seed not in self._figures.get(arm, {}):
            return "no run"
        value = self._not_finite.get((arm, seed, metric))
        return "no figure" if value is None else f"{value:g}"

    def to_csv(self, *, with_notes: bool = False) -> str:
        """Return a line for each run: arm, seed, and a column for each metric.

        `with_notes` adds columns with `attention_use`, where a run has an attention that has hardly begun,
        `more_epochs`, where an arm needs them, and the notes, the same in each line.
        """
        metrics, longer = self.metrics, with_notes and bool(self.more_epochs)
        uses = with_notes and bool(self._hardly_begun)
        lines = [
            (
                arm,
                seed,
                *(repr(figures[name]) if name in figures else "" for name in metrics),
                *([HARDLY_BEGUN if (arm, seed) in self._hardly_begun else ""] if uses else []),
                *([self.more_epochs.get(arm, "")] if longer else []),
                *([BETWEEN_NOTES.join(self.notes)] if with_notes else []),
            )
            for arm, runs in self._figures.items()
            for seed, figures in runs.items()
        ]
        told = (*([USE] if uses else []), *([MORE_EPOCHS] if longer else []), *([COMPARED] if with_notes else []))
        return comma_separated((ARM, SEED, *metrics, *told), lines)


def by_number(seed: Hashable) -> tuple[float, str]:
    """Return what seeds are sorted by: their number, and words behind all numbers."""
    value = as_number(seed)
    return math.inf if value is None else value, str(seed)


def numbered(seeds: Sequence[Hashable]) -> str:
    """Return "seed 3", "seeds 3, 7"; the first few, and how many more there are."""
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {few([str(seed) for seed in seeds], 6)}"


def check_length(name: str) -> None:
    """Raise UserError if `name` is too long for an arm, a seed or a figure."""
    if len(name) > NAME_LETTERS:
        raise UserError(f"the name {brief(name)} has {len(name):,} letters; give one of at most {NAME_LETTERS}")
