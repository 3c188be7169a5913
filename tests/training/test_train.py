"""Options of a run that comparisons rest on: a fixed epoch, attention and width, no look at the test images."""

import hashlib
import json
import os
import re
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from image_files import cut
from pictures import make_folder
from whatwhere.base.errors import Stopped
from whatwhere.base.screen import Silent
from whatwhere.data.preprocess import IMAGENET_MEAN, preprocessing_for
from whatwhere.training.bundle import load_bundle, save_bundle
from whatwhere.training.config import ADDED
from whatwhere.training.distributed import team
from whatwhere.training.predict import evaluate_bundle, predict
from whatwhere.training.setup import check_given, prepare_images, resolve
from whatwhere.training.train import run_training

OPTIONS = {
    "model": "resnext11_8x8d",
    "image_size": 16,
    "epochs": 2,
    "batch_size": 12,
    "device": "cpu",
    "workers": 0,
    "mixup": 0.0,
    "ema": 0.0,
}
SOURCE = """
from dataclasses import replace
from pathlib import Path
from torch import nn
Path("imported").touch()

class Own(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1, groups=channels)

    def forward(self, x):
        return x + self.mix(x)
"""

OVERFLOW = """
import torch
from torch import nn

class Overflow(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x if self.training else x * self.scale * float("inf")
"""

pytestmark = pytest.mark.usefixtures("_cache")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The current folder has an attention of the user's, and says when it was imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_attention.py").write_text(SOURCE)
    yield tmp_path / "imported"
    sys.modules.pop("own_attention", None)


class Lines(Silent):
    """A screen that remembers."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


def train(data, out, *, screen=None, resume=False, with_test=True, **options):
    return run_training(
        str(data),
        {**OPTIONS, **options},
        out=out,
        resume=resume,
        dry_run=False,
        command="type this",
        screen=screen or Silent(),
        with_test=with_test,
    )


def interrupted(data, out, step=4, **options):
    """Leave a run that was stopped after `step`, of 3 an epoch; return what it said."""
    screen = Silent()
    screen.progress = lambda what, done, total: (
        what == "training" and done == step and os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(Stopped) as stopped:
        train(data, out, screen=screen, **options)
    return str(stopped.value)


def read(path):
    """Read JSON that must not hold NaN."""
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in {path}"))


def changed(path, **values):
    path.write_text(json.dumps({**read(path), **values}))


def without_digest(run):
    """Make the checkpoints of a run those of an older version, which did not know what run.json said."""
    for file in (run / "last").glob("*.json"):
        state = read(file)["state"]
        del state["run"]
        weights = file.with_suffix(".safetensors").read_bytes()
        digest = hashlib.sha256(weights + json.dumps(state).encode()).hexdigest()
        file.write_text(json.dumps({"sha256": digest, "state": state}))


def weights(out, part="best"):
    return load_file(max((out / part).glob("*.safetensors")))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.fixture
def last(data, tmp_path):
    """A run with a fixed epoch, on validation accuracy that does not rise."""
    screen = Lines()
    result = train(data, tmp_path / "last", best_by="last", lr=0.0, epochs=3, screen=screen)
    return tmp_path / "last", result, screen


def test_a_fixed_epoch_keeps_the_last_network_however_good_it_is(last):
    out, result, screen = last
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["is_best"] for record in records] == [True] * 3
    assert max(record["val_accuracy"] for record in records[:2]) >= records[2]["val_accuracy"]
    assert (result["best_epoch"], result["num_epochs"], result["best_by"]) == (3, 3, "last")
    assert load_bundle(out).info["epoch"] == 3
    assert not any("best so far" in line for line in screen.lines)
    ended = {key.removeprefix("trainer/model/"): value for key, value in weights(out, "last").items()}
    assert all(torch.equal(ended[key], value) for key, value in weights(out).items())


def test_a_fixed_epoch_is_the_same_after_a_stop(last, data, tmp_path):
    interrupted(data, tmp_path / "run", step=4, best_by="last", lr=0.0, epochs=3)
    result = train(data, tmp_path / "run", resume=True, best_by="last", lr=0.0, epochs=3)
    assert {**result, "seconds": 0} == {**last[1], "seconds": 0}
    assert same(weights(tmp_path / "run"), weights(last[0]))


def test_the_figures_at_the_end_and_those_of_an_epoch(last):
    out, result, _ = last
    collected = {"auroc", "calibration_error"}
    for part in ("val", "test"):
        assert all(0 <= result[part][name] <= 1 for name in (*collected, "macro_f1"))
    assert read(out / "result.json") == result
    record = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["val_macro_f1"] == result["val"]["macro_f1"]
    assert not any(f"val_{name}" in record for name in collected)
    again = evaluate_bundle(load_bundle(out), str(out / "split.csv"), split="test")["images"]
    assert again == {name: pytest.approx(value) for name, value in result["test"].items()}


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_validation_loss_that_is_not_finite_ends_no_run(data, tmp_path, monkeypatch, epochs):
    """What weights that are finite compute may overflow."""
    (tmp_path / "overflow.py").write_text(OVERFLOW)
    monkeypatch.syspath_prepend(tmp_path)
    screen = Lines()
    options = {"attention": "overflow:Overflow", "lr": 0.0, "tensorboard": True}
    result = train(data, tmp_path / "run", epochs=epochs, screen=screen, **options)
    assert result["test"]["loss"] is None
    assert result["test"]["auroc"] is None
    assert read(tmp_path / "run" / "result.json") == result
    assert any("loss not finite)" in line for line in screen.lines)


def test_without_the_test_images_they_are_not_read(tmp_path, refused):
    data = make_folder(tmp_path / "data", splits={"train": 8, "val": 3, "test": 3})
    for path in (data / "test").glob("*/*.png"):
        cut(path, 0.5)
    options = {"check": False, "epochs": 1}
    result = train(data, tmp_path / "run", with_test=False, **options)
    assert "test" not in result
    assert (result["judged_on"], sum(map(sum, result["confusion"]))) == ("val", 9)
    # they are part of the data all the same
    assert read(tmp_path / "run" / "run.json")["num_images"] == {"train": 24, "val": 9, "test": 9}
    with refused():
        train(data, tmp_path / "other", **options)
    # what is finished stays as it is
    assert train(data, tmp_path / "run", resume=True, **options) == result


def test_the_sentence_how_to_continue_is_the_caller_s(data, tmp_path):
    assert interrupted(data, tmp_path / "run").endswith("; continue with: type this")


def test_what_the_seed_drew_is_noted(last, tmp_path):
    assert read(last[0] / "run.json")["drawn"] == ["val", "test"]
    data = make_folder(tmp_path / "data", splits={"train": 8, "val": 3, "test": 3})
    train(data, tmp_path / "given", epochs=1)
    assert read(tmp_path / "given" / "run.json")["drawn"] == []


def test_attention_and_width_by_name_are_kept_and_load_by_themselves(data, tmp_path):
    screen = Lines()
    train(data, tmp_path / "run", epochs=1, attention="se", width_factor=1.25, screen=screen)
    config = read(tmp_path / "run" / "run.json")["config"]
    assert (config["model"], config["attention"], config["width_factor"]) == ("resnext11_8x8d", "se", 1.25)
    assert any("network: resnext11_8x8d with se, 1.25 times as wide, " in line for line in screen.lines)
    assert any("attention se*" in line for line in screen.lines)
    bundle = load_bundle(tmp_path / "run")
    assert bundle.model.stage_channels == (160, 320, 640)
    assert type(bundle.model.layer1[0].attention).__name__ == "SqueezeExcitation"
    assert (bundle.spec.attention, bundle.spec.width_factor) == ("se", 1.25)


def test_code_of_the_user_s_as_attention(own, data, tmp_path, refused):
    path = "own_attention:Own"
    result = train(data, tmp_path / "run", attention=path)
    assert result["status"] == "finished"
    assert own.exists()
    assert read(tmp_path / "run" / "run.json")["config"]["attention"] == path
    assert read(tmp_path / "run" / "best" / "bundle.json")["network"]["attention"] == path
    own.unlink()
    builder = sys.modules.pop("own_attention").Own
    with refused():
        load_bundle(tmp_path / "run")
    bundle = load_bundle(tmp_path / "run", attention=builder)
    assert type(bundle.model.layer1[0].attention) is builder
    again = evaluate_bundle(bundle, str(tmp_path / "run" / "split.csv"), split="test")
    assert again["images"] == {name: pytest.approx(value) for name, value in result["test"].items()}


def test_no_code_that_a_run_s_file_names_is_executed(own, data, tmp_path, refused):
    interrupted(data, tmp_path / "run", attention="own_attention:Own")
    own.unlink()
    del sys.modules["own_attention"]
    with refused():
        train(data, tmp_path / "run", resume=True)
    assert not own.exists()
    result = train(data, tmp_path / "run", resume=True, attention="own_attention:Own")
    assert result["status"] == "finished"
    whole = train(data, tmp_path / "whole", attention="own_attention:Own")
    assert {**result, "seconds": 0} == {**whole, "seconds": 0}
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_attention_of_the_user_s_starts_as_the_identity_behind_weights(own, data, tmp_path):
    train(data, tmp_path / "plain", epochs=1)
    file = next((tmp_path / "plain" / "best").glob("*.safetensors"))
    train(data, tmp_path / "run", epochs=1, attention="own_attention:Own", pretrained=str(file))
    bundle = load_bundle(tmp_path / "run", attention=sys.modules["own_attention"].Own)
    assert "layer1.0.attention.attention.mix.weight" in bundle.model.state_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "sse"},
        {"attention": "se", "model": "cbam_resnext11_8x8d"},
        {"attention": "se", "model": "article_resnext50"},
        {"attention": "absent_module:Own"},
        {"attention": "own_attention:Gone"},
        {"attention": len},
        {"width_factor": 0.0},
        {"width_factor": 2.0, "pretrained": "imagenet"},
        {"width_factor": 2.0, "model": "article_resnext50"},
        {"width_factor": 0.1},
        {"best_by": "last", "early_stop": 3},
    ],
)
def test_a_network_that_cannot_be_is_refused_before_the_images_are_looked_for(own, tmp_path, options, refused):
    with refused():
        train(tmp_path / "absent", tmp_path / "run", **options)


def test_a_run_of_an_older_version_goes_on(data, tmp_path, refused):
    interrupted(data, tmp_path / "run")
    without_digest(tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    run = read(path)
    lacking = ("attention", "width_factor", *ADDED)
    config = {name: value for name, value in run["config"].items() if name not in lacking}
    path.write_text(
        json.dumps({**{name: run[name] for name in run if name not in ("drawn", "preprocessing")}, "config": config})
    )
    with refused():
        train(data, tmp_path / "run", resume=True, width_factor=1.5)
    assert train(data, tmp_path / "run", resume=True)["status"] == "finished"


def test_a_run_s_file_that_names_something_else_is_refused(data, tmp_path, refused):
    interrupted(data, tmp_path / "run")
    config = read(tmp_path / "run" / "run.json")["config"]
    changed(tmp_path / "run" / "run.json", config={**config, "attention": 5})
    with refused():
        train(data, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("model", "weights", "mean"),
    [
        ("timm:tf_mobilenetv3_small_minimal_100", True, (0.5, 0.5, 0.5)),
        ("timm:tf_mobilenetv3_small_minimal_100", False, IMAGENET_MEAN),
        ("timm:resnet10t", True, IMAGENET_MEAN),
    ],
)
def test_weights_of_timm_get_images_as_they_were_trained_with(model, weights, mean, data, tmp_path):
    source = timm.create_model(model.partition(":")[2], num_classes=2)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    options = {"pretrained": str(tmp_path / "weights.safetensors")} if weights else {}
    train(data, tmp_path / "run", model=model, image_size=32, epochs=1, **options)
    bundle = load_bundle(tmp_path / "run")
    assert bundle.preprocessing.mean == mean
    # what was judged in training is what the bundle does
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    again = evaluate_bundle(bundle, str(tmp_path / "run" / "split.csv"), split="test")["images"]
    assert again == {name: pytest.approx(value) for name, value in result["test"].items()}


@pytest.mark.parametrize(("name", "value"), [("config", {"weight_decay": 0.4}), ("preprocessing", {"mean": [0.1] * 3})])
def test_a_run_does_not_go_on_with_what_changed_in_run_json(data, tmp_path, name, value, refused):
    """A continuation takes its options, mean and std from there, so that a damaged one would train another network."""
    interrupted(data, tmp_path / "run")
    content = read(tmp_path / "run" / "run.json")
    (tmp_path / "run" / "run.json").write_text(json.dumps({**content, name: {**content[name], **value}}))
    with refused():
        train(data, tmp_path / "run", resume=True)


def test_a_run_keeps_the_mean_and_std_that_it_began_with(data, tmp_path, refused):
    """The bundle that it started from may lose its description before the run goes on."""
    first, run, old = tmp_path / "first", tmp_path / "run", tmp_path / "old"
    train(data, first, epochs=1)
    bundle = load_bundle(first)
    save_bundle(first / "best", replace(bundle, preprocessing=replace(bundle.preprocessing, mean=(0.1,) * 3)))
    for out in (run, old):
        interrupted(data, out, pretrained=str(first))
    assert read(run / "run.json")["preprocessing"]["mean"] == [0.1] * 3
    description = read(old / "run.json")
    del description["preprocessing"]
    (old / "run.json").write_text(json.dumps(description))
    (first / "best" / "bundle.json").unlink()
    (weights,) = (first / "best").glob("*.safetensors")
    save_file(load_file(weights), weights)  # those of an old version tell nothing
    train(data, run, resume=True)
    assert load_bundle(run).preprocessing.mean == (0.1,) * 3
    with refused(hiding=r"(?<=weights-)[0-9a-f]+"):
        train(data, old, resume=True)
    with refused(hiding=r"(?<=weights-)[0-9a-f]+"):
        train(data, tmp_path / "new", pretrained=str(weights))


def test_weights_of_a_run_under_another_name_keep_their_mean_and_std(data, tmp_path):
    train(data, tmp_path / "first", epochs=1)
    bundle = load_bundle(tmp_path / "first")
    taken = replace(bundle.preprocessing, mean=(0.1,) * 3)
    save_bundle(tmp_path / "kept", replace(bundle, preprocessing=taken))
    next((tmp_path / "kept").glob("*.safetensors")).rename(tmp_path / "mine.safetensors")
    # another seed, and nothing beside them that says on what they were trained
    train(data, tmp_path / "run", epochs=1, pretrained=str(tmp_path / "mine.safetensors"))
    assert load_bundle(tmp_path / "run").preprocessing == taken


def test_weights_of_attention_in_another_form_are_trained_and_kept(data, tmp_path):
    """The forms have tensors of other shapes, so that a bundle of the wrong form would not load."""
    weights = tmp_path / "weights.safetensors"
    source = timm.create_model("resnet18", num_classes=3, block_args={"attn_layer": "cbam"})
    save_file(source.state_dict(), weights)
    train(data, tmp_path / "run", model="cbam_resnet18", image_size=32, epochs=1, lr=0.0, pretrained=str(weights))
    bundle = load_bundle(tmp_path / "run")
    assert bundle.spec.attention_kwargs["form"] == "timm"
    assert sum(map(torch.numel, bundle.model.parameters())) == sum(map(torch.numel, source.parameters()))
    result = read(tmp_path / "run" / "result.json")
    again = evaluate_bundle(bundle, str(tmp_path / "run" / "split.csv"), split="test")["images"]
    assert again == {name: pytest.approx(value) for name, value in result["test"].items()}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Images whose classes differ at the left end only: the centre crop does not show it."""
    folder = tmp_path_factory.mktemp("wide") / "images"
    for number in range(32):
        noise = np.random.default_rng(number).integers(60, 190, (16, 40, 3), dtype=np.uint8)
        noise[:, :12] = 255 * (number % 2)
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(folder / "ab"[number % 2] / f"{number}.png")
    return folder


@pytest.mark.parametrize("crop", ["pad", "resized"])
@pytest.mark.parametrize("mode", ["letterbox", "squash"])
def test_resize_is_the_same_in_training_evaluation_bundle_and_prediction(wide, tmp_path, mode, crop):
    plain = {"rand_augment": 0, "random_erasing": 0.0, "label_smoothing": 0.0, "hflip": 0.0, "crop_scale": 0.8}
    result = train(wide, tmp_path / "run", resize=mode, epochs=12, lr=0.02, crop=crop, cache="none", **plain)
    # what tells the classes apart is at the end of the images
    assert result["test"]["accuracy"] == 1
    run, bundle = read(tmp_path / "run" / "run.json"), load_bundle(tmp_path / "run")
    assert run["config"]["resize"] == run["preprocessing"]["resize_mode"] == mode
    assert run["preprocessing"] == read(tmp_path / "run" / "best" / "bundle.json")["preprocessing"]
    assert bundle.preprocessing == preprocessing_for(16, resize_mode=mode)
    again = evaluate_bundle(bundle, str(tmp_path / "run" / "split.csv"), split="test")["images"]
    assert again == {name: pytest.approx(value) for name, value in result["test"].items()}
    files = sorted(wide.glob("?/*.png"))
    predicted = [found.classes[0][0] for found in predict(bundle, files, top=1)]
    assert predicted == [file.parent.name for file in files]


@pytest.mark.parametrize("check", [True, False])
def test_the_size_that_is_chosen_keeps_the_detail_of_what_is_seen(tmp_path, check):
    make_folder(tmp_path / "data")
    for path in tmp_path.glob("data/*/*.png"):
        Image.open(path).resize((130, 66)).save(path)
    sizes = {}
    for mode in ("crop", "letterbox", "squash"):
        screen = Lines()
        options = {name: value for name, value in OPTIONS.items() if name != "image_size"} | {"check": check}
        run_training(
            str(tmp_path / "data"), {**options, "resize": mode}, out=None, resume=False, dry_run=True, command="",
            screen=screen, say_how_long=False,
        )  # fmt: skip
        (sizes[mode],) = {re.search(r"(\d+) x \1 px", line)[1] for line in screen.lines if " px" in line}
    assert sizes == {"crop": "64", "letterbox": "128", "squash": "128"}


def test_wide_images_are_a_warning_where_the_crop_leaves_most_of_them_out(wide, tmp_path):
    def warnings(**options):
        screen, told = Silent(), []
        screen.warn = told.append
        run_training(str(wide), {**OPTIONS, **options}, out=None, resume=False, dry_run=True, command="", screen=screen)
        return [text for text in told if "--resize" in text]

    (warning,) = warnings()
    assert warning.startswith("32 images so long that the centre crop leaves out more than 40 %")
    assert not warnings(resize="letterbox")
    assert not warnings(resize="squash")


def test_resize_of_the_bundle_that_a_run_starts_from(wide, tmp_path, refused):
    train(wide, tmp_path / "first", epochs=1, resize="letterbox")
    start = {"pretrained": str(tmp_path / "first"), "epochs": 1}
    for name, given, mode in (("kept", {}, "letterbox"), ("given", {"resize": "squash"}, "squash")):
        train(wide, tmp_path / name, **start, **given)
        assert read(tmp_path / name / "run.json")["config"]["resize"] == mode
        assert load_bundle(tmp_path / name).preprocessing.resize_mode == mode
        # what the run has is kept, whether it is given again or not
        assert train(wide, tmp_path / name, resume=True, **start)["num_epochs"] == 1
    with refused():
        train(wide, tmp_path / "given", resume=True, **start, resize="crop")


def test_images_are_read_as_the_weights_had_them(wide, tmp_path):
    train(wide, tmp_path / "first", epochs=1, resize="letterbox", max_value=4095)
    for own in ({}, {"resize": "squash", "image_size": 32, "max_value": 100}):
        given, _ = check_given(str(wide), {"pretrained": str(tmp_path / "first"), **own})
        with team("cpu") as alone:
            config = resolve(str(wide), given, prepare_images(str(wide), given, Silent()), alone)
        expected = {"resize": "letterbox", "image_size": OPTIONS["image_size"], "max_value": 4095} | own
        assert {name: getattr(config, name) for name in expected} == expected


def test_a_run_whose_pixels_a_newer_version_says_is_not_continued(wide, tmp_path, refused):
    interrupted(wide, tmp_path / "run", step=2)
    document = read(tmp_path / "run" / "run.json")["preprocessing"]
    for other in ({"version": 3}, {"resize_mode": "tile"}, {"gamma": 2.2}):
        changed(tmp_path / "run" / "run.json", preprocessing={**document, **other})
        with refused():
            train(wide, tmp_path / "run", resume=True)
