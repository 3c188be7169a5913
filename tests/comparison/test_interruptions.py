"""Comparisons that are killed at any moment, stopped by signals, and that run in several processes."""

import json
import os
import signal

import pytest

from comparisons import verdict
from processes import finish, start_comparison, steps_saved, wait_for_step, wait_until

pytestmark = pytest.mark.slow
ARMS = ("--attention", "none,se", "--seeds", "3", "--epochs", "4")
LONG = ("--attention", "none,se", "--seeds", "2", "--epochs", "60")


def finished(out):
    """Return the results that are there, as bytes with the time of writing."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("result.json")}


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def whole(patterns, tmp_path_factory):
    """The folder of a comparison that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    status, _, err = finish(start_comparison(folder, patterns, folder / "out", *ARMS))
    assert status == 0, err
    return folder / "out"


@pytest.mark.parametrize("search", [(), ("--lr-search", "0.01,0.1")])
def test_a_killed_comparison_ends_as_the_whole_one(patterns, tmp_path, whole, search):
    if search:
        whole = tmp_path / "whole"
        assert finish(start_comparison(tmp_path, patterns, whole, *ARMS, *search))[0] == 0
    out = tmp_path / "killed"
    moments = [
        # before the first run, in its middle, between two, in the middle of a later one
        lambda process: wait_until(process, (out / "compare.json").exists),
        lambda process: wait_for_step(process, out / "runs" / "none" / "seed-0", 2),
        lambda process: wait_until(process, (out / "runs" / "none" / "seed-1" / "result.json").exists),
        lambda process: wait_for_step(process, out / "runs" / "se" / "seed-2", 6),
    ]
    if search:
        moments.insert(1, lambda process: wait_for_step(process, out / "search" / "se" / "lr-0.01", 3))
    kept = {}
    for moment in moments:
        process = start_comparison(tmp_path, patterns, out, *ARMS, *search)
        moment(process)
        kill(process)
        before, kept = kept, finished(out)
        assert before.items() <= kept.items()
        assert not (out / "verdict.json").exists()
    assert 4 <= len(kept) < len(finished(whole))
    status, printed, err = finish(start_comparison(tmp_path, patterns, out, *ARMS, *search))
    assert status == 0, err
    assert kept.items() <= finished(out).items()
    assert "5 of 6 runs are finished already" in printed
    assert verdict(out) == verdict(whole)
    assert (out / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_a_second_one_in_the_same_folder_is_refused_and_the_first_goes_on(patterns, tmp_path):
    first = start_comparison(tmp_path, patterns, tmp_path / "out", *LONG)
    wait_for_step(first, tmp_path / "out" / "runs" / "none" / "seed-0", 1)
    status, out, err = finish(start_comparison(tmp_path, patterns, tmp_path / "out", *LONG, "--json"))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "is in use by another process" in err
    status, _, err = finish(start_comparison(tmp_path, patterns, tmp_path / "out", "--collect"))
    assert status == 2
    assert "is in use by another process" in err
    assert first.poll() is None
    kill(first)


def stop(process, number, whole_group):
    if whole_group:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    return finish(process)


@pytest.mark.parametrize(
    ("number", "whole_group", "expected"),
    [
        (signal.SIGTERM, False, 143),
        (signal.SIGTERM, True, 143),
        (signal.SIGINT, True, 130),
        (signal.SIGINT, False, 130),
        (signal.SIGHUP, False, 129),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_saves_and_says_how_to_go_on(patterns, tmp_path, number, whole_group, expected, processes):
    out, together = tmp_path / "out", ("--processes", str(processes))
    process = start_comparison(tmp_path, patterns, out, *LONG, *together)
    for seed in range(processes):
        wait_for_step(process, out / "runs" / "none" / f"seed-{seed}", 3)
    status, _, err = stop(process, number, whole_group)
    assert status == expected, err
    assert err.count("whatwhere: stopped after step") == processes
    lines = [line for line in err.splitlines() if "continue with: " in line]
    command = f"whatwhere compare {patterns} --out {out}"
    assert all(line.partition("continue with: ")[2].startswith(command) for line in lines)
    assert all(line.endswith(f"--processes {processes}") and "--shard" not in line for line in lines)
    assert "Traceback" not in err
    assert finished(out) == {}
    # nobody is left who trains: the folders are free at once
    saved = [steps_saved(out / "runs" / "none" / f"seed-{seed}") for seed in range(processes)]
    process = start_comparison(tmp_path, patterns, out, *LONG, *together)
    for seed, step in enumerate(saved):
        wait_for_step(process, out / "runs" / "none" / f"seed-{seed}", step + 1)
    assert process.poll() is None
    kill(process)


def test_several_processes_that_are_stopped_end_as_one_that_is_not(patterns, tmp_path, whole):
    out = tmp_path / "out"
    for run in ("none/seed-0", "se/seed-2"):
        process = start_comparison(tmp_path, patterns, out, *ARMS, "--processes", "2")
        wait_for_step(process, out / "runs" / run, 4)
        kept = finished(out)
        status, _, err = stop(process, signal.SIGTERM, whole_group=False)
        assert status == 143, err
        assert kept.items() <= finished(out).items()
    kept = finished(out)
    status, _, err = finish(start_comparison(tmp_path, patterns, out, *ARMS, "--processes", "2"))
    assert status == 0, err
    assert kept.items() <= finished(out).items()
    assert verdict(out) == verdict(whole)


def test_a_run_that_fails_in_one_of_two_processes_is_told_and_holds_nobody_up(patterns, tmp_path, whole):
    out = tmp_path / "out"
    (out / "runs" / "se").mkdir(parents=True)
    (out / "runs" / "se" / "seed-1").write_text("in the way")
    together = ("--processes", "2", "--json")
    status, printed, err = finish(start_comparison(tmp_path, patterns, out, *ARMS, *together))
    assert status == 2
    assert list(json.loads(printed)["failures"]) == ["se, seed 1"]
    assert len(finished(out)) == 5
    assert "whatwhere: 1 run failed (se, seed 1), as said above; the finished ones are kept" in err
    (out / "runs" / "se" / "seed-1").unlink()
    status, _, err = finish(start_comparison(tmp_path, patterns, out, *ARMS, *together))
    assert status == 0, err
    assert verdict(out) == verdict(whole)


def test_a_learning_rate_that_diverges_holds_no_process_up(patterns, tmp_path):
    out = tmp_path / "out"
    search = ("--lr-search", "0.05,9999", "--processes", "2")
    status, _, err = finish(start_comparison(tmp_path, patterns, out, *ARMS, "--seeds", "2", *search))
    assert status == 0, err
    # which each arm has tried
    assert all(f"{arm}, searching, lr 9999 diverged" in err for arm in ("none", "se"))
    arms = json.loads((out / "compare.json").read_text())["arm_options"]
    assert {arm: options["lr"] for arm, options in arms.items()} == {"none": 0.05, "se": 0.05}
    assert len(list(out.glob("runs/*/*/result.json"))) == 4
