"""Generated images for the examples: shapes on a noisy background, with boxes and masks, and nothing to download.

    python examples/shapes.py shapes/ --format yolo    # or coco, or masks

An image shows one to four shapes that do not overlap. The class is the shape; size, angle, colours and stripes are
random. Shapes are a little to much brighter than what is behind them. Image and objects are a function of (seed, part,
number of the image).
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from whatwhere import UserError

CLASSES = ("disc", "ring", "square", "triangle", "cross")
PARTS = ("train", "val", "test")  # val to choose an epoch or a setting by; test for the figures that are reported


class Shape(NamedTuple):
    """An object in an image: its index in CLASSES, its box (x0, y0, x1, y1) in pixels, its mask (H, W)."""

    label: int
    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_]


def draw(size: int, seed: int, part: str, number: int) -> tuple[NDArray[np.uint8], list[Shape]]:
    """Draw an image (size, size, 3) of uint8, size at least 32, and return it with the shapes in it."""
    random = np.random.default_rng((seed, PARTS.index(part), number))
    coarse = Image.fromarray(random.integers(40, 140, (4, 4, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(float)
    taken = np.zeros((size, size), bool)
    shapes = []
    for _ in range(random.integers(1, 5)):
        label = int(random.integers(len(CLASSES)))
        radius = random.uniform(size / 9, size / 4)
        y, x = np.mgrid[:size, :size] - random.uniform(radius, size - radius, (2, 1, 1))
        angle = random.uniform(0, 2 * np.pi)
        u = (np.cos(angle) * x + np.sin(angle) * y) / radius
        v = (np.cos(angle) * y - np.sin(angle) * x) / radius
        mask = _inside(CLASSES[label], u, v)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        colours, stripes = random.uniform(100, 255, (2, 3)), random.random() < 0.3
        here = (slice(box[1], box[3]), slice(box[0], box[2]))
        if taken[here].any():
            continue
        taken[here] = True
        second = stripes & (np.sin(4 * np.pi * u) > 0)
        image[mask] = np.where(second[..., None], colours[0], colours[1])[mask]
        shapes.append(Shape(label, box, mask))
    image += random.normal(0, 15, image.shape)
    return image.clip(0, 255).astype(np.uint8), shapes


def _inside(shape: str, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which pixels are inside a shape within the unit circle."""
    inside: NDArray[np.bool_] = {
        "disc": u**2 + v**2 < 0.8,
        "ring": abs(u**2 + v**2 - 0.675) < 0.325,
        "square": np.maximum(abs(u), abs(v)) < 0.7,
        "triangle": (v > -0.5) & (v + np.sqrt(3) * abs(u) < 1),
        "cross": (np.minimum(abs(u), abs(v)) < 0.25) & (np.maximum(abs(u), abs(v)) < 0.95),
    }[shape]
    return inside


def write_yolo(
    folder: str | Path, *, train: int = 96, val: int = 32, test: int = 64, size: int = 96, seed: int = 0
) -> Path:
    """Write a detection data set as YOLO takes it, and return its data.yaml, which finds the images beside it.

    A line of labels/PART/NUMBER.txt is one object of images/PART/NUMBER.png: class, and centre x, centre y, width,
    height of its box as fractions of the image.
    """
    for part, name, shapes in _written(folder, train, val, test, size, seed):
        boxes = [(label, x0 + x1, y0 + y1, 2 * (x1 - x0), 2 * (y1 - y0)) for label, (x0, y0, x1, y1), _ in shapes]
        lines = [f"{label} " + " ".join(f"{value / (2 * size):.6f}" for value in box) for label, *box in boxes]
        path = _path(folder, "labels", part, f"{name}.txt")
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    data = {part: f"images/{part}" for part in PARTS} | {"names": dict(enumerate(CLASSES))}
    path = Path(folder) / "data.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def write_coco(
    folder: str | Path, *, train: int = 96, val: int = 32, test: int = 64, size: int = 96, seed: int = 0
) -> Path:
    """Write a detection data set in COCO's format, images/PART/ and PART.json, and return its folder."""
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, 1)]  # 0 is the background
    parts = {part: {"images": [], "annotations": [], "categories": categories} for part in PARTS}
    for part, name, shapes in _written(folder, train, val, test, size, seed):
        images, annotations, _ = parts[part].values()
        images.append({"id": int(name), "file_name": f"{name}.png", "width": size, "height": size})
        for label, (x0, y0, x1, y1), mask in shapes:
            annotation = {"id": len(annotations) + 1, "image_id": int(name), "category_id": label + 1, "iscrowd": 0}
            annotations.append(annotation | {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum())})
    for part, content in parts.items():
        _path(folder, f"{part}.json").write_text(json.dumps(content), encoding="utf-8")
    return Path(folder)


def write_masks(
    folder: str | Path, *, train: int = 96, val: int = 32, test: int = 64, size: int = 96, seed: int = 0
) -> Path:
    """Write a segmentation data set, images/PART/ and masks/PART/ (0 is background), and return its folder."""
    for part, name, shapes in _written(folder, train, val, test, size, seed):
        mask = np.zeros((size, size), np.uint8)
        for shape in shapes:
            mask[shape.mask] = shape.label + 1
        Image.fromarray(mask).save(_path(folder, "masks", part, f"{name}.png"))
    return Path(folder)


def _written(
    folder: str | Path, train: int, val: int, test: int, size: int, seed: int
) -> Iterator[tuple[str, str, list[Shape]]]:
    """Write each image, and yield its part, its name and its shapes."""
    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise UserError(f"{str(folder)!r} is not empty; give a new folder, so that no other images get among these")
    for part, count in zip(PARTS, (train, val, test), strict=True):
        for number in range(count):
            pixels, shapes = draw(size, seed, part, number)
            name = f"{number:05d}"
            Image.fromarray(pixels).save(_path(folder, "images", part, f"{name}.png"))
            yield part, name, shapes


def _path(folder: str | Path, *parts: str) -> Path:
    path = Path(folder, *parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a new folder")
    parser.add_argument("--format", choices=("yolo", "coco", "masks"), default="yolo")
    for name, default in (("train", 96), ("val", 32), ("test", 64), ("size", 96), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"by default {default}")
    options = vars(parser.parse_args())
    try:
        print({"yolo": write_yolo, "coco": write_coco, "masks": write_masks}[options.pop("format")](**options))
    except UserError as error:
        parser.error(str(error))
