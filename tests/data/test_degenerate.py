"""Folders of few, flat, dark or equal pictures: a report and a run, or a sentence; never a traceback."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from whatwhere import UserError
from whatwhere.data.doctor.report import examine
from whatwhere.data.sources.find import find_source
from whatwhere.data.split import prepare

KINDS = ("flat", "black", "dark16", "bits10", "equal", "noise")


def picture(kind, number):
    noise = np.random.default_rng(number).integers(0, 256, (20, 20))
    if kind == "dark16":
        return Image.fromarray((noise % 16).astype(np.uint16))
    if kind == "bits10":
        return Image.fromarray((4 * noise).astype(np.uint16))
    pixels = {"flat": 0 * noise + 7 * number % 256, "black": 0 * noise, "equal": np.full((20, 20), 90)}.get(kind, noise)
    return Image.fromarray(pixels.astype(np.uint8))


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
        report = examine(find_source(str(root)), cache=None)
        assert report.num_images == sum(map(len, classes))
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
    report = examine(find_source(str(tmp_path)), cache=None)
    assert report.num_images == 16
    # flat pictures are never near duplicates; equal files are copies
    assert bool(report.twins) is (kind in ("black", "equal"))
