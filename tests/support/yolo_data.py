"""Small data sets in the formats of Ultralytics: a red or a blue square in noise."""

import numpy as np
from PIL import Image


def write(folder, task, *, train=16, val=8, size=64, seed=0):
    """Write a data set for a task of Ultralytics, and return what its argument `data` takes."""
    random = np.random.default_rng(seed)
    for part, count in (("train", train), ("val", val)):
        for number in range(count):
            image = random.integers(0, 80, (size, size, 3), dtype=np.uint8)
            label, width = number % 2, int(random.integers(12, 24))
            x, y = random.integers(0, size - width, 2)
            image[y : y + width, x : x + width] = (60, 60, 255) if label else (255, 60, 60)
            images = folder / part / ("red", "blue")[label] if task == "classify" else folder / "images" / part
            images.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(images / f"{number}.png")
            if task != "classify":
                labels = folder / "labels" / part
                labels.mkdir(parents=True, exist_ok=True)
                corners = np.array([(x, y), (x + width, y), (x + width, y + width), (x, y + width)]) / size
                (labels / f"{number}.txt").write_text(f"{label} {_described(task, corners)}\n")
    if task == "classify":
        return str(folder)
    points = "kpt_shape: [4, 2]\nflip_idx: [1, 0, 3, 2]\n" if task == "pose" else ""
    yaml = folder / "data.yaml"
    yaml.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: [red, blue]\n{points}")
    return str(yaml)


def _described(task, corners):
    box = [*corners.mean(0), *(corners[2] - corners[0])]
    values = {"detect": box, "pose": [*box, *corners.ravel()]}.get(task, list(corners.ravel()))
    return " ".join(f"{value:.6f}" for value in values)
