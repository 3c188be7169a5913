import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from run_folders import ultralytics_run
from whatwhere.collect.collect import collect
from whatwhere.collect.settings import read_settings

ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)


@pytest.fixture
def settings(tmp_path):
    def read(text, name="args.yaml"):
        (tmp_path / name).write_text(text)
        return read_settings(tmp_path / name)

    return read


def test_values_are_texts_and_nested_names_have_dots(settings):
    read = settings("seed: 0\nlr: 0.01\nname: null\namp: true\nmodel: {depth: 18.0, kwargs: {}}\nsizes: [1, 2]\n")
    assert read == {
        "seed": "0", "lr": "0.01", "name": "none", "amp": "true", "model.depth": "18", "model.kwargs": "none",
        "sizes": "[1, 2]",
    }  # fmt: skip
    assert settings("stages: [{depth: 2}, {depth: 3}]") == {"stages.0.depth": "2", "stages.1.depth": "3"}
    assert settings(json.dumps({"a": {"b": [1]}}), "a.json") == {"a.b": "[1]"}


def test_tags_of_programs_are_plain_values_and_run_nothing(settings, tmp_path):
    text = f"""
betas: !!python/tuple [0.9, 0.999]
project: !!python/object/apply:pathlib.PosixPath [runs, detect]
evil: !!python/object/apply:os.mkdir ['{tmp_path}/made']
worse: !!python/object/new:subprocess.Popen [['touch', '{tmp_path}/made']]
loss: !!python/name:torch.nn.functional.cross_entropy ''
opt: !!python/object:argparse.Namespace {{lr: 0.1}}
"""
    read = settings(text)
    assert read["betas"] == "[0.9, 0.999]"
    assert read["project"] == "[runs, detect]"
    assert read["opt.lr"] == "0.1"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1\n",
        "a: [1\n",
        "a: !!bool maybe\n",
        "a: 2020-13-45\n",
        "? [a]\n: 1\n",
        "a: &a [*a, 1]\n",
        "&a {b: *a}\n",
        ALIASES,
        "x" * 300_000,
    ],
    ids=["empty", "list", "open", "bool", "date", "key", "itself", "itself too", "aliases", "long"],
)
def test_what_holds_no_settings_is_refused(settings, text, refused):
    with refused():
        settings(text)


@pytest.mark.parametrize("text", ["[" * 100_000, "a: {" * 60_000, "a: " + "9" * 6000])
def test_nothing_is_too_deep_or_too_long_for_a_sentence(settings, text, refused):
    with refused(hiding=r"is not YAML.*"):
        settings(text)


def test_merge_keys_do_not_multiply(settings):
    chain = "a: &a {k: 1}\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{','.join(['*' + chr(97 + i)] * 9)}]}}\n" for i in range(2)
    )
    assert len(settings(chain)) == 1 + 9 + 81


def test_settings_that_are_equal_are_equal_in_every_process(tmp_path):
    (tmp_path / "a.yaml").write_text("kinds: !!set {a, b, c, d, e}\n")
    code = "import pathlib; from whatwhere.collect.settings import read_settings as read\n"
    code += f"print(read(pathlib.Path('{tmp_path}/a.yaml')))"
    seen = {subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)}
    assert seen == {"{'kinds': '[a, b, c, d, e]'}\n"}


def test_a_file_that_is_not_there(tmp_path, refused):
    with refused():
        read_settings(Path(tmp_path / "args.yaml"))


@pytest.mark.parametrize("name", ["args.yaml", "results.csv", "attention.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "round"])
@pytest.mark.skipif(os.name != "posix", reason="pipes and devices are files on POSIX only")
def test_only_regular_files_are_read(tmp_path, refused, name, kind):
    path = ultralytics_run(tmp_path / "run", "none", 0) / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with refused():
        collect([path.parent])


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices are files on POSIX only")
def test_a_pipe_or_a_device_is_no_table(tmp_path, refused):
    os.mkfifo(tmp_path / "results.csv")
    for path in (tmp_path, tmp_path / "results.csv", Path("/dev/zero")):
        with refused():
            collect([path])
