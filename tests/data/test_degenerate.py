"""Folders of few, flat, dark or equal pictures: a report and a run, or a sentence; never a traceback."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from whatwhere import UserError
from whatwhere.data.sources.find import find_source
from whatwhere.data.split import examine_for_training, prepare

KINDS = ("flat", "black", "dark16", "bits10", "equal", "noise", "scene")


def picture(kind, number):
    noise = np.random.default_rng(number).integers(0, 256, (20, 20))
    if kind == "dark16":
        return Image.fromarray((noise % 16).astype(np.uint16))
    if kind == "bits10":
        return Image.fromarray((4 * noise).astype(np.uint16))
    if kind == "scene":  # of a fixed camera: near duplicates, no copies
        noise = np.random.default_rng(0).integers(0, 240, (20, 20))
        noise[number % 20, number // 20] += 15
    pixels = {"flat": 0 * noise + 7 * number % 256, "black": 0 * noise, "equal": np.full((20, 20), 90)}.get(kind, noise)
    return Image.fromarray(pixels.astype(np.uint8))


def refusal(root):
    """Why a training without options would not begin; "" if it would."""
    try:
        prepare(str(root), seed=0)
    except UserError as error:
        return str(error)
    return ""


@settings(max_examples=60, deadline=None)
@given(
    classes=st.lists(st.lists(st.sampled_from(KINDS), max_size=4), max_size=3),
    skip_bad=st.booleans(),
    check=st.booleans(),
)
def test_any_small_folder_is_prepared_or_refused(tmp_path_factory, classes, skip_bad, check):
    root = tmp_path_factory.mktemp("folder")
    numbers = itertools.count()
    for label, kinds in enumerate(classes):
        (root / f"c{label}").mkdir()
        for kind in kinds:
            number = next(numbers)
            picture(kind, number).save(root / f"c{label}" / f"{number}.png")
    message = ""
    try:
        report = examine_for_training(find_source(str(root)), cache=None)
        assert report.num_images == sum(map(len, classes))
        assert report.sound is (refusal(root) == "")
        prepared = prepare(str(root), seed=0, skip_bad=skip_bad and check, check=check)
        assert prepared.parts["train"]
        assert prepared.parts["val"]
    except UserError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_of_one_kind_of_picture(tmp_path, kind):
    for number in range(16):
        folder = tmp_path / ("a" if number % 2 else "b")
        folder.mkdir(exist_ok=True)
        picture(kind, number).save(folder / f"{number}.png")
    report = examine_for_training(find_source(str(tmp_path)), cache=None)
    assert report.num_images == 16
    # flat pictures are never near duplicates; equal files are copies
    assert bool(report.twins) is (kind in ("black", "equal", "scene"))
    division = [finding.sentence() for finding in report.findings if finding.kind == "division"]
    refused = refusal(tmp_path)
    # no image of the two classes can be told apart
    assert ("under different labels" in refused) is (kind in ("black", "equal"))
    assert division == ([refused] if refused and kind not in ("black", "equal") else [])
    assert report.sound is (not refused)
    assert any("--near-duplicates free" in sentence for sentence in division) is (kind == "scene")


@settings(max_examples=60, deadline=None)
@given(
    parts=st.dictionaries(
        st.sampled_from(["train", "val", "test"]),
        st.dictionaries(
            st.sampled_from("ab"), st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3)), max_size=3)
        ),
    )
)
def test_the_doctor_calls_sound_what_a_training_takes(tmp_path_factory, parts):
    """Of splits, and with copies in them."""
    root = tmp_path_factory.mktemp("folder")
    for part, classes in parts.items():
        for label, pictures in classes.items():
            (root / part / label).mkdir(parents=True)
            for number, (kind, seed) in enumerate(pictures):
                picture(kind, seed).save(root / part / label / f"{number}.png")
    why = refusal(root)
    try:
        report = examine_for_training(find_source(str(root)), cache=None)
    except UserError as error:
        why = why.replace(str(error), "")
    else:
        why = "" if report.sound is (why == "") else f"sound: {report.sound}, {why}"
    assert why == ""


CELLS = {
    "path": ("x/0.png", "x/1.png", "x/2.png", "x/3.png", "x/gone.png", "", "x/flat.png", "x"),
    "label": ("a", "b", "A", "nan", "", "none", "0", "00", "\uff10"),
    "split": ("train", "val", "test", "", "fold"),
}


@settings(max_examples=80, deadline=None)
@given(
    names=st.permutations(["path", "label", "split", "note"]),
    num_columns=st.integers(2, 4),
    rows=st.lists(st.tuples(*(st.sampled_from(CELLS[name]) for name in CELLS)), max_size=12),
    skip_bad=st.booleans(),
)
def test_any_small_table_is_prepared_or_refused(tmp_path_factory, names, num_columns, rows, skip_bad):
    root = tmp_path_factory.mktemp("table")
    (root / "x").mkdir()
    for number in range(4):
        picture("noise", number).save(root / "x" / f"{number}.png")
    picture("flat", 1).save(root / "x" / "flat.png")
    lines = [dict(zip(CELLS, row, strict=True), note="1") for row in rows]
    head = names[:num_columns]
    text = "\n".join(",".join(line[name] for name in head) for line in [dict(zip(names, names, strict=True)), *lines])
    (root / "list.csv").write_text(text)
    message = ""
    try:
        source = find_source(str(root / "list.csv"))
        labels = {sample.label for sample in source.samples}
        assert labels <= {"a", "b", "A", "none", "0", "00", "\uff10"}  # no class of images without a label
        kinds = {finding.kind for finding in source.findings}
        assert ("missing-label" in kinds) is ("none" in labels)
        assert ("spelling" in kinds) is ({"a", "A"} <= labels or len({"0", "00", "\uff10"} & labels) > 1)
        prepared = prepare(str(root / "list.csv"), seed=0, skip_bad=skip_bad)
        assert prepared.parts["train"]
        assert prepared.parts["val"]
    except UserError as error:
        message = str(error)
    assert "\n" not in message


SMALL = ("--epochs", 1, "--image-size", 16, "--workers", 0, "--device", "cpu", "--model", "resnext11_8x8d")
LABELLED = "".join(f"pixels/{label}/{number}.png,{label}\n" for label in "ab" for number in range(8))
TABLES = {
    "nothing": "",
    "head": "path,label\n",
    "row": "path,label\npixels/a/0.png,a\n",
    "unlabelled": "path,label\n" + LABELLED.replace(",a", ",nan").replace(",b", ","),
    "no-paths": "path,label\n,a\n,b\n",
    "gone": "path,label\n" + LABELLED.replace("pixels", "elsewhere"),
}


@pytest.fixture
def place(whatwhere_here, tmp_path):
    """The current folder has tables, and pictures of one pixel in two classes."""
    for name, text in TABLES.items():
        (tmp_path / f"{name}.csv").write_text(text)
    for label in "ab":
        (tmp_path / "pixels" / label).mkdir(parents=True)
        for number in range(8):
            picture("flat", number + 8 * (label == "b")).resize((1, 1)).save(tmp_path / f"pixels/{label}/{number}.png")
    return whatwhere_here


@pytest.mark.parametrize("name", TABLES)
def test_a_table_without_images_to_train_on_is_a_sentence_in_every_command(place, name):
    for command in (("check",), ("train", *SMALL), ("compare", *SMALL[:-2], "--attention", "none,se")):
        status, out, err = place(command[0], f"{name}.csv", *command[1:])
        if (name, command) == ("row", ("check",)):
            assert (status, "only one class" in out) == (1, True)
            continue
        assert (status, out) == (2, "")
        assert err.startswith("whatwhere: ")
        assert len(err.splitlines()) == 1


def test_pictures_of_one_pixel_are_trained_on_and_predicted(place):
    assert place("train", "pixels", *SMALL, "--out", "run")[0] == 0
    status, out, _ = place("predict", "run", "pixels")
    assert (status, len(out.splitlines())) == (0, 16)
