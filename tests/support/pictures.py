"""Small image folders that a small network can learn."""

import numpy as np
from PIL import Image

CLASSES = ("bars", "checks", "plain")


def picture(label, number, size=20):
    """A noisy pattern of the class, as an RGB image."""
    noise = np.random.default_rng([CLASSES.index(label), number])
    # no two near duplicates: the pattern's place and width vary
    width, top, left = noise.integers(3, 6), *noise.integers(0, 12, 2)
    rows, columns = np.mgrid[top : top + size, left : left + size] // width
    pattern = {"bars": rows % 2, "checks": (rows + columns) % 2, "plain": rows * 0 + 0.5}[label]
    pixels = 60 + 120 * pattern[..., None] * noise.uniform(0.7, 1, 3) + noise.normal(0, 12, (size, size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_folder(folder, per_class=16, splits=None, size=20):
    """Fill `folder` with class folders, inside folders for `splits` (name to images per class) if these are given."""
    number = 0
    for split, count in (splits or {".": per_class}).items():
        for label in CLASSES:
            place = folder / split / label
            place.mkdir(parents=True)
            for _ in range(count):
                picture(label, number, size).save(place / f"{number:04d}.png")
                number += 1
    return folder
