"""HEIC and AVIF, the photos of phones: read like any other image, or one sentence that says what they need."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pillow_heif import HeifFile, from_pillow, register_heif_opener

from image_files import fill, picture
from whatwhere.data.doctor.report import examine
from whatwhere.data.images import decode, has_avif, open_image, read_image
from whatwhere.data.preprocess import Preprocessing
from whatwhere.data.sources.find import find_source

# to write files; whatwhere itself registers no more than what opens them
register_heif_opener()

SUFFIXES = ["heic", pytest.param("avif", marks=pytest.mark.skipif(not has_avif(), reason="no AVIF here"))]


def write(path, image, orientation=1, **options):
    """Write an image as phones do: a turn stands in the container, and in the EXIF header too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    # of an Exif object, pillow-heif would write no turn into the container
    image.save(path, exif=exif.tobytes(), quality=95, **options)
    return path


def difference(one, other):
    assert one.size == other.size
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).mean()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, None), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270), (8, Image.Transpose.ROTATE_90)],
)
def test_a_photo_is_turned_exactly_once(tmp_path, suffix, orientation, turn):
    stored = picture(3, (96, 64))
    path = write(tmp_path / f"a.{suffix}", stored, orientation)
    with open_image(path) as image:
        result, _ = decode(image)
    expected = stored if turn is None else stored.transpose(turn)
    # of 255; other turns differ by 40 and more
    assert difference(result, expected) < 6
    assert result.getexif().get(0x0112, 1) == 1
    with open_image(path) as image:
        pixels = Preprocessing(32, 32).pixels(image)
    assert torch.equal(pixels, Preprocessing(32, 32).pixels(result))


def test_of_several_images_the_main_one_is_read(tmp_path):
    first, main = picture(1, (64, 64)), picture(2, (64, 64))
    several = HeifFile()
    for image in (first, main):
        several.add_from_pillow(image)
    several.save(tmp_path / "a.heic", primary_index=1, quality=95)
    with open_image(tmp_path / "a.heic") as image:
        assert difference(read_image(image), main) < 6


def test_ten_bits_become_eight(tmp_path):
    deep = np.asarray(picture(4, (64, 64))).astype(np.uint16) * 257
    from_pillow(picture(4, (64, 64))).save(tmp_path / "a.heic", quality=95)
    several = HeifFile()
    several.add_frombytes("RGB;16", (64, 64), deep.tobytes())
    several.save(tmp_path / "b.heic", quality=95)
    with open_image(tmp_path / "a.heic") as eight, open_image(tmp_path / "b.heic") as ten:
        assert difference(read_image(eight), read_image(ten)) < 3


def test_the_doctor_takes_them_and_knows_their_suffixes(tmp_path):
    fill(tmp_path, "a", "b")
    write(tmp_path / "a" / "x.HEIC", picture(1, (64, 64)))
    write(tmp_path / "a" / "y.heif", picture(2, (64, 64)))
    (tmp_path / "b" / "export.jpg").write_bytes((tmp_path / "a" / "y.heif").read_bytes())
    report = examine(find_source(str(tmp_path)), cache=None)
    assert report.counts == {"all": {"a": 5, "b": 4}}
    found = {finding.kind: finding.paths for finding in report.findings}
    assert found == {"wrong-suffix": ("b/export.jpg",), "identical": ("a/y.heif = b/export.jpg",), "contradiction": (
        "a/y.heif (a) = b/export.jpg (b)",
    )}  # fmt: skip


WITHOUT = """
import sys
sys.modules["pillow_heif"] = None
from PIL import features
features.check = lambda name: False
from whatwhere.cli import main
for command in sys.argv[1].split("|"):
    print("$", command, flush=True)
    sys.argv[1:] = command.split()
    try:
        main()
    except SystemExit as end:
        print("status", end.code or 0, flush=True)
"""


def python(folder, *arguments):
    """Run Python in a folder that is the user's home too."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "HOME": str(folder), "COLUMNS": "200", "TERM": "dumb"},
    )


def test_where_they_are_not_read_each_command_says_once_what_they_need(tmp_path):
    data = tmp_path / "data"
    fill(data, "a", "b", count=6)
    photo = write(tmp_path / "photo", picture(1, (64, 64)), format="HEIF").read_bytes()
    for path in ("a/x.heic", "a/y.HEIC", "b/z.heif"):
        (data / path).write_bytes(photo)
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "x.heic").write_bytes(photo)
    rows = ("a/0.png,a", "a/1.png,a", "a/2.png,a", "b/0.png,b", "b/1.png,b", "a/x.heic,b")
    (tmp_path / "table.csv").write_text("path,label\n" + "".join(f"data/{row}\n" for row in rows))
    options = "--image-size 16 --epochs 1 --batch-size 4 --model resnext11_8x8d --device cpu"
    commands = [
        "check data",
        "check table.csv",
        "check phone",
        f"train data --out refused {options}",
        f"train data --skip-bad --out run {options} --workers 0",
        "compare data --attention none,se --out compared",
        "predict run data data/a/x.heic data/a/0.png --device cpu",
    ]
    done = python(tmp_path, "-W", "ignore", "-c", WITHOUT, "|".join(commands))
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    needed = "(photos of an iPhone), which need pip install 'whatwhere[heif]'"
    assert [line.partition("$ ")[2] for line in done.stdout.splitlines() if line.startswith("$ ")] == commands
    assert [line for line in done.stdout.splitlines() if line.startswith("status")] == [
        f"status {status}" for status in (1, 1, 2, 2, 0, 2, 1)
    ]
    assert output.count(f"3 HEIC files {needed}") == 4  # check, train, train --skip-bad, compare
    assert output.count(f"4 HEIC files {needed}") == 1  # predict
    assert output.count(f"1 HEIC file {needed}") == 2  # the table, and a folder of nothing else
    assert output.count("whatwhere[heif]") == 7


def test_after_the_installation_the_doctor_reads_what_it_had_not(tmp_path):
    fill(tmp_path / "data", "a", "b", count=6)
    # a name of another format: only what it holds says what it needs
    write(tmp_path / "data" / "a" / "photo.jpg", picture(1, (64, 64)), format="HEIF")
    before = python(tmp_path, "-W", "ignore", "-c", WITHOUT, "check data")
    assert "whatwhere[heif]" in before.stdout
    after = python(tmp_path, "-W", "ignore", "-m", "whatwhere", "check", "data")
    assert "whatwhere[heif]" not in after.stdout
    assert after.returncode == 0, after.stdout + after.stderr


def test_an_old_pillow_that_does_not_know_avif_is_asked_without_a_warning(tmp_path):
    code = (
        "from PIL import features; features.modules.pop('avif', None)\n"
        "from whatwhere.data.images import FORMATS; assert 'AVIF' not in FORMATS"
    )
    done = python(tmp_path, "-W", "error::UserWarning", "-c", code)
    assert done.returncode == 0, done.stderr
