"""Figures that were computed from other figures are no runs."""

import statistics
from pathlib import Path

import numpy as np
import pytest

from whatwhere.experiment import Results, judge, read_results
from whatwhere.statistics.derived import derived_notes, odd_seed

CASES = Path(__file__).parent / "cases"
STATISTICS = {
    "the mean": statistics.fmean,
    "the median": statistics.median,
    "the largest": max,
    "the smallest": min,
    "the standard deviation": statistics.stdev,
}


def test_rows_of_means_and_bests_are_refused_by_their_line(refused):
    with refused():
        read_results(CASES / "derived-rows.csv")


@pytest.mark.parametrize(
    "word",
    ["mean", "Best", "worst", "std", "avg", "avg.", "max", "mean±std", "overall", "average", "Ø", "均值", "标准差",
     "25%", "best of 5", "x", "nan", "0-4", "final", "Mittelwert", "1+2", "inf"],
)  # fmt: skip
def test_a_word_among_numbers_is_no_seed(word, refused):
    assert odd_seed(["0", "1", word, "2"])[0] == word
    # also where there are more of them than runs
    assert odd_seed(["0", "1", word, "mean"])[0] in (word, "mean")
    results = table({"none": (0.7, 0.71, 0.69), "cbam": (0.72, 0.7, 0.71)})
    for arm in results.arms:
        results.add(arm, word, {"accuracy": 0.7})
    with refused():
        judge(results)


@pytest.mark.parametrize(
    ("seeds", "odd"),
    [
        (("fold-a", "fold-b", "mean"), "mean"),
        (("Berlin", "Paris", "Rom", "Ø"), "Ø"),
        (("甲", "乙", "丙", "平均"), "平均"),
        (("a", "b", "mean±std"), "mean±std"),
        (("fold1", "fold2", "macro avg"), "macro avg"),
        (("fold1", "fold2", "fold3", "Alles"), "Alles"),
        (("seed 0", "seed 1", "seed 2", "seed 10", "zusammen"), "zusammen"),
    ],
)
def test_a_word_unlike_the_others_is_no_seed(seeds, odd):
    assert odd_seed(seeds)[0] == odd


@pytest.mark.parametrize(("seed", "other"), [("3.0", "3"), ("03", "3"), ("Fold 1", "fold_1"), ("fold1", "fold1 ")])
def test_one_seed_in_two_spellings_is_refused(seed, other):
    """Its runs made no pair, and counted as missing."""
    odd, told = odd_seed(["7", other, seed])
    assert odd in (seed, other)
    assert told.startswith("seeds ")
    assert "are spellings of one" in told


@pytest.mark.parametrize(
    "seeds",
    [
        (),
        ("0", "1", "2.5", "-3", "1e3"),
        (0, 1, 2),
        ("3", "-3"),
        ("12345678901234567890", "12345678901234567891"),
        ("fold-a", "fold-b", "fold-c"),
        ("a", "b", "x"),
        ("fold1", "fold2", "fold10"),
        ("CIFAR10", "CIFAR100", "SVHN", "Food101", "Pets"),
        ("a91f0c3", "f0c3a91", "c3f0a91"),
        ("Berlin", "Paris", "site 3"),
        ("5 min", "10 min", "20 min"),
        ("max-a", "max-b"),
        ("alpha", "beta", "gamma", "delta"),
        ("top-left", "top-right", "bottom-left"),
        ((0, 1), (1, 0)),
    ],
    ids=str,
)
def test_seeds_that_are_all_numbers_or_all_words_are_seeds(seeds):
    assert odd_seed(seeds) is None


def table(figures, metric="accuracy"):
    results = Results()
    for arm, values in figures.items():
        for seed, value in enumerate(values):
            results.add(arm, seed, {metric: value})
    return results


def live(rng, num_arms, num_pairs, num_images, decimals=None):
    """Accuracies as trainings give them: a share of so many images, the seeds' luck shared by the arms."""
    seeds = rng.normal(0, 0.007, num_pairs)
    figures = {}
    for arm in range(num_arms):
        chance = np.clip(0.8 + seeds + rng.normal(0, 0.007, num_pairs), 0, 1)
        shares = rng.binomial(num_images, chance) / num_images
        figures[f"arm {arm}"] = [float(share if decimals is None else round(share, decimals)) for share in shares]
    return figures


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("decimals", [None, 4])
def test_a_numbered_row_that_is_a_statistic_of_the_others_is_told(name, decimals):
    for trial in range(20):
        figures = live(np.random.default_rng(trial), 4, 8, 10_000, decimals)
        assert derived_notes(table(figures), "accuracy") == []
        for values in figures.values():
            value = STATISTICS[name](values)
            values.append(value if decimals is None else round(value, decimals))
        # of two that are equal in every arm, each is the largest of the others
        note = derived_notes(table(figures), "accuracy")[-1]
        assert note.startswith(f"seed 8 is {name} of other seeds in every arm: ")
        assert note in judge(table(figures)).cautions


def test_several_such_rows_one_below_the_other_are_told():
    figures = live(np.random.default_rng(0), 2, 6, 10_000)
    for values in figures.values():
        runs = list(values)
        values += [statistics.fmean(runs), max(runs), statistics.stdev(runs)]
    notes = derived_notes(table(figures), "accuracy")
    assert notes[0].startswith("seed 6 is the mean of other seeds")
    assert any(note.startswith("seed 7 is the largest of other seeds") for note in notes)


def test_coincidences_in_live_figures_are_passed_over():
    rng, told = np.random.default_rng(0), 0
    for num_images, decimals in ((20, None), (100, 2), (1000, None), (1000, 3), (10_000, 4)):
        for num_arms, num_pairs in ((2, 6), (2, 12), (4, 8)):
            told += sum(
                bool(derived_notes(table(live(rng, num_arms, num_pairs, num_images, decimals)), "accuracy"))
                for _ in range(60)
            )
    assert told <= 3  # of 900


@pytest.mark.parametrize(
    "figures",
    [
        {"none": [0.7512] * 8, "cbam": [0.7712] * 8},
        {"none": [0.75, 0.8, 0.75, 0.8, 0.8, 0.8, 0.8, 0.8], "cbam": [0.85, 0.8, 0.85, 0.9, 0.75, 0.75, 0.8, 0.8]},
        {"none": [0.0] * 6, "cbam": [0.0] * 6, "se": [0.0] * 6},
    ],
)
def test_coarse_or_equal_figures_are_passed_over(figures):
    assert derived_notes(table(figures), "accuracy") == []


def test_an_arm_computed_from_others_is_told():
    figures = live(np.random.default_rng(1), 3, 6, 1000, 3)
    none, cbam, se = figures.values()
    assert derived_notes(table(figures), "accuracy") == []
    difference = {**figures, "delta": [round(b - a, 3) for a, b in zip(none, cbam, strict=True)]}
    assert derived_notes(table(difference), "accuracy") == [
        "arm delta is arm 1 minus arm 0 with every seed: if it was computed from them, take it out"
    ]
    mean = {**figures, "mean": [round(statistics.fmean(each), 4) for each in zip(none, cbam, se, strict=True)]}
    assert derived_notes(table(mean), "accuracy") == [
        "arm mean is the mean of the others with every seed: if it was computed from them, take it out"
    ]
    best = {**figures, "best": [max(each) for each in zip(none, cbam, se, strict=True)]}
    assert derived_notes(table(best), "accuracy") == [
        "arm best is the largest of the others with every seed: if it was computed from them, take it out"
    ]
    # an arm may be called so: pools are
    assert derived_notes(table(dict(zip(("avg", "max", "mean"), figures.values(), strict=True))), "accuracy") == []


def test_totals_and_heads_among_the_lines_are_refused(tmp_path, refused):
    path = tmp_path / "results.csv"
    runs = "arm,seed,accuracy\nnone,0,0.71\ncbam,0,0.72\n"
    for line in ("total,,0.715", ",mean,0.715", "arm,seed,accuracy", "mean of 2 runs"):
        path.write_text(f"{runs}{line}\n")
        with refused():
            read_results(path)
