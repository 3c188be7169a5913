import json
import os
import re
import shlex
import signal
import subprocess
import sys

import msgspec
import pytest

from pictures import make_folder
from whatwhere.base.errors import Stopped
from whatwhere.cli.train import what_next
from whatwhere.training import train as start_module
from whatwhere.training.config import CHOICES, FREE, OPTIONS, Config
from whatwhere.training.run_folder import RunDescription, RunFolder

COMMON = ["model", "epochs", "batch-size", "lr", "image-size", "seed", "workers", "device", "out", "resume"]


@pytest.fixture(scope="module")
def page():
    """What `whatwhere train --help` prints, without importing torch."""
    code = (
        "import sys; sys.argv = ['whatwhere', 'train', '--help']\n"
        "from whatwhere.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'numpy', 'PIL', 'torchvision'} & set(sys.modules)"
    )
    environment = {**os.environ, "COLUMNS": "300"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_options_of_every_day_come_first(page):
    places = {name: re.search(rf" --{name}[ ,]", page).start() for name in COMMON}
    assert list(places) == sorted(places, key=places.get)
    others = [name.replace("_", "-") for name in OPTIONS if name.replace("_", "-") not in COMMON]
    assert max(places.values()) < min(page.index(f" --{name} ") for name in others)


def test_every_option_is_there_with_its_default_and_its_choices(page):
    for name, field in OPTIONS.items():
        line = next(line for line in page.splitlines() if re.search(rf" --{name.replace('_', '-')}[ ,]", line))
        assert field.metadata["help"] in line
        assert "(default: " in line
        if name in CHOICES:
            assert "|".join(CHOICES[name]) in line
        if field.metadata["kind"] is bool:
            assert f"--no-{name.replace('_', '-')} " in line
    assert len(re.findall(r"\(default: ", page)) == len(OPTIONS) + 1  # --out


@pytest.fixture
def given(monkeypatch, whatwhere):
    """Return what a call of `whatwhere train` gives to the run, which is left out."""
    seen = {}

    def run_training(data, given, **others):
        seen.update(data=data, given=given, **others)

    monkeypatch.setattr(start_module, "run_training", run_training)

    def call(*arguments):
        status, out, err = whatwhere("train", *arguments)
        assert (status, out, err) == (0, "", "")
        return seen

    return call


def other(name):
    """Return a sound value for an option that is not its default."""
    special = {
        "cache": "memory",
        "image_size": 48,
        "rand_augment": 9,
        "group_from": "(.*)_",
        "attention_kwargs": {"reduction": 8},
    }
    default = getattr(Config(), name)
    if name in special:
        return special[name]
    if name in CHOICES:
        return next(choice for choice in CHOICES[name] if choice != default)
    if isinstance(default, bool):
        return not default
    return {int: 3, float: 0.25, str: "something"}[type(default)]


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (0, 1)])
def test_a_run_that_was_stopped_has_the_exit_status_of_the_signal(whatwhere, monkeypatch, number, expected):
    def run_training(*arguments, **others):
        raise Stopped("stopped after step 3 of 9", number)

    monkeypatch.setattr(start_module, "run_training", run_training)
    assert whatwhere("train", "photos") == (expected, "", "whatwhere: stopped after step 3 of 9\n")


def test_every_option_can_be_given(given):
    arguments = []
    for name in OPTIONS:
        dashed, value = name.replace("_", "-"), other(name)
        typed = json.dumps(value) if isinstance(value, dict) else value
        arguments += [f"--{'' if value else 'no-'}{dashed}"] if isinstance(value, bool) else [f"--{dashed}", typed]
    seen = given("photos", *arguments)
    assert seen["data"] == "photos"
    assert seen["given"] == {name: other(name) for name in OPTIONS}
    assert all(type(value) is OPTIONS[name].metadata["kind"] for name, value in seen["given"].items())
    del seen["given"]["check"]  # which skip_bad needs
    Config(data="photos", **seen["given"])


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("photos", "whatwhere train photos --resume"),
        ("photos --resume --seed 1", "whatwhere train photos --resume --seed 1"),
        ("'my --resume photos'", "whatwhere train 'my --resume photos' --resume"),
    ],
)
def test_the_line_to_continue_with(given, typed, line):
    assert given(*shlex.split(typed))["command"] == line


def test_what_is_not_given_is_left_open(given):
    seen = given("photos")
    assert seen["given"] == {}
    assert (seen["out"], seen["resume"], seen["dry_run"]) == (None, False, False)
    assert seen["command"] == "whatwhere train photos --resume"
    assert given("photos", "--no-channels-last", "--lr", "0", "--model", "")["given"] == {
        "channels_last": False,
        "lr": 0.0,
        "model": "",
    }


def test_the_command_line_wins_over_the_file(given, tmp_path):
    path = tmp_path / "my run.yaml"
    path.write_text("lr: 1e-3\nepochs: 7\nskip-bad: true\nhflip: 0\n")
    seen = given("photos", "--config", path, "--epochs", "9", "--no-skip-bad", "--resume", "--out", tmp_path)
    assert seen["given"] == {"lr": 0.001, "epochs": 9, "skip_bad": False, "hflip": 0.0}
    assert (seen["out"], seen["resume"]) == (tmp_path, True)
    assert f"--config '{path}'" in seen["command"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("",),
        ("nowhere",),
        ("digits", "--epochs", "0"),
        ("digits", "--epochs", "many"),
        ("digits", "--epochs", "1.5"),
        ("digits", "--lr", "-1"),
        ("digits", "--lr", "nan"),
        ("digits", "--lr", "fast"),
        ("digits", "--optimizer", "sdg"),
        ("digits", "--rand-augment", "31"),
        ("digits", "--crop-scale", "0"),
        ("digits", "--image-size", "0"),
        ("digits", "--cache", "device", "--crop", "resized"),
        ("digits", "--model", "resnext11"),
        ("digits", "--device", "tpu0"),
        ("digits", "--epoch", "3"),
        ("digits", "--no-lr"),
        ("digits", "more"),
        ("digits", "--config", "none.yaml"),
        ("digits", "--attention", "own"),
        ("digits", "--attention", "own:Gate"),
        ("digits", "--width-factor", "0"),
        ("digits", "--best-by", "last", "--early-stop", "2"),
        ("digits", "--path-column", "x"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(whatwhere, tmp_path, monkeypatch, arguments, refused_command):
    monkeypatch.chdir(tmp_path)
    err = refused_command("train", *arguments)
    assert whatwhere("train", *arguments, "--json") == (2, "", err)
    assert list(tmp_path.iterdir()) == []


def test_an_option_in_a_file_is_checked_as_well(whatwhere, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"lr": -1}))
    status, out, err = whatwhere("train", "digits", "--config", path)
    assert (status, out) == (2, "")
    assert "lr must be a number of at least 0" in err
    path.write_text("attention: own:Gate")
    status, out, err = whatwhere("train", "digits", "--config", path)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "whatwhere never imports code that a file names" in err


def test_what_can_follow_a_run_works_as_it_is_printed(whatwhere_here, tmp_path):
    data = make_folder(tmp_path / "my photos")
    small = "--image-size 16 --epochs 1 --batch-size 16 --device cpu --workers 0 --no-channels-last"
    out = tmp_path / "the run"
    status, printed, err = whatwhere_here(
        "train", data, "--model", "cbam_resnext11_8x8d", "--out", out, "--seed", 3, *small.split()
    )
    assert (status, err) == (0, "")
    pictures, *commands = printed.splitlines()[-3:]
    assert pictures == f"pictures: {out / 'curves.png'}, {out / 'confusion.png'}"
    predict, compare = (shlex.split(line.partition(":  ")[2]) for line in commands)
    assert predict[:3] == ["whatwhere", "predict", str(out)]
    status, printed, err = whatwhere_here(*predict[1:])
    assert (status, err) == (0, "")
    assert printed.startswith(f"{predict[3]}: ")
    held_out = [row.split(",")[0] for row in (out / "split.csv").read_text().splitlines() if "train" not in row]
    assert predict[3] in held_out
    assert compare[1:7] == ["compare", str(data), "--backbone", "resnext11_8x8d", "--attention", "none,cbam"]
    assert sorted(compare[7:]) == sorted(small.split())
    status, printed, err = whatwhere_here(*compare[1:], "--dry-run")
    assert (status, err) == (0, "")
    assert "16 runs to do, " in printed
    # a continuation that is told nothing: the options are those that the run was started with
    status, printed, err = whatwhere_here("train", data, "--out", out, "--resume")
    again = shlex.split(printed.splitlines()[-1].partition(":  ")[2])
    assert again == [text for text in compare if text not in ("--device", "cpu", "--workers", "0")]
    status, printed, err = whatwhere_here("train", data, "--out", out, "--resume", "--json")
    assert (status, json.loads(printed)["status"]) == (0, "finished")


@pytest.mark.parametrize(
    ("config", "given", "expected"),
    [
        ({"model": "resnet18"}, {}, "--backbone resnet18 --attention none,se,cbam"),
        ({"model": "resnet18", "attention": "eca"}, {}, "--backbone resnet18 --attention none,eca"),
        (
            {"model": "resnet18", "attention": "cbam", "attention_kwargs": {"reduction": 8}},
            {"attention_kwargs": {"reduction": 8}},
            """--backbone resnet18 --attention 'none,cbam{"reduction": 8}'""",
        ),
        (
            {"model": "timm:convnext_atto", "attention": "own:Gate", "pretrained": "imagenet"},
            {"model": "timm:convnext_atto", "pretrained": "imagenet", "device": "cpu"},
            "--backbone timm:convnext_atto --attention none,own:Gate --pretrained imagenet --device cpu",
        ),
        # another network would be compared, or the weights do not fit the network without attention
        ({"model": "resnet18", "width_factor": 2.0}, {"width_factor": 2.0}, None),
        ({"model": "cbam_resnet18", "pretrained": "runs/best.safetensors"}, {"pretrained": "runs"}, None),
    ],
)
def test_the_comparison_that_is_named_is_of_the_run_s_network(tmp_path, config, given, expected):
    config = vars(Config(data="digits", **config))
    description = RunDescription(
        config=config, given=list(given), classes=[], num_images={}, data_fingerprint="0", sessions=[{}]
    )
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(description))
    (tmp_path / "split.csv").write_text("path,label,split\ndigits/0,0,val\n")
    lines = what_next(RunFolder(tmp_path), {name: given[name] for name in given if name in FREE})
    assert lines == ([] if expected is None else [f"does the attention help:  whatwhere compare digits {expected}"])


def test_no_comparison_is_named_where_a_run_of_an_old_version_does_not_say_what_it_was_given(tmp_path):
    config = vars(Config(data="digits", model="resnet18"))
    description = RunDescription(config=config, classes=[], num_images={}, data_fingerprint="0", sessions=[{}])
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(description))
    (tmp_path / "split.csv").write_text("path,label,split\ndigits/0,0,val\n")
    assert what_next(RunFolder(tmp_path), {"epochs": 3}) == []
