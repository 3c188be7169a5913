"""Trainings that differ in nothing but chance, for real."""

import pytest

from comparisons import BACKBONE, OPTIONS, WithoutPictures
from whatwhere.base.screen import Silent
from whatwhere.experiment import compare
from whatwhere.statistics.paired import PairedDifference
from whatwhere.training.train import run_training


@pytest.fixture
def accuracy_of(patterns, tmp_path, monkeypatch):
    """Return the test accuracy of a training with a seed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def train(name, seed):
        result = run_training(
            str(patterns), {**OPTIONS, "model": BACKBONE, "epochs": 2, "seed": seed}, out=tmp_path / name,
            resume=False, dry_run=False, command="", screen=Silent(), folder_class=WithoutPictures,
        )  # fmt: skip
        return result["test"]["accuracy"]

    return train


def test_the_same_network_with_other_seeds_neither_helps_nor_hurts(accuracy_of, tmp_path):
    def run(arm, seed):
        return accuracy_of(f"{arm}-{seed}", seed + 1000 * (arm == "other seeds"))

    comparison = compare(run, ["none", "other seeds"], seeds=6, results=tmp_path / "results.csv")
    (arm,) = comparison.judgement.arms
    # chance there is, and it is not taken for an effect
    assert len(set(arm.differences)) > 1
    assert arm.verdict in ("no practical difference", "cannot tell yet")
    # so few test images may leave no interval to decide by
    low, high = PairedDifference(arm.seeds, arm.baseline, arm.treatment).interval()
    assert low < 0 < high


def test_the_same_network_with_the_same_seeds_comes_to_the_same(accuracy_of):
    comparison = compare(lambda arm, seed: accuracy_of(f"{arm}-{seed}", seed), ["none", "again"], seeds=6)
    (arm,) = comparison.judgement.arms
    assert set(arm.differences) == {0.0}
    assert (arm.verdict, arm.reason.partition(":")[0]) == ("cannot tell yet", "all 6 pairs are exactly equal")
