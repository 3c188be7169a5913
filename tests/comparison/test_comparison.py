"""Comparisons from images to a verdict: what is trained, what is kept, what is refused."""

import json
import os
import shutil
import sys
from collections import Counter

import msgspec
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from comparisons import BACKBONE, OPTIONS, pretended_costs
from pages import words
from pictures import make_folder, picture
from whatwhere import UserError, create_model
from whatwhere.comparison import forecast
from whatwhere.comparison.arms import parse_arms
from whatwhere.comparison.costs import measure_costs
from whatwhere.comparison.planning import Request
from whatwhere.comparison.runs import Share
from whatwhere.report import page, tables
from whatwhere.statistics.results import Results
from whatwhere.training.estimate import NOTHING, Pace
from whatwhere.training.run_folder import RunFolder
from whatwhere.training.trainer import Diverged

UNKNOWN, SAME = "cannot tell yet", "no practical difference"


def figures(arm, seed):
    """se helps by two points in every pair; the others go as often up as down."""
    base = np.random.default_rng(int(seed)).normal(0.8, 0.02)
    return float(base + {"none": 0.0, "se": 0.02 + 0.0001 * int(seed)}.get(arm, 0.03 * (-1) ** int(seed)))


@pytest.fixture
def pretended(compared):
    """Comparisons that only pretend to train."""
    compared.figures = figures
    return compared


def arm_of(content, name="again"):
    return next(arm for arm in content["judgement"]["arms"] if arm["arm"] == name)


def everything_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_arm_against_itself_comes_to_exactly_nothing(compared):
    compared.measure, there = measure_costs, []
    compared.before = lambda arm, seed: there.append(sorted(path.name for path in compared.out.iterdir()))
    content = compared(seeds=6)
    # the design is written before the first run begins; seed by seed, so that pairs are complete early
    assert there[0] == [".lock", "compare.json", "cost.json"]
    assert compared.trained == [f"runs/{arm}/seed-{seed}" for seed in range(6) for arm in ("none", "again")]
    # the test images are used once
    runs = [f"{arm}, seed {seed}: evaluating (test)" for seed in range(6) for arm in ("none", "again")]
    assert {what: count for what, count in compared.done.items() if "(test)" in what} == dict.fromkeys(runs, 1)
    again = arm_of(content)
    assert again["differences"] == [0.0] * 6
    assert len(set(again["baseline"])) > 1
    assert again["verdict"] == UNKNOWN
    assert again["reason"].startswith("all 6 pairs are exactly equal: again was not switched on")
    assert sorted(path.name for path in compared.out.iterdir()) == [
        ".lock", "compare.json", "cost.json", "results.csv", "runs", "verdict.json"
    ]  # fmt: skip
    assert compared.read("verdict.json") == json.loads(json.dumps(content, allow_nan=False))
    assert len((compared.out / "results.csv").read_text().splitlines()) == 13
    assert [row["arm"] for row in content["cost"]["rows"]] == ["none", "again"]
    assert len({row["num_params"] for row in content["cost"]["rows"]}) == 1
    assert content["curves"]["arms"]["none"]["epochs"] == [1]
    assert {row["arm"] for row in content["per_class"]["rows"]} == {"again"}
    assert "test images" in content["subtitle"]
    assert compared.read("compare.json")["verdicts"] == {"again": [UNKNOWN, 6]}


def test_a_finished_run_is_read_once_however_many_follow(pretended, monkeypatch):
    read, gathered, result, add = Counter(), Counter(), RunFolder.result, Results.add

    def counted(self):
        read[self.path] += 1
        return result.fget(self)

    def added(self, arm, seed, figures, **options):
        gathered[arm, seed] += 1
        add(self, arm, seed, figures, **options)

    monkeypatch.setattr(RunFolder, "result", property(counted))
    monkeypatch.setattr(Results, "add", added)
    pretended("none,se", seeds=6)
    began = read.copy()
    # the first seed is looked at as often as the last
    assert gathered["none", 0] == gathered["none", 5]
    pretended("none,se", seeds=6)
    assert set(began.values()) == set((read - began).values()) == {1}
    pretended.out = pretended.out.with_name("looks")
    pretended("none,se,cbam", seeds=6, max_seeds=18)
    assert {count for path, count in read.items() if pretended.out in path.parents} == {1}


def test_how_long_it_takes_and_what_fits_an_hour_are_said_first(pretended, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "measure_reading", lambda *arguments: NOTHING)
    data = make_folder(tmp_path / "mine", splits={"train": 8, "val": 4, "test": 6})  # images of each of 3 classes
    asked, seen = [], []

    def measure(design, num_classes, device, progress):
        models = [design.run_options(arm.name, 0)["model"] for arm in design.arms]
        asked.append(models)
        costs = pretended_costs(design, num_classes, device)
        step, forward = (1e4, 1e3) if models == ["resnet8"] else (1e5, 1e4)
        rows = [msgspec.structs.replace(row, training_step_ms=step, forward_ms=forward) for row in costs.rows]
        return msgspec.structs.replace(costs, rows=tuple(rows))

    pretended.measure, pretended.figures = measure, lambda arm, seed: 0.8
    pretended.before = lambda arm, seed: seen.append(list(pretended.lines))
    pretended("none,se", seeds=8, data=data)
    # 16 images train in 100 s and are evaluated in 10 s; 24 train, 2 x 12 + 18 are evaluated: 176.25 s a run
    assert seen[0][-1] == "16 runs to do, each of 2 steps, one after another: about 45 min"
    assert asked == [["resnext11_8x8d", "se_resnext11_8x8d"]]
    pretended("none,se", seeds=9, data=data)
    assert seen[16][-2].startswith("2 runs to do, each of 2 steps, one after another: about 6 min")
    assert seen[16][-1] == "16 of 18 runs are finished already"
    asked.clear()
    pretended.out = tmp_path / "longer"
    pretended("none,se", seeds=8, data=data, lr_search=(0.1, 0.2, 0.4))
    # 6 more runs, without the test images, take 165 s each
    assert seen[18][-2].startswith("22 runs to do, each of 2 steps, one after another: about 1 h")
    assert asked[1:] == [["resnext11_8x8d"], ["resnet18"], ["resnet20"], ["resnet8"]]
    assert seen[18][-1] == (
        "an hour is enough for: --backbone resnet8 --image-size 16 --epochs 1 --seeds 6 (about 7 min), with another "
        "--out"
    )


def test_disturbed_times_are_measured_again_at_the_next_start(pretended):
    measured = []

    def measure(design, num_classes, device, progress):
        costs = pretended_costs(design, num_classes, device)
        plain, se = costs.rows
        measured.append(len(measured))
        is_quiet = len(measured) == 3
        se = msgspec.structs.replace(se, spread=1.1 if is_quiet else 20.1, steady=is_quiet)
        return msgspec.structs.replace(costs, rows=(plain, se))

    pretended.measure = measure
    pretended("none,se", seeds=3)
    said = (
        "other programs ran: the times of se differ by up to x20.1 between measurements; the time that the runs take "
        "may be quite another than said below"
    )
    assert pretended.warnings.count(said) == 1
    assert not pretended.read("verdict.json")["cost"]["rows"][1]["steady"]
    pretended("none,se", seeds=4)
    assert pretended.warnings.count(said) == 2
    pretended("none,se", seeds=5)
    assert "measuring what each arm costs again" in pretended.lines
    # those are steady, and stay
    pretended("none,se", seeds=6)
    assert len(measured) == 3
    assert pretended.warnings.count(said) == 2
    assert pretended.read("verdict.json")["cost"]["rows"][1]["steady"]


def test_a_comparison_that_may_go_on_says_the_least_and_the_most(pretended, monkeypatch):
    # 100 s before the first step of each run, next to which the rest is nothing
    monkeypatch.setattr(forecast, "measure_reading", lambda *arguments: Pace(0.0, 0.0, 100.0))
    pretended("none,se,again=none", seeds=6, max_seeds=18)
    said = [line for line in pretended.lines if "to do" in line]
    assert said[0] == (
        "18 to 54 runs to do, each of 3 steps, one after another: about 30 min, about 1 h 30 min if no arm has a "
        "verdict before"
    )
    # se is decided at the first look, and again has had its 18 seeds: one more arm needs 6 to 18 runs
    pretended.lines.clear()
    pretended("none,more=none", seeds=6, max_seeds=18)
    said = [line for line in pretended.lines if "to do" in line]
    assert said[0].startswith("6 to 18 runs to do, each of 3 steps, one after another: about 10 min, about 30 min if")


def test_runs_on_several_devices_take_less_time(pretended, patterns, monkeypatch):
    monkeypatch.setattr(forecast, "measure_reading", lambda *arguments: Pace(0.0, 0.0, 100.0))

    def stop(runner, tasks):
        raise UserError("not trained")

    request = Request(backbone=BACKBONE, arms=parse_arms("none,se"), num_seeds=6)
    with pytest.raises(UserError, match="not trained"):
        pretended.run_comparison(
            str(patterns), OPTIONS, request, Share(pretended.out, spread=stop, num_devices=4), command="",
            screen=pretended,
        )  # fmt: skip
    # one device does 2 of the 6 seeds
    (said,) = (line for line in pretended.lines if "to do" in line)
    assert said == "12 runs to do, each of 3 steps, on 4 devices: about 7 min"


def test_the_time_left_knows_that_one_arm_is_slower(pretended, monkeypatch):
    monkeypatch.setattr(forecast, "measure_reading", lambda *arguments: NOTHING)

    def measure(design, num_classes, device, progress):
        costs = pretended_costs(design, num_classes, device)
        plain, slow = costs.rows
        slow = msgspec.structs.replace(slow, training_step_ms=27.0, forward_ms=9.0)  # nine times as slow
        return msgspec.structs.replace(costs, rows=(plain, slow))

    now = 0.0

    def train(arm, seed):
        nonlocal now
        now += 540 if arm == "se" else 60

    pretended.measure, pretended.before, pretended.clock = measure, train, lambda: now
    pretended("none,se", seeds=3)
    ended = [line.partition("images, ")[2] for line in pretended.lines if line.startswith("run ")]
    # 27 of 30 parts are to do, then 18 ...
    assert ended == [
        "1 min; about 30 min left", "9 min; about 20 min left", "1 min; about 19 min left", "9 min; about 10 min left",
        "1 min; about 9 min left", "9 min",
    ]  # fmt: skip


def test_a_dry_run_says_how_long_and_writes_nothing(pretended, patterns):
    def dry_run(**request):
        pretended.lines.clear()
        request = Request(**{"backbone": BACKBONE, "arms": parse_arms("none,se"), "num_seeds": 6, **request})
        own = Share(pretended.out)
        return pretended.run_comparison(
            str(patterns), OPTIONS, request, own, command="", screen=pretended, dry_run=True
        )

    assert dry_run() is None
    assert not pretended.out.exists()
    assert any(line.startswith("12 runs to do, each of 3 steps, one after another: ") for line in pretended.lines)
    assert pretended.lines[-1] == "dry run: nothing written"
    # of a comparison that has begun, what is left
    pretended("none,se", seeds=6)
    before = everything_in(pretended.out)
    assert dry_run(num_seeds=9) is None
    assert any(line.startswith("6 runs to do, ") for line in pretended.lines)
    assert dry_run() is None
    assert pretended.lines[-2] == "all 12 runs are finished already"
    assert everything_in(pretended.out) == before
    with pytest.raises(UserError, match="trains with other options"):
        pretended.run_comparison(
            str(patterns), {**OPTIONS, "epochs": 2}, Request(), Share(pretended.out), command="", screen=pretended,
            dry_run=True,
        )  # fmt: skip


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_no_run_could_start_with_is_found_before_the_first(pretended, tmp_path, dry_run, monkeypatch, refused):
    for name in ("resnet8", f"se_{BACKBONE}"):  # the one fits no arm, the other not the arm without attention
        save_file(create_model(name, num_classes=2, seed=0).state_dict(), tmp_path / f"{name}.safetensors")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    given = [*({"pretrained": str(path)} for path in sorted(tmp_path.glob("*.safetensors"))), {"tensorboard": True}]
    for options in given:
        with refused():
            pretended("none,se", given=options, dry_run=dry_run)
    assert not pretended.out.exists()
    assert pretended.trained == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_could_not_be_written_at_the_end_is_found_first(pretended, tmp_path, dry_run, refused):
    (tmp_path / "mine").write_text("")
    pretended.out = tmp_path / "mine" / "out"
    with refused():
        pretended(dry_run=dry_run)
    pretended.out = tmp_path / "out"
    for name in ("cost.json", "results.csv", "verdict.json", "report.html"):
        (pretended.out / name).mkdir(parents=True)
        with refused():
            pretended(dry_run=dry_run)
        (pretended.out / name).rmdir()
    (pretended.out / "verdict.json").write_text("[]")
    with refused():
        pretended(dry_run=dry_run)
    assert pretended.trained == []


def test_deterministic_arms_are_measured_so_too(pretended, monkeypatch):
    # cuBLAS reads it once, when it starts
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(pretended, "measure", lambda *arguments: seen.append(dict(os.environ)) or costs(*arguments))
    costs, seen = pretended_costs, []
    pretended(given={"deterministic": True})
    assert seen[0]["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_too_few_seeds_for_a_verdict_are_told_first(pretended):
    few = "fewer than 6 pairs give no verdict: give --seeds 6 or more for one"
    for dry_run in (True, False):
        pretended.lines.clear()
        pretended(seeds=5, dry_run=dry_run)
        assert few in pretended.lines
    pretended.lines.clear()
    pretended(seeds=6)
    pretended.out = pretended.out.with_name("planned")
    pretended(seeds=3, max_seeds=6)  # a planned look has 6 pairs
    assert few not in pretended.lines


def prints(compared, arm):
    return [compared.run(arm, seed)["data_fingerprint"] for seed in range(3)]


def test_a_pair_shares_its_split_and_every_seed_draws_another(pretended):
    content = pretended("none,se,again=none", seeds=3)
    assert prints(pretended, "none") == prints(pretended, "se") == prints(pretended, "again")
    assert len(set(prints(pretended, "none"))) == 3
    assert any("every seed draws its own split" in caution for caution in content["cautions"])
    assert pretended.run("se", 2)["config"]["model"] == "se_resnext11_8x8d"


def test_data_that_come_split_are_not_split_anew(pretended, tmp_path):
    data = make_folder(tmp_path / "split", splits={"train": 8, "val": 4, "test": 4})
    content = pretended(seeds=3, data=data)
    assert len(set(prints(pretended, "none"))) == 1
    assert any("the test images are the same for every seed" in caution for caution in content["cautions"])


def test_without_test_images_validation_images_judge_and_the_reader_is_told(compared, tmp_path):
    content = compared(data=make_folder(tmp_path / "split", splits={"train": 8, "val": 4}))
    assert any("DATA has no test images" in caution for caution in content["cautions"])
    assert "validation images" in content["subtitle"]


def test_the_same_command_again_trains_nothing_and_says_the_same(pretended):
    pretended("none,se", seeds=6)
    before = everything_in(pretended.out)
    content = pretended("none,se", seeds=6)
    assert pretended.trained == []
    assert everything_in(pretended.out) == before
    assert arm_of(content, "se")["verdict"] == "helps"
    # what is not given is as it was
    pretended(arms=None, seeds=None, backbone=None)
    assert pretended.trained == []
    assert everything_in(pretended.out) == before
    assert pretended.collect() == content


def test_more_seeds_are_added_and_the_first_look_stands(pretended):
    first = arm_of(pretended("none,again=none", seeds=6))
    content = pretended("none,again=none", seeds=9)
    assert pretended.trained == [f"runs/{arm}/seed-{seed}" for seed in (6, 7, 8) for arm in ("none", "again")]
    later = arm_of(content)
    assert later["plan"] == first["plan"] == {"first": 6, "last": None}
    assert (later["num_pairs"], later["level"] < first["level"]) == (9, True)
    assert pretended.read("compare.json")["first_look"] == 6
    assert [change.partition(", ")[2] for change in content["changes"]] == [
        "after a look at 6 pairs: --seeds was 6, is 9"
    ]
    # between two looks nothing is read from the pairs that wait
    waiting = pretended("none,again=none", seeds=11)
    assert arm_of(waiting)["num_pairs"] == 9
    assert {other["num_pairs"] for other in waiting["judgement"]["others"]} == {9}
    assert waiting["per_class"] == content["per_class"]


def test_an_arm_can_be_added(pretended):
    pretended("none,again=none", seeds=3)
    content = pretended("none,se", seeds=3)
    assert pretended.trained == [f"runs/se/seed-{seed}" for seed in range(3)]
    assert [arm["arm"] for arm in content["judgement"]["arms"]] == ["again", "se"]
    assert content["changes"][-1].endswith("before the first look: arm se added")
    assert [row["arm"] for row in content["cost"]["rows"]] == ["none", "again", "se"]
    assert pretended.read("cost.json") == content["cost"]


def test_what_is_collected_can_be_judged_otherwise_and_that_is_told(pretended, refused):
    pretended("none,se", seeds=6)
    content = pretended.collect(margin=3.0)
    assert arm_of(content, "se")["verdict"] == SAME
    assert content["changes"][-1].endswith("after a look at 6 pairs: --margin was 0.5, is 3.0")
    with refused():
        pretended.collect(arms=parse_arms("none,se,cbam"))
    with refused():
        pretended.collect(backbone="resnet18")


def test_another_margin_metric_and_baseline_can_be_seen_to_be_later_choices(pretended):
    pretended("none,se", seeds=6)
    content = pretended("none,se", seeds=6, margin=3.0)
    assert pretended.trained == []
    assert arm_of(content, "se")["verdict"] == SAME
    assert content["changes"][-1].endswith("after a look at 6 pairs: --margin was 0.5, is 3.0")
    content = pretended("none,se", seeds=6, metric="loss", margin=0.01, baseline="se")
    assert [change.partition(": ")[2] for change in content["changes"][1:]] == [
        "--margin was 3.0, is 0.01", "--metric was accuracy, is loss", "--baseline was none, is se"
    ]  # fmt: skip
    assert arm_of(content, "none")["verdict"] == "hurts"


@pytest.mark.parametrize(
    "request_",
    [
        {"metric": "kappa"},
        {"metric": "loss"},
        {"margin": float("nan")},
        {"margin": -1.0},
        {"baseline": "cbam"},
        {"given": {"epochs": 2}},
        {"given": {"val_fraction": 0.3}},
        {"arms": "none,again=se"},
        {"backbone": "resnet18"},
        {"arms": "none,nobody"},
        {"arms": "none,wide"},
    ],
)
def test_what_cannot_be_changed_or_is_wrong_is_refused_and_changes_nothing(pretended, request_, refused):
    pretended(seeds=2)
    before = everything_in(pretended.out)
    with refused():
        pretended(**{"seeds": 2, **request_})
    assert pretended.trained == []
    assert everything_in(pretended.out) == before


def test_runs_that_end_alike_are_told_before_the_others_run(pretended):
    pretended.figures = lambda arm, seed: 0.8125371 + 0.01 * (arm == "again")
    when = []
    pretended.before = lambda arm, seed: when.append(len(pretended.warnings))
    pretended(seeds=6)
    (warning,) = pretended.warnings
    assert warning.startswith("seeds 0, 1 of none ended alike to the last digit: ")
    assert warning.endswith("such runs give no verdict")
    assert when == [0, 0, 0, *[1] * 9]


def test_a_warning_is_shown_once(pretended, tmp_path):
    data = make_folder(tmp_path / "mine")
    (data / "empty").mkdir()
    pretended(data=data, seeds=3)
    assert pretended.warnings == ["1 class folder without any image: empty (`whatwhere check` names them)"]


def test_images_that_changed_are_refused(pretended, tmp_path, refused):
    data = make_folder(tmp_path / "mine")
    pretended(data=data)
    picture("bars", 900).save(data / "bars" / "one more.png")
    with refused():
        pretended(data=data)
    (data / "bars" / "one more.png").unlink()
    assert pretended(data=data) is not None
    with refused():
        pretended(data=make_folder(tmp_path / "other", per_class=12))


def test_the_range_is_found_once_for_all_runs(pretended, tmp_path, refused):
    data = make_folder(tmp_path / "deep")
    for path in sorted(data.rglob("*.png")):
        Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16).save(path)
    pretended.data = data
    content = pretended(given={"max_value": "auto"})
    assert pretended.read("compare.json")["options"]["max_value"] == 4095
    assert ["max_value", "4095"] in [list(pair) for _, pairs in content["settings"] for pair in pairs]
    assert {pretended.run(arm, seed)["config"]["max_value"] for arm in ("none", "again") for seed in (0, 1)} == {4095}
    # the same command again, and without the option
    for given in ({"max_value": "auto"}, {}):
        pretended(given=given)
        assert pretended.trained == []
    with refused():
        pretended(given={"max_value": 65535})


def test_auto_that_gives_another_range_than_the_comparison_has_is_refused(pretended, refused):
    pretended(given={"max_value": 4000})
    with refused():
        pretended(given={"max_value": "auto"})


def test_a_run_with_other_options_in_a_runs_place_is_refused(pretended, refused):
    pretended("none,se", seeds=3)
    runs = pretended.out / "runs"
    shutil.rmtree(runs / "none" / "seed-1")
    shutil.copytree(runs / "se" / "seed-1", runs / "none" / "seed-1")
    with refused():
        pretended("none,se", seeds=3)
    shutil.rmtree(runs / "none" / "seed-1")
    shutil.copytree(runs / "none" / "seed-2", runs / "none" / "seed-1")
    with refused():
        pretended.collect()


def test_a_pair_with_different_images_is_refused(pretended, refused):
    pretended("none,se", seeds=3)
    path = pretended.out / "runs" / "se" / "seed-1" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data_fingerprint": "0" * 64}))
    with refused():
        pretended.collect()


@pytest.mark.parametrize("other", ["none/seed-0", "se/seed-1"])
def test_the_result_of_another_run_is_no_figure(pretended, other, refused):
    pretended.figures = lambda arm, seed: 0.9 if (arm, seed) == ("none", "1") else 0.3
    pretended("none,se", seeds=2)
    (pretended.out / "runs/none/seed-1/result.json").write_text(
        (pretended.out / "runs" / other / "result.json").read_text()
    )
    with refused():
        pretended.collect()


@pytest.mark.parametrize("name", ["run.json", "result.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", "{"])
def test_a_damaged_run_is_a_sentence(pretended, name, content, refused):
    pretended(seeds=2)
    (pretended.out / "runs" / "none" / "seed-1" / name).write_text(content)
    with refused():
        pretended.collect()


@pytest.mark.parametrize(
    "damage",
    [
        *({"test": {"accuracy": value}} for value in ("0.8", [0.8], True, 80.0, -0.1, None, 1e308)),
        {"test": {"accuracy": 0.8, "macro_f1": 61.0}},
        {"test": {"accuracy": 0.8, "loss": "low"}},
        {"test": {"accuracy": 0.8, "loss": 1e308}},
        *({"judged_on": value} for value in ("train", None, [])),
        *({"classes": value} for value in (None, [5])),
        *({"per_class": value} for value in (None, [5], [{"class": "a", "num_images": 4, "recall": 61.0}])),
        {"seconds": "long"},
        {"best_epoch": "last"},
    ],
    ids=str,
)
def test_damaged_figures_of_a_run_are_a_sentence(pretended, damage, refused):
    pretended(seeds=2)
    path = pretended.out / "runs" / "none" / "seed-1" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with refused():
        pretended.collect()


@pytest.mark.parametrize("name", ["run.json", "result.json", "metrics.jsonl"])
def test_a_run_s_file_nested_too_deeply_is_a_sentence(pretended, name, refused):
    pretended(seeds=2)
    (pretended.out / "runs" / "none" / "seed-1" / name).write_text("[" * 100_000)
    with refused():
        pretended.collect()


@pytest.mark.parametrize(
    "line", ['{"epoch": 1}', '{"epoch": "x", "val_accuracy": 0.5}', '{"epoch": 1, "val_accuracy": 61}', "5"]
)
def test_a_damaged_curve_is_a_sentence(pretended, line, refused):
    pretended(seeds=2)
    (pretended.out / "runs" / "none" / "seed-1" / "metrics.jsonl").write_text(line + "\n")
    with refused():
        pretended.collect()


@pytest.mark.parametrize("content", ["[]", "{}", "[" * 100_000], ids=lambda text: text[:20])
def test_a_damaged_verdict_is_met_with_what_compare_can_do(pretended, content, refused):
    pretended(seeds=2)
    (pretended.out / "verdict.json").write_text(content)
    for again in (pretended.collect, lambda: pretended(seeds=2)):
        with refused():
            again()
    (pretended.out / "verdict.json").unlink()
    assert pretended(seeds=2) is not None


def test_what_is_collected_is_of_the_same_data(pretended, tmp_path, refused):
    whole = pretended(seeds=2)
    for other in ("nowhere", "digits", tmp_path / "elsewhere" / pretended.data.name):
        with refused():
            pretended.collect(data=other)
    shutil.copytree(pretended.data, tmp_path / "elsewhere" / pretended.data.name)
    assert pretended.collect(data=tmp_path / "elsewhere" / pretended.data.name) == whole


def test_fewer_seeds_than_there_are_are_told_to_stay(pretended):
    pretended(seeds=4)
    content = pretended(seeds=3)
    assert "--seeds 3: there are 4 already, and all of them stay" in pretended.lines
    assert len(arm_of(content)["seeds"]) == 4


def test_a_file_in_the_folder_s_place_is_a_sentence(pretended, refused):
    pretended.out.write_text("mine")
    for call in (pretended, pretended.collect):
        with refused():
            call()
    assert pretended.out.read_text() == "mine"


@pytest.mark.parametrize("name", ["results.csv", "report.html", "cost.json"])
def test_a_file_of_the_user_in_the_folder_is_not_written_over(pretended, refused, name):
    pretended.out.mkdir()
    (pretended.out / name).write_text("mine")
    with refused():
        pretended()
    assert [(path.name, path.read_text()) for path in pretended.out.iterdir()] == [(name, "mine")]


def test_weights_that_are_none_are_refused_before_anything_is_written(pretended, tmp_path, refused):
    for name in ("nofile.pth", "broken.safetensors"):
        (tmp_path / "broken.safetensors").write_text("no weights")
        with refused():
            pretended("none,se", given={"pretrained": str(tmp_path / name)})
        assert not pretended.out.exists()


def test_weights_of_a_network_of_others_are_not_looked_for_as_ours(pretended, tmp_path):
    ours = {name: create_model("resnet18", num_classes=3, seed=seed).state_dict() for seed, name in enumerate("ab")}
    student = torchvision.models.mobilenet_v3_small(num_classes=3).state_dict()
    torch.save({"student": student, "teachers": ours}, tmp_path / "a.pth")
    given = {"pretrained": str(tmp_path / "a.pth")}
    assert pretended("none,se", seeds=2, backbone="torchvision:mobilenet_v3_small", given=given)["failures"] == {}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": []}', '{"rows": [{"arm": "none"}]}'])
def test_costs_that_are_damaged_are_measured_again(pretended, content):
    whole = pretended(seeds=2)
    (pretended.out / "cost.json").write_text(content)
    assert pretended.collect()["cost"] is None
    assert pretended(seeds=2) == whole


def test_a_missing_pair_blocks_the_verdict(pretended):
    pretended("none,se,cbam", seeds=6)
    shutil.rmtree(pretended.out / "runs" / "se" / "seed-3")
    content = pretended.collect()
    assert (arm_of(content, "se")["verdict"], arm_of(content, "se")["level"]) == (UNKNOWN, None)
    assert "missing: seed 3" in arm_of(content, "se")["reason"]
    assert arm_of(content, "cbam")["level"] is not None
    assert pretended.lines[-1] == "1 run to do: run the same command without --collect"
    # what was told before is not forgotten
    assert pretended.read("compare.json")["verdicts"]["se"] == ["helps", 6]
    content = pretended("none,se,cbam", seeds=6)
    assert pretended.trained == ["runs/se/seed-3"]
    assert arm_of(content, "se")["verdict"] == "helps"


def test_a_failed_run_keeps_the_others_and_is_tried_again(pretended):
    def fail(arm, seed):
        if (arm, seed) == ("se", "2"):
            raise UserError("the loss is nan")

    pretended.before = fail
    content = pretended("none,se", seeds=6)
    assert len(pretended.trained) == 12
    assert content["failures"] == {"se, seed 2": "the loss is nan"}
    assert content["cautions"][-1] == "se, seed 2 failed: the loss is nan"
    assert pretended.warnings == ["se, seed 2 failed: the loss is nan"]
    assert (arm_of(content, "se")["verdict"], arm_of(content, "se")["level"]) == (UNKNOWN, None)
    again = pretended("none,se", seeds=6)
    assert (pretended.trained, again["failures"]) == (["runs/se/seed-2"], content["failures"])
    pretended.before = lambda arm, seed: None
    content = pretended("none,se", seeds=6)
    assert pretended.trained == ["runs/se/seed-2"]
    assert (content["failures"], arm_of(content, "se")["verdict"]) == ({}, "helps")


def test_a_run_that_diverges_gets_no_advice_for_a_run_alone(pretended):
    def diverge(arm, seed):
        if (arm, seed) == ("se", "2"):
            advice = "lower the learning rate; the batch: a.png, b.png; start from the latter with --pretrained"
            raise Diverged("the weights of stem; conv are no longer finite", advice)

    pretended.before = diverge
    content = pretended("none,se", seeds=6)
    why = "the weights of stem; conv are no longer finite; a comparison with another learning rate needs another --out"
    assert content["failures"] == {"se, seed 2": why}
    assert pretended.warnings == [f"se, seed 2 failed: {why}"]


def test_a_seed_whose_run_always_fails_can_be_left_out_and_is_told(pretended, refused):
    def fail(arm, seed):
        if (arm, seed) == ("se", "2"):
            raise UserError("the loss is nan")

    with refused():
        pretended("none,se", seeds=6, leave_out=(2,))
    pretended.before = fail
    pretended("none,se", seeds=6)
    content = pretended("none,se", seeds=6, leave_out=(2,))
    # another takes its place
    assert pretended.trained == ["runs/none/seed-6", "runs/se/seed-6"]
    assert arm_of(content, "se")["seeds"] == [0, 1, 3, 4, 5, 6]
    assert (arm_of(content, "se")["verdict"], content["failures"]) == ("helps", {})
    assert content["changes"][-1].endswith("before the first look: seed 2 is left out of all arms")
    assert any("left out by request: seed 2;" in caution for caution in content["cautions"])
    # it stays so
    assert pretended("none,se", seeds=6) == content
    assert pretended.trained == []
    content = pretended("none,se", seeds=6, leave_out=(0,))
    assert content["changes"][-1].endswith("figures of se or its baseline are gone: seed 0")


def test_a_failure_of_the_first_run_ends_at_once(pretended, refused):
    def fail(arm, seed):
        raise UserError("out of memory")

    pretended.before = fail
    with refused():
        pretended("none,se", seeds=6)
    assert pretended.trained == ["runs/none/seed-0"]
    assert sorted(path.name for path in pretended.out.iterdir()) == [".lock", "compare.json", "cost.json"]
    with refused():
        pretended.collect()


def test_only_undecided_arms_go_on_to_the_next_look(pretended, refused):
    content = pretended("none,se,cbam", seeds=6, max_seeds=18)
    seeds = Counter(folder.split("/")[1] for folder in pretended.trained)
    assert seeds == {"none": 18, "se": 6, "cbam": 18}
    assert [line for line in pretended.lines if "going on" in line] == [
        "cannot tell yet: cbam; going on to the next look, as planned"
    ] * 2
    assert [arm_of(content, arm)["verdict"] for arm in ("se", "cbam")] == ["helps", UNKNOWN]
    assert pretended.read("compare.json")["verdicts"] == {"se": ["helps", 6], "cbam": [UNKNOWN, 18]}
    assert pretended("none,se,cbam", seeds=6, max_seeds=18) == content
    assert pretended.trained == []
    with refused():
        pretended("none,se,cbam", seeds=6, max_seeds=24)


def test_a_failure_at_a_later_look_does_not_take_back_the_looks_before(pretended):
    def fail(arm, seed):
        if (arm, seed) == ("cbam", "8"):
            raise UserError("the disk is full")

    pretended.before = fail
    content = pretended("none,se,cbam", seeds=6, max_seeds=18)
    assert "the next look waits for seed 8" in arm_of(content, "cbam")["cautions"][-1]
    assert pretended.read("compare.json")["verdicts"] == {"se": ["helps", 6], "cbam": [UNKNOWN, 6]}
    pretended.before = lambda arm, seed: None
    pretended("none,se,cbam", seeds=6, max_seeds=18)
    assert pretended.trained[0] == "runs/cbam/seed-8"
    assert Counter(folder.split("/")[1] for folder in pretended.trained) == {"none": 6, "cbam": 7}


def test_several_processes_that_train_one_network_are_refused(pretended, monkeypatch, refused):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with refused():
        pretended()
    assert not pretended.out.exists()


def test_a_folder_among_the_images_is_refused_before_anything_is_written(pretended, tmp_path, refused):
    data = make_folder(tmp_path / "mine")
    before = everything_in(data)
    pretended.out = data / "compare"
    with refused():
        pretended(data=data)
    assert everything_in(data) == before
    assert not pretended.out.exists()


@pytest.mark.parametrize(
    "request_",
    [
        {"data": "nowhere"},
        {"arms": "none"},
        {"arms": "none,foo"},
        {"arms": "se,cbam", "baseline": "none"},
        {"metric": "loss"},
        {"margin": -1.0},
        {"backbone": "cbam_resnet18"},
        {"given": {"pretrained": "imagenet"}},
        {"lr_search": (0.1, 1e5)},
        {"given": {"seed": 3}},
        {"given": {"model": "resnet18"}},
        {"given": {"width_factor": 2.0}},
        {"given": {"lr": -1.0}},
        {"seeds": 8, "max_seeds": 7},
    ],
)
def test_bad_input_leaves_nothing_behind(pretended, request_, refused):
    with refused():
        pretended(**{"arms": "none,cbam,wide", **request_})
    assert not pretended.out.exists()


def test_code_that_a_file_names_is_not_run(pretended, tmp_path, monkeypatch, refused):
    pretended("none,again=none", seeds=2)
    (tmp_path / "evil_module.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    path = pretended.out / "compare.json"
    design = json.loads(path.read_text())
    for part in ("arm_options", "options"):
        edited = json.loads(json.dumps(design))
        (edited[part]["again"] if part == "arm_options" else edited[part])["attention"] = "evil_module:Gate"
        path.write_text(json.dumps(edited))
        with refused():
            pretended("none,again=none", seeds=2)


def test_runs_replaced_after_a_look_are_told(pretended):
    pretended("none,cbam", seeds=6)
    result = pretended.out / "runs" / "cbam" / "seed-3" / "result.json"
    content = json.loads(result.read_text())
    content["test"]["accuracy"] = 0.123
    content["per_class"] = [{**row, "recall": 0.123} for row in content["per_class"]]
    result.write_text(json.dumps(content))
    for _ in range(2):
        content = pretended("none,cbam", seeds=6)
        assert ["changed: seed 3" in change for change in content["changes"]] == [True]


def test_a_short_arm_trains_for_fewer_epochs(pretended):
    pretended("none,short", seeds=2, given={"epochs": 4})
    assert [pretended.run(arm, 1)["config"]["epochs"] for arm in ("none", "short")] == [4, 2]
    assert any(line.startswith(f"short: {BACKBONE}, 2 epochs, ") for line in pretended.lines)
    # the design is read again, and holds the number of epochs
    pretended("none,short", seeds=3, given={"epochs": 4})
    assert pretended.trained == ["runs/none/seed-2", "runs/short/seed-2"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_table_of_compare_is_judged_at_its_looks_and_on_its_terms(pretended, whatwhere, elsewhere):
    rng = np.random.default_rng(0)
    effect = {"none": 0.0, "short": 0.2, "cbam": 0.01}
    pretended.figures = lambda arm, seed: (0.75, rng.normal(0.5 + effect[arm], 0.05))
    pretended("none,short,cbam", seeds=6, max_seeds=12, metric="loss", margin=0.004, given={"epochs": 4})
    first = json.loads((pretended.out / "verdict.json").read_text())
    assert [(arm["verdict"], arm["num_pairs"]) for arm in first["judgement"]["arms"]] == [("hurts", 6), (UNKNOWN, 12)]
    place = pretended.out.with_name("elsewhere.html") if elsewhere else pretended.out / "results.verdict.html"
    whatwhere("verdict", pretended.out / "results.csv", "--out", place)
    again = json.loads(place.with_suffix(".json").read_text())
    for name in ("level", "plan", "conclusion", "cautions", "is_control", "deciding_interval"):
        assert [arm[name] for arm in again["judgement"]["arms"]] == [arm[name] for arm in first["judgement"]["arms"]]
    assert again["judgement"]["margin"] == 0.004
    assert again["changes"] == first["changes"]
    whatwhere("verdict", pretended.out / "results.csv", "--out", place.with_name("cbam.html"), "--baseline", "cbam")
    other = json.loads(place.with_name("cbam.json").read_text())["judgement"]
    assert not any(arm["is_control"] for arm in other["arms"])
    # also where an old verdict, made without the design, took all pairs for a first look
    place.with_name("alone").mkdir()
    shutil.copy(pretended.out / "results.csv", table := place.with_name("alone") / "results.csv")
    whatwhere("verdict", table, "--metric", "loss", "--margin", "0.004")
    shutil.copy(table.with_name("results.verdict.json"), place.with_suffix(".json"))
    whatwhere("verdict", pretended.out / "results.csv", "--out", place)
    assert json.loads(place.with_suffix(".json").read_text()) == again
    # other terms are a change after a look, told once
    for _ in range(2):
        whatwhere("verdict", pretended.out / "results.csv", "--out", place.with_name("wider.html"), "--margin", 1)
    wider = json.loads(place.with_name("wider.json").read_text())
    assert sum("margin was 0.004, is 1" in change for change in wider["changes"]) == 1
    # and remembered
    whatwhere("verdict", pretended.out / "results.csv", "--out", place.with_name("wider.html"))
    assert wider["changes"] == json.loads(place.with_name("wider.json").read_text())["changes"]


def test_attention_that_was_hardly_used_is_told(pretended, whatwhere):
    rng = np.random.default_rng(0)
    pretended.figures = lambda arm, seed: (0.75, rng.normal(0.5, 0.05))
    pretended("none,cbam", seeds=6, metric="loss", margin=0.004)
    for path in pretended.out.glob("runs/cbam/*/result.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "largest_mix": 0.01}))
    (arm,) = pretended.collect()["judgement"]["arms"]
    assert arm["hardly_used"] == ["cbam"]
    lines = (pretended.out / "results.csv").read_text().splitlines()
    assert sum("hardly begun" in line for line in lines if line.startswith("cbam,")) == 6
    place = pretended.out.with_name("again.html")
    whatwhere("verdict", pretended.out / "results.csv", "--out", place)
    (again,) = json.loads(place.with_suffix(".json").read_text())["judgement"]["arms"]
    assert again["hardly_used"] == ["cbam"]


def test_attention_that_hurts_is_to_be_tried_with_another_start(pretended):
    rng = np.random.default_rng(0)
    pretended.figures = lambda arm, seed: (0.75, rng.normal(0.5 if arm == "none" else 0.8, 0.05))
    arms = "none,se,eca,static:se,own=eca{start:identity},short"
    content = pretended(arms, seeds=6, metric="loss", margin=0.004, given={"epochs": 4})
    advice = {arm["arm"]: arm["advice"] for arm in content["judgement"]["arms"] if arm["verdict"] == "hurts"}
    assert advice.pop("se").endswith("add the arm that starts as the identity, se-identity=se{start:identity}")
    assert advice.pop("eca").endswith("before you give it up, look at own")
    assert advice == {"static-se": "", "own": "", "short": ""}


def test_a_control_that_learned_little_needs_no_more_epochs(pretended):
    rng = np.random.default_rng(0)
    pretended.figures = lambda arm, seed: rng.normal(0.9 if arm == "none" else 0.3, 0.01)
    content = pretended("none,short,cbam", seeds=6, given={"epochs": 4})
    assert [arm for arm, _ in content["first"]] == ["cbam"]
    control, cbam = content["judgement"]["arms"]
    assert control["conclusion"].startswith("The positive control short is found")
    assert cbam["conclusion"].startswith("Train for more epochs")


def test_the_width_of_a_timed_arm_is_measured_once(pretended, refused):
    def measure(design, *rest):
        widths = [design.run_options(arm.name, 0).get("width_factor", 1) for arm in design.arms]
        seen.append(dict(zip((arm.name for arm in design.arms), widths, strict=True)))
        places.append(design.run_options("wide-time", 0)["at"])
        costs = pretended_costs(design, *rest)
        steps = [12.0 if arm.name == "se" else 10.0 * width for arm, width in zip(design.arms, widths, strict=True)]
        rows = [
            msgspec.structs.replace(row, training_step_ms=step) for row, step in zip(costs.rows, steps, strict=True)
        ]
        return msgspec.structs.replace(costs, rows=tuple(rows))

    seen, places, pretended.measure = [], [], measure
    with refused():
        pretended("none,se,wide:time", shard=(2, 2))
    assert seen == []
    pretended("none,se,wide:time", dry_run=True, given={"at": "stages"})
    assert set(places) == {""}  # where attention stands is no option of a network without it
    assert not (pretended.out / "compare.json").exists()
    seen.clear()
    pretended("none,se,wide:time")
    width = pretended.read("compare.json")["arm_options"]["wide-time"]["width_factor"]
    assert width == pytest.approx(1.2, abs=0.03)
    assert pretended.run("wide-time", 1)["config"]["width_factor"] == width
    # two to find it, one for the costs of the page
    assert [list(arms) for arms in seen] == [["se", "wide-time"]] * (len(seen) - 1) + [["none", "se", "wide-time"]]
    seen.clear()
    pretended("none,se,wide:time", seeds=3)
    assert seen == []
    assert pretended.run("wide-time", 2)["config"]["width_factor"] == width


def test_gates_that_do_little_are_told(pretended):
    pretended("none,cbam", seeds=3, metric="loss", margin=0.004)
    faults = [
        {"layer": "layer1.0.attention", "gate": "", "fault": "off"},
        {"layer": "layer2.0.attention", "gate": "spatial", "fault": "saturated"},
    ]
    for seed, path in enumerate(sorted(pretended.out.glob("runs/cbam/*/result.json"))):
        path.write_text(json.dumps({**json.loads(path.read_text()), "gates": faults[: 1 + seed % 2]}))
    for path in pretended.out.glob("runs/none/*/result.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "gates": None}))
    content = pretended.collect()
    assert [(row["layer"], row["num_found"], row["num_runs"]) for row in content["gates"]] == [
        ("layer1.0.attention", 3, 3),
        ("layer2.0.attention", 1, 3),
    ]
    assert {row["arm"] for row in content["gates"]} == {"cbam"}
    text = words(page(content))
    assert "cbam layer1.0.attention all off 3 of 3" in text
    assert "saturated: almost no gradient comes through" in text
    (table,) = [table for table in tables(content) if table.title == "Gates that do little"]
    assert table.rows[1] == ("cbam", "layer2.0.attention", "spatial", "saturated", "1 of 3")
