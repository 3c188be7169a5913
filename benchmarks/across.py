"""How often is a verdict across comparisons wrong, and what do its intervals cover? Simulated, decided as real ones.

    python benchmarks/across.py [--count 40000] [--jobs 2]

Figures are in points, the margin is 0.5. Each row is a simulation of its own, with its own seed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from harness import ROOT, refuse_unless_green, report, table

sys.path.append(str(ROOT / "tests" / "support"))
from data_sets import MARGIN, PAIRS, SPREADS, clustered, depends, several_arms, shares

NUMBERS = (4, 6, 8, 12)  # data sets
TAUS = (0.0, 0.25, 0.5, 1.0, 2.0)
EFFECTS = (0.0, MARGIN / 2, MARGIN)
COSTLY = 4  # single comparisons are decided one by one
DEPENDS = {
    "4 without an effect": [0.0] * 4,
    "12 without an effect": [0.0] * 12,
    "2 without, 2 of 2 points": [0.0] * 2 + [2.0] * 2,
    "6 without, 6 of 2 points": [0.0] * 6 + [2.0] * 6,
    "8 of 0.3 points": [0.3] * 8,
}
NAMES = ("helps", "hurts", "same", "above", "below", "random_effects_alone", "plain_mean_alone", "prediction_covers")
NAMES += ("random_effects_prediction",)


def run(job: tuple[int, str, dict[str, Any], int]) -> dict[str, Any]:
    """Return one row."""
    seed, part, options, count = job
    if part == "depends":
        found: dict[str, Any] = {"depends": depends(DEPENDS[options["effects"]], options["pairs"], MARGIN, count, seed)}
    else:
        simulate = {"clusters": clustered, "arms": several_arms}.get(part, shares)
        found = simulate(**options, count=count, seed=seed)
    labels = ("num", "pairs", "spread", "tau", "effect", "kind", "correlation", "is_clustered", "num_arms", "effects")
    return {
        "part": part,
        **{name: options.get(name, "") for name in labels},
        "count": count,
        **{name: round(found[name], 5) if name in found else "" for name in (*NAMES, "depends")},
    }


def jobs(count: int) -> list[tuple[int, str, dict[str, Any], int]]:
    """Return everything that is simulated."""
    cells = [
        {"num": num, "pairs": pairs, "spread": spread, "tau": tau}
        for num in NUMBERS
        for pairs in PAIRS
        for spread in SPREADS
        for tau in TAUS
    ]
    found = [("mean", {**cell, "effect": effect}, count) for cell in cells for effect in EFFECTS]
    found += [("power", {**cell, "effect": 1.0}, count) for cell in cells if cell["spread"] == SPREADS[1]]
    found += [
        ("skewed effects", {**cell, "effect": 0.0, "kind": "exponential"}, count)
        for cell in cells
        if cell["spread"] == SPREADS[1] and cell["pairs"] == PAIRS[1] and cell["tau"]
    ]
    found += [
        ("clusters", {"correlation": correlation, "is_clustered": is_clustered}, count)
        for correlation in (0.0, 0.5, 1.0)
        for is_clustered in (True, False)
    ]
    found += [("arms", {"num_arms": arms, "num": num}, count) for arms in (2, 4) for num in (4, 8)]
    found += [
        ("depends", {"effects": effects, "pairs": pairs}, count // COSTLY)
        for effects in DEPENDS
        for pairs in (PAIRS[1], PAIRS[4])
    ]
    return [(seed, *job) for seed, job in enumerate(found, 1)]


def bound(count: int) -> float:
    """Return 2.5 % plus three standard errors of a simulation."""
    return 0.025 + 3 * math.sqrt(0.025 * 0.975 / count)


def grouped(rows: Iterable[dict[str, Any]], *names: str) -> list[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Return the rows with each combination of these values."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return list(groups.items())


def most(rows: Sequence[dict[str, Any]], *names: str) -> str:
    return f"{max(row[name] for row in rows for name in names):.2%}"


def wrong(row: dict[str, Any]) -> float:
    """Return how often the likeliest wrong verdict comes up: on the mean, of its sign, or that it does not matter."""
    return max(
        row["helps"] if not row["effect"] else 0.0, row["hurts"], row["same"] if row["effect"] >= MARGIN else 0.0
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40_000, help="verdicts a row; a fourth for `it depends`")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    refuse_unless_green("tests/statistics/test_pooled.py", "tests/statistics/test_across.py")
    count = options.count
    with ProcessPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(run, jobs(count), chunksize=8))
    by_part = {part: found for (part,), found in grouped(rows, "part")}
    means = by_part["mean"]
    above = [row for row in means if wrong(row) > bound(count)]
    missing = [row for row in means if max(row["above"], row["below"]) > bound(count)]
    worst, short = max(means, key=wrong), min(means, key=lambda row: row["prediction_covers"])
    cells = [
        [
            f"{num}",
            pairs,
            most([row for row in found if row["effect"] == 0], "helps", "hurts"),
            most([row for row in found if row["effect"] == MARGIN], "same"),
            most(found, "above", "below"),
            most(found, "random_effects_alone"),
            most(found, "plain_mean_alone"),
            *(f"{min(row[name] for row in found):.1%}" for name in ("prediction_covers", "random_effects_prediction")),
        ]
        for (num, pairs), found in grouped(means, "num", "pairs")
    ]
    parts = [
        "# Verdicts across simulated data sets",
        f"`python benchmarks/across.py --count {count}`. {count:,} verdicts a row of the CSV; in points, margin "
        f"{MARGIN:g}. Each row here is the worst of {len(SPREADS)} spreads of the differences ({'; '.join(SPREADS)}), "
        f"{len(TAUS)} standard deviations between data sets (0 to 2) and true means of 0, {MARGIN / 2:g} and "
        f"{MARGIN:g}. Looks: each comparison ends at its own verdict.",
        f"The likeliest wrong verdict comes up in {wrong(worst):.2%} ({worst['num']} data sets, pairs: "
        f"{worst['pairs']}, deviations: {worst['spread']}, tau {worst['tau']:g}, mean {worst['effect']:g}); "
        f"{len(above)} of {len(means)} rows lie above 2.5 % plus three standard errors ({bound(count):.2%}), and the "
        f"interval misses the true mean on one side more often than that in {len(missing)}. The 95 % prediction "
        f"interval covers the effect in the next data set in {short['prediction_covers']:.1%} or more.",
        table(
            [
                "data sets",
                "pairs of each comparison",
                "mean 0: helps or hurts",
                "mean at the margin: no difference",
                "interval misses on one side",
                "of random effects alone",
                "of the plain mean alone",
                "prediction interval covers, least",
                "that of random effects alone",
            ],
            cells,
        ),
        "## One data set several times",
        "Four data sets with 1, 1, 2 and 4 comparisons, no effect on average, tau 1, networks differ by 0.5.",
        table(
            [
                "correlation of the errors within a data set",
                "helps or hurts",
                "if each comparison counted as a data set",
            ],
            [
                [f"{correlation:g}", *(most([row], "helps", "hurts") for row in found)]
                for (correlation,), found in grouped(by_part["clusters"], "correlation")
            ],
        ),
        "## Several arms",
        "No arm has an effect on average; the arms of a comparison share the runs of its baseline. Any arm:",
        table(
            ["arms", "data sets", "helps", "hurts"],
            [
                [f"{row['num_arms']}", f"{row['num']}", f"{row['helps']:.2%}", f"{row['hurts']:.2%}"]
                for row in by_part["arms"]
            ],
        ),
        "## It depends",
        f"No comparison has a negative effect, so that this verdict is wrong. {count // COSTLY:,} verdicts a row.",
        table(
            ["comparisons", "pairs of each comparison", "it depends"],
            [[row["effects"], row["pairs"], f"{row['depends']:.2%}"] for row in by_part["depends"]],
        ),
        "## What is found",
        f"Mean effect of 1 point, deviations {SPREADS[1]}: how often it helps on average, by tau.",
        table(
            ["data sets", "pairs of each comparison", *(f"tau {tau:g}" for tau in TAUS)],
            [
                [f"{num}", pairs, *(f"{row['helps']:.0%}" for row in found)]
                for (num, pairs), found in grouped(by_part["power"], "num", "pairs")
            ],
        ),
        "## Effects that are not normal",
        "True effects with the skewness of an exponential distribution, mean 0: the interval assumes normal ones.",
        table(
            ["data sets", "tau", "helps", "hurts", "prediction interval covers"],
            [
                [
                    f"{row['num']}",
                    f"{row['tau']:g}",
                    f"{row['helps']:.2%}",
                    f"{row['hurts']:.2%}",
                    f"{row['prediction_covers']:.1%}",
                ]
                for row in by_part["skewed effects"]
            ],
        ),
    ]
    report("across", "", parts, rows)


if __name__ == "__main__":
    main()
