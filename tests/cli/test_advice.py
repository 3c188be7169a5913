"""Sentences that name an option or a command: it exists in the command whose sentence it is, and it helps."""

import ast
import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.torch import save_file

import whatwhere as package
from comparisons import Comparisons, WithoutPictures
from image_files import cut, fill, picture, save
from run_folders import ultralytics_run
from whatwhere import create_model
from whatwhere.base.screen import Silent
from whatwhere.cli import app
from whatwhere.training.config import read_config
from whatwhere.training.run_folder import RunFolder
from whatwhere.training.train import run_training
from whatwhere.training.trainer import Diverged

ROOT = Path(package.__file__).parent
# by file or folder: the commands that show its sentences, each of which must have the options named there
COMMANDS = {
    "cli/attend.py": ("attend",),
    "cli/audit.py": ("audit",),
    "cli/check.py": ("check",),
    "cli/collect.py": ("collect", "verdict"),
    "cli/compare.py": ("compare",),
    "cli/summary.py": ("summary",),
    "cli/train.py": ("train",),
    "cli/verdict.py": ("verdict",),
    "cli/weights.py": ("weights convert",),
    "collect": ("collect", "verdict"),
    "comparison": ("compare",),
    "comparison/across.py": ("verdict",),
    "comparison/audit.py": ("audit",),
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
    ("comparison/cluster.py", "--head"): "of `ray start`",
    ("data/sources/source.py", "--skip-bad"): "check names it for the training",
    ("comparison/conditions.py", "--deterministic"): "of the run that is trained again",
    ("training/setup.py", "--model"): "said of a network that was chosen, and compare chooses none",
    ("cli/collect.py", "--baseline"): "of the command that collect names at its end",
    ("cli/collect.py", "--margin"): "of that command too",
}


def options_of(group, prefix=""):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from options_of(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", {flag for item in command.params for flag in (*item.opts, *item.secondary_opts)}


KNOWN = {name: {*flags, "--help", "--version"} for name, flags in options_of(typer.main.get_command(app))}


TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def sentences():
    """The texts in the package that are no docstrings, by file."""
    for file, tree in TREES.items():
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented)]
        docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield file, node.value.replace("pip install --upgrade", "pip install")


def test_every_option_that_a_sentence_names_is_one_of_its_commands():
    wrong, seen = [], set()
    for file, text in sentences():
        places = [file] if file in COMMANDS else [place for place in COMMANDS if file.startswith(f"{place}/")]
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


# what advises: an option, a command, something to install
COMMAND = rf"\bwhatwhere ({'|'.join(name.split()[0] for name in KNOWN)})\b"
ADVISES = re.compile(rf"(?<![\w-])--[a-z][a-z-]*[a-z](?![a-z{{])|{COMMAND}|`git |pip install")
DECLARES = {"Argument", "Option", "_option", "own_option", *("_machine", "_data", "_recipe", "_common")}


def templates(tree):
    """The texts of a file with {} for what is filled in; neither docstrings nor the help of options."""
    rest = [tree]
    for node in rest:  # and those that are added
        called = node.func if isinstance(node, ast.Call) else None
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_docstring or getattr(called, "attr", getattr(called, "id", "")) in DECLARES:
            continue
        parts = [node] if isinstance(node, ast.Constant) else node.values if isinstance(node, ast.JoinedStr) else []
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
        if isinstance(node, ast.List) and node.elts and getattr(node.elts[0], "value", "") == "whatwhere":
            text = " ".join(str(item.value) if isinstance(item, ast.Constant) else "{}" for item in node.elts)
        if " " in text:
            yield text
        inside = ast.iter_child_nodes(node)
        rest += [child for child in inside if not (child in parts and isinstance(child, ast.Constant))]


TEMPLATES = sorted({text for tree in TREES.values() for text in templates(tree)})
# from advice.txt: parts of messages, and what is typed
PARAGRAPHS = [text.splitlines() for text in Path(__file__).with_name("advice.txt").read_text().split("\n\n")]
SCENARIOS = [
    ([line[2:] for line in lines if line[:2] == "# "], [line for line in lines if line[:2] != "# "])
    for lines in PARAGRAPHS[2:]
]


def test_every_advice_of_the_package_is_followed():
    of = {}  # a part that is a whole message means that one alone
    for part in {part for parts, _ in SCENARIOS for part in parts}:
        of[part] = [text for text in TEMPLATES if text == part] or [text for text in TEMPLATES if part in text]
    named = set(chain.from_iterable(of.values()))
    missing = [text for text in TEMPLATES if ADVISES.search(text) and text not in named]
    assert not missing, "tests/cli/advice.txt has no part of these messages"
    assert {part: texts for part, texts in of.items() if len(texts) != 1} == {}, "these are not parts of one message"


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
    "beside.csv": "seed,none,cbam\n" + "".join(f"{n},0.{800 + 7 * n % 5},0.{820 + 5 * n % 7}\n" for n in range(8)),
    "mixed.csv": runs_csv("arm,seed,dataset,accuracy", "{arm},{seed},{last},{value}"),
    "unknown.csv": runs_csv("arm,seed,wobble"),
    "settings.csv": runs_csv("arm,seed,lr,accuracy", "{arm},{seed},{lr},{value}"),
    "ends.csv": runs_csv("arm,seed,epoch,accuracy", "{arm},{seed},1,0.5|{arm},{seed},{last},{value}"),
    "alien.csv": runs_csv(baseline="plain"),
    "moved.csv": runs_csv().replace("0.8", "0.7"),
    "again.csv": runs_csv().replace("0.82", "0.83"),
    "turned.csv": runs_csv(baseline="cbam").replace("cbam", "plain").replace("plain", "cbam", 8).replace("0.8", "0.7"),
    "both.csv": runs_csv("arm,seed,accuracy,recall", "{arm},{seed},{value},{value}"),
    "recall.csv": runs_csv("arm,seed,recall").replace("0.8", "0.7"),
    "third.csv": runs_csv().replace("cbam", "se"),
    "once.csv": runs_csv("arm,seed,epoch,accuracy", "{arm},{seed},3,{value}"),
    "states.csv": runs_csv("arm,seed,accuracy,state", "{arm},{seed},{value},finished").replace("finished", "failed", 1),
    "ended.csv": runs_csv("arm,seed,accuracy,state", "{arm},{seed},{value},gut"),
    "several.csv": runs_csv("arm,seed,mAP50,recall", "{arm},{seed},{value},{value}"),
    "words.csv": runs_csv("arm,seed,mAP50,note", "{arm},{seed},{value},{seed}").replace(",7\n", ",good\n"),
    "arms.csv": "id,kind,seed,accuracy\n"
    + "".join(f"{i},{('none', 'cbam')[i % 2]},{i // 2},0.{800 + i * 7 % 23 + i % 2 * 20}\n" for i in range(210)),
    "epochs.csv": runs_csv("arm,seed,epoch,accuracy", "{arm},{seed},1,0.5|{arm},{seed},2,{value}"),
    "known.csv": "path,label,what\n"
    + "".join(f"sound/{'ab'[i % 2]}/{i // 2}.png,{i % 2},{i % 2}\n" for i in range(20)),
    "flags.csv": "path,label,is_train\n"
    + "".join(f"sound/{'ab'[i % 2]}/{i // 2}.png,{i % 2},{i // 2 % 2}\n" for i in range(20)),
    "phases.csv": "path,label,phase,fold\n"
    + "".join(
        f"sound/{'ab'[i % 2]}/{i // 2}.png,{i % 2},{'train,val' if i < 14 else 'val,train'}\n" for i in range(20)
    ),
    "unlike.csv": "path,label,split,phase\n"
    + "".join(
        f"sound/{'ab'[i % 2]}/{i // 2}.png,{i % 2},{('old', 'val')[i < 14]},{('val', 'train')[i < 14]}\n"
        for i in range(20)
    ),
    "none.csv": "seed,accuracy\n" + "".join(f"{seed},0.80{7 * seed % 5}\n" for seed in range(8)),
    "cbam.csv": "seed,accuracy\n" + "".join(f"{seed},0.82{3 * seed % 5}\n" for seed in range(8)),
    "wide.csv": "seed,one,two\n" + "".join(f"{seed},0.80{7 * seed % 5},0.82{7 * seed % 5}\n" for seed in range(8)),
}
NEEDED = ("sound", "small.yaml", "own_gate.py")
SMALL = "epochs: 1\nimage_size: 16\nworkers: 0\ndevice: cpu\n"
GATE = """
import os, signal
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1, groups=channels)

    def forward(self, x):
        return x + self.mix(x)

class Hungry(Own):
    def forward(self, x):
        if self.training and len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(x)

class Stopping(Own):
    def forward(self, x):
        if self.training and os.path.exists("stop"):
            os.remove("stop")
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(x)

class Removing(Own):
    def forward(self, x):
        if self.training and os.path.exists("remove"):
            os.remove("remove")
            os.rename("sound/a/0.png", "elsewhere.png")
        return super().forward(x)

built = nn.Sequential(Own(3), nn.AdaptiveAvgPool2d(1))

class Picky(Own):
    def forward(self, x):
        if x.shape[-1] != 40:
            raise ValueError("40 pixels")
        return super().forward(x)

def wants_seven():
    return Own(7)

def wants_forty():
    return Picky(3)
"""


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A folder with images, tables and runs, which no test changes: sound images, with a damaged one, of one scene."""
    here = tmp_path_factory.mktemp("ready")
    for name, text in {**TABLES, "small.yaml": SMALL, "own_gate.py": GATE}.items():
        (here / name).write_text(text)
    fill(here / "sound", "a", "b", count=10)
    shutil.copytree(here / "sound", here / "damaged")
    cut(here / "damaged" / "a" / "0.png")
    rows = "".join(f"sound/{label}/{number}.png,{label}\n" for label in "ab" for number in range(10))
    (here / "list.csv").write_text(f"where,what\n{rows}")
    for seed, name in [
        (seed, name) for seed in range(8) for name in ("first/none", "second/none", "single/none", "single/se")
    ]:
        path = here / f"{name}-{seed}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"epoch,accuracy\n1,0.5\n2,0.8{len(name) * seed % 7}\n")
    for number, optimizer in enumerate(("SGD", "AdamW") * 2):
        ultralytics_run(here / "lists" / f"run{number}", "none", number // 2, optimizer=optimizer)
    shutil.copytree(here / "sound", here / "uneven")
    for path in sorted((here / "uneven" / "a").iterdir())[2:]:
        path.unlink()
    fill(here / "uneven", "b", count=50)
    for number in range(20):
        folder, name = "ab"[number % 2], f"{number}.png"
        camera = np.asarray(picture(number).convert("L")).astype(np.uint16) * 15
        save(here / "camera" / folder / name, Image.fromarray(camera))
        save(here / "long" / folder / name, picture(number, (100, 20)))
        image = picture(7)
        image.putpixel((0, 0), (number, 0, 0))
        save(here / "scene" / folder / name, image)
    for name in ("se_resnet8", "resnext11_8x8d"):
        save_file(create_model(name, num_classes=2, seed=0).state_dict(), here / f"{name}.safetensors")
    half = {
        name: tensor[:2].clone() for name, tensor in create_model("se_resnet8").state_dict().items() if tensor.dim()
    }
    save_file(half, here / "half.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.syspath_prepend(here)
        patch.setenv("XDG_CACHE_HOME", str(here / "cache"))
        comparisons = Comparisons("sound", Path("study"))
        comparisons.figures = accuracy_of
        given = {**read_config(Path("small.yaml")), "batch_size": 8}
        comparisons("none,se", seeds=6, backbone="resnet8", given=given)
        comparisons.figures, comparisons.out = None, Path("real")
        comparisons("none,own=own_gate:Own", seeds=2, backbone="resnet8", given=given)
        for out, attention in (("run", ""), ("own", "own_gate:Own")):
            given = {**read_config(Path("small.yaml")), "model": "resnet8", "attention": attention}
            paths = {
                "out": Path(out),
                "resume": False,
                "dry_run": False,
                "command": "",
                "folder_class": WithoutPictures,
            }
            run_training("sound", given, screen=Silent(), **paths)
        sys.modules.pop("own_gate")
    return here


def accuracy_of(arm, seed):
    return (4 + (arm == "se") + int(re.sub(r"\D", "", seed)) * 7 % 3) / 8  # of 8 images


def regular(part):
    """The regular expression that finds a part of a message, with anything in place of {}."""
    return re.sub(r"\\{\w*\\}", ".*?", re.escape(part))


def modules_of(package):
    """The modules that come with a package, or with what an extra of this package names."""
    extra = re.fullmatch(r"whatwhere\[(\w+)\]", package)
    needs = importlib.metadata.requires("whatwhere") if extra else [package]
    names = {
        re.match(r"[\w-]+", need)[0]
        for need in needs
        if not extra or re.search(rf"extra == ['\"]{extra[1]}['\"]", need)
    }
    return [name for name, those in importlib.metadata.packages_distributions().items() if names & set(those)]


def diverging(arm, seed):
    if seed in ("8", "9"):
        raise Diverged("the loss is nan; lower the learning rate")


@pytest.fixture
def typed(ready, lines, whatwhere_here, tmp_path, monkeypatch):
    """Call it with a line of advice.txt and what was printed before; it returns exit status and what is printed."""
    for path in ready.iterdir():
        if path.name in NEEDED or path.name in " ".join(lines):
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, tmp_path / path.name)
    monkeypatch.setattr(RunFolder, "draw", lambda *arguments: None)
    comparisons = Comparisons("", Path())
    comparisons.figures, comparisons.before = accuracy_of, diverging
    absent = pytest.MonkeyPatch()
    monkeypatch.setattr(sys, "path", [".", *sys.path])

    def run(line, before):
        words = shlex.split(line[2:])
        if words[0] == "whatwhere":
            status, out, err = whatwhere_here(*words[1:], run_comparison=comparisons.run_comparison)
            return status, out + err
        if words[0] == "pip":
            packages = set(modules_of(words[-1]))
            # A module that another test has imported is found without its package, so it goes too.
            for name in packages | {module for module in sys.modules if module.split(".")[0] in packages}:
                if words[1] == "uninstall":
                    absent.setitem(sys.modules, name, None)
            if words[1] == "install":
                assert line[2:] in before
                absent.undo()
        else:
            subprocess.run(["sh", "-c", line[2:]], check=True)
        return None

    yield run
    absent.undo()
    sys.modules.pop("own_gate", None)


def command_in(shown, part):
    """The last command in what was printed that begins as the one in a part of a message."""
    kind = re.search(COMMAND, part)
    return "$ " + re.findall(rf"{kind[0] if kind else COMMAND}[^`\n]*".replace("(", "(?:"), shown)[-1]


def options(line):
    return set(re.findall(r" (--[a-z-]+)", line))


FOLLOWED = [(parts, lines) for parts, lines in SCENARIOS if not lines[0].startswith("- ")]


@pytest.mark.parametrize(
    ("parts", "lines"), FOLLOWED, ids=[re.sub(r"\W+", "-", parts[0])[:60] for parts, _ in FOLLOWED]
)
def test_what_a_message_advises_helps(typed, parts, lines):
    if any("yolo11n" in line for line in lines):
        pytest.importorskip("ultralytics")
    before, shown, commands = "", "", []
    for line in lines:
        command = command_in(shown, parts[-1]) if line == "$ ..." else line
        if (ran := typed(command, shown)) is not None:
            before, (status, shown) = shown, ran
            commands.append(command)
    *_, provoking, advised = commands
    assert [part for part in parts if not re.search(regular(part), " ".join(before.split()))] == [], before
    assert [part for part in parts if re.search(regular(part), " ".join(shown.split()))] == [], shown
    assert (status == 0) is (advised[0] == "$"), shown
    if lines[-1] != "$ ..." and provoking.split()[:3] == advised.split()[:3]:
        changed = options(provoking) ^ options(advised)
        assert {name for name in changed if name not in before} == set(), "the message does not name these options"
