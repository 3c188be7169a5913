"""Comparisons spread over machines, with searched learning rates, and with arms that are code."""

import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap

import pytest
from safetensors.torch import save_file

from comparisons import BACKBONE, OPTIONS, WithoutPictures
from pictures import make_folder
from processes import environment
from whatwhere import UserError, create_model
from whatwhere.base.screen import Silent
from whatwhere.comparison.arms import parse_arms
from whatwhere.comparison.planning import Request
from whatwhere.comparison.runs import Share
from whatwhere.training.bundle import load_bundle, save_bundle
from whatwhere.training.train import run_training
from whatwhere.training.trainer import Diverged

RATES = (0.01, 0.3)


def without_times(content):
    """Return the content of a verdict without what a clock or a folder's name decides."""
    runs = [{**run, "seconds": 0} for run in content["runs"]]
    settings = [
        [panel, [[name, value] for name, value in values if name != "began"]] for panel, values in content["settings"]
    ]
    return json.loads(json.dumps({**content, "cost": None, "runs": runs, "settings": settings}))


def result_of(compared, folder):
    return compared.read(f"{folder}/result.json")


def test_shares_come_to_the_same_verdict(compared, tmp_path):
    whole = without_times(compared("none,se", seeds=3))
    compared.out = tmp_path / "shares"
    assert compared("none,se", seeds=3, shard=(2, 2)) is None
    assert compared.trained == ["runs/none/seed-1", "runs/se/seed-1"]
    # which the first share measures
    assert not (compared.out / "cost.json").exists()
    assert compared("none,se", seeds=3, shard=(1, 2)) is None
    assert compared.trained == [f"runs/{arm}/seed-{seed}" for seed in (0, 2) for arm in ("none", "se")]
    assert not (compared.out / "verdict.json").exists()
    collected = compared.collect()
    assert without_times(collected) == whole
    assert compared.read("verdict.json") == json.loads(json.dumps(collected))


def test_shares_from_folders_of_their_own_are_put_together(compared, tmp_path):
    compared.figures = lambda arm, seed: 0.8
    folders = [tmp_path / f"machine {index}" for index in (1, 2)]
    for index, compared.out in enumerate(folders, start=1):
        compared("none,se", seeds=4, shard=(index, 2))
    shutil.copytree(folders[1] / "runs", folders[0] / "runs", dirs_exist_ok=True)
    compared.out = folders[0]
    assert len(compared.collect()["runs"]) == 8


def test_a_share_says_which_of_its_runs_failed(compared, refused):
    def fail(arm, seed):
        if (arm, seed) == ("se", "2"):
            raise UserError("the loss is nan")

    compared.figures, compared.before = lambda arm, seed: 0.8, fail
    with refused():
        compared("none,se", seeds=6, shard=(1, 2))
    assert len(compared.trained) == 6


def test_every_arm_gets_the_best_of_the_same_learning_rates(compared, refused):
    content = compared("none,se", seeds=2, lr_search=RATES)
    search = [f"search/{arm}/lr-{rate:g}" for arm in ("none", "se") for rate in RATES]
    assert compared.trained == search + [f"runs/{arm}/seed-{seed}" for seed in (0, 1) for arm in ("none", "se")]
    results = {folder: result_of(compared, folder) for folder in search}
    assert all("test" not in result and result["judged_on"] == "val" for result in results.values())
    # other images and another start than any run of the comparison
    assert compared.read(f"{search[0]}/run.json")["config"]["seed"] == 1_000_000
    chosen = {}
    for arm in ("none", "se"):
        scores = {rate: results[f"search/{arm}/lr-{rate:g}"]["val"]["accuracy"] for rate in RATES}
        chosen[arm] = max(scores, key=scores.get)
        assert compared.read("compare.json")["arm_options"][arm]["lr"] == chosen[arm]
        assert compared.run(arm, 1)["config"]["lr"] == chosen[arm]
        end = "lowest" if chosen[arm] == min(RATES) else "highest"
        caution = f"{arm} chose the {end} learning rate of the search, {chosen[arm]:g}; search beyond it"
        assert caution in content["cautions"]
    assert "learning rates: " + ", ".join(f"{arm} {rate:g}" for arm, rate in chosen.items()) in compared.lines
    assert compared("none,se", seeds=2, lr_search=RATES) == content
    assert compared.trained == []
    with refused():
        compared("none,se", seeds=2, lr_search=(0.1, 0.2))


def prefers(best):
    """Pretended figures: the nearer the learning rate is to the arm's best, the better."""
    return lambda arm, seed: 0.9 - abs(float(seed) - best[arm]) if "." in seed else 0.8


@pytest.fixture
def searching(compared):
    compared.figures = prefers({"none": 0.1, "se": 0.2, "cbam": 0.3})
    return compared


def rates(compared):
    return {arm: options.get("lr") for arm, options in compared.read("compare.json")["arm_options"].items()}


def test_a_later_arm_is_searched_as_well_and_the_others_stay(searching):
    searching("none,se", seeds=2, lr_search=(0.1, 0.2, 0.3))
    assert rates(searching) == {"none": 0.1, "se": 0.2}
    searching("none,se,cbam", seeds=2)
    assert searching.trained == [
        *(f"search/cbam/lr-{rate}" for rate in (0.1, 0.2, 0.3)), "runs/cbam/seed-0", "runs/cbam/seed-1"
    ]  # fmt: skip
    assert rates(searching) == {"none": 0.1, "se": 0.2, "cbam": 0.3}


def test_shares_of_a_search_wait_for_each_other_and_are_collected(searching, tmp_path):
    whole = without_times(searching("none,se", seeds=2, lr_search=(0.1, 0.2)))
    searching.out = tmp_path / "shares"
    for index in (1, 2):
        assert searching("none,se", seeds=2, lr_search=(0.1, 0.2), shard=(index, 2)) is None
        if index == 1:
            assert searching.trained == ["search/none/lr-0.1", "search/se/lr-0.1"]
            assert "this share of the search is done; run the same command again" in searching.lines[-1]
    # the second found the search complete and went on
    assert searching.trained[2:] == ["runs/none/seed-1", "runs/se/seed-1"]
    searching("none,se", seeds=2, lr_search=(0.1, 0.2), shard=(1, 2))
    assert searching.trained == ["runs/none/seed-0", "runs/se/seed-0"]
    assert without_times(searching.collect()) == whole


def test_a_finished_share_of_a_search_starts_again_and_finds_nothing_to_do(searching):
    for index in (2, 1, 2, 2):
        assert searching("none,se", seeds=2, lr_search=(0.1, 0.2), shard=(index, 2)) is None
    assert searching.trained == []
    # a later arm is searched, and the runs of the others keep their rates
    for index in (2, 1, 2):
        assert searching("none,se,cbam", seeds=2, shard=(index, 2)) is None
    assert searching.trained == ["runs/cbam/seed-1"]
    searching("none,se,cbam", seeds=2, shard=(1, 2))
    assert {arm: searching.run(arm, 0)["config"]["lr"] for arm in ("none", "se", "cbam")} == {
        "none": 0.1, "se": 0.2, "cbam": 0.2
    }  # fmt: skip
    assert len(searching.collect()["runs"]) == 6


@pytest.mark.parametrize("shard", [None, (1, 1)])
def test_a_search_that_fails_says_so(searching, shard, refused):
    def fail(arm, seed):
        if arm == "se" and seed in ("0.1", "0.2"):
            raise UserError("the loss is nan")

    searching.before = fail
    with refused():
        searching("none,se", seeds=2, lr_search=(0.1, 0.2), shard=shard)


def test_a_rate_that_diverges_is_not_chosen_and_stops_nothing(searching):
    def diverge(arm, seed):
        if seed == "0.2":
            raise Diverged("the loss is nan")

    searching.before = diverge
    content = searching("none,se", seeds=2, lr_search=(0.1, 0.2))
    assert content["failures"] == {}
    assert searching.read("search/se/lr-0.2/diverged.json") == {"reason": "the loss is nan"}
    assert {options["lr"] for options in searching.read("compare.json")["arm_options"].values()} == {0.1}
    assert any("the luck of that one run" in caution for caution in content["cautions"])
    # what was chosen stays: it is not tried again, and no later success can change the runs that are there
    searching.before = lambda arm, seed: None
    assert searching("none,se", seeds=2, lr_search=(0.1, 0.2)) == content
    assert searching.trained == []
    searching("none,se", seeds=3)
    assert searching.trained == ["runs/none/seed-2", "runs/se/seed-2"]
    assert searching.collect()["failures"] == {}


def test_every_share_learns_of_a_rate_that_diverged_in_another(searching):
    def diverge(arm, seed):
        if seed == "0.2":
            raise Diverged(f"{arm} is nan")

    searching.before = diverge
    assert searching("none,se", seeds=2, lr_search=(0.1, 0.2), shard=(2, 2)) is None
    assert searching.trained == ["search/none/lr-0.2", "search/se/lr-0.2"]
    searching("none,se", seeds=2, lr_search=(0.1, 0.2), shard=(1, 2))
    assert searching.trained[-2:] == ["runs/none/seed-0", "runs/se/seed-0"]
    searching("none,se", seeds=2, lr_search=(0.1, 0.2), shard=(2, 2))
    assert searching.trained == ["runs/none/seed-1", "runs/se/seed-1"]
    assert searching.collect()["failures"] == {}
    assert set(rates(searching).values()) == {0.1}


def test_a_search_of_which_every_rate_diverges_ends(searching, refused):
    def diverge(arm, seed):
        if arm == "se":
            raise Diverged("the loss is nan")

    searching.before = diverge
    with refused():
        searching("none,se", seeds=2, lr_search=(0.1, 0.2))


def test_a_run_that_fails_otherwise_is_no_rate_that_diverges(searching, refused):
    def fail(arm, seed):
        if seed == "0.2":
            raise UserError("the disk is full")

    searching.before = fail
    with refused():
        searching("none,se", seeds=2, lr_search=(0.1, 0.2))
    searching.before = lambda arm, seed: None
    searching("none,se", seeds=2, lr_search=(0.1, 0.2))
    assert searching.trained[:2] == ["search/none/lr-0.2", "search/se/lr-0.2"]
    assert rates(searching) == {"none": 0.1, "se": 0.2}


def test_a_rate_is_searched_or_given(searching, refused):
    with refused():
        searching("none,se", lr_search=(0.1, 0.2), given={"lr": 0.1})


def test_the_smallest_rate_is_tried_first_because_it_diverges_last(searching):
    def diverge(arm, seed):
        if seed == "0.3":
            raise Diverged("the loss is nan")

    searching.before = diverge
    searching("none,se", seeds=2, lr_search=(0.3, 0.1, 0.2))
    assert rates(searching) == {"none": 0.1, "se": 0.2}


def test_of_rates_with_the_same_accuracy_the_one_with_the_lowest_loss_is_taken(searching):
    """Few validation images have few accuracies."""
    losses = {"0.1": 0.9, "0.2": 0.6, "0.3": 0.7}
    searching.figures = lambda arm, seed: (0.75, losses[seed]) if seed in losses else 0.8
    searching("none,se", seeds=2, lr_search=(0.1, 0.2, 0.3))
    assert rates(searching) == {"none": 0.2, "se": 0.2}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module with an attention of the user's, in the current folder."""
    (tmp_path / "gates_of_mine.py").write_text(
        textwrap.dedent("""
            from torch import nn

            class Slim(nn.Module):
                def __init__(self, channels):
                    super().__init__()
                    self.scale = nn.Conv2d(channels, channels, 1, groups=channels)

                def forward(self, x):
                    return x * self.scale(x).sigmoid()
        """)
    )
    monkeypatch.chdir(tmp_path)
    yield "gates_of_mine"
    sys.modules.pop("gates_of_mine", None)


def test_an_attention_of_ones_own_is_an_arm(compared, module, refused):
    content = compared(f"none,{module}:Slim", seeds=2)
    assert compared.run("Slim", 0)["config"]["attention"] == f"{module}:Slim"
    assert content["arms"]["Slim"] == f"resnext11_8x8d with {module}:Slim"
    assert compared(f"none,{module}:Slim", seeds=3) is not None
    assert compared.trained == ["runs/none/seed-2", "runs/Slim/seed-2"]
    # the file names code, but whoever starts must name it
    for arms in (None, "none"):
        with refused():
            compared(arms, seeds=3)
    sys.modules.pop(module)
    assert len(compared.collect()["runs"]) == 6
    assert module not in sys.modules


def test_code_that_was_edited_between_two_runs_is_noticed(compared, module, tmp_path, refused):
    compared.figures = lambda arm, seed: 0.8
    compared(f"none,{module}:Slim", seeds=2)
    file = tmp_path / f"{module}.py"
    text = file.read_text()
    file.write_text(text + "# edited\n")
    with refused():
        compared(f"none,{module}:Slim", seeds=3)
    assert compared.trained == []
    recorded = compared.read("compare.json")["contents"]
    assert list(recorded) == ["the code of Slim"]
    # as in a new process, where nothing else has imported it
    sys.modules.pop(module)
    with refused():
        compared(f"none,{module}:Slim", seeds=3)
    assert compared.read("compare.json")["contents"] == recorded
    file.write_text(text)
    sys.modules.pop(module)
    compared(f"none,{module}:Slim", seeds=3)
    assert compared.read("compare.json")["contents"] == recorded
    assert compared.trained == ["runs/none/seed-2", "runs/Slim/seed-2"]


def test_weights_that_changed_between_two_runs_are_noticed(compared, tmp_path, refused):
    weights = tmp_path / "weights.safetensors"
    save_file(create_model(BACKBONE, num_classes=2, seed=1).state_dict(), weights)
    compared.figures = lambda arm, seed: 0.8
    given = {"pretrained": str(weights)}
    compared("none,se", seeds=2, given=given)
    save_file(create_model(BACKBONE, num_classes=2, seed=2).state_dict(), weights)
    with refused():
        compared("none,se", seeds=3, given=given)
    recorded = compared.read("compare.json")["contents"]
    weights.unlink()
    with refused():
        compared("none,se", seeds=3, given=given)
    assert compared.read("compare.json")["contents"] == recorded


def test_the_best_network_of_a_run_is_where_all_arms_start(compared, tmp_path, refused):
    first, options = tmp_path / "first", {name: OPTIONS[name] for name in ("epochs", "batch_size", "device", "workers")}
    run_training(
        str(make_folder(tmp_path / "other", size=22)), {**options, "model": BACKBONE, "image_size": 24}, out=first,
        resume=False, dry_run=False, command="", screen=Silent(), folder_class=WithoutPictures,
    )  # fmt: skip
    compared.figures = lambda arm, seed: 0.8

    def compare(seeds, **asked):
        compared.trained.clear()
        request = Request(arms=parse_arms("none,se"), num_seeds=seeds, **asked)
        given, own = {**options, "pretrained": str(first)}, Share(compared.out)
        compared.run_comparison(str(compared.data), given, request, own, command="", screen=compared)

    compare(2)
    assert len(compared.trained) == 4
    (weights,) = map(str, (first / "best").glob("weights-*"))
    design = compared.read("compare.json")
    assert (design["backbone"], design["options"]["image_size"]) == (BACKBONE, 24)
    assert design["options"]["pretrained"] == compared.run("se", 1)["config"]["pretrained"] == weights
    compare(2, backbone=BACKBONE)
    assert compared.trained == []
    # the run went on, and another network was its best
    bundle = load_bundle(first)
    other = create_model(BACKBONE, num_classes=2, seed=7)
    save_bundle(first / "best", dataclasses.replace(bundle, model=other))
    with refused(hiding="was .*(?=; give)"):
        compare(3)
    assert compared.read("compare.json") == design


def test_code_is_not_run_where_only_the_design_names_it(compared, module, refused):
    compared(f"none,x={module}:Slim", seeds=2)
    path = compared.out / "compare.json"
    path.write_text(path.read_text().replace(f"{module}:Slim", "evil_of_mine:run"))
    for run in (lambda: compared(None, seeds=2), lambda: compared("none", seeds=2)):
        with refused():
            run()


def test_a_wide_arm_is_trained_wide(compared):
    content = compared("none,cbam,wide", seeds=2)
    factor = compared.run("wide", 1)["config"]["width_factor"]
    assert factor > 1
    assert "times as wide" in content["arms"]["wide"]
    assert compared.read("compare.json")["arm_options"]["wide"]["width_factor"] == factor


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to(compared, tmp_path):
    whole = without_times(compared("none,se", seeds=2))
    options = {**OPTIONS, "backbone": BACKBONE, "attention": "none,se", "seeds": 2, "out": tmp_path / "two"}
    given = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "whatwhere", "compare", str(compared.data), *given, "--processes=2", "--json"],
        env=environment(tmp_path), capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert without_times(json.loads(done.stdout)) == whole
    assert (tmp_path / "two" / "report.html").is_file()
    # each of them speaks of its runs alone
    for seed in (0, 1):
        assert f"run 1 of 2 of part {seed + 1}/2: none, seed {seed}" in done.stderr
    assert done.stderr.count("se: se_resnext11_8x8d") == 1
    assert "--collect" not in done.stderr
