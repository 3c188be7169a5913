import numpy as np
import pytest

from whatwhere import UserError
from whatwhere.experiment import compare


class Trainer:
    """Pretends to train: the figure follows from arm and seed."""

    def __init__(self, effect=0.02, noise=0.01, fail_at=None):
        self.effect, self.noise, self.fail_at, self.calls = effect, noise, fail_at, []

    def __call__(self, arm, seed):
        if len(self.calls) == self.fail_at:
            raise RuntimeError("killed")
        self.calls.append((arm, seed))
        base = np.random.default_rng(seed).normal(0.6, 0.01)
        own = np.random.default_rng([seed, len(arm)]).normal(0, self.noise)
        return {"accuracy": base + (self.effect + own) * (arm != "none"), "loss": 1 - base}


def test_any_function_is_compared_by_arm_and_seed():
    run = Trainer()
    comparison = compare(run, ["none", "cbam"], 8)
    assert sorted(run.calls) == sorted((arm, seed) for seed in range(8) for arm in ("none", "cbam"))
    (arm,) = comparison.judgement.arms
    assert arm.verdict == "helps"
    assert comparison.content["title"] == "comparison"
    by_seed = compare(lambda arm, seed: 0.5 + 0.01 * seed, ["a", "b"], [3, 5, 7, 9, 11, 13])
    assert by_seed.judgement.arms[0].seeds == tuple(map(str, (3, 5, 7, 9, 11, 13)))


def test_an_arm_against_itself_differs_by_exactly_nothing():
    (arm,) = compare(
        lambda arm, seed: float(np.random.default_rng(seed).normal(0.6, 0.1)), ["a", "b"], 6
    ).judgement.arms
    assert set(arm.differences) == {0.0}
    # which is no evidence: an arm that was not switched on looks just so
    assert (arm.verdict, arm.reason.partition(":")[0]) == ("cannot tell yet", "all 6 pairs are exactly equal")


@pytest.mark.parametrize("offset", range(5))
def test_an_arm_against_itself_with_other_seeds_neither_helps_nor_hurts(offset):
    def run(arm, seed):
        return float(np.random.default_rng(seed + 1000 * (offset + 1) * (arm == "b")).normal(0.9, 0.01))

    assert compare(run, ["a", "b"], 8).judgement.arms[0].verdict in ("no practical difference", "cannot tell yet")


def test_runs_are_kept_and_not_repeated(tmp_path):
    path = tmp_path / "results.csv"
    broken = Trainer(fail_at=7)
    with pytest.raises(RuntimeError, match="killed"):
        compare(broken, ["none", "cbam"], 8, results=path)
    rest = Trainer()
    resumed = compare(rest, ["none", "cbam"], 8, results=path)
    assert len(broken.calls) + len(rest.calls) == 16
    assert resumed.judgement == compare(Trainer(), ["none", "cbam"], 8).judgement
    # further seeds later: only these are run, and the verdict knows of the first look
    more = Trainer()
    later = compare(more, ["none", "cbam"], 12, results=path)
    assert [seed for _, seed in more.calls] == [8, 8, 9, 9, 10, 10, 11, 11]
    assert later.judgement.arms[0].plan.first == 8
    assert later.judgement.arms[0].level < resumed.judgement.arms[0].level


def test_planned_looks_go_on_until_it_can_be_told(tmp_path):
    run = Trainer(effect=0.002, noise=0.03)
    comparison = compare(run, ["none", "cbam"], 6, max_seeds=60, results=tmp_path / "r.csv")
    (arm,) = comparison.judgement.arms
    assert arm.verdict != "cannot tell yet" or arm.num_pairs == 60
    assert 6 < arm.num_pairs == len(run.calls) / 2
    assert arm.num_pairs % 6 == 0
    again = Trainer(effect=0.002, noise=0.03)
    assert (
        compare(again, ["none", "cbam"], 6, max_seeds=60, results=tmp_path / "r.csv").judgement == comparison.judgement
    )
    assert not again.calls
    few = Trainer(effect=0.3)
    assert compare(few, ["none", "cbam"], 2, max_seeds=12).judgement.arms[0].num_pairs == 6


def test_a_positive_control_is_named_before_the_first_run():
    found = compare(
        lambda arm, seed: 0.5 - 0.1 * (arm == "half") + seed**2 % 7 / 500, ["none", "half"], 6, controls=["half"]
    )
    assert found.judgement.arms[0].is_control
    with pytest.raises(UserError, match="'fewer' cannot be a positive control; arms with a baseline are: half"):
        compare(None, ["none", "half"], 6, controls=["fewer"])


def test_progress_is_told():
    told = []
    compare(lambda arm, seed: 0.5, ["a", "b"], 2, progress=lambda *run: told.append(run))
    assert told[0] == ("a", 0, {"accuracy": 0.5})
    assert len(told) == 4


@pytest.mark.parametrize(
    ("arms", "seeds", "options"),
    [
        (["a"], 8, {}),
        (["a", "b"], 0, {}),
        (["a", "b"], [1, 2], {"max_seeds": 8}),
        (["a", "b"], 8, {"max_seeds": 7}),
    ],
)
def test_impossible_comparisons_are_refused_before_a_run(arms, seeds, options, refused):
    run = Trainer()
    with refused():
        compare(run, arms, seeds, **options)
    assert not run.calls


@pytest.mark.parametrize("seeds", ["8", 8.0, True, None, ["a"], [0, 1.5], [True, False], 10_001, -1, b"8"])
def test_seeds_that_are_none_are_refused_before_a_run(seeds, tmp_path, refused):
    run = Trainer()
    with refused():
        compare(run, ["none", "cbam"], seeds, results=tmp_path / "results.csv")
    assert not run.calls
    assert list(tmp_path.iterdir()) == []


def test_seeds_may_be_numpys_integers():
    run = Trainer()
    compare(run, ["none", "cbam"], np.int64(2))
    compare(run, ["none", "cbam"], np.arange(2, 4))
    assert [seed for _, seed in run.calls] == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    "arms", ["none,cbam", b"ab", 5, None, ["none", ""], ["none", " x"], ["none", "a\nb"], ["a", 5]]
)
def test_arms_that_are_none_are_refused_before_a_run(arms, tmp_path, refused):
    run = Trainer()
    with refused():
        compare(run, arms, 8, results=tmp_path / "results.csv")
    assert not run.calls
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "terms",
    [
        {"metric": "arm"},
        {"metric": "Seed"},
        {"metric": ""},
        {"metric": "val_loss"},
        {"metric": "accuracy", "lower_is_better": True},
        {"lower_is_better": "yes", "metric": "x"},
        {"margin": 1e308},
        {"margin": "1"},
        {"metric": "loss"},
        {"baseline": "nobody"},
        {"max_seeds": 10**6},
    ],
)
def test_terms_that_cannot_be_judged_by_are_refused_before_a_run(terms, tmp_path, refused):
    run = Trainer()
    with refused():
        compare(run, ["none", "cbam"], 8, results=tmp_path / "results.csv", **terms)
    assert not run.calls
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "returned",
    [
        {"arm": 0.5},
        {" seed": 0.5},
        {"SEED": 0.5},
        {5: 0.5},
        {"accuracy": "0.5"},
        {"accuracy": True},
        {"accuracy": 1e308},
        {"accuracy": 10**400},
        "0.5",
        {"f1": 0.5, "auc": 0.5},
        {"val_loss": 0.5},
        {"score": 500.0},
    ],
)
def test_figures_that_are_none_are_refused_after_the_first_run_and_not_kept(returned, tmp_path, refused):
    calls = []
    path = tmp_path / "results.csv"
    with refused():
        compare(lambda arm, seed: calls.append(seed) or returned, ["none", "cbam"], 8, results=path)
    assert len(calls) == 1
    assert not path.exists()


def test_a_damaged_record_is_not_met_with_an_option_that_is_none(tmp_path, refused):
    (tmp_path / "results.verdict.json").write_text("[]")
    run = Trainer()
    with refused():
        compare(run, ["none", "cbam"], 8, results=tmp_path / "results.csv")
    assert not run.calls


def test_what_run_returns_must_be_figures(refused):
    with refused():
        compare(lambda arm, seed: None, ["a", "b"], 2)
