"""The doctor passes a file if, and only if, training can read it."""

import random

import pytest
from PIL import Image

from damaged_files import KINDS, damaged_file, saved
from image_files import fill, picture
from whatwhere.data.batches import Reader
from whatwhere.data.doctor.probe import read_entry
from whatwhere.data.doctor.report import examine
from whatwhere.data.images import FORMATS, ImageError
from whatwhere.data.preprocess import preprocessing_for
from whatwhere.data.sources.find import find_source
from whatwhere.data.sources.source import Sample, Source


def fault_in_training(source, image_size, whole):
    try:
        Reader(source, source.samples, preprocessing_for(image_size), whole)[0]
    except ImageError as error:
        return error.kind
    return ""


@pytest.mark.parametrize("num_files", [40, pytest.param(350, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.skipif(kind not in FORMATS, reason="Pillow does not read it"))
        for kind in KINDS
    ],
)
def test_doctor_and_training_agree_on_damaged_files(tmp_path, kind, num_files):
    draw = random.Random(kind)
    sample = Sample("image", "cat", None)
    source = Source("data", tmp_path, (sample,))
    passed = 0
    for index in range(num_files):
        _, damaged, options = damaged_file(kind, index, draw)
        (tmp_path / sample.path).write_bytes(damaged)
        fault = read_entry(source, sample).fault
        # of several sizes, because libjpeg may decode a large JPEG at a part of its size
        for image_size, whole in ((8, False), (32, True), (32, False)):
            assert fault_in_training(source, image_size, whole) == fault, (index, options, image_size, whole)
        passed += not fault
    assert passed < num_files


def test_half_a_jpeg_with_an_end_marker_is_a_warning(tmp_path):
    fill(tmp_path, "a", "b")
    content = saved(picture(7, (200, 160)), quality=90)
    (tmp_path / "a" / "half.jpg").write_bytes(content[: len(content) // 2] + b"\xff\xd9")
    (tmp_path / "a" / "whole.jpg").write_bytes(content)
    # black and white frames, and pictures of one colour, are no damage
    for name, colour, rows in (("black", "black", 80), ("white", "white", 80), ("flat", "teal", 160)):
        framed = picture(8, (200, 160))
        framed.paste(Image.new("RGB", (200, rows), colour), (0, 160 - rows))
        (tmp_path / "b" / f"{name}.jpg").write_bytes(saved(framed, quality=90))
    found = [item for item in examine(find_source(str(tmp_path)), cache=None).findings if item.severity == "warning"]
    assert {item.kind: item.paths for item in found} == {"flat-end": ("a/half.jpg",), "flat": ("b/flat.jpg",)}
