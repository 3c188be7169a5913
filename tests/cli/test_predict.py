import csv
import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image
from torch import nn

from whatwhere import create_model
from whatwhere.data.preprocess import Preprocessing
from whatwhere.networks import NetworkSpec
from whatwhere.training.bundle import Bundle, load_bundle, save_bundle
from whatwhere.training.predict import predict

CLASSES = ("cat", "dog, wet", "=elk")


def spec(attention=""):
    return NetworkSpec(name="resnext11_8x8d", attention=attention, num_classes=len(CLASSES))


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = create_model("resnext11_8x8d", num_classes=len(CLASSES), seed=0).eval()
    save_bundle(folder / "best", Bundle(model, spec(), CLASSES, Preprocessing(16, 16), {"epoch": 1}))
    return folder


@pytest.fixture
def images(tmp_path):
    for index, name in enumerate((*CLASSES, *CLASSES)):
        noise = np.random.default_rng(index).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        path = tmp_path / "images" / name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)
    return tmp_path / "images"


def expected(run_folder, images):
    files = sorted(images.rglob("*.png"))
    return {item.path: item.classes for item in predict(load_bundle(run_folder), files, top=2)}


def test_as_text(whatwhere, run_folder, images):
    status, out, err = whatwhere("predict", run_folder, images, "--top", 2, "--device", "cpu")
    assert (status, err) == (0, "")
    lines = {
        f"{path}: " + ", ".join(f"{name} {value:.1%}" for name, value in classes)
        for path, classes in expected(run_folder, images).items()
    }
    assert set(out.splitlines()) == lines
    assert len(lines) == 6


def test_as_csv(whatwhere, run_folder, images):
    status, out, err = whatwhere("predict", run_folder / "best", images, "--top", 2, "--csv", "--device", "cpu")
    assert (status, err) == (0, "")
    rows = list(csv.reader(io.StringIO(out)))
    assert rows[0] == ["path", "rank", "class", "probability"]
    found = {}
    for path, rank, name, probability in rows[1:]:
        found.setdefault(path, []).append(name)
        assert int(rank) == len(found[path])
        assert len(probability) == len("0.123456")
    assert found == {path: [name for name, _ in classes] for path, classes in expected(run_folder, images).items()}


def test_as_json(whatwhere, run_folder, images):
    status, out, err = whatwhere("predict", run_folder, images, "--top", 2, "--json", "--device", "cpu")
    assert (status, err) == (0, "")
    found = {
        record["path"]: tuple((row["class"], row["probability"]) for row in record["predictions"])
        for record in json.loads(out)
    }
    assert found == expected(run_folder, images)


@pytest.mark.parametrize("form", ["--json", "--csv", None])
def test_bad_files_are_told_on_standard_error_and_by_the_status(whatwhere, run_folder, images, form):
    bad = images / "cat" / "bad.jpg"
    bad.write_text("no picture")
    (images / "cat" / "new.nef").touch()
    status, out, err = whatwhere("predict", run_folder, images, "--device", "cpu", *([form] if form else []))
    assert status == 1
    assert err.splitlines() == [
        f"whatwhere: 1 file in a format that is not read (raw, PSD, ...); convert to JPEG: {images / 'cat/new.nef'}",
        f"whatwhere: {bad} is no image of a known format",
        "whatwhere: 2 of 8 images could not be read",
    ]
    assert "bad.jpg" not in out
    if form == "--json":
        assert len(json.loads(out)) == 6
    elif form == "--csv":
        assert len(list(csv.reader(io.StringIO(out)))) == 1 + 6 * 3
    else:
        assert len(out.splitlines()) == 6


def test_evaluate_as_json_and_as_tables(whatwhere, run_folder, images):
    status, out, _ = whatwhere("evaluate", run_folder, images, "--json", "--device", "cpu", "--batch-size", 4)
    assert status == 0
    result = json.loads(out)
    assert result["classes"] == list(CLASSES)
    assert result["images"]["num_images"] == 6
    assert sum(map(sum, result["confusion"])) == 6
    assert all(0 <= result["images"][name] <= 1 for name in ("macro_f1", "auroc", "calibration_error"))
    status, out, _ = whatwhere("evaluate", run_folder, images, "--device", "cpu")
    assert status == 0
    assert f"{result['images']['accuracy']:.2%}" in out
    assert all(name in out for name in CLASSES)


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A bundle with an attention of the user's, whose code lies in the current folder."""
    model = create_model("resnext11_8x8d", num_classes=3, seed=0, attention=lambda c: nn.Conv2d(c, c, 1)).eval()
    network = Bundle(model, spec("own_code:build"), CLASSES, Preprocessing(16, 16), {"epoch": 1})
    save_bundle(tmp_path / "own", network)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_code.py").write_text("from torch import nn\n\ndef build(c): return nn.Conv2d(c, c, 1)\n")
    yield tmp_path / "own"
    sys.modules.pop("own_code", None)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_an_attention_of_the_user_s_is_imported_if_it_is_typed(whatwhere, own_folder, images, command):
    call = (command, own_folder, images, "--device", "cpu", "--json")
    status, out, err = whatwhere(*call)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "give --attention own_code:build" in err
    assert "own_code" not in sys.modules
    status, out, err = whatwhere(*call, "--attention", "own_code:build")
    assert (status, err) == (0, "")
    assert len(json.loads(out)) >= 6
    for path, sentence in (("own_code:gone", "has no 'gone'"), ("se", "is no import path; give MODULE:NAME")):
        status, out, err = whatwhere(*call, "--attention", path)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert sentence in err


def bad_calls(run_folder, images):
    return [
        ("predict", images, images),
        ("predict", run_folder, images / "gone.png"),
        ("predict", run_folder, images, "--csv", "--json"),
        ("predict", run_folder, images, "--device", "tpu0"),
        ("predict", run_folder, images, "--top", "0"),
        ("predict", run_folder),
        ("evaluate", run_folder, images, "--split", "half"),
        ("evaluate", run_folder, images, "--split", "test", "--device", "cpu"),
        ("evaluate", run_folder, "nowhere", "--device", "cpu"),
        ("evaluate", images, images, "--device", "cpu"),
        ("predict", run_folder, images, "--attention", "torch.nn:ReLU", "--device", "cpu"),
    ]


@pytest.mark.parametrize("number", range(11))
def test_bad_input_is_one_sentence_and_status_2(whatwhere, run_folder, images, number, refused_command):
    call = bad_calls(run_folder, images)[number]
    err = refused_command(*call)
    if "--csv" not in call:
        assert whatwhere(*call, "--json") == (2, "", err)


def test_a_table_has_no_head_without_a_network(whatwhere, images):
    assert whatwhere("predict", images, images, "--csv")[:2] == (2, "")


def test_a_damaged_bundle_is_one_sentence(whatwhere, run_folder, images, tmp_path):
    (tmp_path / "bundle.json").write_bytes((run_folder / "best" / "bundle.json").read_bytes())
    status, out, err = whatwhere("predict", tmp_path, images, "--device", "cpu")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "is damaged" in err


def test_images_that_miss_the_range_of_the_network_are_counted_once(whatwhere, tmp_path):
    model = create_model("resnext11_8x8d", num_classes=len(CLASSES), seed=0).eval()
    trained = Preprocessing(16, 16, max_value=4095)
    save_bundle(tmp_path / "best", Bundle(model, spec(), CLASSES, trained, {"epoch": 1}))
    (tmp_path / "images").mkdir()
    for index, largest in enumerate((4095, 5000, 65535, 3000)):
        values = np.full((20, 20), 7, np.uint16)
        values[3, 4] = largest
        Image.fromarray(values).save(tmp_path / "images" / f"{index}.png")
    status, _, err = whatwhere("predict", tmp_path, tmp_path / "images", "--device", "cpu")
    assert status == 0
    assert err == (
        "whatwhere: 2 images have values above 4,095, the largest that the network was trained for; read as white\n"
    )


def test_a_folder_that_cannot_be_listed_is_not_counted_as_an_image(whatwhere, run_folder, images, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    status, out, err = whatwhere("predict", run_folder, images, "--device", "cpu")
    assert (status, len(out.splitlines())) == (1, 4)
    assert err == f"whatwhere: 1 folder that could not be listed; change the permissions: {images / 'cat'}\n"


@pytest.mark.parametrize("name", ["labels.csv", "photos.zip"])
def test_a_table_or_an_archive_is_no_image_to_predict(tmp_path, run_folder, name, refused_command):
    (tmp_path / name).write_text("path,label\n")
    refused_command("predict", run_folder, tmp_path / name)
