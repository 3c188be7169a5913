"""Time the loading of training images, decoded, augmented and normalised: whatwhere's loader and timm's.

    python benchmarks/loader.py [--images DIR] [--workers 2]

A round is an epoch, with the start of the workers: threads, and timm's processes. The photos (640x480, and 4000x3000
as cameras take them) are made: smooth noise as JPEG. The small images are those of --images, a folder of class
folders; without it they are made too (100x100). Both loaders use RandAugment with two operations at magnitude 7, flips
and random erasing. "Kept" images are decoded before the rounds.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable

import numpy as np
import timm.data
import torch
from PIL import Image

from harness import environment, measure, parser, refuse_unless_green, report, row_of, table
from whatwhere.data.augment import Augmentation
from whatwhere.data.batches import Order, Reader, TrainBatches
from whatwhere.data.preprocess import preprocessing_for
from whatwhere.data.sources.find import find_source
from whatwhere.data.store import decode_all


def make_images(folder: pathlib.Path, width: int, height: int, count: int = 512) -> pathlib.Path:
    random = np.random.default_rng(0)
    for index in range(count):
        coarse = random.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
        place = folder / f"class{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        grain = random.normal(0, 6, (height, width, 3))
        Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)).save(
            place / f"{index:05d}.jpg", quality=90
        )
    return folder


def whatwhere_loader(
    folder: pathlib.Path, image_size: int, batch_size: int, workers: int, kept: bool
) -> Callable[[], object]:
    source = find_source(str(folder))
    crop = "pad" if image_size <= 64 else "resized"
    preprocessing = preprocessing_for(image_size)
    reader = Reader(source, source.samples, preprocessing, whole=crop == "resized")
    order = Order(len(source.samples), batch_size, seed=0)
    batches = TrainBatches(
        decode_all(reader) if kept else reader,
        torch.zeros(len(source.samples), dtype=torch.int64),
        order,
        Augmentation(preprocessing, crop, 0.35, 0.5, 7, 0.1),
        torch.device("cpu"),
        num_workers=workers,
    )
    return lambda: sum(len(batch.labels) for batch in batches.steps(0, order.steps_per_epoch))


def timm_loader(folder: pathlib.Path, image_size: int, batch_size: int, workers: int) -> Callable[[], object]:
    loader = timm.data.create_loader(
        timm.data.create_dataset("", str(folder)),
        (3, image_size, image_size),
        batch_size,
        is_training=True,
        use_prefetcher=False,
        scale=(0.35, 1.0),
        hflip=0.5,
        auto_augment="rand-m7-n2-p1",
        re_prob=0.1,
        interpolation="bilinear",
        num_workers=workers,
        persistent_workers=False,
    )
    return lambda: sum(len(labels) for _, labels in loader)


def main() -> None:
    options = parser(__doc__, rounds=5, batch_size=64, any_device=False)
    options.add_argument("--images", type=pathlib.Path, help="folder of class folders of small images")
    options.add_argument("--workers", type=int, default=2)
    options = options.parse_args()
    refuse_unless_green("tests/data")
    with tempfile.TemporaryDirectory() as made:
        small = options.images or make_images(pathlib.Path(made, "small"), 100, 100)
        photos = make_images(pathlib.Path(made, "photos"), 640, 480)
        large = make_images(pathlib.Path(made, "large"), 4000, 3000, 64)
        cases = (
            ("small images", small, 32),
            ("small images", small, 64),
            ("photos", photos, 224),
            ("photos of 12 megapixels", large, 224),
        )
        rows, lines, reference = [], [], 0.0
        for title, folder, image_size in cases:
            settings = (folder, image_size, options.batch_size, options.workers)
            candidates = {
                "timm": timm_loader(*settings),
                "whatwhere": whatwhere_loader(*settings, kept=False),
                "whatwhere, kept": whatwhere_loader(*settings, kept=True),
            }
            num_images = len(find_source(str(folder)).samples)
            for name, times in measure(candidates, options.rounds, "cpu").items():
                per_second = 1000 * num_images / times.median
                rows.append(
                    {
                        **row_of(times, images=title, image_size=image_size, loader=name),
                        "images_per_second": round(per_second),
                    }
                )
                lines.append([f"{title}, {image_size} px", name, f"{per_second:,.0f}"])
                reference = per_second if name == "timm" else reference
                lines[-1].append(f"x{per_second / reference:.2f}")
    parts = [
        "# Training images per second",
        f"{environment('cpu')}; batches of {options.batch_size}, {options.workers} workers (threads; timm's are "
        f"processes), {options.rounds} interleaved rounds of an epoch; medians.",
        table(["images", "loader", "images/s", "ratio"], lines),
    ]
    report("loader", "cpu", parts, rows)


if __name__ == "__main__":
    main()
