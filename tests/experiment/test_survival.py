"""Comparisons that are killed and started again."""

import json
import os
import signal
import time

import pytest

from pictures import make_folder
from processes import finish, start_comparison

pytestmark = pytest.mark.slow
MORE = ("--attention", "none,cbam", "--seeds", "2", "--epochs", "6")


def wait_for(process, condition, timeout=180):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def verdict(out):
    """What the verdict says, without times and what was measured."""
    content = json.loads((out / "verdict.json").read_text())
    for run in content["runs"]:
        del run["seconds"]
    return {name: value for name, value in content.items() if name not in ("cost", "settings", "environment")}


def finished(out):
    return {path.parent: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("runs/*/*/result.json")}


def test_killed_in_the_middle_it_goes_on_and_repeats_nothing(tmp_path):
    data = make_folder(tmp_path / "photos", per_class=30)
    assert finish(start_comparison(tmp_path, data, tmp_path / "whole", *MORE))[0] == 0

    out = tmp_path / "killed"
    process = start_comparison(tmp_path, data, out, *MORE)
    second = out / "runs" / "cbam" / "seed-0"
    # in the middle of the second run
    wait_for(process, lambda: len(list(second.glob("last/*.json"))) > 0)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    before = finished(out)
    assert list(before) == [out / "runs" / "none" / "seed-0"]
    assert not (out / "verdict.json").exists()

    process = start_comparison(tmp_path, data, out, *MORE)
    wait_for(process, lambda: len(finished(out)) == 3)
    os.killpg(process.pid, signal.SIGTERM)
    status, _, err = finish(process)
    # between two runs there is nothing to save, and after the last one nobody to hear it
    assert status in (0, 143, -signal.SIGTERM), err
    before |= finished(out)

    status, _, err = finish(start_comparison(tmp_path, data, out, *MORE))
    assert (status, err) == (0, "")
    after = finished(out)
    assert len(after) == 4
    assert all(after[folder] == content for folder, content in before.items())
    assert verdict(out) == verdict(tmp_path / "whole")
