"""Each change to a document that whatwhere wrote ends in a sentence, with nothing lost, or in a sound result."""

import contextlib
import hashlib
import json
import os
import shutil
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from comparisons import Comparisons
from damage import damaged
from pictures import make_folder
from run_folders import lightning_run, timm_run, ultralytics_run
from whatwhere import UserError, create_model
from whatwhere.base.errors import Stopped
from whatwhere.base.screen import Silent
from whatwhere.base.tables import comma_separated, rich_tables, text
from whatwhere.cli.screen import result_tables
from whatwhere.cli.train import what_next
from whatwhere.collect.collect import collect
from whatwhere.comparison.content import figures_content
from whatwhere.data.doctor.report import examine
from whatwhere.data.sources.find import find_source
from whatwhere.data.split import prepare
from whatwhere.report import tables, write_page
from whatwhere.statistics.columns import Reading
from whatwhere.statistics.history import judge_again, read_record
from whatwhere.statistics.table import read_results
from whatwhere.statistics.verdict import judge
from whatwhere.training.bundle import load_bundle
from whatwhere.training.config import Config, read_config
from whatwhere.training.predict import predict
from whatwhere.training.run_folder import RunFolder, training_images
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
        for seed in range(6):
            for arm in ("none", "cbam"):
                value = 0.5 + 0.01 * (seed % 4) + 0.02 * (arm == "cbam")
                rows = [{"epoch": epoch, "val_acc": value + 0.1 * epoch} for epoch in range(3)]
                lightning_run(root / "lightning" / f"{arm}-{seed}", f"attention: {arm}\nseed: {seed}\n", rows)
                settings = {"seed": seed, "model_kwargs": {"attn_layer": arm}}
                timm_run(root / "timm" / f"{arm}-{seed}", settings, [50 + seed + 3 * (arm == "cbam")] * 2)
        for folder in ("verdict", "table", "list", "options"):
            (root / folder).mkdir()
        (root / "verdict" / "verdict.json").write_text(json.dumps(content.to_dict()))
        (root / "table" / "results.csv").write_text(collect([root / "folders"]).to_csv())
        paths = sorted(path for path in data.rglob("*.png"))
        rows = [(path, path.parent.name, ("train", "val")[number % 2]) for number, path in enumerate(paths)]
        (root / "list" / "images.csv").write_text(comma_separated(("path", "label", "split"), rows))
        given = {name: value for name, value in asdict(Config()).items() if name not in ("data", "model", "device")}
        (root / "options" / "options.yaml").write_text(json.dumps({**given, "attention_kwargs": {"reduction": 8}}))
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
    return collect([folder]).to_csv().encode("utf-8").decode()


def runs_collected(made, folder):
    return collect([folder], Reading(arm_from="{arm}/seed-{seed}")).to_csv().encode("utf-8").decode()


def judged_again(made, folder):
    figures = collect([made / "folders"]).results
    judgement, changes = judge_again(figures, read_record(folder / "verdict.json"), terms=TERMS)
    return figures_content(judgement, figures, "folders", changes).to_dict()


def checked(made, folder):
    return examine(find_source(str(made / "data")), cache=folder / "whatwhere").to_dict()


def looked_at(made, folder):
    return [resumed(made, folder), what_next(RunFolder(folder), {}), sorted(training_images(folder).paths)]


def started_from(made, folder):
    (weights,) = folder.glob("*.safetensors")
    return create_model("cbam_resnext11_8x8d", num_classes=3, pretrained=weights).fc.weight.tolist()


def judged(made, folder):
    return judge(read_results(folder / "results.csv", **TERMS), **TERMS).to_dict()


def listed(made, folder):
    parts = prepare(str(folder / "images.csv"), seed=0).parts
    return {part: [(sample.path, sample.label) for sample in samples] for part, samples in parts.items()}


def configured(made, folder):
    return asdict(Config(data="photos", **read_config(folder / "options.yaml")))


def checksum_of_checkpoint(folder):
    """Write the checksum of a checkpoint anew, so that the change itself is read."""
    file = max((folder / "last").glob("*.json"))
    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
        content = json.loads(file.read_text())
        weights, tree = file.with_suffix(".safetensors").read_bytes(), json.dumps(content["state"]).encode()
        file.write_text(json.dumps({**content, "sha256": hashlib.sha256(weights + tree).hexdigest()}))


def checksum_of_weights(folder):
    """Write the checksum of a bundle's weights anew, so that the change itself is read."""
    (weights,) = folder.glob("*.safetensors")
    content = json.loads((folder / "bundle.json").read_text())
    content["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(content))


@dataclass
class Case:
    """A document: the folder and the file in it, what is done with the folder, its share of the changes."""

    folder: str
    file: str
    use: object
    share: int = 1
    finish: object = lambda folder: None  # called after each change


CASES = {
    "bundle": Case("finished/best", "bundle.json", predicted, 3),
    "weights of a bundle": Case("finished/best", "weights-*.safetensors", predicted, 2, checksum_of_weights),
    "weights": Case("finished/best", "weights-*.safetensors", started_from, 2),
    "run": Case("finished", "run.json", looked_at, 2),
    "result": Case("finished", "result.json", looked_at, 2),
    "split": Case("finished", "split.csv", looked_at, 2),
    "run to collect": Case("compared/runs", "again/seed-1/run.json", runs_collected),
    "result to collect": Case("compared/runs", "again/seed-1/result.json", runs_collected),
    "run to continue": Case("stopped", "run.json", resumed, 1),
    "epochs to continue": Case("stopped", "metrics.jsonl", resumed, 1),
    "checkpoint": Case("stopped", "last/*.json", resumed, 2, checksum_of_checkpoint),
    "tensors of a checkpoint": Case("stopped", "last/*.safetensors", resumed, 1, checksum_of_checkpoint),
    "design": Case("compared", "compare.json", compared_again, 2),
    "cost": Case("compared", "cost.json", compared_again),
    "verdict": Case("compared", "verdict.json", compared_again, 2),
    "run of a comparison": Case("compared", "runs/again/seed-1/run.json", compared_again),
    "result of a comparison": Case("compared", "runs/again/seed-1/result.json", compared_again),
    "epochs of a comparison": Case("compared", "runs/again/seed-1/metrics.jsonl", compared_again),
    "attention": Case("folders", "cbam-0/attention.json", collected),
    "curve of Ultralytics": Case("folders", "cbam-0/results.csv", collected, 2),
    "settings of Ultralytics": Case("folders", "cbam-0/args.yaml", collected),
    "curve of Lightning": Case("lightning", "cbam-0/metrics.csv", collected, 2),
    "settings of Lightning": Case("lightning", "cbam-0/hparams.yaml", collected),
    "curve of timm": Case("timm", "cbam-0/summary.csv", collected, 2),
    "settings of timm": Case("timm", "cbam-0/args.yaml", collected),
    "record": Case("verdict", "verdict.json", judged_again, 3),
    "table": Case("table", "results.csv", judged, 3),
    "list of images": Case("list", "images.csv", listed, 2),
    "options": Case("options", "options.yaml", configured, 3),
    "cache": Case("cache", "whatwhere/*.json", checked, 2),
}


class Copy:
    """A copy of a folder, in which a file is damaged: it says what was lost then, and puts the files back."""

    def __init__(self, source, path):
        self.source, self.path = source, shutil.copytree(source, path)
        self.sound = self.stamps()

    def stamps(self):
        """The files, with what changes when they are written."""
        paths = (path for path in self.path.rglob("*") if path.name != ".lock" and path.is_file())
        stats = {path.relative_to(self.path): path.stat() for path in paths}
        return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}

    def remember(self):
        """Remember the files as they are now."""
        self.before = self.stamps()
        damaged = [path for path, stamp in self.before.items() if self.sound.get(path) != stamp]
        self.damaged = {path: (self.path / path).read_bytes() for path in damaged}

    def lost(self):
        """The files that are gone, or hold something else than what was remembered."""
        now, lost = self.stamps(), []
        for path in [path for path, stamp in self.before.items() if now.get(path) != stamp]:
            before = self.damaged[path] if path in self.damaged else (self.source / path).read_bytes()
            if path not in now or meaning(path, (self.path / path).read_bytes()) != meaning(path, before):
                lost.append(path)
        return lost

    def put_back(self):
        now = self.stamps()
        for path in now.keys() - self.sound.keys():
            (self.path / path).unlink()
        for path in [path for path, stamp in self.sound.items() if now.get(path) != stamp]:
            (self.path / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.source / path, self.path / path)
        self.sound = self.stamps()


def meaning(path, content):
    """The content of a file; that of run.json without the starts that are noted before a run goes on."""
    with contextlib.suppress(KeyError, ValueError, RecursionError, TypeError):
        if path.name == "run.json":
            values = json.loads(content)
            return {**values, "sessions": values["sessions"][:1]}
    return content


def try_out(made, case, count, seed):
    """Return how many changes were refused and how many were taken."""
    copy, faults = Copy(made / case.folder, Path("folder")), []
    file = max(copy.path.glob(case.file))
    case.use(made, copy.path)
    copy.put_back()
    tried = {"refused": 0, "taken": 0}
    for what, new in damaged(file.suffix, file.read_bytes(), count * case.share, seed):
        file.write_bytes(new)
        case.finish(copy.path)
        copy.remember()
        try:
            json.dumps(case.use(made, copy.path), default=str, allow_nan=False)
            tried["taken"] += 1
        except UserError as error:
            tried["refused"] += 1
            if not str(error).isprintable() or len(error.args[0]) > 300:
                faults.append(f"{what}: {error}")
            faults += [f"{what}: {path} is lost" for path in copy.lost()]
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(f"{what}: {type(error).__name__}: {error} at {where.filename}:{where.lineno}")
        copy.put_back()
    assert not faults
    if case.file not in ("cost.json", "whatwhere/*.json"):  # which are measured again
        assert tried["refused"]
    return tried


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    # no computer fails here while a file is written
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize("name", CASES)
def test_some_changes(made, name):
    try_out(made, CASES[name], 9 // CASES[name].share, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_thousands_of_changes(made, name):
    print(name, try_out(made, CASES[name], 80, seed=1))
