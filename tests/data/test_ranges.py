"""16-bit files that hold fewer bits, and images without contrast: told, and read right with `max_value`."""

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from image_files import fill, picture, save
from pictures import make_folder
from whatwhere import UserError
from whatwhere.base.screen import Silent
from whatwhere.data.doctor.findings import misfit
from whatwhere.data.doctor.report import examine
from whatwhere.data.images import levels, open_image, read_image
from whatwhere.data.sources.find import find_source
from whatwhere.training.bundle import load_bundle
from whatwhere.training.predict import evaluate_bundle, predict
from whatwhere.training.train import run_training

VALUES = np.array([[0, 1, 100, 4095], [5, 6, 7, 8]], np.uint16)


def report_of(root, max_value=65535):
    return examine(find_source(str(root)), max_value=max_value, cache=None)


def ranges(report):
    kinds = {"dark", "dark-colour", "clipped", "zero-is-white", "flat"}
    return {finding.kind: finding.sentence() for finding in report.findings if finding.kind in kinds}


def tiff(values, bits=16, photometric=1, sample_format=1, samples=1):
    """Return a TIFF file of one strip; `values` are as they are stored."""
    height, width = values.shape[:2]
    content = values.tobytes()
    if bits == 12:
        content = b"".join(
            int("".join(f"{value:012b}" for value in row), 2).to_bytes(width * 12 // 8, "big") for row in values
        )
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: samples, 278: height}
    tags |= {279: len(content), 339: sample_format}
    start, count = 8 + len(content), len(tags)
    entries = b""
    for tag, value in tags.items():
        several = tag == 258 and samples == 3
        entries += struct.pack("<HHI", tag, 3, 3 if several else 1)
        entries += struct.pack("<I", start + 2 + 12 * count + 4 if several else value)
    return (
        b"II*\0"
        + struct.pack("<I", start)
        + content
        + struct.pack("<H", count)
        + entries
        + bytes(4)
        + bytes(struct.pack("<3H", bits, bits, bits))
    )


def pgm(values, largest):
    return f"P5\n{values.shape[1]} {values.shape[0]}\n{largest}\n".encode() + values.astype(">u2").tobytes()


def read(path, max_value):
    with open_image(path) as image:
        return np.asarray(read_image(image, max_value))[..., 0].tolist()


@given(value=st.integers(0, 65535), max_value=st.integers(1, 65535))
def test_levels_are_the_formula(value, max_value):
    scaled = 255 * min(value, max_value) / max_value
    assert abs(int(levels(max_value)[value]) - scaled) <= 0.5


def test_levels_of_the_whole_range_are_those_of_before():
    values = np.arange(65536)
    assert np.array_equal(levels(65535), (values + 128) // 257)
    assert levels(4095)[[0, 8, 9, 2047, 2048, 4095, 4096, 65535]].tolist() == [0, 0, 1, 127, 128, 255, 255, 255]
    assert levels(2)[:3].tolist() == [0, 128, 255]


def test_every_kind_of_file_is_read_with_the_range(tmp_path):
    files = {
        "little.tif": tiff(VALUES),
        "twelve.tif": tiff(VALUES, bits=12),
        "whole.pgm": pgm(VALUES, 65535),
        # its own largest value counts, whatever the option says
        "own.pgm": pgm(VALUES, 4095),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    save(tmp_path / "grey.png", Image.fromarray(VALUES))
    save(tmp_path / "big.tif", Image.frombytes("I;16B", (4, 2), VALUES.astype(">u2").tobytes()))
    for path in sorted(tmp_path.iterdir()):
        assert read(path, 4095) == [[0, 0, 6, 255], [0, 0, 0, 0]], path
        assert read(path, 65535)[0][3] == (255 if path.name == "own.pgm" else 16), path


@pytest.mark.parametrize("bits", range(8, 17))
def test_files_with_fewer_bits_are_a_warning_that_names_the_option(tmp_path, bits):
    largest = 2**bits - 1
    for label in "ab":
        for number in range(3):
            grey = np.asarray(picture(100 * bits + 10 * number + ord(label)).convert("L")).astype(np.uint16)
            values = grey.astype(np.float64) / grey.max() * (largest - 12)
            save(tmp_path / label / f"{number}.png", Image.fromarray(values.astype(np.uint16)))
    found = ranges(report_of(tmp_path))
    if bits == 16:
        assert found == {}
        return
    (message,) = found.values()
    level = (largest - 12 + 128) // 257
    assert message == (
        f"6 images of 16-bit grey with values up to {largest - 12:,} only, read as {level} of 255 at most; if the "
        f"camera has no larger ones, give --max-value {largest} ({bits} bits), or auto"
    )
    for choice in ("auto", largest):
        report = report_of(tmp_path, choice)
        assert (report.max_value, ranges(report)) == (largest, {})
    found = ranges(report_of(tmp_path, 100))
    assert found == {"clipped": f"6 images with values above --max-value 100, read as white; give {largest}, or auto"}


def test_one_bright_image_is_enough(tmp_path):
    for number in range(4):
        grey = np.asarray(picture(number).convert("L")).astype(np.uint16)
        save(tmp_path / "ab"[number % 2] / f"{number}.png", Image.fromarray(grey * (257 if number == 3 else 16)))
    assert ranges(report_of(tmp_path)) == {}
    assert report_of(tmp_path, "auto").max_value == 65535


DARK = (
    "{} of 16-bit colour, or 16-bit grey with alpha, whose upper 8 bits, the only ones read, are {} of 255 at most; "
    "scale to 8 bits, or store grey without alpha and give --max-value"
)


def test_sixteen_bit_colour_that_is_dark_is_told(tmp_path):
    for number in range(4):
        values = np.asarray(picture(number)).astype(np.uint16) * 16
        path = tmp_path / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tiff(values, photometric=2, samples=3))
    assert ranges(report_of(tmp_path)) == {"dark-colour": DARK.format("4 images", 15)}
    # the option is for grey
    assert report_of(tmp_path, "auto").max_value == 65535


def test_sixteen_bit_grey_with_alpha_is_read_by_its_upper_bits_and_that_is_told(tmp_path):
    """Pillow reads it so: no value of --max-value can scale what it has cut off."""
    rng = np.random.default_rng(0)
    for number in range(4):
        values = np.stack([rng.integers(0, 4096, (20, 20)), np.full((20, 20), 65535)], 2)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        header = struct.pack(">IIBBBBB", 20, 20, 16, 4, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n"
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    for max_value in (65535, 4095, "auto"):
        assert ranges(report_of(tmp_path, max_value)) == {"dark-colour": DARK.format("4 images", 15)}
    assert read(path, 65535) == read(path, 4095) == (values[..., 0] // 256).tolist()


def test_colours_of_sixteen_bits_one_after_the_other_are_refused(tmp_path):
    fill(tmp_path, "a", "b")
    values = np.arange(24, dtype=np.uint16).reshape(3, 2, 4) * 2000
    tags = {256: 4, 257: 2, 258: 182, 259: 1, 262: 2, 273: 188, 277: 3, 278: 2, 279: 200, 284: 2}
    counts = {258: 3, 273: 3, 279: 3}
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, counts.get(tag, 1), value)
        for tag, value in tags.items()
    )
    header = b"II*\0" + struct.pack("<I", 56) + values.tobytes() + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert len(header) == 182
    (tmp_path / "a" / "x.tif").write_bytes(header + struct.pack("<3H6I", 16, 16, 16, 8, 24, 40, 16, 16, 16))
    # Pillow reads it, as noise
    assert np.asarray(Image.open(tmp_path / "a" / "x.tif"))[0, 0].tolist() != [0, 62, 125]
    with pytest.raises(UserError, match="one colour after the other, which Pillow cannot read"):
        read(tmp_path / "a" / "x.tif", 65535)
    errors = [item for item in report_of(tmp_path).findings if item.severity == "error"]
    assert [(item.kind, item.paths) for item in errors] == [("planes", ("a/x.tif",))]


@pytest.mark.parametrize("bits", [8, 16])
def test_signed_values_are_refused(tmp_path, bits):
    fill(tmp_path, "a", "b")
    values = np.array([[-1, 0], [1, 100]], np.int8 if bits == 8 else np.int16)
    (tmp_path / "a" / "x.tif").write_bytes(tiff(values, bits=bits, sample_format=2))
    with pytest.raises(UserError, match="has signed values without a known range"):
        read(tmp_path / "a" / "x.tif", 65535)
    errors = [item for item in report_of(tmp_path).findings if item.severity == "error"]
    assert [(item.kind, item.paths) for item in errors] == [("mode", ("a/x.tif",))]


def test_the_transparent_value_of_16_bit_grey_comes_to_lie_on_white(tmp_path):
    values = np.array([[0, 500], [501, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png", transparency=500)
    assert read(tmp_path / "x.png", 65535) == [[0, 255], [2, 255]]
    assert read(tmp_path / "x.png", 1000) == [[0, 255], [128, 255]]


def test_tiff_files_with_white_as_zero_are_told(tmp_path):
    fill(tmp_path, "a", "b")
    (tmp_path / "a" / "x.tif").write_bytes(tiff(VALUES * 16, photometric=0))
    assert set(ranges(report_of(tmp_path))) == {"zero-is-white"}


def test_flat_images_are_told_after_the_range(tmp_path):
    fill(tmp_path, "a", "b")
    save(tmp_path / "a" / "black.png", Image.new("L", (40, 40)))
    save(tmp_path / "a" / "teal.png", Image.new("RGB", (40, 40), "teal"))
    save(tmp_path / "b" / "clear.png", Image.new("RGBA", (40, 40), (10, 20, 30, 0)))
    noise = np.random.default_rng(0).integers(0, 5, (40, 40))
    noise[3, 3] = 255  # a hot pixel
    save(tmp_path / "b" / "cap.png", Image.fromarray(noise.astype(np.uint8)))
    spot = np.zeros((40, 40), np.uint8)
    spot[:2, :2] = 255
    save(tmp_path / "b" / "spot.png", Image.fromarray(spot))
    report = report_of(tmp_path)
    (finding,) = (item for item in report.findings if item.kind == "flat")
    assert finding.paths == ("a/black.png", "a/teal.png", "b/cap.png", "b/clear.png")
    assert finding.sentence() == "4 images of one colour all over, such as black; look at them, remove what is blank"
    # dark by its range alone: no flat image; zeros stay flat
    save(tmp_path / "b" / "twelve.png", Image.fromarray(np.asarray(picture(7).convert("L")).astype(np.uint16)))
    save(tmp_path / "b" / "zeros.png", Image.fromarray(np.zeros((40, 40), np.uint16)))
    report = report_of(tmp_path)
    assert set(ranges(report)) == {"flat", "dark"}
    assert next(item for item in report.findings if item.kind == "flat").paths == (*finding.paths, "b/zeros.png")


def test_near_duplicates_among_dark_images_are_found_with_the_range(tmp_path):
    for number in range(6):
        grey = np.asarray(picture(number).convert("L")).astype(np.uint16)
        save(tmp_path / "ab"[number % 2] / f"{number}.png", Image.fromarray(grey))
    grey = np.asarray(picture(3).convert("L").resize((32, 26))).astype(np.uint16)
    save(tmp_path / "b" / "near.png", Image.fromarray(grey))
    assert report_of(tmp_path).twins == ()
    assert report_of(tmp_path, "auto").twins == (("b/3.png", "b/near.png"),)


def test_images_that_miss_the_range_of_a_network():
    assert misfit([], 4095) == misfit([4095, 4000, 17], 4095) == misfit([257], 4095) == ""
    assert misfit([4096, 100, 5000], 4095) == (
        "2 images have values above 4,095, the largest that the network was trained for; read as white"
    )
    assert misfit([4095], 65535) == (
        "1 image of 16-bit grey has values up to 4,095 only: almost black, as the network takes 65,535 as white"
    )


OPTIONS = {
    "model": "cbam_resnext11_8x8d",
    "image_size": 16,
    "epochs": 1,
    "batch_size": 12,
    "device": "cpu",
    "workers": 0,
    "rand_augment": 0,
}


def train(data, out, **options):
    given = OPTIONS | options
    return run_training(str(data), given, out=out, resume=False, dry_run=False, command="", screen=Silent())


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_the_same_pictures_in_any_number_of_bits_train_to_the_same_weights(tmp_path, crop):
    make_folder(tmp_path / "bits8")
    for path in sorted((tmp_path / "bits8").rglob("*.png")):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.int64)
        grey[0, 0] = 255
        for bits in (8, 10, 12, 14, 16):
            # each is scaled back to the same 8 bits
            values = ((2 * grey * (2**bits - 1) + 255) // 510).astype(np.uint16)
            where = tmp_path / f"bits{bits}in16" / path.parent.name / path.stem
            save(where.with_suffix(".png"), Image.fromarray(values))
        save(path, Image.fromarray(grey.astype(np.uint8)))
    trained, figures, seen = {}, {}, {}
    for data in sorted(tmp_path.glob("bits*")):
        out = tmp_path / "runs" / data.name
        train(data, out, max_value="auto", crop=crop)
        bundle = load_bundle(out)
        largest = 2 ** int(data.name.removeprefix("bits").removesuffix("in16")) - 1 if "in16" in data.name else 65535
        assert json.loads((out / "run.json").read_text())["config"]["max_value"] == largest
        assert json.loads((out / "best" / "bundle.json").read_text())["preprocessing"]["max_value"] == largest
        trained[data.name] = load_file(max((out / "last").glob("*.safetensors")))
        files = sorted(data.rglob("*.png"))
        seen[data.name] = [prediction.classes for prediction in predict(bundle, files)]
        result = evaluate_bundle(bundle, str(data), split="all")
        assert result["misfit"] == ""
        figures[data.name] = result["images"]
    first = trained["bits8"]
    for name, weights in trained.items():
        assert weights.keys() == first.keys()
        assert all(weights[key].equal(first[key]) for key in first), name
        assert (seen[name], figures[name]) == (seen["bits8"], figures["bits8"]), name
    # without the option the same pictures are another data set, and a network that was trained with it says so
    assert evaluate_bundle(load_bundle(tmp_path / "runs" / "bits12in16"), str(tmp_path / "bits16in16"), split="all")[
        "misfit"
    ].startswith("48 images have values above 4,095")
    assert (
        "almost black"
        in evaluate_bundle(load_bundle(tmp_path / "runs" / "bits8"), str(tmp_path / "bits12in16"), split="all")[
            "misfit"
        ]
    )


def test_auto_needs_the_check(tmp_path):
    make_folder(tmp_path / "data", 4)
    with pytest.raises(UserError, match="max_value auto needs the check"):
        train(tmp_path / "data", tmp_path / "run", max_value="auto", check=False)
    with pytest.raises(
        UserError, match="max_value must be a whole number of at least 1 and at most 65535 or auto, got"
    ):
        train(tmp_path / "data", tmp_path / "run", max_value="twelve")
