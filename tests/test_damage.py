"""Each change to a document that whatwhere wrote ends in a sentence, with nothing lost, or in a sound result."""

import contextlib
import hashlib
import json
import shutil
import traceback

import pytest

from comparisons import Comparisons
from damage import damaged
from pictures import make_folder
from run_folders import ultralytics_run
from whatwhere import UserError
from whatwhere.base.errors import Stopped
from whatwhere.base.screen import Silent
from whatwhere.base.tables import rich_tables, text
from whatwhere.cli.screen import result_tables
from whatwhere.collect.collect import collect
from whatwhere.comparison.content import figures_content
from whatwhere.data.doctor.report import examine
from whatwhere.data.sources.find import find_source
from whatwhere.report import tables, write_page
from whatwhere.statistics.history import judge_again, read_record
from whatwhere.training.bundle import load_bundle
from whatwhere.training.predict import predict
from whatwhere.training.run_folder import RunFolder
from whatwhere.training.train import run_training

OPTIONS = {"model": "cbam_resnext11_8x8d", "image_size": 16, "epochs": 2, "batch_size": 12, "device": "cpu"}
TERMS = {"metric": "metrics/mAP50(B)"}
OPTIONS |= {"workers": 0, "ema": 0.9, "optimizer": "adamw", "val_fraction": 0.3}


class NoPictures(RunFolder):
    def draw(self, *arguments): ...


class StopAfter(Silent):
    """A screen on which a run ends after some steps, as a kill would."""

    def __init__(self, step):
        self.step = step

    def progress(self, what, done, total):
        if what == "training" and done == self.step:
            raise KeyboardInterrupt


def train(data, out, screen=None, **options):
    return run_training(
        str(data), {**OPTIONS, **options}, out=out, resume=True, dry_run=False, command="whatwhere train DATA",
        screen=screen or Silent(), folder_class=NoPictures,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs, a comparison and records, each made once."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        data = make_folder(root / "data", 8)
        train(data, root / "finished")
        with pytest.raises(Stopped):
            train(data, root / "stopped", StopAfter(RunFolder(root / "finished").metrics()[0].step + 1), save_minutes=0)
        compared = Comparisons(data, root / "compared")
        compared(seeds=3)
        for seed in range(6):
            for arm in ("none", "cbam"):
                ultralytics_run(root / "folders" / f"{arm}-{seed}", arm, seed)
        figures = collect([root / "folders"]).results
        content = figures_content(judge_again(figures, None, terms=TERMS)[0], figures, "folders", ())
        (root / "verdict").mkdir()
        (root / "verdict" / "verdict.json").write_text(json.dumps(content.to_dict()))
    return root


def resumed(made, folder):
    return result_tables(train(made / "data", folder))


def predicted(made, folder):
    images = sorted((made / "data").rglob("*.png"))[:2]
    return [prediction.classes for prediction in predict(load_bundle(folder), images)]


def compared_again(made, folder):
    content = Comparisons(made / "data", folder)(seeds=3)
    write_page(folder / "page.html", content)
    return text(rich_tables(tables(content)))


def collected(made, folder):
    return collect([folder]).results.to_csv()


def judged_again(made, folder):
    figures = collect([made / "folders"]).results
    judgement, changes = judge_again(figures, read_record(folder / "verdict.json"), terms=TERMS)
    return figures_content(judgement, figures, "folders", changes).to_dict()


def checked(made, folder):
    return examine(find_source(str(made / "data")), cache=folder / "whatwhere").to_dict()


def with_checksum(folder):
    """Return what writes the checksum of a checkpoint anew, so that the change itself is read."""
    weights = max((folder / "last").glob("*.safetensors")).read_bytes()

    def finish(document):
        if isinstance(document, dict) and "sha256" in document:
            tree = json.dumps(document.get("state")).encode()
            document = {**document, "sha256": hashlib.sha256(weights + tree).hexdigest()}
        return document

    return finish


# (the folder, the file in it, what is done with the folder, its share of the changes)
CASES = {
    "bundle": ("finished/best", "bundle.json", predicted, 3),
    "run": ("finished", "run.json", resumed, 2),
    "result": ("finished", "result.json", resumed, 2),
    "run to collect": ("finished", "run.json", collected, 1),
    "result to collect": ("finished", "result.json", collected, 1),
    "run to continue": ("stopped", "run.json", resumed, 1),
    "checkpoint": ("stopped", "last/*.json", resumed, 2),
    "design": ("compared", "compare.json", compared_again, 2),
    "cost": ("compared", "cost.json", compared_again, 1),
    "verdict": ("compared", "verdict.json", compared_again, 2),
    "run of a comparison": ("compared", "runs/again/seed-1/run.json", compared_again, 1),
    "result of a comparison": ("compared", "runs/again/seed-1/result.json", compared_again, 1),
    "attention": ("folders/cbam-0", "attention.json", collected, 1),
    "record": ("verdict", "verdict.json", judged_again, 2),
    "cache": ("cache", "whatwhere/*.json", checked, 1),
}


def try_out(made, tmp_path, name, count, seed):
    source, pattern, use, share = CASES[name]
    file = max((made / source).glob(pattern)).relative_to(made / source)
    content = (made / source / file).read_bytes()
    finish = with_checksum(made / source) if name == "checkpoint" else lambda document: document
    refused, faults = 0, []
    for what, new in damaged(content, count * share, seed, finish):
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)
        folder = shutil.copytree(made / source, tmp_path / "folder")
        (folder / file).write_bytes(new)
        before = everything_in(folder)
        try:
            json.dumps(use(made, folder), default=str, allow_nan=False)
        except UserError as error:
            refused += 1
            sentence, after = str(error), everything_in(folder)
            sentence = sentence.replace(str(tmp_path), "TMP").replace(str(made), "TMP")
            if not sentence.isprintable() or len(sentence) > 300:
                faults.append(f"{what}: {sentence}")
            faults += [f"{what}: {path} is lost" for path in before if after.get(path) != before[path]]
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(f"{what}: {type(error).__name__}: {error} at {where.filename}:{where.lineno}")
    assert not faults
    return refused


def everything_in(folder):
    """The bytes of all files; without the start that run.json notes before a run goes on."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    with contextlib.suppress(KeyError, ValueError, RecursionError, TypeError):
        content = json.loads(files[folder / "run.json"])
        files[folder / "run.json"] = {**content, "sessions": content["sessions"][:1]}
    return files


@pytest.mark.parametrize("name", CASES)
def test_some_changes(made, tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refused = try_out(made, tmp_path, name, 20, seed=0)
    assert refused or name in ("cost", "cache")  # which are measured again


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_thousands_of_changes(made, tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try_out(made, tmp_path, name, 150, seed=1)
