"""Read image files as 8-bit RGB."""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features
from PIL.TiffImagePlugin import TiffImageFile

from ..base.errors import UserError
from ..base.words import cause, printable

# by what a HEIC file says of itself at its start: iPhones write heic
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
with contextlib.suppress(ImportError):
    from pillow_heif import HeifImageFile

    if "HEIF" not in Image.OPEN:
        Image.register_open("HEIF", HeifImageFile, lambda start: start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS)


def has_avif() -> bool:
    """Return whether this Pillow reads AVIF; an old one does not know the name, and `features.check` would warn."""
    return "avif" in features.modules and features.check("avif") is True


# the only decoders that are used; the file's content decides, not its suffix
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm"),
}
# formats that need a package, or a newer Pillow
_OPTIONAL = {"HEIF": (".heic", ".heif", ".hif"), "AVIF": (".avif",)}
FORMATS |= {
    name: suffixes for name, suffixes in _OPTIONAL.items() if ("HEIF" in Image.OPEN if name == "HEIF" else has_avif())
}
ABSENT = {name.lower(): suffixes for name, suffixes in _OPTIONAL.items() if name not in FORMATS}
CURES = {"heif": "pip install 'whatwhere[heif]'", "avif": "pip install --upgrade pillow"}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

READ_AS = {
    "RGB": "as it is",
    "L": "grey in all three channels",
    "1": "black and white in all three channels",
    "P": "through its palette, what is transparent on white",
    "LA": "grey, composited on white",
    "PA": "through its palette, composited on white",
    "La": "grey, composited on white",
    "RGBA": "composited on white",
    "RGBa": "composited on white",
    "RGBX": "its fourth channel left out",
    "CMYK": "converted by Pillow, without a colour profile",
    "YCbCr": "converted by Pillow",
    "HSV": "converted by Pillow",
} | dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N", "I"), "16-bit grey, 0 to {max_value:,} scaled to 0 to 255")
MAX_VALUE = 65535  # the largest value of 16 bits
# tags of TIFF and EXIF
_BITS, _ORIENTATION, _PLANES, _SAMPLE_FORMAT = 258, 0x0112, 284, 339
_SIGNED = 2  # a value of the last
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "BMP": (b"BM",),
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "PAM": (b"P7\n",),
}
# of files that are often in the place of images: their first bytes, the kind of fault, and what they are
_IN_PLACE: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    ((b"version https://git-lfs",), "pointer", "is a pointer of Git LFS; `git lfs pull` fetches the image"),
    ((b"<!DOCTYPE html", b"<!doctype html", b"<html"), "unreadable", "is a web page, no image; load the image again"),
    ((b"PK\3\4",), "unreadable", "is an archive, no image; unpack it"),
    ((b"%PDF",), "unreadable", "is a PDF file, no image; save its pages as PNG"),
)
# errors of the process or the machine, not of the image
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class ImageError(UserError):
    """An image that cannot be used.

    Attributes:
        kind: "truncated", "empty", "huge", "unreadable", "permission", "mode", "planes" or "missing"; "unknown" where a
            file begins as an image and Pillow knows no more of it; "pointer" of Git LFS; "heif" or "avif" where the
            format is not read here; "silent" where no image comes at all.
        reason: The end of a sentence that begins with the image's name.
    """

    def __init__(self, message: str, kind: str = "unreadable", reason: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason or message


def open_image(path: Path | str) -> Image.Image:
    """Open an image file without decoding it. Its content decides the format, not its suffix.

    Raises:
        ImageError: The file is missing, empty, in no format of `FORMATS`, or has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with errors_of(str(path)):
        try:
            image = Image.open(path, formats=tuple(FORMATS))
        except UnidentifiedImageError as error:
            path = Path(path)
            if not path.stat().st_size:
                raise ImageError("empty", "empty", "is empty (0 bytes)") from error
            if kind := absent_format(path):
                raise ImageError(kind, kind, f"is {kind.upper()}, which needs {CURES[kind]}") from error
            start = _start(path)
            for beginnings, kind, reason in _IN_PLACE:
                if start.startswith(beginnings):
                    raise ImageError(kind, kind, reason) from error
            for name, beginnings in _BEGINNINGS.items():
                if start.startswith(beginnings):
                    reason = f"begins as {name}, but is damaged or of a kind that Pillow does not read; save it as PNG"
                    raise ImageError("unknown", "unknown", reason) from error
            raise
        try:
            _check_size(image)
        except BaseException:
            image.close()
            raise
        return image


def absent_format(path: Path) -> str:
    """Return the format in `ABSENT` that a file is in, by its content; "" if it is in none of them."""
    start = _start(path) if ABSENT else b""
    # its main brand, and the others that it fits
    brands = {start[place : place + 4] for place in (8, *range(16, len(start), 4))} if start[4:8] == b"ftyp" else set()
    kind = "avif" if brands & {b"avif", b"avis"} else "heif" if brands & {*_HEIF_BRANDS} else ""
    return kind if kind in ABSENT else ""


def _start(path: Path) -> bytes:
    """Return the first bytes of a file; none where it cannot be read."""
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(64)
    return b""


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        ImageError: The file is missing or may not be read.
    """
    with errors_of(str(path)):
        return path.read_bytes()


def has_unknown_range(image: Image.Image) -> bool:
    """Return whether an image that is not decoded yet has 16 bits for a value and may use fewer.

    Cameras write 8 to 14 bits into 16. A PGM or PPM file gives its largest value, and Pillow scales by it: only 65535
    may be too large there.
    """
    tiles = getattr(image, "tile", None)
    if not tiles:  # in memory, or decoded before
        return image.mode.startswith("I")
    decoder, *_, arguments = tiles[0]
    first, *others = (arguments,) if isinstance(arguments, str) else arguments
    if decoder in {"ppm", "ppm_plain"}:
        return others == [MAX_VALUE]
    # Pillow's name of how the values are stored: I;16B, I;12, RGB;16L (in BMP, BGR;16 is 16 bits for all three)
    return image.format in {"PNG", "PPM", "TIFF"} and str(first).partition(";")[2][:2] in {"12", "16"}


def grey_values(image: Image.Image) -> NDArray[np.int64] | None:
    """Return the values (H, W) of a decoded image of 16-bit grey, from 0 to 65535; None for other images."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"}):
        return np.asarray(image).astype(np.int64).clip(0, MAX_VALUE)
    return None


@functools.lru_cache(4)
def levels(max_value: int) -> NDArray[np.uint8]:
    """Return what becomes of each 16-bit value v: round(255 min(v, max_value) / max_value), halves up.

    In whole numbers: (510 min(v, max_value) + max_value) // (2 max_value); for 65535 it is (v + 128) // 257.

    Shape:
        (65536,), uint8.
    """
    values = np.arange(MAX_VALUE + 1).clip(max=max_value)
    return ((510 * values + max_value) // (2 * max_value)).astype(np.uint8)


def read_image(image: Image.Image, max_value: int = MAX_VALUE) -> Image.Image:
    """Decode an opened image to 8-bit RGB, as `decode` does."""
    return decode(image, max_value)[0]


def decode(image: Image.Image, max_value: int = MAX_VALUE) -> tuple[Image.Image, bool]:
    """Decode an opened image to 8-bit RGB, and return with it whether the EXIF header asks for a turn.

    An RGB image without a turn is returned itself: a copy would cost a tenth of the reading.

    The EXIF orientation is applied; one that cannot be read is ignored. Of an animation, or a file with several pages,
    the first image is read. Transparent pixels are composited on white. 16-bit grey is scaled by `levels`: `max_value`
    and what is above it become 255; a PGM file with a largest value of its own is scaled by that. Pillow cuts 16-bit
    colour, and 16-bit grey with alpha, to the upper 8 bits. Colour profiles are ignored, that of CMYK too.

    Raises:
        ImageError: The image has more pixels than `PIL.Image.MAX_IMAGE_PIXELS` (checked before decoding), is damaged,
            has 32-bit or floating-point values, which have no known range, or 16-bit colour that Pillow reads wrongly.
    """
    name = getattr(image, "filename", "") or "the image"
    with errors_of(name):
        _check_size(image)
        # of a HEIC file, the first image is another than the main one, which is open
        if image.tell() and image.format != "HEIF":
            image.seek(0)
        # Pillow turns a TIFF image as it decodes, and drops the tag
        stored = _orientation(lambda: image.tag_v2) if isinstance(image, TiffImageFile) else 1
        _check_tiff(image)
        max_value = max_value if has_unknown_range(image) else MAX_VALUE
        image.load()
        # only now: to read the EXIF header of a PNG, Pillow decodes it, and then reports no damage any more
        orientation = _orientation(image.getexif)
        result = _to_rgb(image, max_value)
        if orientation in _TURNS:
            result = result.transpose(_TURNS[orientation])
            result.info = {}  # the EXIF header is wrong now
        return result, stored in _TURNS or orientation in _TURNS


def _orientation(header: Callable[[], Mapping[int, Any]]) -> int:
    """Return the EXIF orientation, 1 if there is none."""
    try:
        return int(header().get(_ORIENTATION, 1))
    except Warning:  # an error by the user's own filter
        raise
    except Exception:  # a corrupt header raises many errors, and the picture may be fine
        return 1


def _to_rgb(image: Image.Image, max_value: int) -> Image.Image:
    mode = image.mode
    if (values := grey_values(image)) is not None:
        grey = levels(max_value)[values]
        if isinstance(clear := image.info.get("transparency"), int):  # of a PNG; white, as below
            grey[values == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if mode not in READ_AS or mode == "I":
        kind = {"F": "floating-point values", "I": "signed or 32-bit values"}.get(mode, f"mode {mode}")
        raise _unknown_range(kind)
    if mode in {"La", "RGBa"}:
        image = image.convert(mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _unknown_range(kind: str) -> ImageError:
    return ImageError(kind, "mode", f"has {kind} without a known range; convert it to 8 bits")


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if (limit := Image.MAX_IMAGE_PIXELS) is not None and width * height > limit:
        raise ImageError("huge", "huge", f"has {width} x {height} pixels, more than {limit}; make it smaller")


def _check_tiff(image: Image.Image) -> None:
    """Refuse TIFF files that Pillow reads wrongly: signed values of 8 bits, and, uncompressed, planes of 16 bits."""
    if not isinstance(image, TiffImageFile) or not image.tile:
        return
    if _SIGNED in image.tag_v2.get(_SAMPLE_FORMAT, ()):
        raise _unknown_range("signed values")
    if image.tile[0][0] != "raw":
        return
    bits = image.tag_v2.get(_BITS, (1,))
    if image.tag_v2.get(_PLANES) == 2 and len(bits) > 1 and max(bits) > 8:
        reason = "has 16-bit colour, one colour after the other, which Pillow cannot read; convert it to 8 bits"
        raise ImageError("16-bit planes", "planes", reason)


@contextlib.contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Turn errors of Pillow and of the file system into an `ImageError` that begins with `name`."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{printable(name)} {error.reason}", error.kind, error.reason) from error
    except MemoryError:
        raise
    except Exception as error:  # a decoder of a damaged file may raise anything
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            raise
        match error:
            case FileNotFoundError():
                kind, reason = "missing", "does not exist"
            case PermissionError():
                kind, reason = "permission", "may not be read; change its permissions"
            case Image.DecompressionBombError():
                kind, reason = "huge", f"has more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller"
            case UnidentifiedImageError():
                kind, reason = "unreadable", "is no image of a known format"
            case OSError() if "unsupported" in cause(error).lower():
                kind, reason = "unknown", f"is of a kind that Pillow does not read ({cause(error)}); save it as PNG"
            case _ if "truncated" in cause(error).lower() or isinstance(error, EOFError):
                kind, reason = "truncated", f"is cut short ({cause(error)})"
            case OSError() if error.strerror:
                kind, reason = "unreadable", f"cannot be read ({error.strerror})"
            case _:
                kind, reason = "unreadable", f"cannot be decoded ({cause(error)})"
        raise ImageError(f"{printable(name)} {reason}", kind, reason) from error
