import contextlib
import csv
import io
import json
import os
import random
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from run_folders import accuracy, lightning_run, timm_run, ultralytics_run
from whatwhere import UserError
from whatwhere.collect import own
from whatwhere.collect.collect import collect, is_collected
from whatwhere.collect.pattern import Pattern
from whatwhere.collect.ultralytics import last_line
from whatwhere.experiment import judge, read_results
from whatwhere.statistics.columns import Reading
from whatwhere.statistics.epochs import CHOSEN, LAST
from whatwhere.training.config import ADDED

MAP = "metrics/mAP50(B)"
OLD_RUNS = Path(__file__).parents[1] / "comparison" / "old" / "runs"


@pytest.fixture
def detect(tmp_path):
    """Two arms, three seeds, as Ultralytics leaves them."""
    root = tmp_path / "runs" / "detect"
    for arm in ("none", "cbam"):
        for seed in range(3):
            ultralytics_run(root / f"{arm}-{seed}", arm, seed)
    return root


def rewrite(path, **values):
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))


def test_runs_of_ultralytics(detect):
    collected = collect([detect.parent])
    results = collected.results
    assert (results.arms, results.seeds) == (["cbam", "none"], ["0", "1", "2"])
    assert results.metrics == ["train/box_loss", MAP, "metrics/mAP50-95(B)"]
    assert results.values("cbam", MAP) == {str(s): float(f"{accuracy('cbam', s, 2):.6g}") for s in range(3)}
    assert results.notes == [
        "6 runs of Ultralytics",
        "the arm is taken from the setting attention, the seed from the setting seed",
        "settings that name, store or place a run were not compared: name, save_dir",
        LAST,
    ]
    rows = list(csv.DictReader(io.StringIO(collected.to_csv())))
    assert rows[0]["folder"] == str(detect / "cbam-0")
    assert {row["epoch"] for row in rows} == {"3"}


@pytest.mark.parametrize("given", ["runs", "folders", "tables", "twice"])
def test_folders_folders_of_folders_and_the_tables_in_them(detect, given):
    folders = sorted(detect.iterdir())
    paths = {
        "runs": [detect],
        "folders": folders,
        "tables": [folder / "results.csv" for folder in folders],
        "twice": [detect, *folders, detect / ".." / "detect"],
    }
    collected = collect(paths[given])
    assert collected.to_csv() == collect([detect.parent]).to_csv()


def test_the_best_epoch_is_too_high_and_says_so(detect, tmp_path):
    falling = {"none": [0.5, 0.6, 0.4], "cbam": [0.7, 0.3, 0.65]}
    for folder in detect.iterdir():
        arm, _, seed = folder.name.partition("-")
        shutil.rmtree(folder)
        ultralytics_run(folder, arm, int(seed), figures=lambda arm, _, epoch: falling[arm][epoch])
    collected = collect([detect], Reading(metric=MAP, epoch="best"))
    assert set(collected.results.values("none", MAP).values()) == {0.6}
    assert set(collected.results.values("cbam", MAP).values()) == {0.7}
    assert set(collected.results.values("cbam", "train/box_loss").values()) == {1 - 0.35}  # of the same epoch
    assert CHOSEN in collected.results.notes
    # the table itself tells
    (tmp_path / "best.csv").write_text(collected.to_csv())
    assert "best_epoch" in collected.to_csv()
    assert read_results(tmp_path / "best.csv").notes == [CHOSEN]
    lower = collect([detect], Reading(metric="train/box_loss", epoch="best", lower_is_better=True))
    assert set(lower.results.values("none", MAP).values()) == {0.6}


def test_the_best_epoch_can_show_a_gain_where_there_is_none(tmp_path):
    """Both arms have one mean; cbam's figures vary five times as much from epoch to epoch."""

    def figures(arm, seed, epoch):
        noise = random.Random(f"{arm}{seed}{epoch}").gauss(0, 0.004 if arm == "none" else 0.02)
        return 0.5 + 0.01 * (seed % 5) + noise

    for arm in ("none", "cbam"):
        for seed in range(12):
            ultralytics_run(tmp_path / f"{arm}-{seed}", arm, seed, epochs=30, figures=figures)
    verdicts = []
    for epoch in ("last", "best"):
        (arm,) = judge(collect([tmp_path], Reading(metric=MAP, epoch=epoch)).results, metric=MAP).arms
        verdicts.append((arm.verdict, round(arm.mean_difference, 1)))
    assert verdicts == [("cannot tell yet", -0.4), ("helps", 2.8)]


def test_the_best_epoch_needs_a_figure_and_its_direction(detect, refused):
    with refused():
        collect([detect], Reading(epoch="best"))
    with refused():
        collect([detect], Reading(epoch="best", metric="train/box_loss"))


def test_dead_unfinished_and_diverged_runs_are_missing_and_told(detect, tmp_path):
    ultralytics_run(detect / "cbam-3", "cbam", 3, rows=2)
    ultralytics_run(detect / "cbam-4", "cbam", 4).joinpath("results.csv").unlink()
    ultralytics_run(detect / "cbam-5", "cbam", 5, figures=lambda *_: float("nan"))
    ultralytics_run(detect / "cbam-6", "cbam", 6, rows=0)
    for seed in range(3, 7):
        ultralytics_run(detect / f"none-{seed}", "none", seed)
    collected = collect([detect], Reading(metric=MAP))
    results = collected.results
    assert list(results.values("cbam", MAP)) == ["0", "1", "2"]
    assert list(results.runs("cbam")) == list("0123456")
    (note,) = [note for note in results.notes if "missing" in note]
    assert re.sub(r"[^ ]*/detect/", "", note) == (
        "runs that count as missing: cbam-3 ended after 2 of 3 epochs; cbam-4 has no results.csv; "
        f"cbam-5 diverged: {MAP} is not finite in its last epoch; cbam-6 has no epoch in results.csv "
        "(--may-differ epochs counts runs that ended early)"
    )
    (tmp_path / "results.csv").write_text(collected.to_csv())
    again = read_results(tmp_path / "results.csv", MAP)
    assert again.missing("none", "cbam", MAP) == {"cbam": dict.fromkeys("3456", "no figure")}
    # as asked, the unfinished one counts
    results = collect([detect], Reading(metric=MAP, may_differ=frozenset({"epochs"}))).results
    assert list(results.values("cbam", MAP)) == ["0", "1", "2", "3"]
    assert f"{str(detect / 'cbam-3')!r} ended after 2 of 3 epochs" in results.notes
    # without a metric, what diverged is told too
    assert any("cbam-5' diverged: " in note for note in collect([detect]).results.notes)


@pytest.mark.parametrize(("patience", "is_finished"), [(2, True), (3, False), (0, False)])
def test_early_stopping_is_the_end_of_a_run(tmp_path, patience, is_finished):
    curve = [0.4, 0.6, 0.5, 0.5]  # best at the second of four epochs, of a hundred asked for
    for arm in ("none", "cbam"):
        ultralytics_run(
            tmp_path / arm, arm, 0, epochs=100, rows=4, patience=patience, figures=lambda _, __, e: curve[e]
        )
    if is_finished:
        results = collect([tmp_path]).results
        assert len(results.values("cbam", MAP)) == 1
        (note,) = [note for note in results.notes if note.startswith("runs that Ultralytics ended early")]
        assert note.count("(4 epochs)") == 2
    else:
        with pytest.raises(ValueError, match="ended after 4 of 100 epochs"):
            collect([tmp_path])


@pytest.mark.parametrize(
    ("columns", "rows", "is_finished"),
    [
        # the sum of both peaks at the second epoch, neither column does
        (("mAP50-95(B)", "mAP50-95(M)"), [(0.2, 0.4), (0.35, 0.35), (0.4, 0.2), (0.4, 0.2)], True),
        # one column peaks at the second epoch, the sum at the third
        (("mAP50-95(B)", "mAP50-95(P)"), [(0.2, 0.2), (0.6, 0.1), (0.5, 0.5), (0.5, 0.3)], False),
        (("accuracy_top1", "accuracy_top5"), [(0.5, 0.7), (0.45, 0.85), (0.4, 0.88), (0.4, 0.8)], True),
        (("accuracy_top1", "accuracy_top5"), [(0.4, 0.7), (0.5, 0.7), (0.45, 0.8), (0.4, 0.8)], False),
        # Ultralytics 8.3 adds a tenth of mAP50
        (("mAP50(B)", "mAP50-95(B)"), [(0.5, 0.4), (0.9, 0.39), (0.6, 0.39), (0.6, 0.39)], True),
        # only rounding tells the second from the first
        (("mAP50-95(B)",), [(0.5,), (0.5,), (0.4,), (0.4,)], True),
        # while the fitness is 0, patience does not begin
        (("mAP50-95(B)",), [(0.0,), (0.0,), (0.0,), (0.0,)], False),
    ],
)
def test_patience_watches_the_fitness_of_the_task(tmp_path, columns, rows, is_finished):
    head = ",".join(["epoch", *(f"metrics/{name}" for name in columns)])
    lines = [",".join(map(str, (epoch, *row))) for epoch, row in enumerate(rows, 1)]
    for arm in ("none", "cbam"):
        folder = ultralytics_run(tmp_path / arm, arm, 0, epochs=100, patience=2)
        (folder / "results.csv").write_text("\n".join([head, *lines, ""]))
    if is_finished:
        assert any("ended early" in note for note in collect([tmp_path]).results.notes)
    else:
        with pytest.raises(ValueError, match="ended after 4 of 100 epochs"):
            collect([tmp_path])


def test_hours_instead_of_epochs(tmp_path, refused):
    for arm, rows in (("none", 4), ("cbam", 3)):
        ultralytics_run(tmp_path / arm, arm, 0, epochs=100, rows=rows, time=0.1)
    with refused():
        collect([tmp_path])
    assert collect([tmp_path], Reading(may_differ=frozenset({"epochs"}))).results.arms == ["cbam", "none"]


def test_a_broken_run_that_was_trained_again_is_left_out(detect):
    broken = ultralytics_run(detect / "cbam-02", "cbam", 2, rows=1)
    results = collect([detect], Reading(metric=MAP)).results
    assert list(results.values("cbam", MAP)) == ["0", "1", "2"]
    assert f"missing runs that were trained again: {broken}" in results.notes
    # two broken ones are one missing run
    (detect / "cbam-2" / "results.csv").unlink()
    results = collect([detect], Reading(metric=MAP)).results
    assert results.runs("cbam")["2"] == {}


def test_two_runs_of_one_arm_with_one_seed_are_refused(detect, refused):
    shutil.copytree(detect / "cbam-1", detect / "cbam-1 copy")
    with refused():
        collect([detect])


def test_settings_that_differ_within_pairs_are_refused_unless_named(detect, refused):
    rewrite(detect / "cbam-1" / "args.yaml", batch=8, lr0=0.1)
    with refused():
        collect([detect])
    with refused():
        collect([detect], Reading(arm_column="attention"))
    with refused():
        collect([detect], Reading(arm_column="attention", may_differ=frozenset({"batch", "lr"})))
    results = collect([detect], Reading(may_differ=frozenset({"batch", "lr0"}))).results
    assert results.arms == ["cbam", "none"]
    assert any("these settings differ besides the arm, as asked: batch, lr0" in note for note in results.notes)


def test_settings_that_differ_between_seeds_are_told(detect):
    for arm in ("none", "cbam"):
        rewrite(detect / f"{arm}-1" / "args.yaml", data="fold1.yaml")
    notes = collect([detect]).results.notes
    assert "settings that differ between seeds, and are the same within each pair: data" in notes


def test_arms_and_seeds_by_the_path(tmp_path, refused):
    for arm in ("none", "v8-cbam"):
        for seed in range(10, 12):
            ultralytics_run(
                *(tmp_path / arm / f"try{seed}" / "train", "none", 0), model=f"{arm}.yaml",
                figures=lambda arm, _, epoch, seed=seed: accuracy(arm, seed, epoch),
            )  # fmt: skip
    reading = Reading(arm_from="{arm}/try{seed}/*", may_differ=frozenset({"model"}))
    results = collect([tmp_path], reading).results
    assert (results.arms, results.seeds) == (["none", "v8-cbam"], ["10", "11"])
    (note,) = (note for note in results.notes if "have the same seed in their settings (0)" in note)
    assert note.startswith("runs of one arm whose paths name different seeds")
    # the arm from a setting
    results = collect([tmp_path], Reading(arm_column="model", seed_from="try{seed}/train")).results
    assert results.arms == ["none.yaml", "v8-cbam.yaml"]
    with refused():
        collect([tmp_path], Reading(arm_from="{arm}/try{seed}/*"))
    for bad in ("{arm}/run{seed}/*", "{arm}/{seed}/{name}", "try", "{arm}{arm}", "{seed}"):
        with refused():
            collect([tmp_path], Reading(arm_from=bad))
    with refused():
        collect([tmp_path], Reading(arm_from="{arm}/*/*", arm_column="model"))


def test_seeds_of_the_path_that_are_others_in_the_settings_are_refused(tmp_path, refused):
    for arm, seed in (("none", 0), ("none", 1), ("cbam", 1), ("cbam", 0)):
        ultralytics_run(tmp_path / f"{arm}-{seed}", arm, seed)
    rewrite(tmp_path / "cbam-1" / "args.yaml", seed=7)
    with refused():
        collect([tmp_path], Reading(arm_from="{arm}-{seed}"))


def test_a_resumed_run_is_compared_by_the_settings_of_the_others(detect):
    last = detect / "cbam-1" / "weights" / "last.pt"
    # as Ultralytics' trainer writes them when it resumes
    for folder in detect.iterdir():
        rewrite(folder / "args.yaml", optimizer="auto", lr0=0.01)
    written = {"model": str(last), "resume": str(last), "pretrained": True, "optimizer": "AdamW", "lr0": 0.002}
    rewrite(detect / "cbam-1" / "args.yaml", **written, warmup_bias_lr=0.0)
    results = collect([detect]).results
    assert len(results.values("cbam", MAP)) == 3
    (note,) = [note for note in results.notes if "resumed" in note]
    assert str(detect / "cbam-1") in note
    # a run that began with the weights of another one is no such run
    rewrite(detect / "cbam-1" / "args.yaml", model=str(last), resume=False)
    with pytest.raises(UserError, match=r"several settings differ.*model.*attention"):
        collect([detect])


@pytest.mark.parametrize("ending", ["yaml", "pt"])
def test_a_resumed_run_among_several_models_is_refused(tmp_path, refused, ending):
    for arm in ("yolo11n", "yolo11s"):
        for seed in range(2):
            ultralytics_run(tmp_path / f"{arm}-{seed}", "none", seed, model=f"{arm}.{ending}", pretrained=True)
    last = "runs/detect/yolo11s-1/weights/last.pt"
    rewrite(tmp_path / "yolo11s-1" / "args.yaml", model=last, resume=last)
    with refused():
        collect([tmp_path])
    # the path tells its arm, and so the model
    collected = collect([tmp_path], Reading(arm_from="{arm}-{seed}", may_differ=frozenset({"model"})))
    assert collected.results.arms == ["yolo11n", "yolo11s"]
    rewrite(tmp_path / "yolo11s-1" / "args.yaml", model=f"yolo11s.{ending}", resume=False)
    assert len(collect([tmp_path]).results.arms) == 2


def test_an_optimizer_that_a_resumed_run_was_given_is_its_own(detect):
    for folder in detect.iterdir():
        rewrite(folder / "args.yaml", optimizer="SGD")
    last = str(detect / "cbam-1" / "weights" / "last.pt")
    rewrite(detect / "cbam-1" / "args.yaml", model=last, resume=last, optimizer="AdamW")
    with pytest.raises(UserError, match="optimizer"):
        collect([detect], Reading(arm_column="attention"))


def test_an_optimizer_that_a_resumed_run_was_given_is_not_taken_for_auto(detect):
    for folder in detect.iterdir():
        rewrite(folder / "args.yaml", optimizer="auto", lr0=0.01, warmup_bias_lr=0.1)
    last = str(detect / "cbam-1" / "weights" / "last.pt")
    rewrite(detect / "cbam-1" / "args.yaml", model=last, resume=last, optimizer="SGD", lr0=0.1)
    with pytest.raises(UserError, match="optimizer"):
        collect([detect], Reading(arm_column="attention"))


@pytest.mark.parametrize("attention", ["\ud800", [{"attention": "\ud800"}, {"attention": "\x1b"}]])
def test_an_attention_whose_name_is_no_text_is_written_escaped(detect, attention):
    (detect / "cbam-0" / "attention.json").write_text(json.dumps({"format": 1, "attention": attention}))
    assert "\\ud800" in collect([detect]).to_csv().encode().decode()


@pytest.mark.parametrize("name", ["", "none"])
def test_an_attention_that_is_called_none_is_no_baseline(detect, refused, name):
    (detect / "cbam-0" / "attention.json").write_text(json.dumps({"format": 1, "attention": [{"attention": name}]}))
    with refused():
        collect([detect])


def test_all_runs_were_resumed(detect):
    for folder in detect.iterdir():
        last = str(folder / "weights" / "last.pt")
        rewrite(folder / "args.yaml", model=last, resume=last)
    collected = collect([detect])
    assert len(collected.results.values("cbam", MAP)) == 3
    assert any(note.endswith("with which model they began, so it is not compared") for note in collected.doubts)


def test_a_run_with_the_attention_of_another_training_is_missing(detect):
    path = detect / "cbam-0" / "attention.json"
    content = json.loads(path.read_text())
    assert last_line(detect / "cbam-0")[:2] == [3, 5]
    path.write_text(json.dumps({**content, "last_line": last_line(detect / "cbam-0")}))
    assert len(collect([detect]).results.values("cbam", MAP)) == 3
    # a spreadsheet may write the numbers in another way
    table = detect / "cbam-0" / "results.csv"
    table.write_bytes(table.read_bytes().replace(b"\n3,5,", b"\n3.0,5.00,").replace(b"\n", b"\r\n"))
    assert len(collect([detect]).results.values("cbam", MAP)) == 3
    # the same folder, trained again without attention
    table.write_text(table.read_text().replace("3.0,5.00,", "3,5.5,"))
    results = collect([detect]).results
    assert list(results.values("cbam", MAP)) == ["1", "2"]
    # also where the training with attention was stopped in its first epoch
    path.write_text(json.dumps({**content, "last_line": []}))
    assert list(collect([detect]).results.values("cbam", MAP)) == ["1", "2"]
    # an old version wrote none at the start
    path.write_text(json.dumps(content))
    assert len(collect([detect]).results.values("cbam", MAP)) == 3
    assert any("cbam-0 has another last line in results.csv than attention.json tells" in n for n in results.notes)


@pytest.mark.parametrize(
    ("name", "pattern", "arm", "seed"),
    [
        ("cbam-se-3", "{arm}-{seed}", "cbam-se", "3"),
        ("yolov8n12", "{arm}{seed}", "yolov8n", "12"),
        ("seed007_cbam", "seed{seed}_{arm}", "cbam", "7"),
        ("cbam-3-final", "{arm}-{seed}*", "cbam", "3"),
        ("exp-cbam_3", "exp*-{arm}_{seed}", "cbam", "3"),
        ("cbam (3)", "{arm} ({seed})", "cbam", "3"),
    ],
)
def test_patterns_of_names(tmp_path, name, pattern, arm, seed):
    ultralytics_run(tmp_path / name, "none", 0)
    assert list(collect([tmp_path], Reading(arm_from=pattern)).paths) == [(arm, seed)]


def test_one_arm_no_seed_or_several_settings_are_sentences(tmp_path, refused):
    for seed in range(2):
        ultralytics_run(tmp_path / f"{seed}", "none", seed)
    with refused():
        collect([tmp_path])
    with refused():
        collect([tmp_path], Reading(arm_column="arch"))
    with refused():
        collect([tmp_path], Reading(seed_column="sed"))
    for name in "01":
        rewrite(tmp_path / name / "args.yaml", seed=None)
    with refused():
        collect([tmp_path])
    for name in "01":
        path = tmp_path / name / "args.yaml"
        path.write_text(path.read_text().replace("seed:", "sed:"))
    with refused():
        collect([tmp_path])


def test_an_attention_in_two_ways_gives_two_arms(tmp_path):
    for at in ("blocks", "stages"):
        folder = ultralytics_run(tmp_path / at, "cbam", 0)
        content = json.loads((folder / "attention.json").read_text())
        content["attention"][0]["at"] = at
        (folder / "attention.json").write_text(json.dumps(content))
    ultralytics_run(tmp_path / "plain", "none", 0)
    short = ultralytics_run(tmp_path / "short", "eca", 0)
    (short / "attention.json").write_text('{"format": 1, "attention": [{"attention": "eca"}]}')
    two = ultralytics_run(tmp_path / "two", "se", 0)
    content["attention"] += [{"attention": "eca", "at": ["model.2", "model.4"]}]
    (two / "attention.json").write_text(json.dumps(content))
    assert collect([tmp_path]).results.arms == ["cbam (at=blocks)", "none", "eca", "cbam (at=stages)", "cbam+eca"]


def test_an_attention_in_two_forms(tmp_path):
    for form in ("paper", "ultralytics"):
        folder = ultralytics_run(tmp_path / form, "cbam", 0)
        kwargs = {} if form == "paper" else {"form": form}
        content = json.loads((folder / "attention.json").read_text())
        content["attention"][0]["attention_kwargs"] = kwargs
        (folder / "attention.json").write_text(json.dumps(content))
    assert collect([tmp_path]).results.arms == ["cbam", "cbam (form=ultralytics)"]


def test_attention_that_has_hardly_begun(detect):
    for seed, largest in enumerate((None, 0.009, 0.3)):
        path = detect / f"cbam-{seed}" / "attention.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "largest_mix": largest}))
    (note,) = (note for note in collect([detect]).results.notes if "hardly begun" in note)
    assert "cbam-1;" in note
    assert "cbam-0" not in note
    assert "cbam-2" not in note


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format": 2, "attention": []}', '{"format": 1, "attention": [{"at": "blocks"}]}']
)
def test_a_damaged_note_of_the_attention_is_refused(detect, text, refused):
    (detect / "cbam-0" / "attention.json").write_text(text)
    with refused():
        collect([detect])


def test_trained_weights_against_none_are_no_comparison_of_networks(tmp_path, refused):
    for model in ("yolo11n.pt", "yolo11n-cbam.yaml"):
        ultralytics_run(tmp_path / model, "none", 0, model=model, pretrained=True)
    with refused():
        collect([tmp_path])
    results = collect([tmp_path], Reading(may_differ=frozenset({"pretrained"}))).results
    assert results.arms == ["yolo11n-cbam.yaml", "yolo11n.pt"]


def test_an_attention_of_an_earlier_training_in_the_folder_is_pointed_out(detect):
    old = detect / "cbam-0" / "attention.json"
    os.utime(old, (1e9, 1e9))
    (note,) = [note for note in collect([detect]).results.notes if "older" in note]
    assert note == (
        f"the attention.json in {old.parent} is older than args.yaml; take it out if a training without attention "
        "wrote into the same folder later"
    )


def test_a_name_that_is_too_long_is_told_with_its_run(tmp_path, refused):
    for attention in ("a" * 301, "none"):
        lightning_run(tmp_path / attention[0], f"attention: {attention}\nseed: 0\n", lightning_rows(0.5))
    with refused():
        collect([tmp_path])


def test_thousands_of_runs_are_read_once_each(tmp_path, monkeypatch):
    from whatwhere.collect import settings

    for number in range(40):
        ultralytics_run(tmp_path / str(number), ("none", "cbam")[number % 2], number // 2)
    parsed = []
    monkeypatch.setattr(
        settings, "read_yaml", lambda path, real=settings.read_yaml, **how: parsed.append(0) or real(path, **how)
    )
    collect([tmp_path])
    assert len(parsed) == 40


def test_runs_of_timm(tmp_path, refused):
    for model in ("resnet18", "cbam_resnet18"):
        for seed in range(2):
            timm_run(tmp_path / f"{model}-{seed}", {"model": model, "seed": seed}, [50.0, 60.0, 70.0 + seed])
    results = collect([tmp_path]).results
    assert results.values("cbam_resnet18", "eval_top1") == {"0": 70, "1": 71}
    assert results.metrics == ["train_loss", "eval_loss", "eval_top1", "eval_top5"]
    (tmp_path / "cbam_resnet18-1" / "summary.csv").unlink()
    results = collect([tmp_path]).results
    assert any("cbam_resnet18-1 has no summary.csv" in note for note in results.notes)
    with refused():
        collect([tmp_path], Reading(metric="top1"))


@pytest.mark.parametrize(
    ("given", "num_epochs"),
    [
        ({"cooldown_epochs": 5}, 10),
        ({"warmup_epochs": 3}, 5),
        ({"warmup_epochs": 3, "warmup_prefix": True, "cooldown_epochs": 1}, 9),
        ({"sched": "step", "cooldown_epochs": 5}, 5),
        ({"sched": "step", "warmup_epochs": 3, "warmup_prefix": True}, 8),
        ({"lr_cycle_limit": 2, "lr_cycle_mul": 1.0}, 10),
        ({"sched": "wsd", "cooldown_epochs": 2}, 7),
        ({"sched": "rsqrt", "warmup_epochs": 1, "warmup_prefix": True}, 6),
        ({"stop_epoch": 3, "cooldown_epochs": 2}, 3),
    ],
)
def test_epochs_that_timm_adds(tmp_path, given, num_epochs):
    for model in ("resnet18", "cbam_resnet18"):
        for seed in range(2):
            rows = [50.0] * (num_epochs - (seed and model != "resnet18"))
            timm_run(tmp_path / f"{model}-{seed}", {"epochs": 5, "model": model, "seed": seed, **given}, rows)
    (note,) = [note for note in collect([tmp_path]).results.notes if "missing" in note]
    assert f"cbam_resnet18-1 ended after {num_epochs - 1} of {num_epochs} epochs" in note


def test_an_arm_in_the_keyword_arguments_of_timm(tmp_path):
    for kwargs in ({}, {"attn_layer": "cbam"}, {"attn_layer": "se"}):
        timm_run(tmp_path / str(len(str(kwargs))), {"model_kwargs": kwargs}, [50.0])
    assert sorted(collect([tmp_path]).results.arms) == ["cbam", "none", "se"]
    for rate in (0.1, 0.2):
        timm_run(tmp_path / "rates" / str(rate), {"drop": rate}, [50.0])
    assert collect([tmp_path / "rates"]).results.arms == ["drop=0.1", "drop=0.2"]


def lightning_rows(value, epochs=3):
    return [
        *(row for epoch in range(epochs) for row in (
            {"epoch": epoch, "step": 10 * epoch + 9, "train_loss": 2 - epoch},
            {"epoch": epoch, "step": 10 * epoch + 9, "val_acc": value - 0.1 * (epoch == 1)},
        )),
        {"epoch": epochs, "step": 10 * epochs, "test_acc": value - 0.02},
    ]  # fmt: skip


def test_only_an_attention_that_is_not_there_is_called_none(tmp_path):
    for number, augmentation in enumerate((None, "randaug")):
        timm_run(tmp_path / "aug" / str(number), {"aa": augmentation}, [50.0])
    assert collect([tmp_path / "aug"]).results.arms == ["aa=none", "randaug"]
    for number, form in enumerate(({}, {"form": "timm"})):
        shutil.copytree(OLD_RUNS / "cbam" / "seed-0", tmp_path / "own" / str(number))
        path = tmp_path / "own" / str(number) / "run.json"
        content = json.loads(path.read_text())
        content["config"]["attention_kwargs"] = form
        path.write_text(json.dumps(content))
    assert collect([tmp_path / "own"]).results.arms == ["form=none", "timm"]


def test_runs_of_lightning(tmp_path):
    for version, (arm, seed) in enumerate([("none", 1), ("none", 2), ("cbam", 1), ("cbam", 2)]):
        hparams = f"attention: {arm}\nbetas: !!python/tuple\n- 0.9\n- 0.999\nseed: {seed}\n"
        lightning_run(tmp_path / "lightning_logs" / f"version_{version}", hparams, lightning_rows(0.5 + seed / 10))
    results = collect([tmp_path]).results
    assert (results.arms, results.seeds) == (["none", "cbam"], ["1", "2"])
    assert results.runs("cbam")["2"] == {"train_loss": 0, "val_acc": 0.7, "test_acc": 0.7 - 0.02}
    best = collect([tmp_path], Reading(metric="val_acc", epoch="best")).results
    assert best.runs("cbam")["2"] == {"val_acc": 0.7, "test_acc": 0.7 - 0.02}


def test_lightning_without_hparams_or_with_tensorboard(tmp_path, refused):
    for arm, epochs in (("none", 3), ("cbam", 2)):
        folder = lightning_run(tmp_path / arm / "version_5", "{}\n", lightning_rows(0.5, epochs)[:-1])
        (folder / "hparams.yaml").unlink()
    board = tmp_path / "board"
    board.mkdir()
    (board / "hparams.yaml").write_text("{}\n")
    (board / "events.out.tfevents.1").write_bytes(b"")
    with refused():
        collect([tmp_path])
    with refused():
        collect([tmp_path], Reading(arm_from="{arm}/version_{seed}"))
    reading = Reading(arm_from="{arm}/version_{seed}", may_differ=frozenset({"epochs"}))
    assert collect([tmp_path], reading).results.arms == ["cbam", "none"]


def test_a_run_that_was_cut_off_before_its_last_validation_is_missing(tmp_path):
    for arm in ("none", "cbam"):
        for seed in range(3):
            rows = lightning_rows(0.5 + seed / 10, 10)[:-1]
            rows = [row for row in rows if (arm, seed) != ("cbam", 1) or "val_acc" not in row or row["epoch"] < 4]
            lightning_run(tmp_path / f"{arm}-{seed}", f"attention: {arm}\nseed: {seed}\nmax_epochs: 10\n", rows)
    told = f"{str(tmp_path / 'cbam-1')!r} has no val_acc after epoch 3"
    collected = collect([tmp_path], Reading(metric="val_acc"))
    assert any(note.startswith("runs that count as missing: ") for note in collected.results.notes)
    assert list(collected.results.values("cbam", "val_acc")) == ["0", "2"]
    # without a metric, that figure is left out
    results = collect([tmp_path]).results
    assert told in results.notes
    assert list(results.runs("cbam")["1"]) == ["train_loss"]
    # as asked, it counts with the epoch that it has
    collected = collect([tmp_path], Reading(metric="val_acc", may_differ=frozenset({"epochs"})))
    assert list(collected.results.values("cbam", "val_acc")) == ["0", "1", "2"]
    assert collected.epochs["cbam", "1"] == 3
    assert {told, "the runs end at different epochs, 4 to 10, as asked"} <= {*collected.results.notes}


def test_arms_without_a_recorded_difference_are_told(tmp_path):
    """As after `attend(yolo.model)` and `yolo.train()`, which builds the network again without attention."""
    for arm in ("none", "cbam"):
        for seed in range(2):
            ultralytics_run(tmp_path / f"{arm}-{seed}", "none", seed)
    by_path = Reading(arm_from="{arm}-{seed}")
    (note,) = [note for note in collect([tmp_path], by_path).results.notes if note.startswith("no recorded")]
    assert note == (
        "no recorded setting differs between the arms; only their paths tell them apart; if `attend` put attention in "
        "before `train`, Ultralytics dropped it: use whatwhere.ultralytics.trainer"
    )
    for seed in range(2):
        rewrite(tmp_path / f"cbam-{seed}" / "args.yaml", model="cbam.yaml")
    reading = Reading(arm_from="{arm}-{seed}", may_differ=frozenset({"model"}))
    assert not any("no recorded" in note for note in collect([tmp_path], reading).results.notes)


@pytest.mark.parametrize("hparams", [("{}", "{}"), ("seed: 0", "seed: 0"), ("seed: 0\nnet: a", "seed: 0\nnet: b")])
def test_runs_without_settings_are_told(tmp_path, hparams):
    for arm, text in zip(("none", "cbam"), hparams, strict=True):
        lightning_run(tmp_path / f"{arm}-0", f"{text}\n", lightning_rows(0.5))
    reading = Reading(arm_column="net") if "net" in hparams[0] else Reading(arm_from="{arm}-{seed}")
    notes = collect([tmp_path], reading).results.notes
    assert "the runs hold no settings besides arm and seed, so none were compared" in notes
    assert not any("no recorded" in note for note in notes)


def test_what_a_verdict_should_tell_is_in_the_table(detect, tmp_path):
    rewrite(detect / "cbam-1" / "args.yaml", lr0=0.1)
    content = json.loads((detect / "cbam-2" / "attention.json").read_text())
    (detect / "cbam-2" / "attention.json").write_text(json.dumps({**content, "largest_mix": 0.01}))
    collected = collect([detect], Reading(may_differ=frozenset({"lr0"})))
    assert len(collected.doubts) == 2
    path = tmp_path / "results.csv"
    path.write_text(collected.to_csv())
    assert is_collected(path)
    read = read_results(path, MAP)
    assert read.notes == collected.doubts
    assert {*read.notes} <= {*judge(read, metric=MAP).cautions}
    # once more
    assert collect([path]).doubts == collected.doubts


def test_arms_that_trained_for_different_epochs_are_refused(tmp_path, refused):
    for arm, epochs in (("none", 3), ("cbam", 6)):
        lightning_run(tmp_path / "tested" / arm / "version_0", "{}\n", lightning_rows(0.5, epochs))
        ultralytics_run(tmp_path / "appended" / arm, arm, 0, epochs=3, rows=epochs)
    with refused():
        collect([tmp_path / "tested"], Reading(arm_from="{arm}/version_{seed}"))
    with refused():
        collect([tmp_path / "appended"])


def test_own_runs(tmp_path):
    results = collect([OLD_RUNS]).results
    assert results.arms == ["cbam_resnext11_8x8d", "resnext11_8x8d"]
    assert len(results.seeds) == 6
    # figures of test images, at an epoch that the validation images chose
    told = json.loads((OLD_RUNS / "cbam" / "seed-0" / "result.json").read_text())
    assert results.runs("cbam_resnext11_8x8d")["0"]["accuracy"] == told["test"]["accuracy"]
    assert CHOSEN not in results.notes
    assert "the epoch of each run is the one that its training chose on its validation images" in results.notes
    shutil.copytree(OLD_RUNS, tmp_path / "runs")
    for path in tmp_path.glob("runs/*/*/result.json"):
        content = json.loads(path.read_text())
        content |= {"val": content.pop("test"), "judged_on": "val"}
        path.write_text(json.dumps(content))
        (line,) = map(json.loads, path.with_name("metrics.jsonl").read_text().splitlines())
        line |= {f"val_{name}": content["val"][name] for name in ("accuracy", "loss")}
        path.with_name("metrics.jsonl").write_text(json.dumps(line))
    assert CHOSEN in collect([tmp_path]).results.notes


def test_own_runs_of_an_earlier_version_have_what_it_did(tmp_path):
    assert own._ADDED == ADDED
    shutil.copytree(OLD_RUNS, tmp_path / "runs")
    for path in tmp_path.glob("runs/cbam/*/run.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "config": {**ADDED, **content["config"]}}))
    assert collect([tmp_path]).doubts == collect([OLD_RUNS]).doubts


@pytest.mark.parametrize("other", ["cbam/seed-0", "none/seed-1"])
def test_a_result_of_another_run_is_refused(tmp_path, other):
    out = shutil.copytree(OLD_RUNS, tmp_path / "runs") / "none" / "seed-0"
    shutil.copy(OLD_RUNS / other / "result.json", out)
    with pytest.raises(UserError, match=re.escape(f"{str(out / 'result.json')!r} is not of this run (its val")):
        collect([tmp_path])


def test_own_runs_have_one_epoch(refused):
    for epoch in ("last", "best"):
        with refused():
            collect([OLD_RUNS], Reading(metric="accuracy", epoch=epoch))


def test_damaged_runs_are_sentences(tmp_path, refused):
    shutil.copytree(OLD_RUNS, tmp_path / "own")
    ultralytics_run(tmp_path / "yolo" / "a", "none", 0)
    ultralytics_run(tmp_path / "yolo" / "b", "cbam", 0)
    with refused():
        collect([tmp_path])
    (tmp_path / "own" / "cbam" / "seed-0" / "result.json").write_text('{"val": 1}')
    with refused(hiding=r"\(.*\)"):
        collect([tmp_path / "own"])
    (tmp_path / "yolo" / "b" / "results.csv").write_text("epoch,acc\n1,0.5,7\n")
    with refused():
        collect([tmp_path / "yolo"])
    (tmp_path / "yolo" / "b" / "args.yaml").write_text("task: [")
    with refused():
        collect([tmp_path / "yolo"])
    for missing in (tmp_path / "none", Path("a\0b")):
        with refused():
            collect([missing])
    with refused():
        collect([])


def test_runs_beside_other_tables(detect, refused):
    (detect / "table.csv").write_text("arm,seed,acc\nnone,0,0.5\n")
    assert any("1 CSV file of no run, such as " in note for note in collect([detect]).results.notes)
    with refused():
        collect([detect, detect / "table.csv"])


def test_links_and_hidden_folders_are_not_looked_into(detect):
    (detect / "latest").symlink_to(detect / "cbam-0", target_is_directory=True)
    (detect / "round").symlink_to(detect, target_is_directory=True)
    shutil.copytree(detect / "cbam-0", detect / ".trash" / "cbam-0")
    assert len(collect([detect]).paths) == 6


def test_a_folder_of_csv_files(tmp_path):
    """One file a run, with a line for each epoch, as a loop of one's own or W&B's export of a run's history gives."""
    for arm in ("none", "cbam"):
        for seed in range(3):
            rows = "".join(f"{epoch},{accuracy(arm, seed, epoch)}\n" for epoch in range(4))
            (tmp_path / f"{arm}_{seed}.csv").write_text(f"epoch,val_acc\n{rows}")
    collected = collect([tmp_path], Reading(arm_from="{arm}_{seed}"))
    assert collected.results.values("cbam", "val_acc") == {str(s): accuracy("cbam", s, 3) for s in range(3)}
    assert collected.results.notes == [LAST]
    best = collect([tmp_path], Reading(arm_from="{arm}_{seed}", metric="val_acc", epoch="best")).results
    assert best.values("none", "val_acc")["0"] == max(accuracy("none", 0, epoch) for epoch in range(4))


def test_csv_files_without_lines_are_missing_runs(tmp_path):
    for name, text in (("a_0", "epoch,acc\n0,0.5\n1,0.6\n"), ("b_0", "epoch,acc\n"), ("b_1", "")):
        (tmp_path / f"{name}.csv").write_text(text)
    results = collect([tmp_path], Reading(arm_from="{arm}_{seed}", metric="acc")).results
    assert results.runs("b") == {"0": {}, "1": {}}
    assert results.runs("a") == {"0": {"acc": 0.6}}
    assert sum("has no lines: its run counts as missing" in note for note in results.notes) == 2


def test_csv_files_that_end_at_different_epochs_are_refused(tmp_path, refused):
    (tmp_path / "a_0.csv").write_text("epoch,acc\n0,0.5\n1,0.6\n")
    (tmp_path / "b_0.csv").write_text("epoch,acc\n0,0.5\n")
    with refused():
        collect([tmp_path], Reading(arm_from="{arm}_{seed}"))


@pytest.mark.parametrize("epochs", [((1, 2), (3, 4)), ((1,), (1,))], ids=["disjoint", "the same"])
def test_one_run_in_two_csv_files_is_refused(tmp_path, refused, epochs):
    for folder, numbers in zip(("x", "y"), epochs, strict=True):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cbam-0.csv").write_text("epoch,acc\n" + "".join(f"{n},0.5\n" for n in numbers))
    with refused():
        collect([tmp_path], Reading(arm_from="{arm}-{seed}"))


@pytest.mark.parametrize("pattern", ["{arm}", "{arm}-{seed}"])
def test_settings_in_csv_files_must_be_equal_within_pairs(tmp_path, refused, pattern):
    for arm, rate in (("none", "0.1"), ("cbam", "0.001")):
        for seed in range(2):
            name, column, cell = (arm, "seed,", f"{seed},") if "seed" not in pattern else (f"{arm}-{seed}", "", "")
            path = tmp_path / f"{name}.csv"
            before = path.read_text() if path.exists() else f"{column}params.lr,params.data,acc\n"
            path.write_text(f"{before}{cell}{rate},photos,0.5\n")
    with refused():
        collect([tmp_path], Reading(arm_from=pattern))
    results = collect([tmp_path], Reading(arm_from=pattern, may_differ=frozenset({"params.lr"}))).results
    assert results.metrics == ["acc"]
    assert results.notes[-1].startswith("within pairs these settings differ besides the arm, as asked: params.lr;")
    with refused():
        collect([tmp_path], Reading(arm_from=pattern, may_differ=frozenset({"params.rl"})))


def test_a_seed_in_a_path_has_plain_digits(tmp_path, refused):
    (tmp_path / "none-\u0663.csv").write_text("epoch,acc\n1,0.5\n")
    with refused():
        collect([tmp_path], Reading(arm_from="{arm}-{seed}"))


def test_a_table_that_collect_wrote_is_known(detect, tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(collect([detect]).to_csv())
    assert is_collected(path)
    assert not is_collected(detect / "cbam-0" / "results.csv")
    # people call columns so too, and may have notes
    for head in ("arm,seed,acc,epoch,folder", "arm,seed,acc,epoch,folder,notes", "arm,seed,epoch,collect_notes"):
        path.write_text(f"{head}\n")
        assert not is_collected(path)


LINES = [
    "",
    "epoch,acc",
    "epoch,step,acc",
    "1,0.5",
    "2,0.6",
    "2,nan",
    "1,2,3",
    "seed: 0",
    "task: detect",
    "mode: train",
    "epochs: 2",
    "attention: cbam",
    "a: &a [*a]",
    "- 1",
    "{",
    '{"format": 1, "attention": []}',
    '{"config": {}',
    '"data_fingerprint": "1"}',
    "\x00",
    "é",
    "arm,seed,acc",
    "none,0,0.5",
    "seed,none,cbam",
    "model: x",
    "opt: y",
    "sched: z",
    "",
]
FILES = ("args.yaml", "results.csv", "summary.csv", "metrics.csv", "hparams.yaml", "run.json", "result.json")


@settings(max_examples=150)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([*FILES, "attention.json"]), st.lists(st.sampled_from(LINES), max_size=5), max_size=4
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([b"\n", b"\r\n", b""]),
    st.sampled_from([None, "acc"]),
    st.sampled_from([None, "best"]),
)
def test_whatever_stands_in_the_files_the_answer_is_a_sentence_or_a_table(folders, end, metric, epoch):
    with tempfile.TemporaryDirectory() as folder:
        for number, files in enumerate(folders):
            (Path(folder) / str(number)).mkdir()
            for name, lines in files.items():
                (Path(folder) / str(number) / name).write_bytes(end.join(line.encode("latin-1") for line in lines))
        with contextlib.suppress(UserError):
            collect([Path(folder)], Reading(metric=metric, epoch=epoch)).to_csv()


@settings(max_examples=15)
@given(
    st.lists(st.sampled_from(["plain", "se", "cbam", "eca"]), min_size=2, max_size=3, unique=True),
    st.lists(st.integers(0, 10**6), min_size=6, max_size=7, unique=True),
    st.randoms(use_true_random=False),
)
def test_the_verdict_is_that_of_a_table_by_hand(arms, seeds, rng):
    with tempfile.TemporaryDirectory() as folder:
        root, hand = Path(folder) / "runs", ["arm,seed,train_loss,eval_loss,eval_top1,eval_top5"]
        for arm in sorted(arms):
            for seed in seeds:
                top1 = [round(rng.uniform(60, 80), 2) for _ in range(2)]
                timm_run(root / arm / str(seed), {"model": arm, "seed": seed}, top1)
                last = top1[-1]
                hand.append(f"{arm},{seed},{2 - last / 50},{2 - last / 60},{last},{last + 5}")
        by_hand = Path(folder) / "hand.csv"
        by_hand.write_text("\n".join(hand))
        table = Path(folder) / "results.csv"
        table.write_text(collect([root]).to_csv())
        expected = judge(read_results(by_hand), metric="eval_top1").arms
        for results in (read_results(table), collect([root]).results):
            assert judge(results, metric="eval_top1").arms == expected


@pytest.mark.parametrize("epoch", ["nan", "inf", "-inf", "1e300"])
def test_an_epoch_that_is_no_number_is_refused(tmp_path, refused, epoch):
    (tmp_path / "one.csv").write_text(f"arm,seed,epoch,acc\nnone,0,1,0.5\ncbam,0,{epoch},0.6\n")
    with refused():
        collect([tmp_path])
    for arm in ("none", "cbam"):
        folder = ultralytics_run(tmp_path / "runs" / arm, arm, 0)
    (folder / "results.csv").write_text(f"epoch,acc\n1,0.5\n{epoch},0.6\n")
    with refused():
        collect([tmp_path / "runs"])


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("cbam-3", "*{arm}-{seed}"),
        ("cbam-3", "{arm}*"),
        ("cbam-se-3", "{arm}-*"),
        ("cbam-3-lr-01", "{arm}-{seed}*"),
        ("a1b2", "{arm}*{seed}*"),
        ("cbam-3", "*-*-*-{arm}"),
        ("a" * 200 + "b", "*a" * 40 + "{arm}"),
    ],
)
def test_patterns_that_fit_in_two_ways_are_refused(tmp_path, refused, name, pattern):
    ultralytics_run(tmp_path / name, "none", 0)
    with refused():
        collect([tmp_path], Reading(arm_from=pattern))


def test_many_names_of_a_pattern_are_matched_one_by_one():
    begin = time.monotonic()
    names = "/".join(["a" * 250] * 8)
    with pytest.raises(ValueError, match="is not of the form"):
        Pattern("/".join(["*a*a"] * 7) + "/{arm}*b", "arm").match(Path(f"/{names}"))
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("is_run", [True, False])
def test_arms_that_end_in_their_seeds_are_refused(tmp_path, refused, is_run):
    for arm in ("none", "cbam"):
        for seed in range(3):
            if is_run:
                ultralytics_run(tmp_path / f"{arm}-{seed}", arm, seed)
            else:
                (tmp_path / f"{arm}-{seed}.csv").write_text(f"seed,acc\n{seed},0.5\n")
    with refused():
        collect([tmp_path], Reading(arm_from="{arm}"))


def test_arms_with_numbers_of_their_own_are_arms(tmp_path):
    for arm in ("resnet-18", "resnet-34", "vgg-16", "vgg-19"):
        ultralytics_run(tmp_path / arm, "none", 0, model=f"{arm}.yaml")
    reading = Reading(arm_from="{arm}", may_differ=frozenset({"model"}))
    assert len(collect([tmp_path], reading).results.arms) == 4


@pytest.mark.parametrize("other", ["cbam ", "CBAM", "cbam_"])
def test_arms_that_differ_in_their_spelling_are_refused(tmp_path, refused, other):
    for arm, seed in (("none", 0), ("none", 1), ("cbam", 0), (other, 1)):
        ultralytics_run(tmp_path / f"{arm}-{seed}", "none", seed)
    with refused():
        collect([tmp_path], Reading(arm_from="{arm}-{seed}"))


def test_a_run_that_was_trained_again_beside_the_first_is_named(detect, refused):
    ultralytics_run(detect / "none-0-2", "none", 0)
    with refused():
        collect([detect], Reading(arm_from="{arm}-{seed}"))
    with refused():
        collect([detect])
    shutil.rmtree(detect / "none-0-2")
    shutil.rmtree(detect / "none-2")
    ultralytics_run(detect / "none-02", "none", 0)  # as Ultralytics 8.3 names it
    with refused():
        collect([detect], Reading(arm_from="{arm}-{seed}"))


def test_one_run_several_times_is_no_seeds(tmp_path, refused):
    for arm in ("none", "cbam"):
        for seed in range(3):
            ultralytics_run(tmp_path / f"{arm}-{seed}", arm, 0)
    with refused():
        collect([tmp_path], Reading(arm_from="{arm}-{seed}"))


@pytest.mark.parametrize("seeds", [("0", "mean"), ("0", ".nan"), (".nan", ".nan"), ("[1, 2]", "[1, 2]"), ("0", "0.5")])
def test_settings_that_are_no_seeds_are_refused(tmp_path, refused, seeds):
    for arm in ("none", "cbam"):
        for number, seed in enumerate(seeds):
            hparams = f"attention: {arm}\nseed: {seed}\n"
            lightning_run(tmp_path / f"{arm}{number}", hparams, lightning_rows(0.5))
    with refused():
        collect([tmp_path])


@pytest.mark.parametrize("is_run", [True, False])
def test_an_attention_of_each_arm_is_no_differing_setting(tmp_path, is_run, refused):
    for arm in ("none", "cbam"):
        for seed in range(2):
            if is_run:
                lightning_run(tmp_path / f"{arm}-{seed}", f"attention: {arm}\nlr: 1\n", lightning_rows(0.5 + seed))
            else:
                text = f"params.attention,params.attention_kwargs.reduction,acc\n{arm},16,0.{seed}5\n"
                (tmp_path / f"{arm}-{seed}.csv").write_text(text)
    assert len(collect([tmp_path], Reading(arm_from="{arm}-{seed}")).results.arms) == 2
    # not where one arm has two
    path = tmp_path / "cbam-1" / "hparams.yaml" if is_run else tmp_path / "cbam-1.csv"
    path.write_text(path.read_text().replace("cbam", "se"))
    with refused():
        collect([tmp_path], Reading(arm_from="{arm}-{seed}"))


def test_arms_of_settings_and_of_columns_are_spelled_in_one_way(tmp_path, refused):
    for arm in ("none", "Cbam", "cbam"):
        lightning_run(tmp_path / "runs" / arm, f"attention: {arm}\nseed: 0\n", lightning_rows(0.5))
    with refused():
        collect([tmp_path / "runs"])
    (tmp_path / "table.csv").write_text("arm,seed,acc\nnone,0,0.5\nse block,0,0.5\nse_block,1,0.6\n")
    with refused():
        collect([tmp_path / "table.csv"])
