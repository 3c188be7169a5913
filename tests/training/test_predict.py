import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from whatwhere import create_model
from whatwhere.data.preprocess import Preprocessing
from whatwhere.data.sources.find import find_source
from whatwhere.networks import NetworkSpec
from whatwhere.ops import FoldedNorm
from whatwhere.training.bundle import Bundle
from whatwhere.training.predict import evaluate_bundle, image_files, predict

CLASSES = ("bee", "cat", "dog", "elk")
SHADES = {"bee": 30, "cat": 95, "dog": 160, "elk": 225}


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def network():
    model = create_model("cbam_resnext11_8x8d", num_classes=len(CLASSES), seed=0).eval()
    return Bundle(
        model, NetworkSpec(name="cbam_resnext11_8x8d", num_classes=len(CLASSES)), CLASSES, Preprocessing(16, 16), {}
    )


class Nearest(torch.nn.Module):
    """Tells the class by the mean shade: a classifier that is right, or wrong, for a known reason."""

    def __init__(self):
        super().__init__()
        self.shades = torch.nn.Parameter(torch.tensor(list(SHADES.values())) / 255)

    def forward(self, x):
        return -100 * (x.mean((1, 2, 3))[:, None] - self.shades) ** 2


@pytest.fixture(scope="module")
def by_shade():
    return Bundle(Nearest().eval(), NetworkSpec(name="none"), CLASSES, Preprocessing(16, 16, (0, 0, 0), (1, 1, 1)), {})


def write(path, seed=0, size=(20, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def write_shades(folder, classes, count=2):
    for name, shade in classes.items():
        for index in range(count):
            path = folder / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # no two alike
            pixels = np.full((16, 16, 3), shade, dtype=np.uint8)
            pixels[index, len(name) % 16] = 0
            pixels[8 + index, shade % 16] = 255
            Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def mixed(tmp_path):
    """Files of which some are bad, in the order of their names."""
    folder = tmp_path / "mixed"
    for index in range(7):
        write(folder / f"{index}.png", index)
    cut = write(folder / "1x.jpg", size=(200, 200))
    cut.write_bytes(cut.read_bytes()[:2000])
    (folder / "2x.jpg").write_text("no picture")
    (folder / "3x.jpg").symlink_to(folder / "gone.jpg")
    (folder / "4x.jpg").write_bytes(b"")
    return folder


BAD = {"1x.jpg": "is cut short", "2x.jpg": "known format", "3x.jpg": "does not exist", "4x.jpg": "is empty"}


def test_many_files_go_through_a_network_with_folded_norms(network, tmp_path, monkeypatch):
    files = [write(tmp_path / f"{seed}.png", seed) for seed in range(5)]
    files.insert(1, tmp_path / "no image.png")
    files[1].write_text("text", encoding="utf-8")
    expected = list(predict(network, files, batch_size=2))
    used = []
    probabilities = Bundle.probabilities

    def noted(bundle, pixels):
        used.append(bundle.model)
        return probabilities(bundle, pixels)

    monkeypatch.setattr(Bundle, "probabilities", noted)
    monkeypatch.setattr("whatwhere.training.predict.MANY_FILES", len(files))
    found = list(predict(network, files, batch_size=2))
    # the first batch is predicted by both
    assert [type(model.bn1) for model in used] == [torch.nn.BatchNorm2d, *[FoldedNorm] * 3]
    for prediction, before in zip(found, expected, strict=True):
        assert dict(prediction.classes) == pytest.approx(dict(before.classes), rel=1e-4)
        assert (prediction.path, prediction.error) == (before.path, before.error)


class Batched(torch.nn.Module):
    """Uses the convolution itself, in batches of more than two images."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, len(CLASSES), 3), torch.nn.BatchNorm2d(len(CLASSES))

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        return (z + 9 * y if len(x) > 2 else z).mean((2, 3))


class Nameless(torch.nn.Module):
    """Cannot be copied."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, len(CLASSES), 3)

    def __deepcopy__(self, memo):
        raise RuntimeError("no")

    def forward(self, x):
        return self.conv(x).mean((2, 3))


@pytest.mark.parametrize("kind", [Batched, Nameless])
def test_a_network_that_folding_would_change_predicts_as_it_is(network, kind, tmp_path, monkeypatch):
    model = kind().eval()
    if kind is Batched:
        torch.nn.init.normal_(model.norm.running_mean)
    bundle = replace(network, model=model)
    files = [write(tmp_path / f"{seed}.png", seed) for seed in range(7)]
    expected = list(predict(bundle, files, batch_size=4))
    monkeypatch.setattr("whatwhere.training.predict.MANY_FILES", 1)
    assert list(predict(bundle, files, batch_size=4)) == expected


@pytest.mark.parametrize(("batch_size", "num_threads"), [(1, 1), (2, 3), (3, None), (64, 4)])
def test_the_order_is_kept_over_bad_files(network, mixed, batch_size, num_threads):
    files = sorted(mixed.iterdir())
    assert [file.name for file in files] == sorted([*BAD, *(f"{index}.png" for index in range(7))])
    listed, (link,) = image_files([mixed])
    assert (listed, link.paths) == ([file for file in files if file.name != "3x.jpg"], (str(mixed / "3x.jpg"),))
    found = list(predict(network, files, batch_size=batch_size, num_threads=num_threads))
    assert [prediction.path for prediction in found] == [str(file) for file in files]
    for file, prediction in zip(files, found, strict=True):
        if file.name in BAD:
            assert prediction.classes == ()
            assert prediction.error.startswith(str(file))
            assert BAD[file.name] in prediction.error
            assert "\n" not in prediction.error
            continue
        assert prediction.error == ""
        with Image.open(file) as image:
            pixels = network.preprocessing.pixels(image)
        expected = network.probabilities(pixels[None])[0]
        assert [name for name, _ in prediction.classes] == [CLASSES[i] for i in expected.argsort(descending=True)]
        assert dict(prediction.classes) == pytest.approx(
            dict(zip(CLASSES, expected.tolist(), strict=True)), abs=1e-5, rel=1e-4
        )


def test_bad_files_alone(network, mixed):
    files = [mixed / name for name in BAD]
    assert [bool(prediction.error) for prediction in predict(network, files, batch_size=3)] == [True] * 4
    assert list(predict(network, [])) == []


@pytest.mark.parametrize(("top", "expected"), [(1, 1), (3, 3), (4, 4), (99, 4)])
def test_the_most_probable_come_first(network, tmp_path, top, expected):
    files = [write(tmp_path / f"{seed}.png", seed) for seed in range(5)]
    for prediction in predict(network, files, top=top):
        values = [value for _, value in prediction.classes]
        assert len(values) == len({name for name, _ in prediction.classes}) == expected
        assert values == sorted(values, reverse=True)
        assert all(0 < value < 1 for value in values)
        assert sum(values) == pytest.approx(1) if expected == 4 else sum(values) < 1


def test_hidden_and_foreign_files_are_left_out_of_folders_but_not_if_they_are_named(tmp_path):
    kept = [write(tmp_path / name) for name in ("a/b/1.png", "a/2.JPG", "z.webp")]
    for name in (".git/1.png", "a/.thumbs/1.png", "__MACOSX/1.png", "a/.hidden.png"):
        write(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("")
    assert image_files([tmp_path])[0] == sorted(kept)
    named = [tmp_path / "a" / "notes.txt", tmp_path / "a" / ".hidden.png"]
    assert image_files(named) == (named, [])
    assert image_files([tmp_path / ".git"])[0] == [tmp_path / ".git" / "1.png"]
    assert image_files([kept[2], kept[0]])[0] == [kept[2], kept[0]]


def test_a_folder_is_listed_as_check_lists_it(tmp_path, refused):
    root = tmp_path / "photos"
    for name in ("a/1.png", "b/2.png"):
        write(root / name)
    shutil.copy(root / "b" / "2.png", root / "b" / "phone")
    (root / "a" / "new.nef").touch()
    (root / "a" / "notes.txt").touch()
    files, findings = image_files([root])
    assert [str(file.relative_to(root)) for file in files] == ["a/1.png", "b/2.png"]
    listed = {finding.kind: finding.paths for finding in find_source(str(root)).findings}
    assert {item.kind: tuple(str(Path(p).relative_to(root)) for p in item.paths) for item in findings} == listed
    assert listed == {"convert": ("a/new.nef",), "suffix": ("b/phone",), "other": ("a/notes.txt",)}
    for file in files:
        file.unlink()
    with refused():
        image_files([root])


def test_nothing_to_predict(tmp_path, refused):
    with refused():
        image_files([write(tmp_path / "a.png"), tmp_path / "gone.png"])
    (tmp_path / "empty").mkdir()
    with refused():
        image_files([tmp_path / "empty"])


# --- figures on labelled images


def test_figures_by_hand(by_shade, tmp_path):
    # two of the cats look like dogs
    data = write_shades(tmp_path / "data", SHADES)
    write_shades(tmp_path / "more", {"cat": SHADES["dog"] + 3})
    for index in range(2):
        (tmp_path / "more" / "cat" / f"{index}.png").rename(data / "cat" / f"like-a-dog-{index}.png")
    seen = []
    result = evaluate_bundle(by_shade, str(data), batch_size=3, progress=lambda done, total: seen.append((done, total)))
    assert result["confusion"] == [[2, 0, 0, 0], [0, 2, 2, 0], [0, 0, 2, 0], [0, 0, 0, 2]]
    assert (result["split"], result["left_out"], result["classes"]) == ("all", {}, list(CLASSES))
    assert result["images"]["num_images"] == 10
    assert result["images"]["accuracy"] == 0.8
    assert result["images"]["balanced_accuracy"] == 0.875
    assert [row["recall"] for row in result["per_class"]] == [1, 0.5, 1, 1]
    assert seen[-1] == (10, 10)
    assert by_shade.model.training is False


def test_classes_are_matched_by_name(by_shade, tmp_path):
    # numbered from the folder, they would be 0 and 1
    data = write_shades(tmp_path / "data", {"elk": SHADES["elk"], "cat": SHADES["cat"]}, count=3)
    result = evaluate_bundle(by_shade, str(data))
    assert result["confusion"] == [[0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3]]
    assert result["images"]["accuracy"] == 1
    assert [row["num_images"] for row in result["per_class"]] == [0, 3, 0, 3]
    reordered = Bundle(by_shade.model, by_shade.spec, ("elk", "dog", "cat", "bee"), by_shade.preprocessing, {})
    assert evaluate_bundle(reordered, str(data))["confusion"][0] == [0, 0, 0, 3]


@pytest.mark.parametrize(("name", "hint"), [("cats", "did you mean cat"), ("zebra", "it knows bee, cat, dog, elk")])
def test_a_class_that_the_network_does_not_know(by_shade, tmp_path, name, hint, refused):
    data = write_shades(tmp_path / "data", {"dog": 160, name: 95})
    with refused():
        evaluate_bundle(by_shade, str(data))


@pytest.mark.parametrize(
    ("splits", "split", "chosen"),
    [
        (("train", "val", "test"), None, "test"),
        (("train", "val"), None, "val"),
        (("train", "val", "test"), "train", "train"),
        (("train", "val", "test"), "all", "all"),
        ((), None, "all"),
    ],
)
def test_the_split(by_shade, tmp_path, splits, split, chosen):
    counts = {"train": 5, "val": 3, "test": 2}
    for part in splits:
        write_shades(tmp_path / "data" / part, {"cat": 95, "dog": 160}, counts[part])
    if not splits:
        write_shades(tmp_path / "data", {"cat": 95, "dog": 160}, 2)
    result = evaluate_bundle(by_shade, str(tmp_path / "data"), split=split)
    assert result["split"] == chosen
    expected = 2 * sum(counts[part] for part in splits) if chosen == "all" and splits else 2 * counts.get(chosen, 2)
    assert result["images"]["num_images"] == expected


def test_a_split_that_is_not_there(by_shade, tmp_path, refused):
    data = write_shades(tmp_path / "data", {"cat": 95, "dog": 160})
    with refused():
        evaluate_bundle(by_shade, str(data), split="test")
    for part in ("train", "val"):
        write_shades(tmp_path / "parts" / part, {"cat": 95, "dog": 160})
    with refused():
        evaluate_bundle(by_shade, str(tmp_path / "parts"), split="test")


def test_bad_files(by_shade, tmp_path, refused):
    data = write_shades(tmp_path / "data", {"cat": 95, "dog": 160})
    (data / "cat" / "bad.png").write_bytes(b"no picture")
    with refused():
        evaluate_bundle(by_shade, str(data))
    result = evaluate_bundle(by_shade, str(data), skip_bad=True)
    assert (result["left_out"], result["images"]["num_images"]) == ({"cat/bad.png": "unreadable"}, 4)
    # a row without a file counts too; a bad file of another part does not
    rows = ["cat/0.png,cat,test", "dog/0.png,dog,test", "gone.png,cat,test", "cat/bad.png,cat,train"]
    (data / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    with refused():
        evaluate_bundle(by_shade, str(data / "list.csv"))
    result = evaluate_bundle(by_shade, str(data / "list.csv"), skip_bad=True)
    assert (result["left_out"], result["images"]["num_images"]) == ({"gone.png (line 4)": "missing"}, 2)


def test_nothing_but_bad_files(by_shade, tmp_path, refused):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bad.png").write_bytes(b"no picture")
    with refused():
        evaluate_bundle(by_shade, str(tmp_path), skip_bad=True)


def test_workers_and_batch_size_change_no_figure(network, tmp_path):
    data = write_shades(tmp_path / "data", SHADES, 3)
    first = evaluate_bundle(network, str(data), batch_size=5)
    second = evaluate_bundle(network, str(data), batch_size=12, num_workers=1)
    assert first.pop("images") == pytest.approx(second.pop("images"), rel=1e-5)
    assert first == second


def test_rows_without_a_label_are_told_as_rows_not_as_images(by_shade, tmp_path, refused):
    data = write_shades(tmp_path / "data", {"cat": 95, "dog": 160}, 3)
    rows = [f"{name}/{index}.png,{name if index else ''}" for name in ("cat", "dog") for index in range(3)]
    (data / "list.csv").write_text("\n".join(["path,breed", *rows]))
    options = {"label_column": "breed"}
    with refused() as caught:
        evaluate_bundle(by_shade, str(data / "list.csv"), **options)
    assert "2 rows of the CSV file without a label in the column 'breed'" in str(caught.value)
    assert "image" not in str(caught.value)
    said = []
    result = evaluate_bundle(by_shade, str(data / "list.csv"), skip_bad=True, warn=said.append, **options)
    assert result["images"]["num_images"] == 4
    assert said == [
        "--skip-bad left out 2 rows of the CSV file without a label in the column 'breed' (an empty cell, nan, <NA>, "
        "#N/A): cat/0.png (line 2), dog/0.png (line 5)"
    ]


def test_what_leaves_no_image_of_the_split_is_not_called_an_unreadable_image(by_shade, tmp_path, refused):
    data = write_shades(tmp_path / "data", {"cat": 95, "dog": 160}, 3)
    rows = [f"{name}/{index}.png,{name},{'train' if index else 'test'}" for name in SHADES for index in range(3)]
    for name in ("cat", "dog"):
        (data / name / "0.png").write_bytes(b"")
    (data / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    with refused():
        evaluate_bundle(by_shade, str(data / "list.csv"), skip_bad=True)
