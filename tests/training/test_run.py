import csv
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pictures import CLASSES, make_folder, picture
from whatwhere.base.errors import Stopped, UserError
from whatwhere.cli.screen import result_tables
from whatwhere.cli.train import what_next
from whatwhere.collect.collect import collect
from whatwhere.training.bundle import load_bundle, weights_of
from whatwhere.training.evaluate import Figures
from whatwhere.training.run_folder import RunFolder, TrainedOn, training_images
from whatwhere.training.setup import prepare_images
from whatwhere.training.train import Run, run_training
from whatwhere.training.trainer import Trainer

OPTIONS = {
    "model": "cbam_resnext11_8x8d",
    "image_size": 16,
    "epochs": 3,
    "batch_size": 12,
    "device": "cpu",
    "workers": 0,
    "mixup": 0.2,
    "cutmix": 1.0,
    "ema": 0.9,
    "drop_rate": 0.2,
}


class Lines:
    """A screen that remembers."""

    def __init__(self):
        self.lines, self.warnings, self.steps = [], [], []

    def line(self, text):
        self.lines.append(text)

    def warn(self, text):
        self.warnings.append(text)

    def progress(self, what, done, total):
        self.steps.append((what, done, total))


pytestmark = pytest.mark.usefixtures("_cache")


def train(data, out, screen=None, resume=False, dry_run=False, classes=None, **options):
    """Train; `classes` names other classes for the trainer or the folder."""
    return run_training(
        str(data),
        {**OPTIONS, **options},
        out=out,
        resume=resume,
        dry_run=dry_run,
        command="whatwhere train DATA --resume",
        screen=screen or Lines(),
        **(classes or {}),
    )


def weights(out):
    folder = out / "last"
    newest = max(folder.glob("*.safetensors"))
    return load_file(newest)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def without_times(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(out.parent / "cache"))
        screen = Lines()
        result = train(data, out, screen)
    return out, result, screen


def test_what_a_run_leaves(finished):
    out, result, screen = finished
    names = {"run.json", "metrics.jsonl", "split.csv", "result.json", "curves.png", "confusion.png", "last", "best"}
    assert names == {path.name for path in out.iterdir()} - {".lock"}
    run = json.loads((out / "run.json").read_text())
    assert run["classes"] == list(CLASSES)
    assert run["num_images"] == {"train": 33, "val": 9, "test": 6}
    assert run["config"]["ema"] == 0.9
    assert run["config"]["optimizer"] == "sgd"  # what was not given is there too
    assert run["chosen"] == "less augmentation and no flips for 9 steps (at most 1,200)"
    assert f"(* given; the others are chosen by images, steps, start and machine: {run['chosen']})" in screen.lines
    assert (run["config"]["hflip"], run["config"]["mixup"]) == (0, 0.2)  # mixup is given
    assert run["sessions"][0]["torch"] == torch.__version__
    assert run["sessions"][0]["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert run["sessions"][0]["processor"]
    assert run["sessions"][0]["whatwhere"] == version("whatwhere")
    records = without_times(out)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    steps = -(-run["num_images"]["train"] // 12)
    assert [record["step"] for record in records] == [steps, 2 * steps, 3 * steps]
    assert result == json.loads((out / "result.json").read_text())
    assert result["weights"] == json.loads((out / "best" / "bundle.json").read_text())["sha256"]
    assert (
        result["best_epoch"] == max(records, key=lambda record: (record["val_accuracy"], -record["val_loss"]))["epoch"]
    )
    assert result["test"]["num_images"] == run["num_images"]["test"]
    assert sum(map(sum, result["confusion"])) == run["num_images"]["test"]
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "confusion.png"))


def test_fewer_images_train_and_validate_on_request(data, tmp_path):
    screen = Lines()
    train(data, tmp_path / "run", screen, train_images=20, epochs=1)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["num_images"] == {"train": 20, "val": 5, "test": 7}
    assert any("20 train, 5 val, 7 test (16 not used)" in line for line in screen.lines)
    train(data, tmp_path / "run", screen, resume=True, epochs=1)
    assert screen.lines[-1].endswith("is finished; nothing to do")


def test_the_split_is_a_partition_and_can_be_data(finished, data):
    from whatwhere.training.predict import evaluate_bundle

    out, result, _ = finished
    rows = (out / "split.csv").read_text().splitlines()[1:]
    assert sorted(row.split(",")[0] for row in rows) == sorted(str(path) for path in data.glob("*/*.png"))
    again = evaluate_bundle(load_bundle(out), str(out / "split.csv"), split="test")
    assert again["images"] == result["test"]


def test_a_stop_saves_a_whole_step_and_the_continuation_ends_bit_for_bit_the_same(finished, data, tmp_path):
    out, _, _ = finished
    for step in (2, 3, 7):
        with pytest.raises(Stopped, match=r"stopped after step \d+ of \d+, saved in .*--resume") as stopped:
            train(data, tmp_path / "run", stop_after(step), resume=True)
        assert stopped.value.signal == signal.SIGTERM
    screen = Lines()
    train(data, tmp_path / "run", screen, resume=True)
    assert any("continuing after step" in line for line in screen.lines)
    assert same(weights(tmp_path / "run"), weights(out))
    assert without_times(tmp_path / "run") == without_times(out)
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]) == 4


@pytest.mark.parametrize(
    "options", [{"workers": 2}, {"cache": "none"}, {"cache": "device"}, {"cache": "none", "workers": 2}]
)
def test_reading_changes_no_result(finished, data, tmp_path, options):
    train(data, tmp_path / "run", **options)
    assert same(weights(tmp_path / "run"), weights(finished[0]))


def test_another_seed_is_another_run(finished, data, tmp_path):
    train(data, tmp_path / "run", seed=1)
    assert (tmp_path / "run" / "split.csv").read_text() != (finished[0] / "split.csv").read_text()


def test_a_finished_run_is_left_alone(finished, data):
    out, result, _ = finished
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    screen = Lines()
    assert train(data, out, screen, resume=True) == result
    assert "finished; nothing to do" in screen.lines[-1]
    assert before == {path: path.read_bytes() for path in before}


def test_a_run_is_not_overwritten(finished, data, refused):
    with refused():
        train(data, finished[0])


def test_a_folder_of_something_else_is_left_alone(data, tmp_path, refused):
    (tmp_path / "metrics.jsonl").write_text("mine")
    with refused():
        train(data, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"


def stop_after(step):
    """Return a screen that asks the run to stop after `step`."""
    screen = Lines()
    screen.progress = lambda what, done, total: (
        what == "training" and done == step and os.kill(os.getpid(), signal.SIGTERM)
    )
    return screen


def interrupted(data, out, step=4, **options):
    """Leave a run that was stopped after `step`."""
    with pytest.raises(Stopped):
        train(data, out, stop_after(step), **options)


def test_other_options_are_refused_and_named(data, tmp_path, refused):
    interrupted(data, tmp_path / "run")
    with refused():
        train(data, tmp_path / "run", resume=True, batch_size=10)
    # where it runs and how it is watched is free
    train(data, tmp_path / "run", resume=True, workers=1, save_minutes=0.0, cache="memory")


def test_a_continuation_splits_the_images_as_the_run_did_without_being_told_how(data, tmp_path):
    options = {"seed": 2, "val_fraction": 0.3, "epochs": 2}
    interrupted(data, tmp_path / "run", **options)
    screen = Lines()
    train(data, tmp_path / "run", screen, resume=True, epochs=2)
    assert "(* given; the others are those of the run so far)" in screen.lines
    train(data, tmp_path / "whole", **options)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert without_times(tmp_path / "run") == without_times(tmp_path / "whole")


@pytest.mark.parametrize("model", [{"model": "resnext11_8x8d"}, {}], ids=["given", "chosen"])
def test_a_run_is_continued_without_its_folder_and_without_its_options(data, tmp_path, monkeypatch, model):
    """The images are split by the options in a folder, and where the network is chosen, the images name that folder."""
    monkeypatch.chdir(tmp_path)
    images = shutil.copytree(data, tmp_path / "images")
    Image.new("RGB", (24, 24), "red").save(images / "plain" / "red.png")  # of one colour, which is a warning

    def train(screen, **options):
        given = {**model, "image_size": 16, "batch_size": 12, "device": "cpu", "workers": 0, **options}
        return run_training(
            "images", given, out=None, resume="epochs" not in options, dry_run=False, command="", screen=screen
        )

    with pytest.raises(Stopped):
        train(stop_after(2), epochs=2, val_fraction=0.3)
    screen = Lines()
    assert train(screen)["num_epochs"] == 2
    (folder,) = (tmp_path / "runs" / "images").iterdir()
    description = RunFolder(folder).description
    assert description.config["val_fraction"] == 0.3
    assert description.given[-2:] == ["epochs", "val_fraction"]
    assert len(screen.warnings) == len(set(screen.warnings)) > 0


def test_changed_images_are_refused(data, tmp_path, refused):
    copy = shutil.copytree(data, tmp_path / "copy")
    interrupted(copy, tmp_path / "run")
    (copy / "plain" / os.listdir(copy / "plain")[0]).unlink()
    with refused():
        train(copy, tmp_path / "run", resume=True)


def test_a_file_replaced_under_its_name_is_refused_by_name(data, tmp_path, refused):
    copy = shutil.copytree(data, tmp_path / "copy")
    interrupted(copy, tmp_path / "run")
    # a copy on another machine has other times and the same content
    for path in copy.glob("*/*.png"):
        os.utime(path, (1e9, 1e9))
    train(copy, tmp_path / "run", resume=True, dry_run=True)
    plain = min((copy / "plain").glob("*.png"))
    picture("plain", 99).save(plain)
    with refused():
        train(copy, tmp_path / "run", resume=True)
    # without its table the run still knows that something has changed
    (tmp_path / "run" / "split.csv").write_text("path\n")
    with refused():
        train(copy, tmp_path / "run", resume=True)
    # runs of earlier versions do not know
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    del run["content_fingerprint"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    assert train(copy, tmp_path / "run", resume=True)["status"] == "finished"


def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(finished, data, tmp_path):
    interrupted(data, tmp_path / "run", step=5, save_minutes=0.0)
    newest = max((tmp_path / "run" / "last").glob("*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    screen = Lines()
    train(data, tmp_path / "run", screen, resume=True)
    assert any("is damaged (the checksum differs); trying the one before" in text for text in screen.warnings)
    assert same(weights(tmp_path / "run"), weights(finished[0]))
    assert without_times(tmp_path / "run") == without_times(finished[0])


def test_a_full_disk_ends_with_the_sound_checkpoint_kept(finished, data, tmp_path, monkeypatch, refused):
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with refused():
        train(data, tmp_path / "run", save_minutes=0.0)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert not list((tmp_path / "run").rglob(".*.*-*"))
    train(data, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), weights(finished[0]))


class InfiniteLoss(Trainer):
    """The loss of the fifth step is infinite."""

    def loss(self, images, labels, piece):
        value = super().loss(images, labels, piece)
        return value * float("inf") if self.position.step == 4 else value


def test_a_loss_that_is_not_finite_names_the_batch_and_keeps_sound_weights(data, tmp_path, refused):
    with refused() as caught:
        train(data, tmp_path / "run", classes={"trainer_class": InfiniteLoss}, save_minutes=0.0)
    assert str(caught.value).count(".png") == 8
    files = sorted((tmp_path / "run" / "last").glob("*.safetensors"))
    assert [file.stem for file in files] == ["000000003", "000000004"]
    for file in files:
        assert all(value.isfinite().all() for value in load_file(file).values())


@pytest.mark.parametrize("why", ["diverged", "finished"])
def test_the_command_that_starts_from_the_best_network_works(data, finished, tmp_path, why):
    if why == "diverged":
        out = tmp_path / "run"
        with pytest.raises(UserError) as caught:
            train(data, out, classes={"trainer_class": InfiniteLoss})
    else:
        out = shutil.copytree(finished[0], tmp_path / "run")
        with pytest.raises(UserError) as caught:
            train(data, out, resume=True, epochs=9)
    command = shlex.split(str(caught.value).rpartition(": ")[2])
    assert command[:4] == ["whatwhere", "train", str(data), "--pretrained"]
    (tmp_path / "run-2").mkdir()  # another folder is named then
    assert command[4:] == [str(out), "--out", str(tmp_path / "run-2")]
    result = run_training(
        command[2],
        {"pretrained": command[4], "epochs": 1, "lr": 0.0, "ema": 0.0, "image_size": 16, "device": "cpu"},
        out=tmp_path / "new",
        resume=False,
        dry_run=False,
        command="",
        screen=Lines(),
    )
    assert result["status"] == "finished"
    before, after = load_bundle(out), load_bundle(tmp_path / "new")
    assert after.spec.name == before.spec.name == "cbam_resnext11_8x8d"
    weights = dict(before.model.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in after.model.named_parameters())


def test_weights_of_a_bundle_by_its_folder_its_file_and_its_weights(finished):
    out = finished[0]
    file = next((out / "best").glob("*.safetensors"))
    for path in (out, out / "best", out / "best" / "bundle.json", file):
        weights, spec, preprocessing = weights_of(path)
        assert (weights, spec.name, preprocessing.image_size) == (file, "cbam_resnext11_8x8d", 16)
    assert weights_of(out / "last") is None
    assert weights_of(next((out / "last").glob("*.safetensors"))) is None
    assert weights_of(out / "nothing") is None


def test_early_stop(data, tmp_path):
    result = train(data, tmp_path / "run", epochs=12, early_stop=2, lr=0.0)
    # nothing changes but the norms' statistics, so that a best epoch is followed by two that are no better
    assert result["status"] == "stopped early"
    assert result["num_epochs"] == result["best_epoch"] + 2


class Scripted(Run):
    """A run whose evaluations have these accuracies (of 4 images) and losses."""

    script = ((2, 0.9), (3, 0.8), (3, 0.5), (3, 0.5), (3, math.nan), (2, 0.1))

    def evaluate(self, model, part, **options):
        if part != "val" or options:
            return super().evaluate(model, part, **options)
        correct, loss = self.script[self.trainer.epoch - 1]
        return Figures(torch.tensor([[correct, 4 - correct], [0, 0]]), loss)


@pytest.mark.parametrize(("stop", "best_by", "best"), [(None, "accuracy", 3), (9, "accuracy", 3), (None, "loss", 6)])
def test_of_epochs_with_one_accuracy_the_lowest_loss_is_best(stop, best_by, best, data, tmp_path, monkeypatch):
    monkeypatch.setattr("whatwhere.training.train.Run", Scripted)
    options = {"epochs": 6, "best_by": best_by}
    if stop is not None:
        with pytest.raises(Stopped):
            train(data, tmp_path / "run", stop_after(stop), **options)
    result = train(data, tmp_path / "run", resume=stop is not None, **options)
    assert result["best_epoch"] == load_bundle(tmp_path / "run").info["epoch"] == best
    is_best = [record["is_best"] for record in without_times(tmp_path / "run")]
    assert is_best == [True, True, True, False, False, best_by == "loss"]


@pytest.mark.parametrize(("num_classes", "per_class"), [(2, 3), (5, 3), (2, 8)])
def test_a_few_images_train_without_options(num_classes, per_class, tmp_path):
    for number in range(num_classes * per_class):
        folder = tmp_path / "images" / f"c{number % num_classes}"
        folder.mkdir(parents=True, exist_ok=True)
        picture("checks", number).save(folder / f"{number}.png")
    out = tmp_path / "run"
    result = run_training(
        str(tmp_path / "images"),
        {"epochs": 1, "image_size": 16, "device": "cpu", "workers": 0},
        out=out,
        resume=False,
        dry_run=False,
        command="",
        screen=Lines(),
    )
    assert result["status"] == "finished"
    assert json.loads((out / "run.json").read_text())["num_images"]["train"] < 16


def test_a_dry_run_writes_nothing(data, tmp_path):
    screen = Lines()
    assert train(data, tmp_path / "run", screen, dry_run=True) is None
    assert not (tmp_path / "run").exists()
    assert "nothing written" in screen.lines[-1]
    assert any("lr " in line and "epochs 3*" in line for line in screen.lines)


def test_a_dry_run_of_a_single_step_takes_its_time(data, tmp_path):
    screen = Lines()
    train(data, tmp_path / "run", screen, dry_run=True, epochs=1, batch_size=33)
    assert re.match(r"dry run: [\d.e-]*[1-9]", screen.lines[-1])


def test_splits_that_data_has_are_used(tmp_path):
    data = make_folder(tmp_path / "data", splits={"Training": 8, "validation": 3, "test": 4})
    result = train(data, tmp_path / "run", epochs=1)
    assert (result["val"]["num_images"], result["test"]["num_images"]) == (9, 12)


def test_without_test_images_the_validation_is_what_is_reported(tmp_path):
    data = make_folder(tmp_path / "data", splits={"train": 8, "val": 3})
    result = train(data, tmp_path / "run", epochs=1)
    assert "test" not in result
    assert (result["judged_on"], sum(map(sum, result["confusion"]))) == ("val", 9)


def test_fine_tuning_starts_where_the_weights_are(finished, data, tmp_path):
    out, _, _ = finished
    file = next((out / "best").glob("*.safetensors"))
    result = train(data, tmp_path / "run", pretrained=str(file), lr=0.0, epochs=1, ema=0.0)
    before, after = load_file(file), load_file(next((tmp_path / "run" / "best").glob("*.safetensors")))
    assert all(torch.equal(before[key], after[key]) for key in before if "running" not in key and "num_" not in key)
    assert result["status"] == "finished"


def test_plain_weights_get_attention_that_starts_as_the_identity(data, tmp_path):
    screen = Lines()
    assert train(data, tmp_path / "plain", screen, model="resnext11_8x8d", epochs=1)["largest_mix"] is None
    assert not any("attention" in line for line in screen.warnings)
    file = next((tmp_path / "plain" / "best").glob("*.safetensors"))
    result = train(data, tmp_path / "run", screen, pretrained=str(file), lr=0.01, epochs=1)
    bundle = load_bundle(tmp_path / "run")
    mixes = [value.abs().max() for key, value in bundle.model.state_dict().items() if key.endswith("attention.mix")]
    assert 0 < result["largest_mix"] == float(max(mixes)) < 0.05
    assert any("the attention has hardly begun: its mixing factors are at most" in line for line in screen.warnings)
    # of each layer of the best network, over its validation images
    off = [fault for fault in result["gates"] if fault["fault"] == "off"]
    assert [fault["layer"] for fault in off] == [f"layer{stage}.0.attention" for stage in (1, 2, 3)]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["gates"] == result["gates"]
    assert json.loads((tmp_path / "plain" / "result.json").read_text())["gates"] is None


def test_gates_that_cannot_be_looked_at_lose_no_result(data, tmp_path, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("a gate of the user's")

    monkeypatch.setattr("whatwhere.training.train.health_of", fails)
    result = train(data, tmp_path / "run", model="cbam_resnext11_8x8d", epochs=1)
    assert (result["gates"], result["status"]) == (None, "finished")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vit_tiny_patch16_224", r"does not run on images of 32 x 32 px \(Input height .*\); give --image-size 224"),
        ("inception_v3", r"does not run on images of 32 x 32 px \(Calculated .*\); give --image-size 299"),
    ],
)
def test_a_network_for_other_images_is_refused_before_anything_is_written(data, tmp_path, name, told):
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=told):
        train(data, tmp_path / "run", model=f"timm:{name}", attention="", image_size=32)
    assert not (tmp_path / "run").exists()


def test_gate_health_looks_at_images_of_all_classes(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("whatwhere.training.train._MOST_HEALTH_IMAGES", 6)
    monkeypatch.setattr("whatwhere.training.train.health_of", lambda model, batches, most: seen.extend(batches))
    train(data, tmp_path / "run", model="cbam_resnext11_8x8d", epochs=1)
    with (tmp_path / "run" / "split.csv").open() as file:
        labels = [row["label"] for row in csv.DictReader(file) if row["split"] == "val"]
    images = torch.cat(seen)
    # 9 images, sorted by their 3 classes: every second one
    assert (len(labels), len(images)) == (9, 5)
    assert {labels[n] for n in range(0, 9, 2)} == set(labels)


def test_a_recipe_with_everything_learns(tmp_path):
    data = make_folder(tmp_path / "data", per_class=24)
    options = {"optimizer": "adamw", "lr": 3e-3, "accumulate": 2, "clip_grad": 1.0, "class_weights": "balanced"}
    recipe = {"amp": "bf16", "mixup": 0.1, "cutmix": 0.0, "drop_rate": 0.0, "rand_augment": 2}
    result = train(data, tmp_path / "run", epochs=12, crop="resized", crop_scale=0.6, **options, **recipe)
    assert result["test"]["accuracy"] > 0.6


def test_tensorboard(data, tmp_path):
    train(data, tmp_path / "run", tensorboard=True, epochs=1)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_lower(data, tmp_path, error, refused):
    with refused():
        train(data, tmp_path / "run", classes={"trainer_class": failing(error)})


def failing(error):
    """Return a trainer that raises `error` in its first step."""

    class Failing(Trainer):
        def step(self, batch):
            raise error

    return Failing


def test_an_image_that_vanishes_during_training_is_named(data, tmp_path, refused):
    copy = shutil.copytree(data, tmp_path / "copy")

    class Vanishing(Trainer):
        def run(self, batches):
            for path in copy.glob("plain/*.png"):
                path.unlink()
            return super().run(batches)

    with refused():
        train(copy, tmp_path / "run", classes={"trainer_class": Vanishing}, cache="none", workers=1)


@pytest.mark.slow
def test_workers_need_no_shared_memory(data, tmp_path):
    mount = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "$@"', "sh")
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], check=False).returncode:
        pytest.skip("needs leave to mount a file system")
    options = ("--model", "cbam_resnext11_8x8d", "--epochs", "1", "--device", "cpu", "--workers", "2", "--cache=none")
    command = [sys.executable, "-m", "whatwhere", "train", str(data), "--out", str(tmp_path / "run"), *options]
    done = subprocess.run([*mount, *command], timeout=600, check=False, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def test_batches_too_small_for_a_norm(data, tmp_path, refused):
    with refused():
        train(data, tmp_path / "run", batch_size=1)


def test_all_checkpoints_damaged(data, tmp_path, refused):
    interrupted(data, tmp_path / "run")
    for file in (tmp_path / "run" / "last").glob("*.json"):
        file.write_text("{")
    with refused():
        train(data, tmp_path / "run", resume=True)


class KilledAfterTheLine(RunFolder):
    """The run ends right after it wrote the line of an epoch."""

    def append_metrics(self, line):
        super().append_metrics(line)
        raise KeyboardInterrupt


def test_a_run_killed_before_its_first_checkpoint_starts_anew(finished, data, tmp_path):
    with pytest.raises(Stopped, match="interrupted at once"):
        train(data, tmp_path / "run", classes={"folder_class": KilledAfterTheLine})
    assert not (tmp_path / "run" / "last").exists()
    train(data, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), weights(finished[0]))
    assert without_times(tmp_path / "run") == without_times(finished[0])


def test_epochs_whose_checkpoint_is_gone_are_kept(data, tmp_path, refused):
    out = tmp_path / "run"
    for step in (4, 7):
        interrupted(data, out, step, resume=(step > 4))
        shutil.copytree(out / "last", tmp_path / "last", dirs_exist_ok=True)
        shutil.rmtree(out / "last")
        lines = (out / "metrics.jsonl").read_bytes()
        with refused():
            train(data, out, resume=True)
        assert (out / "metrics.jsonl").read_bytes() == lines
        shutil.copytree(tmp_path / "last", out / "last")


@pytest.fixture(scope="module")
def other(data, tmp_path_factory):
    """A finished run that differs from `finished` in its seed."""
    out = tmp_path_factory.mktemp("other") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(out.parent / "cache"))
        train(data, out, seed=1)
    return out


def rewritten(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


LOSSES = r"(?<=its val.loss is ).*(?=; move)"  # processors train to other last digits


@pytest.mark.parametrize("age", ["new", "old"])
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_result_of_another_run_is_refused(finished, other, data, tmp_path, is_whole, age, refused):
    out = tmp_path / "run"
    if is_whole:
        shutil.copytree(finished[0], out)
    else:
        interrupted(data, out, 7)
    shutil.copy(other / "result.json", out)
    if age == "old":
        rewritten(out / "result.json", run="")
    with refused(hiding=LOSSES):
        train(data, out, resume=True)
    with pytest.raises(UserError, match=r"is not of this run .*; move it away"):
        collect([out])
    (out / "result.json").unlink()
    train(data, out, resume=True)
    told, sound = (json.loads((folder / "result.json").read_text()) for folder in (out, finished[0]))
    assert {**told, "seconds": 0} == {**sound, "seconds": 0}


def test_a_result_is_read_without_the_identity_of_its_run(finished, data, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    rewritten(out / "result.json", run="")
    screen = Lines()
    train(data, out, screen, resume=True)
    assert screen.lines[-1] == f"the run in {str(out)!r} is finished; nothing to do"


@pytest.mark.parametrize("changes", [{"best_epoch": 0}, {"num_epochs": 4}, {"run": "0" * 64}, {"val": {"loss": 1e3}}])
def test_a_result_that_its_run_contradicts_is_refused(finished, data, tmp_path, changes, refused):
    path = shutil.copytree(finished[0], tmp_path / "run") / "result.json"
    content = json.loads(path.read_text())
    rewritten(path, **{**changes, **({"val": {**content["val"], **changes["val"]}} if "val" in changes else {})})
    with refused(hiding=LOSSES):
        train(data, tmp_path / "run", resume=True)


def test_a_best_network_of_another_epoch_is_no_network_of_the_result(finished, data, tmp_path, refused):
    out = shutil.copytree(finished[0], tmp_path / "run")
    path = out / "best" / "bundle.json"
    rewritten(path, info={**json.loads(path.read_text())["info"], "epoch": 17})
    with refused():
        train(data, out, resume=True)


def test_epochs_of_another_run_are_refused(other, data, tmp_path, refused):
    interrupted(data, tmp_path / "run")
    shutil.copy(other / "metrics.jsonl", tmp_path / "run")
    with refused():
        train(data, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"left_out": {"a/1.png": "unreadable"}},
        {"drawn": []},
        {"num_images": {"train": 3}},
        {"given": []},
        {"chosen": "x"},
    ],
)
def test_a_changed_description_of_a_run_is_refused(data, tmp_path, changes):
    interrupted(data, tmp_path / "run")
    rewritten(tmp_path / "run" / "run.json", **changes)
    with pytest.raises(UserError, match="other options, images or preprocessing than its checkpoint was written with"):
        train(data, tmp_path / "run", resume=True)


def test_a_run_killed_while_evaluating_evaluates_again(finished, data, tmp_path):
    with pytest.raises(Stopped, match="interrupted at once"):
        train(data, tmp_path / "run", classes={"folder_class": KilledAfterTheLine}, save_minutes=0.0)
    train(data, tmp_path / "run", resume=True)
    assert without_times(tmp_path / "run") == without_times(finished[0])
    assert same(weights(tmp_path / "run"), weights(finished[0]))


def test_names_of_any_script_and_dollar_signs_are_drawn(tmp_path):
    from whatwhere.training.plots import confusion_png

    assert confusion_png(torch.eye(3, dtype=torch.int64), ("$x_{", "猫", "a" * 300), "$").startswith(b"\x89PNG")


class SpoiltWeights(Trainer):
    """A weight is NaN after the second epoch."""

    def step(self, batch):
        super().step(batch)
        if self.position.step == 2 * self.order.steps_per_epoch:
            with torch.no_grad():
                self.model.fc.weight[0, 0] = float("nan")


def test_weights_that_are_not_finite_never_become_the_best(finished, data, tmp_path, refused):
    with refused():
        train(data, tmp_path / "run", classes={"trainer_class": SpoiltWeights})
    assert load_bundle(tmp_path / "run").info["epoch"] == 1
    assert len(without_times(tmp_path / "run")) == 1


class KilledBeforeTheBundle(RunFolder):
    """The run ends before it writes the best network."""

    def save_best(self, bundle):
        raise KeyboardInterrupt


def test_a_kill_between_checkpoint_and_bundle(finished, data, tmp_path):
    with pytest.raises(Stopped, match="interrupted at once"):
        train(data, tmp_path / "run", classes={"folder_class": KilledBeforeTheBundle})
    assert not (tmp_path / "run" / "best").exists()
    train(data, tmp_path / "run", resume=True)
    same_run = [json.loads((out / "best" / "bundle.json").read_text()) for out in (tmp_path / "run", finished[0])]
    assert same_run[0]["sha256"] == same_run[1]["sha256"]
    assert same_run[0]["info"] == same_run[1]["info"]


def test_a_run_that_came_to_nothing_may_be_started_with_other_options(data, tmp_path, refused):
    with refused():
        train(data, tmp_path / "run", classes={"trainer_class": failing(MemoryError())})
    train(data, tmp_path / "run", accumulate=2)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["accumulate"] == 2


def test_what_is_not_given_is_taken_over_from_the_run(data, tmp_path):
    # the last three are what earlier versions chose
    options = {"optimizer": "adamw", "lr": 0.002, "hflip": 0.5, "rand_augment": 5, "random_erasing": 0.1}
    interrupted(data, tmp_path / "run", **options)
    train(data, tmp_path / "run", resume=True)
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert {name: config[name] for name in options} == options
    assert config["clip_grad"] == 1.0


def test_a_stop_in_the_last_evaluation_is_a_stop(finished, data, tmp_path):
    screen = Lines()
    screen.progress = lambda what, done, total: what == "evaluating (test)" and os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Stopped, match="stopped after step 9 of 9, saved in"):
        train(data, tmp_path / "run", screen)
    result = train(data, tmp_path / "run", resume=True)
    assert {**result, "seconds": 0} == {**finished[1], "seconds": 0}


def test_momentum_keeps_the_memory_format(data, tmp_path):
    interrupted(data, tmp_path / "run")
    seen = []

    class Looking(Trainer):
        def load_state_dict(self, state):
            super().load_state_dict(state)
            seen.extend(
                (parameter.stride(), value["momentum_buffer"].stride())
                for parameter, value in self.optimizer.state.items()
                if parameter.dim() == 4
            )

    train(data, tmp_path / "run", classes={"trainer_class": Looking}, resume=True)
    assert seen
    assert all(one == other for one, other in seen)


def test_a_data_name_that_is_no_text_can_be_drawn(tmp_path):
    make_folder(tmp_path / os.fsdecode(b"caf\xe9"), per_class=6)
    result = train(tmp_path / os.fsdecode(b"caf\xe9"), tmp_path / "run", epochs=1, batch_size=6)
    assert result["status"] == "finished"


def test_what_skip_bad_leaves_out_is_counted_named_and_listed(tmp_path):
    data = make_folder(tmp_path / "data", per_class=12)
    rows = [f"{path.relative_to(data)},{path.parent.name}" for path in sorted(data.rglob("*.png"))]
    for folder in ("phone", "broken"):
        (data / folder).mkdir()
    (data / "phone" / "0.nef").touch()
    (data / "broken" / "0.png").touch()
    screen = Lines()
    train(data, tmp_path / "run", screen, skip_bad=True, epochs=1)
    assert screen.warnings == [
        "--skip-bad left out 1 file in a format that is not read (raw, PSD, ...): phone/0.nef",
        "--skip-bad left out 1 file of 0 bytes: broken/0.png",
        "1 class folder without any image: phone (`whatwhere check` names them)",
        "1 class of which no image can be used: broken (`whatwhere check` names them)",
    ]
    left_out = json.loads((tmp_path / "run" / "run.json").read_text())["left_out"]
    assert left_out == {"broken/0.png": "empty", "phone/0.nef": "convert"}

    bad = [*(f"none{index}.png,gone" for index in range(30)), *(row.replace(",bars", ",") for row in rows[:4])]
    (data / "list.csv").write_text("\n".join(["path,label", *bad, *rows[4:]]))
    screen = Lines()
    train(data / "list.csv", tmp_path / "csv", screen, skip_bad=True, epochs=1)
    assert screen.warnings == [
        "--skip-bad left out 30 rows of the CSV file with a path where no file is: none0.png (line 2), none1.png "
        "(line 3), none2.png (line 4), none3.png (line 5), none4.png (line 6) and 25 more",
        "--skip-bad left out 4 rows of the CSV file without a label in the column 'label' (an empty cell, nan, <NA>, "
        "#N/A): bars/0000.png (line 32), bars/0001.png (line 33), "
        "bars/0002.png (line 34), bars/0003.png (line 35)",
        "1 class of the CSV file without a row that can be used: gone (`whatwhere check` names them)",
    ]
    assert len(json.loads((tmp_path / "csv" / "run.json").read_text())["left_out"]) == 34


def test_a_class_that_a_part_lacks_is_said(tmp_path):
    data = make_folder(tmp_path / "data", per_class=12)
    for path in (data / "plain").iterdir():  # one picture again and again
        shutil.copy(data / "bars" / "0000.png", path)
    (data / "bars" / "0000.png").unlink()
    screen = Lines()
    train(data, tmp_path / "run", screen, dry_run=True)
    assert any(text.startswith("no val images of plain:") for text in screen.warnings), screen.warnings
    assert any(text.startswith("no test images of plain:") for text in screen.warnings)


@pytest.mark.parametrize("name", ["run.json", "split.csv", "result.json"])
def test_a_file_of_the_user_s_is_not_overwritten(data, tmp_path, name, refused):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text('{"mine": 1}')
    with refused():
        train(data, tmp_path / "run")
    assert (tmp_path / "run" / name).read_text() == '{"mine": 1}'


def test_a_run_does_not_go_among_the_images(tmp_path, refused):
    data = make_folder(tmp_path / "data", splits={"train": 8, "val": 3})
    for out in (data, data / "train", data / "runs" / "new"):
        with refused():
            train(data, out)
    assert {path.name for path in data.iterdir()} == {"train", "val"}


def test_a_batch_larger_than_the_images(data, tmp_path, refused):
    with refused():
        train(data, tmp_path / "run", batch_size=1000)


def test_a_second_ctrl_c_says_what_is_kept(data, tmp_path):
    screen = Lines()

    def twice(what, done, total):
        if what == "training" and done == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    screen.progress = twice
    with pytest.raises(Stopped, match=r"interrupted at once; what was saved before .*--resume") as stopped:
        train(data, tmp_path / "run", screen)
    assert stopped.value.signal == signal.SIGINT


def test_a_closed_terminal_saves_too(data, tmp_path):
    screen = Lines()
    screen.progress = lambda what, done, total: done == 2 and os.kill(os.getpid(), signal.SIGHUP)
    with pytest.raises(Stopped, match="saved in"):
        train(data, tmp_path / "run", screen)


def test_an_evaluation_knows_what_was_trained_on(finished, data, tmp_path):
    from whatwhere.training.predict import evaluate_bundle

    out, _, _ = finished
    for place in (out, out / "best", out / "best" / "bundle.json"):
        assert len(training_images(place).paths) == 33
    bundle, known = load_bundle(out), training_images(out)
    shutil.copytree(data, tmp_path / "copy")
    (tmp_path / "link").symlink_to(data)
    for same in (data, tmp_path / "copy", tmp_path / "link"):
        assert evaluate_bundle(bundle, str(same), trained_on=known)["num_trained_on"] == 33
    # without the hashes, as in a run whose images were not checked, the paths tell
    paths_alone = TrainedOn(known.paths)
    assert evaluate_bundle(bundle, str(data), trained_on=paths_alone)["num_trained_on"] == 33
    assert evaluate_bundle(bundle, str(tmp_path / "copy"), trained_on=paths_alone)["num_trained_on"] == 0
    # another picture under the path of one that was trained on is a new one
    path = Path(min(known.paths))
    replaced = tmp_path / "copy" / path.relative_to(data)
    Image.new("RGB", (40, 40), (9, 8, 7)).save(replaced)
    assert evaluate_bundle(bundle, str(tmp_path / "copy"), trained_on=known)["num_trained_on"] == 32
    held_out = evaluate_bundle(bundle, str(out / "split.csv"), split="test", trained_on=known)
    assert held_out["num_trained_on"] == 0
    assert training_images(data) == TrainedOn()


def test_a_run_that_saved_nothing_yet_keeps_its_options(data, tmp_path):
    out = tmp_path / "run"
    train(data, out, epochs=1)
    for path in list(out.iterdir()):  # as after Ctrl-C before the first checkpoint
        if path.name not in ("run.json", "split.csv", ".lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=r"other options: --epochs was 1, is 2; give the same"):
        train(data, out, resume=True, epochs=2)
    assert train(data, out, resume=True, epochs=1)["num_epochs"] == 1


def test_a_refused_continuation_shows_no_settings_and_names_the_images_that_differ(data, tmp_path):
    mine, out = shutil.copytree(data, tmp_path / "mine"), tmp_path / "run"
    train(mine, out, epochs=1)
    shown = Lines()
    with pytest.raises(UserError, match=r"--epochs was 1, is 2; give the same.*: whatwhere train .* --pretrained "):
        train(mine, out, resume=True, epochs=2, screen=shown)
    assert not any("2 epochs" in line or "epochs 2" in line for line in shown.lines)
    assert len(shown.lines) <= 1  # what was found in the images
    gone, *_ = sorted(mine.rglob("*.png"))
    gone.rename(gone.with_name("added.png"))
    with pytest.raises(UserError, match=r"began \(new: '.*added\.png'; gone: '.*\.png'\); restore them"):
        train(mine, out, resume=True, epochs=1)


def test_options_that_divide_the_images_in_another_way_are_named(data, tmp_path):
    train(data, tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match=r"other options: --val-fraction was 0\.\d+, is 0\.3; give the same"):
        train(data, tmp_path / "run", resume=True, epochs=1, val_fraction=0.3)


@pytest.mark.parametrize("check", [True, False])
def test_weights_are_not_judged_on_images_that_they_were_trained_on(finished, data, tmp_path, check):
    out, _, _ = finished
    start = {"pretrained": str(out), "epochs": 1, "check": check}
    if check:  # else near duplicates are not kept together, and the split is another one
        train(data, tmp_path / "same-seed", **start)
    train(out / "split.csv", tmp_path / "same-split", **start, seed=1)
    with pytest.raises(UserError, match=r"of the \d+ validation and test images are among those that the weights"):
        train(data, tmp_path / "other-seed", **start, seed=1)
    assert not (tmp_path / "other-seed").exists()
    # a comparison draws anew with each seed
    given = {"pretrained": str(out), "check": check}
    with pytest.raises(UserError, match="48 images, of which each seed holds out others, are among"):
        prepare_images(str(data), given, Lines(), for_further_seeds=True)
    prepare_images(str(out / "split.csv"), given, Lines(), for_further_seeds=True)
    # weights of elsewhere say nothing of their images
    weights = shutil.copy(next((out / "best").glob("*.safetensors")), tmp_path / "w.safetensors")
    train(data, tmp_path / "elsewhere", **{**start, "pretrained": str(weights)}, seed=1)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("run.json", {"config": []}),
        ("run.json", {"num_images": {"train": -1}}),
        ("run.json", {"sessions": []}),
        ("run.json", {"classes": [1, 2]}),
        ("run.json", {"num_images": {"middle": 3}}),
        ("run.json", {"drawn": ["all"]}),
        ("run.json", {"given": ["epoch"]}),
        ("run.json", {"config": {"model": "resnet18"}}),
        ("result.json", {"val": {"accuracy": 1.5}}),
        ("result.json", {"judged_on": "train"}),
        ("result.json", {"per_class": [{"class": "plain"}]}),
    ],
)
def test_a_damaged_document_is_one_sentence(finished, data, tmp_path, name, change, refused):
    path = shutil.copytree(finished[0], tmp_path / "run") / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with refused():
        train(data, tmp_path / "run", resume=True)


def test_figures_that_a_result_lacks_are_shown_as_none(finished, data, tmp_path):
    path = shutil.copytree(finished[0], tmp_path / "run") / "result.json"
    content = json.loads(path.read_text())
    del content["test"]["loss"], content["per_class"][1]["precision"]
    path.write_text(json.dumps(content))
    result = train(data, tmp_path / "run", resume=True)
    assert result["test"]["loss"] is result["per_class"][1]["precision"] is None
    assert result["per_class"][0] == content["per_class"][0]
    assert result_tables(result)


@pytest.mark.parametrize("value", [[], "much", None, {"of": 1}, 1.5])
def test_a_kept_option_of_another_type_is_one_sentence(finished, data, tmp_path, value, refused):
    path = shutil.copytree(finished[0], tmp_path / "run") / "run.json"
    content = json.loads(path.read_text())
    content["config"]["val_fraction"] = value
    path.write_text(json.dumps(content))
    with refused():
        run_training(
            str(data), {}, out=tmp_path / "run", resume=True, dry_run=False, command="whatwhere", screen=Lines()
        )


@pytest.mark.parametrize("line", ["5", "{}", '{"epoch": 0}', "{,", '{"epoch": 1, "val_accuracy": 61}'])
def test_a_damaged_line_of_the_metrics_is_one_sentence(finished, tmp_path, line, refused):
    (tmp_path / "metrics.jsonl").write_text(line + "\n" + (finished[0] / "metrics.jsonl").read_text())
    with refused():
        RunFolder(tmp_path).metrics()


def test_epochs_that_are_missing_or_there_twice_are_one_sentence(finished, tmp_path, refused):
    first, second, *_ = (finished[0] / "metrics.jsonl").read_text().splitlines(keepends=True)
    for lines in (second, first + first, second + first):
        (tmp_path / "metrics.jsonl").write_text(lines)
        with refused():
            RunFolder(tmp_path).metrics()


@pytest.mark.parametrize(
    "table",
    [
        "", "\n", "path,label\n", "file,label,split,blake2b\n", "path,label,split\na,b\n",
        "path,label,split\na,b,tset\n", 'path,label,split\n"a,b,train\n',
        f"path,label,split\n{'x' * 200_000},b,train\n", "path,label,split\n\n",
    ],
    ids=range(9),
)  # fmt: skip
def test_a_damaged_table_of_images_is_one_sentence(finished, data, tmp_path, table, refused):
    """What was trained on is not known then: an evaluation must not say that nothing was."""
    path = shutil.copytree(finished[0], tmp_path / "run") / "split.csv"
    path.write_text(table)
    with refused():
        training_images(tmp_path / "run")
    # at the end of a run it names no image to try
    assert what_next(RunFolder(tmp_path / "run"), {})


def test_a_line_of_the_metrics_that_a_crash_cut_short_is_left_out(finished, tmp_path):
    content = (finished[0] / "metrics.jsonl").read_bytes()
    last = content.rindex(b"\n", 0, -1) + 1
    whole = RunFolder(finished[0]).metrics()
    for end in range(last, len(content) - 1):
        (tmp_path / "metrics.jsonl").write_bytes(content[:end])
        assert RunFolder(tmp_path).metrics() == whole[:-1]


class Removing(Trainer):
    """Moves the images away after the first epoch."""

    def run(self, batches):
        for epoch_ends in super().run(batches):
            if self.position.step == self.order.steps_per_epoch:
                os.rename(self.images, self.images.with_name("elsewhere"))
            yield epoch_ends


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_run_whose_images_are_removed_says_how_to_go_on(tmp_path, cache):
    """While it trains, or while it reads them all before."""
    data, out = make_folder(tmp_path / "data"), tmp_path / "run"
    whole = train(data, tmp_path / "whole", cache=cache)
    elsewhere = tmp_path / "elsewhere"
    removing = type("Removing", (Removing,), {"images": data})
    hooks = {"trainer_class": removing} if cache == "none" else {"began": lambda folder: os.rename(data, elsewhere)}
    with pytest.raises(
        UserError, match="does not exist; start again with another --out, or put the whole file back"
    ) as caught:
        train(data, out, cache=cache, classes=hooks)
    assert str(caught.value).endswith("continue with: whatwhere train DATA --resume")
    os.rename(elsewhere, data)
    assert {**train(data, out, resume=True, cache=cache), "seconds": 0} == {**whole, "seconds": 0}
