"""`whatwhere collect`, and `whatwhere verdict` on folders of runs."""

import json
import re

import pytest

from run_folders import ultralytics_run

MAP = "metrics/mAP50(B)"


@pytest.fixture
def detect(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arm in ("none", "cbam"):
        for seed in range(6):
            ultralytics_run(tmp_path / "runs" / "detect" / f"{arm}-{seed}", arm, seed, rows=1 if seed == 5 else None)
    return tmp_path / "runs" / "detect"


def test_the_table_and_what_was_understood(whatwhere, detect, tmp_path, snapshot):
    status, out, err = whatwhere("collect", "runs/detect")
    assert (status, err) == (0, "")
    assert out == snapshot
    head, *rows = (tmp_path / "results.csv").read_text().splitlines()
    assert head == f"arm,seed,train/box_loss,{MAP},metrics/mAP50-95(B),epoch,folder,collect_notes"
    assert rows[5].startswith("cbam,5,,,,,runs/detect/cbam-5,runs that count as missing: ")
    assert len(rows) == 12
    status, out, _ = whatwhere("collect", "runs/detect", "--json", "--out", "other.csv")
    told = json.loads(out)
    assert (status, told["table"], told["arms"]["none"]) == (0, "other.csv", [str(seed) for seed in range(6)])
    assert any("ended after 1 of 3 epochs" in note for note in told["notes"])


def test_the_attention_of_arms_that_are_called_otherwise_is_shown(whatwhere, tmp_path, snapshot, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arm, attention in (("plain", "none"), ("mine", "cbam")):
        for seed in (9, 10):
            ultralytics_run(tmp_path / f"{arm}-{seed}", attention, seed)
    status, out, _ = whatwhere("collect", ".", "--arm-from", "{arm}-{seed}", "--out", "my table.csv")
    assert (status, out) == (0, snapshot)
    for seed in (9, 10):
        (tmp_path / f"mine-{seed}" / "attention.json").unlink()
    out = whatwhere("collect", ".", "--arm-from", "{arm}-{seed}")[1]
    assert "No run has an attention that whatwhere put in (attention.json)." in out
    assert "Check: no recorded setting differs between the arms" in out


def test_a_verdict_on_folders_is_that_on_their_table(whatwhere, detect, tmp_path):
    options = ("--metric", MAP, "--may-differ", "epochs")
    assert whatwhere("collect", "runs", *options)[0] == 0
    status, out, err = whatwhere("verdict", *sorted(detect.iterdir()), *options)
    assert (status, err) == (0, "")
    assert f"The report: {tmp_path / 'runs' / 'detect.verdict.html'}" in out
    assert "the arm is taken from the setting attention, the seed from the setting seed" in out
    told = json.loads((tmp_path / "runs" / "detect.verdict.json").read_text())
    assert whatwhere("verdict", "results.csv", "--metric", MAP)[0] == 0
    of_table = json.loads((tmp_path / "results.verdict.json").read_text())
    assert told["judgement"]["arms"] == of_table["judgement"]["arms"]
    assert told["judgement"]["arms"][0]["num_pairs"] == 6


def test_the_baseline_must_be_named_or_known_by_its_name(whatwhere, tmp_path, refused_command):
    for arm in ("cbam", "se"):
        for seed in range(2):
            ultralytics_run(tmp_path / "runs" / f"{arm}-{seed}", arm, seed)
    options = ("verdict", tmp_path / "runs", "--metric", MAP)
    refused_command(*options)
    status, out, _ = whatwhere(*options, "--baseline", "se")
    assert status == 0
    assert "minus that of se" in out
    # nor is the first arm of a collected table the one that the user put first
    table = tmp_path / "results.csv"
    status, out, _ = whatwhere("collect", tmp_path / "runs", "--metric", MAP, "--out", table)
    assert out.endswith(f"--metric '{MAP}' --baseline ARM\n")
    refused_command("verdict", table, "--metric", MAP)


def test_a_wide_table_and_columns_by_name(whatwhere, tmp_path):
    rows = "".join(f"{seed},0.{500 + seed},0.{520 + 3 * seed % 7}\n" for seed in range(6))
    (tmp_path / "wide.csv").write_text("seed,none,cbam\n" + rows)
    status, out, _ = whatwhere("verdict", tmp_path / "wide.csv", "--metric", "mAP50")
    assert status == 0
    assert "cbam   helps" in out
    assert "each column is taken as an arm: none, cbam" in out
    long = [f"{arm},{row.split(',')[0]},{row.split(',')[i]}" for row in rows.split() for i, arm in ((1, "a"), (2, "b"))]
    (tmp_path / "long.csv").write_text("\n".join(["who,when,mAP50", *long]))
    options = ("--arm-column", "who", "--seed-column", "when")
    status, out, _ = whatwhere("verdict", tmp_path / "long.csv", *options)
    assert status == 0
    assert re.search(r"b +helps", out)
    status, out, _ = whatwhere("collect", tmp_path / "long.csv", *options, "--out", tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_text().startswith("arm,seed,mAP50,epoch,folder,collect_notes\na,0,0.5,")


def test_nothing_is_written_over(whatwhere, detect, tmp_path, refused_command):
    run = detect / "cbam-0" / "results.csv"
    before = run.read_text()
    refused_command("collect", detect, "--out", run)
    assert run.read_text() == before
    for out in ("", "a\0b", "runs", "missing/results.csv"):
        refused_command("collect", detect, "--out", out)
    assert whatwhere("collect", detect, "--out", tmp_path / "results.csv")[0] == 0
    # a table of its own is written again
    assert whatwhere("collect", detect, "--out", tmp_path / "results.csv")[0] == 0


def test_where_the_table_cannot_go_is_found_before_the_runs_are_read(detect, refused_command):
    (detect / "none-0" / "args.yaml").write_text("seed: [")
    refused_command("collect", detect, "--out", "/proc/self/results.csv")


@pytest.mark.parametrize(
    ("metric", "given", "more"),
    [
        ("accuracy", (), ""),
        ("mAP50", (), ""),
        ("loss", (), " --margin X"),
        ("psnr", (), " --margin X"),
        ("seconds", ("--lower-is-better",), " --lower-is-better --margin X"),
        ("seconds", (), " --margin X, with --lower-is-better or --higher-is-better"),
    ],
)
def test_the_next_command_has_what_the_verdict_needs(whatwhere, tmp_path, monkeypatch, metric, given, more):
    monkeypatch.chdir(tmp_path)
    scale = 1 if metric in ("accuracy", "mAP50", "loss") else 300
    rows = [f"{arm},{seed},{scale * (0.5 + seed / 100)}" for arm in ("none", "cbam") for seed in range(6)]
    (tmp_path / "mine.csv").write_text("\n".join([f"arm,seed,{metric}", *rows]))
    status, out, _ = whatwhere("collect", "mine.csv", "--metric", metric, *given)
    following = out.splitlines()[-1]
    assert (status, following) == (0, f"Next: whatwhere verdict results.csv --metric {metric}{more}")
    words = following.partition(", with")[0].replace("X", "1").split()[2:]
    way = ["--higher-is-better"] if "or --higher" in following else []
    assert whatwhere(*words, *way)[0] == 0


def test_what_cannot_be_collected_is_a_sentence(detect, refused_command, tmp_path):
    refused_command("collect", detect / "cbam-0")
    refused_command("collect", detect, "--lower-is-better", "--higher-is-better")
    refused_command("collect", detect, "--may-differ", "epoch")
    refused_command("collect", detect, "--metric", "mAP50")
    assert not (tmp_path / "results.csv").exists()


def test_runs_without_a_folder_of_their_own(detect, refused_command, monkeypatch):
    monkeypatch.chdir(detect)
    refused_command("verdict", ".", "--metric", MAP)
