"""Image files for tests of the data doctor: sound, damaged and misleading ones."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def _number(text):
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def picture(seed, size=(40, 32)):
    """Return a smooth coloured picture; those of different seeds have nothing in common."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def save(path, image=None, seed=None, **options):
    """Write a picture, by default one that its path determines, with the folders it lies in."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if image is None:
        image = picture(_number(path.as_posix()) if seed is None else seed)
    image.save(path, **options)
    return path


def fill(root, *folders, count=3):
    """Write `count` different pictures into each folder."""
    for folder in folders:
        for index in range(count):
            save(Path(root) / folder / f"{index}.png", seed=_number(f"{folder}/{index}"))
    return root


def cut(path, share=0.5):
    """Cut a file short."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(len(content) * share)])
    return path


def bomb(path, width=60_000, height=60_000):
    """Write a PNG file whose header claims a huge image."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as target:
        target.write(b"\x89PNG\r\n\x1a\n")
        for body in (header, data, b"IEND"):
            target.write(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
    return path


def oriented(path, image, orientation, **options):
    """Write an image whose EXIF header asks for a rotation or reflection."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(path, image, exif=exif, **options)


def tiff(path, bands, bits=8, *, photometric=1, compression=1, size=8):
    """Write a TIFF file of zeros of any kind, also of those that Pillow does not write."""
    data = bytes(size * size * bands * bits // 8)
    depths, place = struct.pack(f"<{bands}H", *[bits] * bands), 8 + len(data)
    depth = bits if bands == 1 else struct.unpack("<I", depths)[0] if bands == 2 else place
    tags = [(256, 4, 1, size), (257, 4, 1, size), (258, 3, bands, depth), (259, 3, 1, compression)]
    tags += [(262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, bands), (278, 4, 1, size), (279, 4, 1, len(data))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<I", place + len(depths))
    path.write_bytes(head + data + depths + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path
