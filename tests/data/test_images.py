import errno
import io
import pickle
import struct
import threading
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from image_files import bomb, cut, oriented, picture, save, tiff
from whatwhere.data.images import ImageError, open_image, read_image
from whatwhere.data.sources.source import Sample, Source


def read(path):
    with open_image(path) as image:
        return read_image(image)


def pixel(path):
    return read(path).getpixel((0, 0))


def fault(path):
    with pytest.raises(ImageError) as caught:
        read(path)
    return caught.value


def grey16(*values):
    return Image.fromarray(np.array([values], np.uint16))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
    ],
)
def test_modes_of_png(tmp_path, mode, colour, expected):
    assert pixel(save(tmp_path / "a.png", Image.new(mode, (3, 2), colour))) == expected


def test_palettes_with_and_without_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 0, 0, 250])
    image.putpixel((1, 0), 1)
    assert pixel(save(tmp_path / "a.png", image)) == (200, 10, 20)
    assert pixel(save(tmp_path / "b.png", image, transparency=0)) == (255, 255, 255)
    assert pixel(save(tmp_path / "c.png", image, transparency=b"\x00\xff")) == (255, 255, 255)
    assert read(save(tmp_path / "d.gif", image, transparency=1)).getpixel((1, 0)) == (255, 255, 255)


def test_a_colour_declared_transparent_comes_to_lie_on_white(tmp_path):
    assert pixel(save(tmp_path / "a.png", Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3))) == (255,) * 3


def test_cmyk(tmp_path):
    path = save(tmp_path / "a.tif", Image.new("CMYK", (2, 2), (0, 255, 255, 0)))
    assert pixel(path) == (255, 0, 0)
    red, green, blue = pixel(save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95))
    assert red > 250
    assert max(green, blue) < 5


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", grey16(0, 257, 256 * 128, 65534, 65535))
    assert [read(path).getpixel((x, 0))[0] for x in range(5)] == [0, 1, 128, 255, 255]


def test_big_endian_sixteen_bits(tmp_path):
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 65535, 257))
    path = save(tmp_path / "a.tif", image)
    assert [read(path).getpixel((x, 0))[0] for x in range(2)] == [255, 1]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_values_of_unknown_range_are_refused(tmp_path, mode):
    error = fault(save(tmp_path / "a.tif", Image.new(mode, (2, 2), 7)))
    assert error.kind == "mode"
    assert str(error).startswith(f"{tmp_path}/a.tif has ")


def test_an_animation_gives_its_first_frame(tmp_path):
    first, second = Image.new("RGB", (4, 4), (250, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 250))
    for suffix in ("gif", "webp", "png", "tif"):
        path = save(tmp_path / f"a.{suffix}", first, save_all=True, append_images=[second])
        with open_image(path) as image:
            image.seek(1)
            red, _, blue = read_image(image).getpixel((0, 0))
        assert red > 240
        assert blue < 10


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_exif_orientation_is_applied(tmp_path, orientation, suffix):
    stored = picture(1, (24, 16))
    path = oriented(tmp_path / f"a.{suffix}", stored, orientation)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    result = read(path)
    assert result.size == ((24, 16) if orientation < 5 else (16, 24))
    assert result.tobytes() == expected.tobytes()
    assert result.getexif().get(0x0112, 1) == 1  # nobody turns it again


def test_a_corrupt_exif_header_neither_warns_nor_hurts(tmp_path):
    path = save(tmp_path / "a.jpg", picture(1), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03" * 9)
    assert read(path).size == (40, 32)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "gif", "ppm"])
def test_a_file_cut_short_is_refused(tmp_path, suffix):
    path = cut(save(tmp_path / f"a.{suffix}", picture(1)))
    assert fault(path).kind in {"truncated", "unreadable"}
    if suffix in {"jpg", "png"}:
        assert str(fault(path)).startswith(f"{path} is cut short (")


def test_other_faults_name_the_file(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    for name, kind in {"empty": "empty", "text": "unreadable", "folder": "unreadable", "none": "missing"}.items():
        error = fault(tmp_path / f"{name}.jpg")
        assert error.kind == kind
        assert str(error) == f"{tmp_path}/{name}.jpg {error.reason}"


def test_permissions_and_a_full_table_of_files(tmp_path, monkeypatch):
    path = save(tmp_path / "a.jpg")

    def refuse(number):
        def open_refused(*_, **__):
            raise OSError(number, "refused")

        monkeypatch.setattr(Image, "open", open_refused)

    refuse(errno.EACCES)
    assert fault(path).kind == "permission"
    refuse(errno.EIO)
    assert fault(path).kind == "unreadable"
    refuse(errno.EMFILE)
    # not the file's fault
    with pytest.raises(OSError, match="refused"):
        read(path)


def test_a_bomb_is_refused_by_its_header(tmp_path):
    error = fault(bomb(tmp_path / "a.png"))
    assert error.kind == "huge"
    assert str(Image.MAX_IMAGE_PIXELS) in str(error)


def test_the_limit_of_pixels_is_exact(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", picture(1, (40, 32)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 32)
    assert read(path).size == (40, 32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 32 - 1)
    assert "40 x 32 pixels" in str(fault(path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read(path).size == (40, 32)


def test_only_known_formats_are_decoded(tmp_path):
    assert fault(save(tmp_path / "a.jpg", picture(1), format="ICO")).kind == "unreadable"


def test_an_error_names_what_is_read(tmp_path):
    cut(save(tmp_path / "cat" / "a.jpg"))
    source = Source("pets", tmp_path, (Sample("cat/a.jpg", "cat", None),))
    with pytest.raises(ImageError, match=r"cat/a\.jpg is cut short"):
        read_image(source.open(source.samples[0]))


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path):
    error = fault(tmp_path / "a\udcff\n.jpg")
    assert str(error).endswith(r"a\xff\n.jpg does not exist")


def test_the_error_survives_a_process_and_torch():
    error = pickle.loads(pickle.dumps(ImageError("a.jpg is empty", "empty", "is empty")))
    assert (str(error), error.kind, error.reason) == ("a.jpg is empty", "empty", "is empty")
    assert ImageError("what a worker said").kind == "unreadable"


def test_an_image_in_memory_is_left_as_it_was():
    image = picture(1)
    image.info["comment"] = "kept"
    before = image.tobytes()
    assert read_image(image).tobytes() == image.tobytes() == before
    assert image.info == {"comment": "kept"}
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert read_image(Image.open(buffer)).tobytes() == image.tobytes()


def odd_exif(path):
    """Write a JPEG with an EXIF header that asks for a turn twice in one entry, at which Pillow warns."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 2, 6, 6)
    header = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    picture(1).save(path, exif=header)
    return path


def test_reading_leaves_the_warnings_to_the_process(tmp_path):
    path, before = odd_exif(tmp_path / "a.jpg"), list(warnings.filters)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: seen.append(str(message))
        thread = threading.Thread(target=lambda: read_image(open_image(path)))
        thread.start()
        thread.join()
    assert len(seen) == 1
    assert warnings.filters == before


def test_a_warning_that_the_user_made_an_error_turns_no_picture_in_silence(tmp_path):
    path = odd_exif(tmp_path / "a.jpg")
    upright = read_image(open_image(path))
    assert upright.size == picture(1).size[::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="too many entries"):
            read_image(open_image(path))


def bmp(path, bits, compression=0, num_colours=0):
    head = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, bits, compression, 0, 0, 0, num_colours, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 154, 0, 0, 54) + head + bytes(100))
    return path


KNOWN_BEGINNINGS = {
    "five bands": lambda path: tiff(path, 5),
    "a palette of 16 bits": lambda path: tiff(path, 1, 16, photometric=3),
    "a rare compression": lambda path: tiff(path, 3, photometric=2, compression=34712),
    "values of 64 bits": lambda path: tiff(path, 1, 64),
    "the start of a TIFF file": lambda path: cut(tiff(path, 1)),
    "the start of a JPEG file": lambda path: path.write_bytes(b"\xff\xd8\xff\xe0"),
    "2 bits": lambda path: bmp(path, 2),
    "a JPEG in a BMP": lambda path: bmp(path, 24, compression=4),
    "a palette of 70,000 colours": lambda path: bmp(path, 8, num_colours=70_000),
}


@pytest.mark.parametrize("kind", KNOWN_BEGINNINGS)
def test_what_begins_as_an_image_and_is_of_a_kind_that_pillow_does_not_read(tmp_path, kind):
    KNOWN_BEGINNINGS[kind](tmp_path / "a.img")
    error = fault(tmp_path / "a.img")
    assert error.kind == "unknown"
    assert "of a kind that Pillow does not read" in error.reason
    assert error.reason.endswith("; save it as PNG")


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "pointer", "Git LFS"),
        (b"<!DOCTYPE html><html>404", "unreadable", "web page"),
        (b"PK\3\4" + bytes(40), "unreadable", "archive"),
        (b"%PDF-1.7\n", "unreadable", "PDF"),
        (b"something else", "unreadable", "known format"),
    ],
)
def test_what_is_often_in_the_place_of_an_image(tmp_path, content, kind, said):
    (tmp_path / "a.jpg").write_bytes(content)
    error = fault(tmp_path / "a.jpg")
    assert (error.kind, said in error.reason) == (kind, True)
