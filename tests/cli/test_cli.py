import json
import os
import subprocess
import sys

import pytest

from whatwhere.base.files import write_json
from whatwhere.cli import demo as demo_module
from whatwhere.training.config import Recipe


def test_models(whatwhere):
    status, out, _ = whatwhere("models", "cbam_resnext29*")
    assert (status, out.split()) == (
        0,
        ["cbam_resnext29_16x64d", "cbam_resnext29_32x4d", "cbam_resnext29_8x64d"],
    )


def test_summary_as_json(whatwhere):
    options = ("--input", "3x32x32", "--classes", "10", "--batch", "2", "--latency", "--json")
    status, out, _ = whatwhere("summary", "cbam_resnext11_8x8d", "--against", "resnext11_8x8d", *options)
    assert status == 0
    result = json.loads(out)
    assert [model["name"] for model in result["models"]] == ["cbam_resnext11_8x8d", "resnext11_8x8d"]
    for model in result["models"]:
        keys = {"name", "num_params", "macs", "flops", "param_bytes", "saved_bytes", "forward_ms", "training_step_ms"}
        assert keys <= model.keys()
        assert model["batch_size"] == 2
    assert result["models"][1]["num_params"] == 330_666
    assert result["comparison"]["a"] == "resnext11_8x8d"
    assert result["comparison"]["total"]["num_params"]["difference"] > 0


def test_summary_as_tables(whatwhere):
    status, out, _ = whatwhere("summary", "resnext11_8x8d", "--input", "3x32x32", "--classes", "10")
    assert status == 0
    assert "330,666" in out
    assert "Bottleneck" in out
    _, shallow, _ = whatwhere("summary", "resnext11_8x8d", "--input", "3x32x32", "--depth", "1")
    assert "Bottleneck" not in shallow
    options = ("--against", "resnext11_8x8d", "--input", "3x32x32", "--latency")
    status, out, _ = whatwhere("summary", "se_resnext11_8x8d", *options)
    assert status == 0
    assert "+ 1 x SqueezeExcitation" in out
    assert "training step" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("summary", "resnext50"),
        ("summary", "resnet18", "--against", "resnet19"),
        ("summary", "resnet18", "--input", "1x224x224"),
        ("summary", "resnet18", "--input", "224"),
        ("summary", "resnet18", "--input", "3x0x224"),
        ("summary", "resnet18", "--input", "3x224x" + "9" * 5000),
        ("summary", "resnet18", "--input", "3x22\N{ARABIC-INDIC DIGIT FOUR}x224"),
        ("summary", "resnet18", "--input", "3x16x16"),
        ("summary", "resnet18", "--batch", "0"),
        ("summary", "resnet18", "--batch", "9" * 25),
        ("summary", "resnet18", "--batch", "999999999"),
        ("summary", "resnet18", "--classes", "9" * 25),
        ("summary", "resnet18", "--classes", "0"),
        ("summary", "resnet18", "--depth", "0"),
        ("summary", "article_resnext50", "--input", "3x64x64"),
        ("summary",),
        ("models", "zzz*"),
        ("sumary",),
        ("summary", "resnet18", "--classes", "many"),
        ("summary", "resnet18", "--deep"),
        ("demo", "--out", ""),
        ("demo", "--out", "/dev/null/demo"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments, refused_command):
    refused_command(*arguments)


def test_an_out_that_is_a_file_is_left_alone(whatwhere, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    status, _, err = whatwhere("demo", "--out", str(path))
    assert status == 2
    assert "cannot write to" in err
    assert path.read_text() == "mine"


def test_demo_follows_no_link_and_finds_a_folder_in_its_place_before_it_trains(whatwhere, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "demo.json").symlink_to(precious)
    write_json(tmp_path / "out" / "demo.json", {})
    assert precious.read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["demo.json"]
    (tmp_path / "out" / "gates.png").mkdir()
    status, out, err = whatwhere("demo", "--out", str(tmp_path / "out"))
    assert (status, out) == (2, "")
    assert "gates.png there is a folder" in err


def test_demo(whatwhere, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "RECIPE", Recipe(epochs=1, warmup_epochs=0))
    monkeypatch.setattr(demo_module, "IMAGES_PER_CLASS", 3)
    status, out, _ = whatwhere("demo", "--out", str(tmp_path / "a" / "b"))
    assert status == 0
    assert "139.39 MB   170.58 MB" in out
    assert "139.39 MB   154.99 MB" in out
    assert "cbam   " in out
    assert "tuned for neither arm" in out
    result = json.loads((tmp_path / "a" / "b" / "demo.json").read_text())
    assert [article["num_params"] for article in result["article"]] == [36_539_018, 40_628_745]
    (arm,) = result["accuracy"]["judgement"]["arms"]
    assert len(arm["baseline"]) == len(arm["treatment"]) == 6
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["demo.json", "gates.png", "report.html"]


SMALL = ("summary", "resnext11_8x8d", "--input", "3x32x32")


def test_a_terminal_that_knows_ascii_only():
    command = [sys.executable, "-m", "whatwhere", *SMALL]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True)
    assert b"-----" in done.stdout
    assert b"other FLOPs" in done.stdout


@pytest.mark.parametrize("arguments", [SMALL, (*SMALL, "--json"), ("models",), ("--version",)])
def test_a_full_disk_is_one_sentence(arguments):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "whatwhere", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "whatwhere: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("command", [("models",), SMALL, (*SMALL, "--json")])
def test_a_reader_that_has_seen_enough_ends_the_command_quietly(command):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        process = [sys.executable, "-m", "whatwhere", *command]
        done = subprocess.run(process, check=False, stdout=closed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_reader_that_has_seen_enough_ends_a_training_quietly(patterns, tmp_path):
    """Its lines come from rich, which would end the program by itself."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        process = [sys.executable, "-m", "whatwhere", "train", str(patterns), "--model", "resnext11_8x8d", "--dry-run"]
        process += ["--image-size", "16", "--epochs", "1", "--batch-size", "16", "--device", "cpu"]
        cache = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run(process, check=False, stdout=closed, stderr=subprocess.PIPE, env=cache)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("command", [("--version",), ("models",), (*SMALL, "--json"), ("--help",)])
def test_a_closed_output_is_one_sentence(command):
    process = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "whatwhere", *command]
    done = subprocess.run(process, check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "whatwhere: cannot write the output: Bad file descriptor\n"


def test_a_closed_standard_error_spoils_nothing():
    process = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-m", "whatwhere"]
    done = subprocess.run([*process, "models", "cbam_resnet18"], check=False, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "cbam_resnet18\n")
    done = subprocess.run([*process, "models", "zzz*"], check=False, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    "arguments", [("predict", "run", "a.png", ""), ("predict", "", "a.png"), ("verdict", ""), ("collect", "")]
)
def test_a_path_without_a_name_is_refused(refused_command, arguments):
    refused_command(*arguments)


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.argv = ['whatwhere', '--help']\n"
        "from whatwhere.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "whatwhere"], [sys.executable, "-c", "from whatwhere.cli import main; main()"]]
)
def test_runs_as_a_module_and_as_a_script(command):
    done = subprocess.run([*command, "--version"], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "0.1.0"


def test_without_a_command_comes_the_help(whatwhere):
    status, out, err = whatwhere()
    assert (status, out) == (2, "")
    assert "Usage: whatwhere" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("verdict", "results.csv", "--margin", "1_0"),
        ("verdict", "results.csv", "--margin", "\u0663"),
        ("verdict", "results.csv", "--max-pairs", "1_2"),
        ("train", "photos", "--epochs", "\uff11\uff10"),
        ("compare", "photos", "--seeds", "1_0"),
        ("compare", "photos", "--lr", "0.0_1"),
        ("summary", "resnet18", "--batch", "1_0"),
    ],
)
def test_a_number_is_written_with_plain_digits(refused_command, arguments):
    refused_command(*arguments)


@pytest.mark.parametrize(
    ("command", "switch", "name"),
    [
        (("predict", "run", "photos"), "--csv", "p.csv"),
        (("check", "photos"), "--json", "my report.JSON"),
        (("summary", "resnet18"), "--json", "cost.json"),
    ],
)
def test_a_file_behind_a_switch_that_prints(whatwhere, tmp_path, monkeypatch, command, switch, name):
    monkeypatch.chdir(tmp_path)
    status, out, err = whatwhere(*command, switch, name)
    quoted = f"'{name}'" if " " in name else name
    said = f"{switch} prints, and takes no file; to keep what it prints, end the command with: > {quoted}"
    assert (status, out, err) == (2, "", f"whatwhere: {said}\n")
    # a file that is there may be meant
    (tmp_path / name).touch()
    assert "takes no file" not in whatwhere(*command, switch, name)[2]
