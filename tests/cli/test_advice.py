"""Sentences that name an option or a command: it exists in the command whose sentence it is, and it helps."""

import ast
import re
import shutil
from pathlib import Path

import pytest
import typer

import whatwhere as package
from image_files import cut, fill, picture, save
from whatwhere.cli import app

ROOT = Path(package.__file__).parent
# by file or folder: the commands that show its sentences, each of which must have the options named there
COMMANDS = {
    "cli/attend.py": ("attend",),
    "cli/check.py": ("check",),
    "cli/collect.py": ("collect", "verdict"),
    "cli/compare.py": ("compare",),
    "cli/summary.py": ("summary",),
    "cli/train.py": ("train",),
    "cli/verdict.py": ("verdict",),
    "cli/weights.py": ("weights convert",),
    "collect": ("collect", "verdict"),
    "comparison": ("compare",),
    "data/doctor": ("train", "compare"),
    "data/sources": ("train", "compare", "check", "evaluate"),
    "data/split.py": ("train", "compare"),
    "networks/foreign.py": ("attend", "summary"),
    "networks/convert.py": ("weights convert",),
    "networks/spec.py": ("train", "compare", "attend", "summary"),
    "statistics": ("verdict",),
    "training/bundle.py": ("predict", "evaluate"),
    "training/config.py": ("train", "compare"),
    "training/distributed.py": ("train", "compare", "predict", "evaluate"),
    "training/estimate.py": ("train",),
    "training/predict.py": ("evaluate",),
    "training/run_folder.py": ("train",),
    "training/setup.py": ("train", "compare"),
    "training/stops.py": ("train", "compare"),
}
# sentences that name an option of another command on purpose
ELSEWHERE = {
    ("data/sources/source.py", "--skip-bad"): "check names it for the training",
    ("training/setup.py", "--model"): "said of a network that was chosen, and compare chooses none",
    ("cli/collect.py", "--baseline"): "of the command that collect names at its end",
}


def options_of(group, prefix=""):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from options_of(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", {flag for item in command.params for flag in (*item.opts, *item.secondary_opts)}


KNOWN = {name: {*flags, "--help", "--version"} for name, flags in options_of(typer.main.get_command(app))}


def sentences():
    """The texts in the package that are no docstrings, by file."""
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented)]
        docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield path.relative_to(ROOT).as_posix(), node.value.replace("pip install --upgrade", "pip install")


def test_every_option_that_a_sentence_names_is_one_of_its_commands():
    wrong, seen = [], set()
    for file, text in sentences():
        places = [place for place in COMMANDS if file == place or file.startswith(f"{place}/")]
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![a-z{])", text):
            seen |= set(places) | {(file, option)}
            if (file, option) in ELSEWHERE or option == "--no":  # a prefix, as in --no-check
                continue
            meant = [KNOWN[name] for place in places for name in COMMANDS[place]] or [set().union(*KNOWN.values())]
            if not all(option in known for known in meant):
                wrong.append((file, option, text))
    assert wrong == []
    # no entry above is out of date
    assert {*COMMANDS, *ELSEWHERE} - seen == set()


def test_every_command_that_a_sentence_names_exists():
    """In backticks, as all of them stand."""
    groups = {name.partition(" ")[0] for name in KNOWN}
    named = {name for _, text in sentences() for name in re.findall(r"`whatwhere ([a-z]+)", text)}
    assert named
    assert named <= groups


def runs_csv(head="arm,seed,accuracy", rows="{arm},{seed},{value}", baseline="none"):
    lines = [head]
    for arm, gain in ((baseline, 0), ("cbam", 20)):
        for seed in range(8):
            value = f"0.{800 + gain + 7 * seed % 5}"
            lines += rows.format(arm=arm, seed=seed, value=value, lr=0.1 + gain, last=2 + seed % 2).split("|")
    return "\n".join(lines) + "\n"


TABLES = {
    "ok.csv": runs_csv(),
    "columns.csv": runs_csv("variant,number,accuracy"),
    "unknown.csv": runs_csv("arm,seed,wobble"),
    "settings.csv": runs_csv("arm,seed,lr,accuracy", "{arm},{seed},{lr},{value}"),
    "ends.csv": runs_csv("arm,seed,epoch,accuracy", "{arm},{seed},1,0.5|{arm},{seed},{last},{value}"),
    "alien.csv": runs_csv(baseline="plain"),
}
TRY = ("--dry-run", "--epochs", 1, "--image-size", 16, "--workers", 0, "--device", "cpu", "--model", "resnext11_8x8d")
# what is typed, what the answer names, and what is then typed: that ends with status 0
ADVICE = [
    (("verdict", "columns.csv"), "--seed-column", ("verdict", "columns.csv", "--seed-column", "number")),
    (
        ("verdict", "unknown.csv"),
        "--lower-is-better",
        ("verdict", "unknown.csv", "--lower-is-better", "--margin", 0.01),
    ),
    (("verdict", "settings.csv"), "--may-differ lr", ("verdict", "settings.csv", "--may-differ", "lr")),
    (("verdict", "ends.csv"), "--may-differ epochs", ("verdict", "ends.csv", "--may-differ", "epochs")),
    (("verdict", "alien.csv", "--baseline", "plane"), "plain", ("verdict", "alien.csv", "--baseline", "plain")),
    (("verdict", "ok.csv", "--metric", "accurat"), "accuracy", ("verdict", "ok.csv", "--metric", "accuracy")),
    (
        ("collect", "ok.csv"),
        "whatwhere verdict results.csv --metric",
        ("verdict", "results.csv", "--metric", "accuracy"),
    ),
    (("attend", "resnet18", "--at", "nope"), "'blocks'", ("attend", "resnet18", "--at", "blocks", "--plan")),
    (("check", "list.csv"), "--path-column", ("check", "list.csv", "--path-column", "where", "--label-column", "what")),
    (
        ("check", "list.csv", "--path-column", "where"),
        "--label-column",
        ("train", "list.csv", "--path-column", "where", "--label-column", "what", *TRY),
    ),
    (("train", "damaged", *TRY), "--skip-bad", ("train", "damaged", "--skip-bad", *TRY)),
    (("train", "scene", *TRY), "--near-duplicates free", ("train", "scene", "--near-duplicates", "free", *TRY)),
    (("train", "sound", "--batch-size", 500, *TRY), "give fewer", ("train", "sound", "--batch-size", 8, *TRY)),
    (
        ("train", "sound", "--group-from", "x(y)", *TRY),
        "must fit every path",
        ("train", "sound", "--group-from", r"(\d)\.png", *TRY),
    ),
    (
        ("train", "sound", "--val-fraction", 0, *TRY),
        "give one above 0",
        ("train", "sound", "--val-fraction", 0.2, *TRY),
    ),
    (
        ("train", "sound", "--attention", "cbm", *TRY),
        "did you mean cbam",
        ("train", "sound", "--attention", "cbam", *TRY),
    ),
    (
        ("train", "sound", "--attention", "se", "--attention-kwargs", "16", *TRY),
        '{"reduction": 8}',
        ("train", "sound", "--attention", "se", "--attention-kwargs", '{"reduction": 8}', *TRY),
    ),
    (("train", "sound/sound.zip", *TRY), "unpack it", ("train", "sound", *TRY)),
    (
        ("compare", "sound", "--attention-kwargs", "{reduction: 8}"),
        "--attention",
        (
            "compare",
            "sound",
            "--attention",
            "none,se",
            "--attention-kwargs",
            "{reduction: 8}",
            "--backbone",
            "resnext11_8x8d",
            *TRY[:-2],
        ),
    ),
]


@pytest.fixture
def place(whatwhere_here, tmp_path):
    """The current folder has tables, and folders of images: sound ones, with a damaged one, and of one scene."""
    for name, text in TABLES.items():
        (tmp_path / name).write_text(text)
    fill(tmp_path / "sound", "a", "b", count=10)
    shutil.copytree(tmp_path / "sound", tmp_path / "damaged")
    cut(tmp_path / "damaged" / "a" / "0.png")
    rows = "".join(f"sound/{label}/{number}.png,{label}\n" for label in "ab" for number in range(10))
    (tmp_path / "list.csv").write_text(f"where,what\n{rows}")
    for number in range(20):
        image = picture(7)
        image.putpixel((0, 0), (number, 0, 0))
        save(tmp_path / "scene" / "ab"[number % 2] / f"{number}.png", image)
    (tmp_path / "sound" / "sound.zip").touch()
    return whatwhere_here


@pytest.mark.parametrize(("typed", "advice", "then"), ADVICE, ids=lambda value: value if isinstance(value, str) else "")
def test_the_advice_of_a_sentence_helps(place, typed, advice, then):
    _, out, err = place(*typed)
    assert advice in " ".join((out + err).split())
    status, _, err = place(*then)
    assert (status, "whatwhere: " in err) == (0, False)
