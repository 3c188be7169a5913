"""Names of files and folders that are not UTF-8, or hold control characters, from the first command to the last."""

import csv
import io
import json
import os
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import whatwhere as package
from pictures import make_folder
from run_folders import ultralytics_run
from whatwhere.base.tables import say_json
from whatwhere.base.words import command_line, printable, unescaped

ODD = os.fsdecode(b"caf\xe9 \x1b[31m'q\n")
SMALL = ("--model", "resnext11_8x8d", "--image-size", "16", "--epochs", "1", "--batch-size", "16", "--device", "cpu")


def typed(line):
    """The words that bash makes of a line."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


@pytest.fixture
def command(whatwhere_here):
    """The command; what it prints can be shown on any terminal, and is UTF-8."""

    def run(*arguments, status=0):
        found, out, err = whatwhere_here(*arguments)
        assert found == status, err
        out.encode()
        assert "\x1b" not in out + err
        return out, err

    return run


def test_a_run_on_odd_names_can_be_used_as_it_is_printed(command, tmp_path):
    data = make_folder(tmp_path / ODD / "data", per_class=8)
    for number, file in enumerate(sorted(data.rglob("*.png"))):
        file.rename(file.with_name(f"{ODD}{number}.png"))
    out, _ = command("train", data, "--out", tmp_path / ODD / "run", *SMALL)
    predict, compare = (typed(line.partition(":  ")[2]) for line in out.splitlines()[-2:])
    assert predict[:3] == ["whatwhere", "predict", str(tmp_path / ODD / "run")]
    assert compare[:3] == ["whatwhere", "compare", str(data)]

    (found,) = json.loads(command(*predict[1:], "--json")[0])
    assert os.path.isfile(predict[3])
    assert found["path"] == predict[3].replace("\udce9", "\\xe9")
    _, row, *_ = csv.reader(command(*predict[1:], "--csv")[0].splitlines())
    assert row[0] == printable(predict[3])

    # the table of the run is UTF-8, names the files again, and knows the images that it was trained on
    split = tmp_path / ODD / "run" / "split.csv"
    rows = list(csv.reader(split.read_text(encoding="utf-8").splitlines()))
    told, err = command("evaluate", tmp_path / ODD / "run", split, "--split", "all", "--json")
    assert json.loads(told)["num_trained_on"] == sum(row[2] == "train" for row in rows)
    command("evaluate", tmp_path / ODD / "run", split)

    bad = next(data.rglob("*.png"))
    bad.write_text("no picture")
    command("check", data, "--json", status=1)
    _, err = command("train", data, "--out", tmp_path / "new", *SMALL, status=2)
    assert typed(err.rpartition(": ")[2]) == ["whatwhere", "check", str(data)]


def test_the_table_of_odd_runs_is_read_as_it_was_written(command, tmp_path):
    for arm in ("none", "cbam"):
        for seed in range(3):
            ultralytics_run(tmp_path / ODD / f"{arm}-{seed}", arm, seed)
    table = tmp_path / f"{ODD}table.csv"
    out, _ = command("collect", tmp_path / ODD, "--out", table, "--metric", "metrics/mAP50(B)")
    following = typed(out.splitlines()[-1].partition(": ")[2])
    assert following[:3] == ["whatwhere", "verdict", str(table)]
    table.read_text(encoding="utf-8")
    told, _ = command(*following[1:], "--json")
    assert json.loads(told)["judgement"]["metric"]["name"] == "metrics/mAP50(B)"
    assert "The report: " in command(*following[1:])[0]
    command("verdict", tmp_path / ODD, "--metric", "metrics/mAP50(B)")


BYTES = map(os.fsdecode, (b"\xe9", b"\xff", b"\x80"))
names = st.lists(st.sampled_from([*BYTES, *"a'\\$ \n\t\x1b\x7f\u202e\u2028é😀x80"])).map("".join)


def test_one_function_quotes_for_shells():
    root = Path(package.__file__).parent
    files = [path.relative_to(root).as_posix() for path in root.rglob("*.py") if "shlex" in path.read_text()]
    assert files == ["base/words.py"]


@given(st.lists(names, min_size=1, max_size=4))
@settings(max_examples=30)
def test_a_command_line_is_read_by_a_shell_as_it_was_meant(words):
    line = command_line(words)
    assert printable(line) == line
    assert typed(line) == words


@given(names.filter(lambda name: "\\" not in name))
def test_a_printed_name_leads_to_its_file(name):
    assert unescaped(printable(name)) == name


@given(st.dictionaries(names, st.text() | st.floats(allow_nan=False)))
def test_json_is_such_that_any_program_reads_it(content):
    with redirect_stdout(io.StringIO()) as out:
        say_json(content)
    read = json.loads(out.getvalue())
    json.dumps(read, ensure_ascii=False).encode()
    assert read == {name.translate(WRITTEN): value for name, value in content.items()}


WRITTEN = {0xDC00 + byte: f"\\x{byte:02x}" for byte in range(0x80, 0x100)}
