"""How often pairs are doubted: live runs called dead, dead ones with a verdict, what the rule of four costs.

Each test image has its own probability of being classified right, beta-distributed with mean `accuracy` and
concentration 0.5, or 0.1: most images are always right or always wrong, as they are for trained networks, and all seeds
share them. The arm's probabilities are the baseline's moved towards 1 (effect in standard deviations of a difference).

    python benchmarks/independence.py [--count 4000] > benchmarks/results/independence_202611.md
"""

import argparse

import numpy as np

from whatwhere.experiment import Results, judge
from whatwhere.statistics.decide import UNKNOWN
from whatwhere.statistics.independence import doubt_about
from whatwhere.statistics.metric import METRICS

IMAGES, ACCURACIES, PAIRS = (20, 100, 1_000, 10_000), (0.5, 0.7, 0.9, 0.97, 0.99), (6, 8, 12)
CONCENTRATIONS = (0.5, 0.1)  # the smaller, the more images are always right or always wrong
FEW = "are needed", "exactly equal"  # what the rule of four says, and nothing worse
PLANTED = ("all alike", "all but one", "three copied", "constant difference")


def live(rng, num_images, accuracy, num_pairs, effect=0.0, concentration=0.5):
    """Return the shares of two arms, (2, num_pairs)."""
    chances = rng.beta(concentration * accuracy, concentration * (1 - accuracy), num_images)
    spread = np.sqrt(2 * (chances * (1 - chances)).sum()) / num_images
    moved = chances + (1 - chances) * min(1.0, effect * spread / max(1e-9, 1 - chances.mean()))
    return np.stack([(rng.random((num_pairs, num_images)) < p).mean(1) for p in (chances, moved)])


def planted(shares, kind):
    """Return shares as a trainer without a seed, or a copied file, would leave them."""
    shares = shares.copy()
    if kind == "constant difference":
        shares[1] = shares[0] - 0.01
    elif kind == "three copied":
        shares = np.resize(shares[:, :3].T, shares.T.shape).T
    else:
        shares[:, kind == "all but one" :] = shares[:, -1:]
    return shares


def results_of(shares, digits):
    """Return what a table of these shares, rounded to `digits`, holds."""
    results = Results()
    for arm, figures in zip(("none", "cbam"), shares, strict=True):
        for seed, figure in enumerate(figures):
            results.add(arm, seed, {"accuracy": float(figure if digits is None else np.round(figure, digits))})
    return results


def verdict(shares, digits):
    """Return the verdict on two arms, and its reason."""
    arm = judge(results_of(shares, digits)).arms[0]
    return arm.verdict, arm.reason


def doubt(shares, digits, num_images):
    """Return why there could be no verdict; "" if there could."""
    found = doubt_about(
        results_of(shares, digits), METRICS["accuracy"], "none", "cbam", range(shares.shape[1]), num_images
    )
    return "" if found is None else found.reason


def is_few(reason):
    """Return whether a reason is that of the rule of four."""
    return any(words in reason for words in FEW)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4_000, help="comparisons a cell")
    count = parser.parse_args().count
    rng = np.random.default_rng(2026)
    print("# Pairs that are not independent: how often they are told, by simulation\n")
    print(
        f"`python benchmarks/independence.py --count {count}`. Per 1,000 comparisons, accuracies 0.5 to 0.99 (live: the"
    )
    print("worst of them in brackets), figures as k / n and with 4 decimals in turn. Live: no effect; called dead with")
    print("the number of test images unknown and known (`--test-images`).\n")
    print("| concentration | images | pairs | live called dead | images known | refused by the rule of four |")
    print("| ---: |" + " ---: |" * 5)
    for concentration in CONCENTRATIONS:
        for num_images in IMAGES:
            for num_pairs in PAIRS:
                told = {"dead": [], "known": [], "four": []}
                for accuracy in ACCURACIES:
                    unknown, known = [], []
                    for index in range(count):
                        shares = live(rng, num_images, accuracy, num_pairs, concentration=concentration)
                        unknown.append(doubt(shares, (None, 4)[index % 2], None))
                        known.append(doubt(shares, (None, 4)[index % 2], num_images))
                    told["dead"].append(1000 * np.mean([bool(why) and not is_few(why) for why in unknown]))
                    told["known"].append(1000 * np.mean([bool(why) and not is_few(why) for why in known]))
                    told["four"].append(1000 * np.mean([is_few(why) for why in unknown]))
                cells = [f"{np.mean(found):.4g} ({max(found):.4g})" for found in told.values()]
                print(f"| {concentration:g} | {num_images:,} | {num_pairs} | {' | '.join(cells)} |", flush=True)
    print("\nPlanted: how many of 1,000 that cannot be independent draws got a verdict.\n")
    print("| images | pairs | " + " | ".join(PLANTED) + " |")
    print("| ---: | ---: |" + " ---: |" * len(PLANTED))
    for num_images in IMAGES:
        for num_pairs in PAIRS:
            got = {kind: [] for kind in PLANTED}
            for accuracy in ACCURACIES:
                for index in range(count // 20):
                    shares = live(rng, num_images, accuracy, num_pairs)
                    for kind in PLANTED:
                        got[kind].append(verdict(planted(shares, kind), (None, 4)[index % 2])[0] != UNKNOWN)
            cells = [f"{1000 * np.mean(got[kind]):.1f}" for kind in PLANTED]
            print(f"| {num_images:,} | {num_pairs} | {' | '.join(cells)} |", flush=True)
    print("\nPower: verdicts per 1,000 with an effect of 2 standard deviations, and what the rule")
    print("of four takes away (accuracy 0.9).\n")
    print("| images | pairs | with the rule | refused by it |")
    print("| ---: | ---: | ---: | ---: |")
    for num_images in IMAGES:
        for num_pairs in PAIRS:
            told = [verdict(live(rng, num_images, 0.9, num_pairs, 2.0), None) for _ in range(count // 4)]
            found = 1000 * np.mean([name != UNKNOWN for name, _ in told])
            refused = 1000 * np.mean([is_few(reason) for _, reason in told])
            print(f"| {num_images:,} | {num_pairs} | {found:.0f} | {refused:.0f} |", flush=True)


if __name__ == "__main__":
    main()
