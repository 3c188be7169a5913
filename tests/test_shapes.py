"""examples/shapes.py: what is written for YOLO, COCO and segmentation tells the same objects."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

FILE = Path(__file__).parents[1] / "examples" / "shapes.py"
COUNTS = {"train": 3, "val": 1, "test": 2}
SIZE = 64


@pytest.fixture(scope="module")
def shapes():
    spec = importlib.util.spec_from_file_location("shapes", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def objects_of_yolo(folder, part, name):
    lines = (folder / "labels" / part / f"{name}.txt").read_text().splitlines()
    rows = np.array([[float(word) for word in line.split()] for line in lines])
    centre, extent = rows[:, 1:3] * SIZE, rows[:, 3:] * SIZE
    return [(int(row[0]), *box) for row, box in zip(rows, np.hstack([centre - extent / 2, extent]), strict=True)]


def test_the_three_formats_tell_the_same_objects(shapes, tmp_path):
    data = shapes.write_yolo(tmp_path / "yolo", **COUNTS, size=SIZE)
    coco = shapes.write_coco(tmp_path / "coco", **COUNTS, size=SIZE)
    masks = shapes.write_masks(tmp_path / "masks", **COUNTS, size=SIZE)
    told = yaml.safe_load(data.read_text())
    assert list(told["names"].values()) == list(shapes.CLASSES)
    for part, count in COUNTS.items():
        content = json.loads((coco / f"{part}.json").read_text())
        assert [category["name"] for category in content["categories"]] == list(shapes.CLASSES)
        assert [annotation["id"] for annotation in content["annotations"]] == list(
            range(1, len(content["annotations"]) + 1)
        )
        assert len(content["images"]) == len(list((data.parent / told[part]).iterdir())) == count
        for image in content["images"]:
            files = {
                (folder / "images" / part / image["file_name"]).read_bytes() for folder in (data.parent, coco, masks)
            }
            assert len(files) == 1
            mine = [item for item in content["annotations"] if item["image_id"] == image["id"]]
            of_coco = [(item["category_id"] - 1, *item["bbox"]) for item in mine]
            of_yolo = objects_of_yolo(data.parent, part, f"{image['id']:05d}")
            np.testing.assert_allclose(of_yolo, of_coco, atol=1e-4)
            mask = np.asarray(Image.open(masks / "masks" / part / image["file_name"]))
            assert (mask > 0).sum() == sum(item["area"] for item in mine)
            for item in mine:
                x, y, width, height = item["bbox"]
                inside = mask[y : y + height, x : x + width] == item["category_id"]
                assert inside.sum() == item["area"]
                # the box is tight
                assert inside[0].any()
                assert inside[-1].any()
                assert inside[:, 0].any()
                assert inside[:, -1].any()


def test_images_follow_from_seed_part_and_number(shapes):
    def pixels(*which):
        return shapes.draw(48, *which)[0].tobytes()

    assert pixels(0, "train", 1) == pixels(0, "train", 1)
    assert len({pixels(0, "train", 1), pixels(1, "train", 1), pixels(0, "val", 1), pixels(0, "train", 2)}) == 4


def test_every_class_is_drawn_at_the_smallest_size(shapes):
    found = [shape for number in range(300) for shape in shapes.draw(32, 0, "train", number)[1]]
    assert {shape.label for shape in found} == set(range(len(shapes.CLASSES)))
    assert all(shape.mask.any() for shape in found)


def test_a_folder_with_other_files_is_refused(shapes, tmp_path, refused):
    (tmp_path / "images").mkdir()
    with refused():
        shapes.write_yolo(tmp_path)


def test_the_command(tmp_path):
    command = [sys.executable, FILE, tmp_path / "new", "--train", "1", "--val", "1", "--test", "1", "--size", "32"]
    told = subprocess.run([*command, "--format", "masks"], capture_output=True, text=True, check=True)
    assert Path(told.stdout.strip()) == tmp_path / "new"
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "is not empty; give a new folder" in again.stderr
