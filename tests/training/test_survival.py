"""Runs that are killed, stopped and started again, in processes of their own. test_run.py does so in one process."""

import json
import os
import random
import signal
import sys
import time

import pytest
import torch

from pictures import make_folder
from processes import (
    arguments,
    finish,
    launch,
    lines_without_times,
    newest_weights,
    start,
    steps_saved,
    wait_for_step,
    wait_until,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "patterns")


def assert_same_run(one, other):
    a, b = newest_weights(one), newest_weights(other)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert lines_without_times(one) == lines_without_times(other)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    # the identity of the run holds its machine's options, the number of threads among them
    own = {"seconds": 0, "run": ""}
    assert results[0] | own == results[1] | own


def kill_and_resume(tmp_path, data, num_kills, workers):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    status, _, err = finish(start(tmp_path, data, whole, workers=workers, cache="none"))
    assert status == 0, err
    total = steps_saved(whole)
    chosen = random.Random(workers)
    seen = []
    for left in range(num_kills, 0, -1):
        process = start(tmp_path, data, killed, "--resume", workers=workers, cache="none")
        saved = steps_saved(killed)
        # spread over the run, which goes on for a few steps until the signal is there
        wait_for_step(process, killed, saved + chosen.randint(1, max(1, (total - saved) // (left + 1))))
        # at any moment of a step, of an evaluation or of a save
        time.sleep(chosen.uniform(0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        finish(process)
        seen.append(steps_saved(killed))
        if seen[-1] == total:
            break
    # workers whose parent is gone must not keep the folder: no pause here
    status, out, err = finish(start(tmp_path, data, killed, "--resume", workers=workers, cache="none"))
    assert status == 0, err
    assert_same_run(whole, killed)
    return seen, out


def test_a_killed_run_ends_as_the_whole_one(tmp_path, data):
    kill_and_resume(tmp_path, data, 1, workers=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_ten_times_ends_as_the_whole_one(tmp_path, workers):
    data = make_folder(tmp_path / "data", per_class=64)
    seen, _ = kill_and_resume(tmp_path, data, 10, workers)
    print(f"\nkilled with {workers} workers after the steps {seen}")
    assert len(seen) >= 5


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_saves_and_says_how_to_go_on(tmp_path, data, number, expected):
    process = start(tmp_path, data, tmp_path / "run", workers=2, cache="none", epochs=200)
    wait_for_step(process, tmp_path / "run", 2)
    os.killpg(process.pid, number)
    status, _, err = finish(process)
    assert status == expected
    assert "whatwhere: stopped after step" in err
    assert f"whatwhere train {data} --out {tmp_path / 'run'}" in err
    assert err.rstrip().endswith("--resume")
    assert "Traceback" not in err
    assert steps_saved(tmp_path / "run") >= 2


def test_a_folder_in_use_is_refused_and_the_run_there_unharmed(tmp_path, data):
    first = start(tmp_path, data, tmp_path / "run", workers=0, epochs=2000)
    wait_for_step(first, tmp_path / "run", 1)
    status, _, err = finish(start(tmp_path, data, tmp_path / "run", "--resume", workers=0, epochs=2000))
    assert status == 2
    assert "is in use by another process" in err
    assert err.count("\n") == 1 + err.count("warning")
    assert first.poll() is None
    os.kill(first.pid, signal.SIGTERM)
    assert finish(first)[0] == 143


def test_a_finished_run_exits_with_status_0(tmp_path, data):
    assert finish(start(tmp_path, data, tmp_path / "run", epochs=1))[0] == 0
    status, out, _ = finish(start(tmp_path, data, tmp_path / "run", "--resume", "--json", epochs=1))
    assert status == 0
    assert json.loads(out)["status"] == "finished"


# the command with a disk that stops to answer while the file `flag` is there, and waits `patience` seconds for it
HANGING = """
import pathlib, sys, threading, time
from whatwhere.cli import main
from whatwhere.data import ahead
from whatwhere.data.sources import source

flag, patience = pathlib.Path(sys.argv.pop(1)), float(sys.argv.pop(1))
waiting, answering, result = flag.with_suffix(".waiting"), source.open_image, ahead._result
ahead._PATIENCE = patience

def open_image(path):
    if flag.exists():
        if threading.current_thread() is threading.main_thread():
            waiting.touch()
        while flag.exists():
            time.sleep(0.01)
        time.sleep(0.5)  # the first image after a pause takes a while
    return answering(path)

def awaited(reading, came):
    if flag.exists() and not reading.done():
        waiting.touch()
    return result(reading, came)

source.open_image, ahead._result = open_image, awaited
main()
"""


def hang(tmp_path, data, workers, patience):
    """Start a run; when it has saved a step, its disk stops to answer. Return when it waits."""
    out, flag = tmp_path / "run", tmp_path / "hangs"
    command = (sys.executable, "-c", HANGING, str(flag), str(patience))
    process = launch(tmp_path, *command, *arguments(data, out, workers=workers, cache="none"))
    wait_for_step(process, out, 2)
    flag.touch()
    wait_until(process, flag.with_suffix(".waiting").exists)
    return process, out


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_ends_a_run_whose_disk_does_not_answer(tmp_path, data, workers):
    process, out = hang(tmp_path, data, workers, patience=1000)
    os.kill(process.pid, signal.SIGTERM)
    status, _, err = finish(process, timeout=60)
    assert status == 143, err
    assert "in a step that takes long" in err
    assert err.rstrip().endswith("--resume")
    assert_goes_on(tmp_path, data, out)


def assert_goes_on(tmp_path, data, out):
    """Assert that a run ends as one that nothing disturbed."""
    assert 2 <= steps_saved(out) < 20
    (tmp_path / "hangs").unlink()
    assert finish(start(tmp_path, data, out, "--resume", workers=2, cache="none"))[0] == 0
    assert finish(start(tmp_path, data, tmp_path / "whole", workers=2, cache="none"))[0] == 0
    assert_same_run(tmp_path / "whole", out)


def test_a_run_whose_disk_does_not_answer_ends_by_itself_saved(tmp_path, data):
    process, out = hang(tmp_path, data, 2, patience=2)
    status, _, err = finish(process, timeout=60)
    assert (status, "does not answer" in err, "Traceback" in err) == (2, True, False), err
    assert f"continue with: whatwhere train {data} --out {out}" in err
    assert err.rstrip().endswith("--resume")
    assert_goes_on(tmp_path, data, out)


def test_a_run_that_stood_still_goes_on(tmp_path, data):
    whole = tmp_path / "whole"
    assert finish(start(tmp_path, data, whole, workers=2, cache="none"))[0] == 0
    # it stands still for longer than it waits for an image, and an image is due
    process, stopped = hang(tmp_path, data, 2, patience=4)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    (tmp_path / "hangs").unlink()
    time.sleep(5)
    os.killpg(process.pid, signal.SIGCONT)
    status, _, err = finish(process)
    assert status == 0, err
    assert_same_run(whole, stopped)


@pytest.mark.parametrize("command", ["check", "train", "predict", "evaluate"])
def test_ctrl_c_ends_each_command_whose_disk_does_not_answer(tmp_path, data, command):
    run, flag = tmp_path / "made", tmp_path / "hangs"
    if command in ("predict", "evaluate"):
        assert finish(start(tmp_path, data, run, epochs=1))[0] == 0
    elif command == "train":  # what `check` has seen is not read again: only the decoding before the training reads
        assert finish(launch(tmp_path, sys.executable, "-m", "whatwhere", "check", str(data)))[0] == 0
    flag.touch()
    given = {
        "check": [str(data)],
        "train": arguments(data, run, workers=2, cache="memory")[1:],
        "predict": [str(run), str(data)],
        "evaluate": [str(run), str(data), "--workers", "2"],
    }
    process = launch(tmp_path, sys.executable, "-c", HANGING, str(flag), "1000", command, *given[command])
    wait_until(process, flag.with_suffix(".waiting").exists)
    os.kill(process.pid, signal.SIGINT)
    status, _, err = finish(process, timeout=60)
    assert status == 130, err
    assert err.rstrip().endswith("whatwhere: interrupted")
