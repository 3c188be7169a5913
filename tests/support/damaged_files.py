"""Image files of each format, damaged at a random place."""

import io

from pillow_heif import register_heif_opener

from image_files import picture

KINDS = {
    "JPEG": [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}],
    "PNG": [{}, {"compress_level": 0}, {"compress_level": 9}],
    "WEBP": [{}, {"lossless": True}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "jpeg"}],
    "BMP": [{}],
    "GIF": [{}],
    "HEIF": [{"quality": 50}, {"quality": 95}],
    "AVIF": [{"speed": 10}],
}
# only to write files: whatwhere itself registers no more than what opens them
register_heif_opener()


def saved(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cut(content, draw):
    return content[: draw.randrange(1, len(content))]


def one_byte(content, draw):
    place = draw.randrange(len(content))
    return content[:place] + bytes([(content[place] + draw.randrange(1, 256)) % 256]) + content[place + 1 :]


def zeros(content, draw):
    place, count = draw.randrange(len(content)), draw.randrange(1, 200)
    return content[:place] + bytes(len(content[place : place + count])) + content[place + count :]


def damaged_file(kind, index, draw):
    """Return a file of a format, the same damaged at a random place, and its options."""
    size = (draw.randrange(16, 120), draw.randrange(16, 120))
    options = draw.choice(KINDS[kind])
    exif = picture(0).getexif()
    if draw.random() < 0.5:
        exif[0x0112] = draw.randrange(1, 9)
    whole = saved(picture(index, size), kind, exif=exif, **options)
    return whole, draw.choice([cut, one_byte, zeros])(whole, draw), options
