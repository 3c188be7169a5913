"""A comparison on a Ray cluster comes to the same files, also where a node or the whole cluster is lost."""

import json
import os
import signal

import pytest

from comparisons import verdict
from processes import environment, finish, start_comparison, steps_saved, wait_for_step, wait_until

pytest.importorskip("ray")
from ray.cluster_utils import Cluster

RUNS = ("--attention", "none,se", "--seeds", "3", "--epochs", "4")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Two nodes of a core each, beside a head without any."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    begun = []

    def begin():
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        begun.append(Cluster(initialize_head=True, head_node_args={"num_cpus": 0}))
        begun[-1].nodes = [begun[-1].add_node(num_cpus=1) for _ in range(2)]
        monkeypatch.setenv("RAY_ADDRESS", begun[-1].address)
        return begun[-1]

    yield begin
    begun[-1].shutdown()


@pytest.fixture(scope="module")
def whole(patterns, tmp_path_factory):
    """The folder of the comparison without Ray."""
    folder = tmp_path_factory.mktemp("whole")
    status, _, err = finish(start_comparison(folder, patterns, folder / "out", *RUNS))
    assert status == 0, err
    return folder / "out"


def check_same(out, whole):
    assert verdict(out) == verdict(whole)
    assert (out / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_a_lost_node_changes_no_figure(cluster, patterns, tmp_path, whole):
    nodes, out = cluster(), tmp_path / "out"
    process = start_comparison(tmp_path, patterns, out, *RUNS, "--ray", nodes.address)
    for seed in (0, 1):
        wait_for_step(process, out / "runs" / "none" / f"seed-{seed}", 2)
    nodes.remove_node(nodes.nodes[0], allow_graceful=False)
    status, printed, err = finish(process)
    assert status == 0, err
    assert "raylet" not in printed + err
    for number in range(1, 7):
        assert f"run {number} of 6: " in printed
    check_same(out, whole)
    sessions = [len(json.loads(file.read_text())["sessions"]) for file in out.glob("runs/*/*/run.json")]
    assert sorted(sessions) == [1, 1, 1, 1, 1, 2]


def test_a_comparison_outlives_its_cluster_and_a_signal(cluster, patterns, tmp_path, whole):
    nodes, out = cluster(), tmp_path / "out"

    def start():
        return start_comparison(tmp_path, patterns, out, *RUNS, "--ray")

    process = start()
    wait_for_step(process, out / "runs" / "none" / "seed-0", 2)
    nodes.shutdown()
    status, _, err = finish(process)
    assert status == 1
    assert "the Ray cluster is lost; what was saved is kept, and goes on with: whatwhere compare" in err
    status, _, err = finish(start())
    assert status == 2
    assert "no Ray cluster answers at '" in err

    cluster()
    process = start()
    wait_until(process, (out / "runs" / "none" / "seed-1" / "result.json").exists)
    wait_for_step(process, out / "runs" / "se" / "seed-1", 1)
    os.kill(process.pid, signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130, err
    assert "the runs are stopped and saved; continue with: whatwhere compare" in err
    assert not list(out.glob(".ray-*"))
    kept = {path: path.read_bytes() for path in out.rglob("result.json")}
    assert 0 < len(kept) < 6
    saved = steps_saved(out / "runs" / "se" / "seed-1")

    status, _, err = finish(start())
    assert status == 0, err
    assert saved > 0
    assert kept.items() <= {path: path.read_bytes() for path in out.rglob("result.json")}.items()
    check_same(out, whole)
