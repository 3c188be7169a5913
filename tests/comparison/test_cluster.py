"""What a Ray task does on its node, and what is refused without a cluster (tests/clients/test_ray.py has one)."""

import builtins
import sys

import pytest
import torch

from comparisons import OPTIONS
from whatwhere import UserError
from whatwhere.base import files
from whatwhere.base.errors import Stopped
from whatwhere.cli.compare import with_optional_values
from whatwhere.comparison import cluster
from whatwhere.comparison.runs import Task


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Return a function that does what a Ray task does, with a function in place of the training."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.chdir(tmp_path)

    def call(training, folder=tmp_path, paths=(".",)):
        monkeypatch.setattr(cluster, "run_training", training)
        tasks = [Task(f"{arm}, seed 0", tmp_path / arm / "seed-0", dict(OPTIONS)) for arm in ("none", "se")]
        return cluster._train(tasks, "photos", {"device": "cpu"}, "", 1, str(folder), list(paths))

    return call


def test_a_run_that_fails_on_a_node_keeps_none_of_its_seed_up(train):
    def training(data, given, *, out, screen, **others):
        if out.parent.name == "none":
            raise UserError("the loss is nan")
        screen.warn("few images")

    assert train(training) == {"none, seed 0": ("the loss is nan", []), "se, seed 0": ("", ["few images"])}


def test_a_folder_that_is_in_use_is_waited_for(train, monkeypatch):
    """The process that had the run on a lost node may end later than Ray tries again."""
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
    tried = []

    def training(data, given, *, out, **others):
        tried.append(out.parent.name)
        if len(tried) == 1:
            raise files.InUse("in use by another process")

    assert train(training) == {"none, seed 0": ("", []), "se, seed 0": ("", [])}
    assert tried == ["none", "none", "se"]


def test_a_node_that_is_told_to_end_loses_the_task_so_that_ray_starts_it_elsewhere(train, monkeypatch):
    class Ended(BaseException): ...

    def end(status):
        raise Ended(status)

    def training(*arguments, **named):
        raise Stopped("stopped", number)

    monkeypatch.setattr(cluster.os, "_exit", end)
    number = 15
    with pytest.raises(Ended, match="143"):
        train(training)
    number = 2  # Ray's `cancel`
    with pytest.raises(Stopped):
        train(training)


@pytest.mark.parametrize("missing", ["folder", "path"])
def test_a_node_that_does_not_see_the_folder_trains_nothing_and_is_named(train, tmp_path, missing):
    folder = tmp_path / "not here" if missing == "folder" else tmp_path
    ended = train(None, folder, ["out/.ray-mark"])
    what = str(folder) if missing == "folder" else "out"
    (why,) = {why for why, _ in ended.values()}
    assert why.startswith("the Ray node ")
    assert f"does not see {what!r} of this machine; use a file system that all nodes see" in why


def test_without_ray_it_says_how_to_install_it(monkeypatch):
    imported = builtins.__import__

    def without(name, *arguments):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(name=name)
        return imported(name, *arguments)

    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with pytest.raises(UserError) as error:
        cluster.join("", "")
    assert str(error.value) == "--ray needs Ray: pip install 'whatwhere[ray]'"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", r"no Ray cluster answers at '127.0.0.1:1' \(.*\); `ray start --head` starts one"),
        ("127.0.0.1:99999", "no Ray cluster answers"),
        ("ray://head:10001", "start the command on a node of the cluster"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(address, message):
    with pytest.raises(UserError, match=message):
        cluster._check_answers(address)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("compare photos --ray", "compare photos --ray="),
        ("compare photos --ray --seeds 3", "compare photos --ray= --seeds 3"),
        ("compare photos --ray auto --seeds 3", "compare photos --ray auto --seeds 3"),
        ("train photos --ray", "train photos --ray"),
    ],
)
def test_the_address_may_be_left_out(typed, read):
    assert with_optional_values(typed.split()) == read.split()
