"""Code of the user as attention: what it prints or how it ends must not end or spoil a command in silence."""

import json
import sys

import pytest

from pictures import make_folder

CODE = """
from torch import nn

does = []

class Own(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1, groups=channels)

    def forward(self, x):
        for act in does:
            act()
        return x + self.mix(x)
"""
SMALL = ("--epochs", 1, "--image-size", 16, "--batch-size", 12, "--workers", 0, "--device", "cpu")
ATTENTION = ("--attention", "own_code:Own")
COMMANDS = {
    "train": ("train", "data", "--model", "resnext11_8x8d", *SMALL, *ATTENTION, "--out", "new", "--json"),
    "compare": (
        *("compare", "data", "--backbone", "resnext11_8x8d", *SMALL, "--attention", "none,own_code:Own"),
        *("--seeds", 2, "--out", "compared", "--json"),
    ),
    "predict": ("predict", "run", "data/plain", *ATTENTION, "--json"),
    "evaluate": ("evaluate", "run", "data", *ATTENTION, "--json"),
}


@pytest.fixture
def does(tmp_path, monkeypatch, whatwhere):
    """What the attention does in its forward; a run with it is in run/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_folder(tmp_path / "data", per_class=8)
    (tmp_path / "own_code.py").write_text(CODE)
    train = ("train", "data", "--model", "resnext11_8x8d", *SMALL, *ATTENTION, "--out", "run")
    assert whatwhere(*train)[0] == 0
    yield sys.modules["own_code"].does
    sys.modules.pop("own_code")


def leave():
    raise SystemExit(0)


def test_code_that_ends_the_program_gets_a_sentence(does, whatwhere):
    does.append(leave)
    for name, command in COMMANDS.items():
        status, out, err = whatwhere(*command)
        assert (status, out) == (2, ""), name
        assert "SystemExit" in err, name
        assert "which ends a program; take that out of its code" in err, name


def interrupt():
    raise KeyboardInterrupt


def test_an_interrupt_stays_one(does, whatwhere):
    does.append(interrupt)
    assert whatwhere(*COMMANDS["predict"])[::2] == (130, "whatwhere: interrupted\n")
    # also where the network is asked first whether it takes such images
    assert whatwhere(*COMMANDS["train"])[::2] == (130, "whatwhere: interrupted\n")


def test_what_the_code_prints_is_no_part_of_the_json(does, whatwhere):
    does.append(lambda: print("words of the user"))
    for name, command in COMMANDS.items():
        status, out, err = whatwhere(*command)
        assert status == 0, name
        assert json.loads(out), name
        assert "words of the user" in err, name


def test_weights_to_start_from_import_no_code_that_their_file_names(does, whatwhere):
    sys.modules.pop("own_code")
    call = ("train", "data", *SMALL, "--pretrained", "run", "--out", "next")
    status, out, err = whatwhere(*call)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "own_code" not in sys.modules
    assert err.endswith("whatwhere never imports code that a file names; give --attention own_code:Own too\n")
    assert whatwhere(*call, *ATTENTION)[0] == 0
