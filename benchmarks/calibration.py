"""How often is a verdict wrong, and how often does it come? Simulated comparisons, decided as real ones are.

    python benchmarks/calibration.py [--count 100000] [--jobs 2]

Differences have a standard deviation of 1; "helps" is wrong where the effect is 0. Each row is a simulation of its own,
with its own seed.
"""

from __future__ import annotations

import argparse
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from harness import ROOT, environment, refuse_unless_green, report, table

sys.path.append(str(ROOT / "tests" / "support"))
from simulations import BUDGET, simulate

HELPS, HURTS, SAME, UNKNOWN = "helps", "hurts", "no practical difference", "cannot tell yet"
# where advice is computed for every comparison
COSTLY = 5


@dataclass(frozen=True)
class Setting:
    """One simulation: what it shows, and the arguments of `simulate`."""

    part: str
    policy: str
    first: int
    options: dict[str, Any] = field(default_factory=dict)
    share: int = 1  # of the comparisons, one in so many


def settings() -> list[Setting]:
    """Return everything that is simulated."""
    sizes = (6, 7, 8, 10, 12, 15, 20, 25, 30)
    rows = [Setting("one look, all alpha", "once", n, {"last": n}) for n in sizes]
    rows += [Setting("first look of an open plan", "once", n) for n in sizes]
    rows += [
        Setting("planned looks", "next", first, {"last": last})
        for first, last in ((6, 12), (6, 18), (6, 30), (8, 16), (8, 24), (8, 40), (10, 30), (12, 24))
    ]
    rows += [
        Setting(f"following the advice ({policy})", policy, n, {"margin": margin}, COSTLY)
        for policy in ("next", "low", "high")
        for n in (6, 8, 12, 20, 30)
        for margin in (0.0, 0.5)
    ]
    rows += [
        Setting(f"skewed: {kind}", "once", n, {"kind": kind, "last": n})
        for kind in ("exponential", "lognormal")
        for n in (6, 8, 12, 20, 30)
    ]
    rows += [
        Setting(f"power, effect {effect:g}", policy, n, {"effect": effect, "last": last, "margin": 0.25}, COSTLY)
        for effect in (0.5, 1.0)
        for policy, n, last in (
            *(("once", n, n) for n in (6, 8, 12, 16, 24, 30)),
            ("once", 8, None),
            ("next", 8, 24),
            ("next", 8, None),
        )
    ]
    rows += [
        Setting("effect at the margin", "next", n, {"effect": 0.5, "margin": 0.5, "last": last}, COSTLY)
        for n, last in ((8, 24), (8, None))
    ]
    return rows


def run(job: tuple[int, Setting, int]) -> dict[str, object]:
    """Return one row."""
    seed, setting, count = job
    count //= setting.share
    tally = simulate(setting.policy, setting.first, count, seed=seed, **setting.options)
    return {
        "part": setting.part,
        "first": setting.first,
        "last": setting.options.get("last", "open"),
        "margin": setting.options.get("margin", 0.0),
        "count": count,
        **{verdict.replace(" ", "_"): tally.share(verdict) for verdict in (HELPS, HURTS, SAME, UNKNOWN)},
        "mean_pairs": tally.num_pairs / count,
        "covered_95": tally.covered_95 / count,
        "covered_deciding": tally.covered / count,
        "looks_skewed": tally.skewed / count,
    }


def bound(count: int) -> float:
    """Return 2.5 % plus three standard errors of a simulation."""
    return 0.025 + 3 * math.sqrt(0.025 * 0.975 / count)


def lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return table lines."""
    return [
        [
            str(row["part"]),
            f"{row['first']} to {row['last'] or 'open'}" if row["last"] != row["first"] else str(row["first"]),
            f"{row['margin']:g}",
            f"{row['helps']:.2%}",
            f"{row['hurts']:.2%}",
            f"{row['no_practical_difference']:.1%}",
            f"{row['cannot_tell_yet']:.1%}",
            f"{row['mean_pairs']:.1f}",
            f"{row['covered_95']:.1%}",
            f"{row['covered_deciding']:.1%}",
            f"{row['looks_skewed']:.1%}",
        ]
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--count", type=int, default=100_000, help="comparisons a row; a fifth where advice is followed"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    refuse_unless_green("tests/statistics")
    jobs = [(index + 1, setting, options.count) for index, setting in enumerate(settings())]
    with ProcessPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(run, jobs))
    null = [row for row in rows if row["part"].startswith(("one look", "first look", "planned", "following"))]
    above = [row for row in null if max(row["helps"], row["hurts"]) > bound(row["count"])]
    header = ["", "pairs", "margin", HELPS, HURTS, SAME, UNKNOWN, "mean pairs", "95 % interval covers"]
    header += ["deciding interval covers", "called skewed"]
    most, part, first, last = max(
        (max(row["helps"], row["hurts"]), row["part"], row["first"], row["last"]) for row in null
    )
    few = options.count // COSTLY
    parts = [
        "# Verdicts on simulated comparisons",
        f"{environment('cpu')}. {options.count:,} comparisons a row, {few:,} where advice is followed or power is "
        "shown; differences of standard deviation 1, one arm against the baseline; margin in the same unit.",
        f'Without an effect, normal differences: "helps" or "hurts" at most {most:.2%} ({part}, {first} to {last}); '
        f"{len(above)} of {len(null)} rows lie above 2.5 % plus three standard errors ({bound(options.count):.2%}, "
        f"{bound(few):.2%} with the smaller count).",
        "Following the advice: while it cannot be told, pairs are added up to the next look, or up to the lower or the "
        f"upper end of the range that is advised, as far as {BUDGET} pairs.",
        table(header, lines(rows)),
    ]
    report("calibration", "cpu", parts, rows)


if __name__ == "__main__":
    main()
