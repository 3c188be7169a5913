"""How often pairs are doubted: live runs called dead, dead ones with a verdict, what the rule of four costs.

Each test image has its own probability of being classified right, beta-distributed with mean `accuracy` and
concentration 0.5: most images are always right or always wrong, as they are for trained networks, and all seeds share
them. The arm's probabilities are the baseline's moved towards 1 (effect in standard deviations of a difference).

    python benchmarks/independence.py [--count 4000] > benchmarks/results/independence_202611.md
"""

import argparse

import numpy as np

from whatwhere.experiment import Results, judge
from whatwhere.experiment.decide import UNKNOWN

IMAGES, ACCURACIES, PAIRS = (20, 100, 1_000, 10_000), (0.5, 0.7, 0.9, 0.97, 0.99), (6, 8, 12)
CONCENTRATION = 0.5
PLANTED = ("all alike", "all but one", "three copied", "constant difference")


def live(rng, num_images, accuracy, num_pairs, effect=0.0):
    """Return the shares of two arms, (2, num_pairs)."""
    chances = rng.beta(CONCENTRATION * accuracy, CONCENTRATION * (1 - accuracy), num_images)
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


def verdict(shares, digits):
    """Return the verdict on two arms, and its reason."""
    results = Results()
    for arm, figures in zip(("none", "cbam"), shares, strict=True):
        for seed, figure in enumerate(figures):
            results.add(arm, seed, {"accuracy": float(figure if digits is None else np.round(figure, digits))})
    arm = judge(results).arms[0]
    return arm.verdict, arm.reason


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4_000, help="comparisons a cell")
    count = parser.parse_args().count
    rng = np.random.default_rng(2026)
    print("# Pairs that are no independent draws: how often they are told, by simulation\n")
    print(f"`python benchmarks/independence.py --count {count}`. Per 1,000 comparisons, accuracies 0.5 to 0.99")
    print("(live: the worst of them in brackets), figures as k / n and with 4 decimals in turn. Live: no effect.\n")
    print("| images | pairs | live called dead | live refused by the rule of four | " + " | ".join(PLANTED) + " |")
    print("| ---: | ---: | ---: | ---: |" + " ---: |" * len(PLANTED))
    for num_images in IMAGES:
        for num_pairs in PAIRS:
            dead, four, got = [], [], {kind: [] for kind in PLANTED}
            for accuracy in ACCURACIES:
                told = []
                for index in range(count // (10 if num_images > 1000 else 1)):
                    shares, digits = live(rng, num_images, accuracy, num_pairs), (None, 4)[index % 2]
                    told.append(verdict(shares, digits)[1])
                    if index < count // 20:
                        for kind in PLANTED:
                            got[kind].append(verdict(planted(shares, kind), digits)[0] != UNKNOWN)
                dead.append(1000 * np.mean(["is no chance" in reason for reason in told]))
                four.append(1000 * np.mean(["are needed" in reason or "exactly equal" in reason for reason in told]))
            cells = [f"{np.mean(dead):.2f} ({max(dead):.2f})", f"{np.mean(four):.0f} ({max(four):.0f})"]
            cells += [f"{1000 * np.mean(got[kind]):.1f}" for kind in PLANTED]
            print(f"| {num_images:,} | {num_pairs} | {' | '.join(cells)} |", flush=True)
    print("\nPower: verdicts per 1,000 with an effect of 2 standard deviations, and what the rule")
    print("of four takes away (accuracy 0.9).\n")
    print("| images | pairs | with the rule | refused by it |")
    print("| ---: | ---: | ---: | ---: |")
    for num_images in IMAGES:
        for num_pairs in PAIRS:
            told = [verdict(live(rng, num_images, 0.9, num_pairs, 2.0), None) for _ in range(count // 4)]
            found = 1000 * np.mean([name != UNKNOWN for name, _ in told])
            refused = 1000 * np.mean(["are needed" in reason or "exactly equal" in reason for _, reason in told])
            print(f"| {num_images:,} | {num_pairs} | {found:.0f} | {refused:.0f} |", flush=True)


if __name__ == "__main__":
    main()
