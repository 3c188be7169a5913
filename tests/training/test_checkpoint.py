import errno
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whatwhere import UserError
from whatwhere.training import checkpoint
from whatwhere.training.checkpoint import clear_after, newest, read, save
from whatwhere.training.state import load_optimizer_state, optimizer_state


def refuse(text):
    raise AssertionError(text)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert repr(one) == repr(other)


STATE = {
    "float": torch.randn(3, 4),
    "double": torch.tensor([1e-300, -0.0, float("inf")], dtype=torch.float64),
    "half": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
    "count": torch.tensor(2**62 + 1),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(0.1),
    "mask": torch.tensor([True, False]),
    "turned": torch.arange(6.0).view(2, 3).T,
    "nested": {"list": [torch.ones(2), None, [True, {"a/b": torch.zeros(1)}]], "a": {"b": 1}},
    "texts": ["", "ü\n", "tensors"],
    "numbers": [0, -1, 2**63, 0.1, 1e-320, -0.0, 1 / 3, float("inf")],
    "nothing": {},
    "none": None,
    "yes": True,
}


def test_everything_comes_back_as_it_was(tmp_path):
    save(tmp_path / "last", 7, STATE)
    step, state = newest(tmp_path / "last", refuse)
    assert step == 7
    assert_same(state, STATE)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text().filter(lambda text: text[:7] != "tensor:")
    | st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(torch.tensor),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.0", max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text("ab.0", max_size=3), values, max_size=3))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_any_tree_comes_back(tmp_path_factory, state):
    folder = tmp_path_factory.getbasetemp() / "tree"
    save(folder, 1, state)
    assert_same(read(folder, 1), state)


def test_later_changes_do_not_reach_what_was_saved(tmp_path):
    shared = torch.zeros(4)
    save(tmp_path, 1, {"a": shared, "b": shared[:2]})
    shared.fill_(1)
    _, state = newest(tmp_path, refuse)
    assert torch.equal(state["a"], torch.zeros(4))
    assert torch.equal(state["b"], torch.zeros(2))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_two_are_kept_and_the_newest_is_read(tmp_path):
    assert newest(tmp_path / "none", refuse) is None
    for step in (9, 10, 200, 1000):
        save(tmp_path, step, {"step": step, "weights": torch.full((2,), float(step))})
        found, state = newest(tmp_path, refuse)
        assert found == state["step"] == step
    assert names(tmp_path) == [f"{step:09d}.{kind}" for step in (200, 1000) for kind in ("json", "safetensors")]


@pytest.fixture
def three(tmp_path):
    """Two checkpoints that are kept of three."""
    for step in (1, 2, 3):
        save(tmp_path, step, {"step": step, "lr": 0.25, "weights": torch.full((4,), float(step))})
    return tmp_path


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def damage(folder, step, kind):
    weights, description = (folder / f"{step:09d}.{suffix}" for suffix in ("safetensors", "json"))
    if kind == "header":
        flip(weights, 20)
    elif kind == "weight":
        flip(weights, -1)
    elif kind == "short":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif kind == "missing":
        weights.unlink()
    elif kind == "number":
        description.write_text(description.read_text().replace("0.25", "0.75"))
    elif kind == "no state":
        description.write_text("{}")
    elif kind == "list":
        description.write_text("[]")
    elif kind == "deep":
        description.write_text("[" * 100_000)
    elif kind == "empty":
        description.write_bytes(b"")
    else:
        description.write_bytes(description.read_bytes()[:-20])


KINDS = ["header", "weight", "short", "missing", "number", "no state", "list", "deep", "empty", "cut"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_one_is_reported_and_the_one_before_it_taken(three, kind):
    damage(three, 3, kind)
    warnings = []
    step, state = newest(three, warnings.append)
    assert step == state["step"] == 2
    assert torch.equal(state["weights"], torch.full((4,), 2.0))
    assert len(warnings) == 1
    assert warnings[0].startswith(f"the checkpoint {str(three / '000000003')!r} is damaged (")
    assert warnings[0].endswith("); trying the one before")
    assert "\n" not in warnings[0]


@pytest.mark.parametrize("kind", KINDS)
def test_if_all_are_damaged_that_is_an_error(three, kind, refused):
    damage(three, 2, "weight")
    damage(three, 3, kind)
    warnings = []
    with refused():
        newest(three, warnings.append)
    assert len(warnings) == 2


def test_every_byte_counts(three):
    for suffix in ("safetensors", "json"):
        path = three / f"000000003.{suffix}"
        content = path.read_bytes()
        for position in range(0, len(content), 3):
            flip(path, position)
            found, _ = newest(three, lambda text: None)
            # a changed space between the JSON's words changes nothing
            assert found == 2 or (suffix == "json" and content[position : position + 1].isspace()), position
            path.write_bytes(content)


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["write_bytes", "write_json"])
def test_a_save_that_is_cut_short_leaves_the_older_ones(three, monkeypatch, function):
    def crash(*arguments):
        raise KeyboardInterrupt

    before = names(three)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, function, crash)
        with pytest.raises(KeyboardInterrupt):
            save(three, 4, {"step": 4, "weights": torch.zeros(1)})
    assert set(before) <= set(names(three))
    assert newest(three, refuse)[0] == 3
    save(three, 5, {"step": 5})
    assert names(three) == [f"{step:09d}.{kind}" for step in (3, 5) for kind in ("json", "safetensors")]


def test_what_a_killed_process_left_is_cleaned_away(three):
    code = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from whatwhere.training.checkpoint import save\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "save(Path(sys.argv[1]), 4, {'weights': torch.zeros(9)})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(three)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert newest(three, refuse)[0] == 3
    save(three, 5, {"step": 5})
    assert names(three) == [f"{step:09d}.{kind}" for step in (3, 5) for kind in ("json", "safetensors")]


def test_a_full_disk_is_one_sentence_and_the_older_ones_stay(three, monkeypatch, refused):
    before = names(three)
    monkeypatch.setattr(os, "fsync", full_disk)
    with refused():
        save(three, 4, {"step": 4, "weights": torch.zeros(1)})
    assert names(three) == before


def test_weights_without_a_description_are_no_checkpoint(tmp_path):
    (tmp_path / "000000009.safetensors").write_bytes(b"half a checkpoint")
    (tmp_path / "notes.json").write_text("{}")
    assert newest(tmp_path, refuse) is None
    save(tmp_path, 1, {"step": 1})
    assert names(tmp_path) == ["000000001.json", "000000001.safetensors", "notes.json"]


def test_clearing_what_comes_after_a_step(three):
    clear_after(three, 2)
    assert names(three) == ["000000002.json", "000000002.safetensors"]


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, 0.1, 0.9, nesterov=True),
        lambda parameters: torch.optim.AdamW(parameters, 1e-3),
    ],
    ids=["sgd", "adamw"],
)
def test_an_optimizer_goes_on_bit_for_bit(tmp_path, make):
    def run(optimizer, weights, steps):
        for step in steps:
            for index, weight in enumerate(weights):
                weight.grad = torch.sin(weight.detach() * (step + 1) + index)
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.step()

    def start():
        weights = [torch.linspace(-1, 1, 6).view(2, 3).requires_grad_(), torch.ones(4, requires_grad=True)]
        groups = [{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:], "weight_decay": 0.0}]
        return make(groups), weights

    straight, expected = start()
    run(straight, expected, range(6))
    first, weights = start()
    run(first, weights, range(3))
    save(tmp_path, 3, {"optimizer": optimizer_state(first), "weights": [w.detach() for w in weights]})
    _, state = newest(tmp_path, refuse)
    second, weights = start()
    with torch.no_grad():
        for weight, value in zip(weights, state["weights"], strict=True):
            weight.copy_(value)
    load_optimizer_state(second, state["optimizer"])
    run(second, weights, range(3, 6))
    assert all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))
    # but for AdamW's betas, which are a tuple at first
    groups = [optimizer.state_dict()["param_groups"] for optimizer in (second, straight)]
    assert json.dumps(groups[0]) == json.dumps(groups[1])


@pytest.mark.parametrize("number", ["EACCES", "EIO", "EMFILE", "ENOMEM"])
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_checkpoint_that_the_system_does_not_give_is_not_damaged(three, monkeypatch, suffix, number):
    real = os.open

    def refusing(path, *arguments, **named):
        if str(path).endswith(f"3{suffix}"):
            raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refusing)
    path = three / f"000000003{suffix}"
    said = f"cannot read {str(path)!r}: {os.strerror(getattr(errno, number))}; "
    with pytest.raises(UserError, match=re.escape(said)):
        newest(three, refuse)


def test_a_missing_file_of_a_checkpoint_is_named(three):
    (three / "000000003.safetensors").unlink()
    warnings = []
    assert newest(three, warnings.append)[0] == 2
    assert "is damaged (000000003.safetensors is missing); trying the one before" in warnings[0]
