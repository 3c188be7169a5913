"""How long the runs of a comparison take, from what a batch costs."""

import msgspec
import pytest
import torch

from comparisons import design_of
from whatwhere.comparison.arms import parse_arms
from whatwhere.comparison.content import CostRow, Costs
from whatwhere.comparison.costs import measure_costs, pace, width_for_time, within_an_hour
from whatwhere.training.estimate import Pace

IMAGES = {"train": 1000, "val": 200, "test": 300}


def costs_of(**step_and_forward):
    """Costs of batches of 10 images: milliseconds of a training step and of a forward pass, by arm."""
    rows = tuple(
        CostRow(
            arm=arm, num_params=1, macs=1, saved_bytes=1, forward_ms=forward, training_step_ms=step,
            images_per_second=None,
        )
        for arm, (step, forward) in step_and_forward.items()
    )  # fmt: skip
    return Costs(num_images=10, image_size=96, device="cpu", rows=rows)


@pytest.fixture
def design():
    plain = design_of()
    return design_of(
        backbone="resnet50",
        arms=parse_arms("none,cbam"),
        options={**plain.options, "epochs": 100, "image_size": 96},
        arm_options={"none": {"model": "resnet50"}, "cbam": {"model": "cbam_resnet50"}},
    )


def test_seconds_of_a_run():
    costs = costs_of(none=(30.0, 10.0), cbam=(60.0, 20.0))
    # 2 epochs: 2 x 1,000 images at 3 ms; evaluated: 3 x 200 validation and 300 test images at 1 ms
    assert pace(costs, "none").seconds(2, IMAGES) == pytest.approx(6.0 + 0.9)
    assert pace(costs, "cbam").seconds(2, IMAGES) == pytest.approx(2 * (6.0 + 0.9))
    # to read images takes 1 ms for each that is trained, 2 ms for each that is evaluated, and 5 s before
    reading = Pace(0.001, 0.002, 5.0)
    assert pace(costs, "none", reading).seconds(2, IMAGES) == pytest.approx(6.9 + 2.0 + 1.8 + 5.0)
    # a forward pass is a part of a step: what seems longer was disturbed
    assert pace(costs_of(none=(30.0, 900.0)), "none").seconds(2, IMAGES) == pytest.approx(6.0 + 2.7)
    # files of earlier versions lack the times
    assert pace(costs_of(none=(None, None)), "none").seconds(2, IMAGES) == 0


def test_the_batch_that_is_measured_suits_a_cpu(design):
    shown = []

    def measured(size, batch_size, device="cpu"):
        small = msgspec.structs.replace(
            design,
            options={**design.options, "image_size": size, "batch_size": batch_size},
            arm_options={"none": {"model": "resnet8"}, "cbam": {"model": "cbam_resnet8"}},
        )
        shown.clear()
        return measure_costs(small, 3, torch.device(device), lambda *progress: shown.append(progress)).num_images

    assert measured(16, 128) == 32
    assert measured(16, 12) == 12
    # 32 images of 96 px, or as many pixels
    assert measured(128, 64) == 18
    assert measured(224, 64) == 8
    # each arm, then rounds that time both
    what, done, total = zip(*shown, strict=True)
    assert set(what) == {"measuring what each arm costs"}
    assert list(done) == sorted(done)
    assert len(done) >= 2 + 3
    assert total[2] == 2 + 12


@pytest.mark.parametrize(
    ("step_ms", "expected", "seconds"),
    [
        # 12 runs in an hour: 300 s each. An epoch on 1,000 images at s/10 ms, and half as much again for attention.
        ({"resnet50": 10}, "resnet50 --image-size 96 --epochs 100", 12 * 100 * 1.5),
        ({"resnet50": 100}, "resnet50 --image-size 96 --epochs 20", 12 * 20 * 15),
        ({"resnet50": 250, "resnet18": 100}, "resnet18 --image-size 64 --epochs 20", 12 * 20 * 15),
        (
            {"resnet50": 250, "resnet18": 250, "resnet20": 250, "resnet8": 20},
            "resnet8 --image-size 32 --epochs 100",
            12 * 100 * 3,
        ),
        # the smallest network is named whatever it takes
        (dict.fromkeys(("resnet50", "resnet18", "resnet20", "resnet8"), 1000), "resnet8 --image-size 32 --epochs 2",
         12 * 2 * 150),
        (dict.fromkeys(("resnet50", "resnet18", "resnet20", "resnet8"), 9000), "resnet8 --image-size 32 --epochs 1",
         12 * 1350),
    ],
)  # fmt: skip
def test_what_fits_an_hour(design, step_ms, expected, seconds):
    asked = []

    def measure(plain, num_classes, device, progress):
        (arm,) = plain.arms
        network = plain.run_options(arm.name, 0)
        asked.append((network["model"], network["image_size"]))
        return costs_of(none=(step_ms[network["model"]], 0.0))

    options, fitting = within_an_hour(design, 10, IMAGES, torch.device("cpu"), measure)
    assert (options, fitting) == (f"--backbone {expected} --seeds 6", pytest.approx(seconds))
    assert [model for model, _ in asked] == list(step_ms)


@pytest.mark.parametrize(
    ("size", "weights", "tried", "at"),
    [
        (96, "", ["resnet50 96", "resnet18 64", "resnet20 32", "resnet8 32"], ""),
        (48, "", ["resnet50 48", "resnet18 48", "resnet20 32", "resnet8 32"], ""),
        # images are never enlarged
        (28, "", ["resnet50 28", "resnet18 28", "resnet20 28", "resnet8 28"], ""),
        # --pretrained stays in the command, so the network must have weights
        (96, "imagenet", ["resnet50 96", "resnet18 64", "resnet18 32"], ""),
        (28, "imagenet", ["resnet50 28", "resnet18 28"], ""),
        (96, "mine.pt", ["resnet50 96", "resnet50 64", "resnet50 32"], ""),
        (28, "mine.pt", ["resnet50 28"], ""),
        (28, "", ["resnet50 28", "resnet18 28", "resnet20 28", "resnet8 28"], "stages"),
        # other networks have other modules
        (96, "", ["resnet50 96", "resnet50 64", "resnet50 32"], "layer4.*.bn3"),
        (96, "imagenet", ["resnet50 96", "resnet50 64", "resnet50 32"], "layer4.*.bn3"),
    ],
)
def test_what_is_tried_for_an_hour_suits_the_images_the_weights_and_the_places(design, size, weights, tried, at):
    options = {**design.options, "image_size": size, "pretrained": weights, "at": at}
    asked = []

    def measure(plain, num_classes, device, progress):
        network = plain.run_options(plain.arms[0].name, 0)
        asked.append(f"{network['model']} {network['image_size']}")
        return costs_of(none=(9000.0, 0.0))

    design = msgspec.structs.replace(design, options=options)
    named, _ = within_an_hour(design, 10, IMAGES, torch.device("cpu"), measure)
    assert asked == tried
    backbone, pixels = tried[-1].split()
    assert named == f"--backbone {backbone} --image-size {pixels} --epochs 1 --seeds 6"


def test_few_epochs_are_no_reason_for_a_smaller_network(design):
    design = msgspec.structs.replace(design, options={**design.options, "epochs": 5})
    options, _ = within_an_hour(design, 10, IMAGES, torch.device("cpu"), lambda *_: costs_of(none=(10.0, 0.0)))
    assert options == "--backbone resnet50 --image-size 96 --epochs 5 --seeds 6"


def test_reading_counts_in_what_fits_an_hour(design):
    # 12 runs: 300 s each, 100 of them before the first step; an epoch takes 1.5 s and 1 s to read
    options, seconds = within_an_hour(
        design, 10, IMAGES, torch.device("cpu"), lambda *_: costs_of(none=(10.0, 0.0)), reading=Pace(0.001, 0.0, 100.0)
    )
    assert options == "--backbone resnet50 --image-size 96 --epochs 80 --seeds 6"
    assert seconds == pytest.approx(12 * (100 + 80 * 2.5))


@pytest.mark.parametrize(
    ("time_at", "slower", "expected", "within"),
    [
        (lambda width: 10 * width**2, 1.44, 1.2, 0.03),
        (lambda width: 10 * width**0.7, 2.5, 2.5 ** (1 / 0.7), 0.03),
        # of a small network, most is the same at any width
        (lambda width: 8 + 2 * width**2, 1.3, 2.5**0.5, 0.03),
        (lambda width: 10 * (1 + int(8 * (width - 1)) / 8), 1.3, 1.25, 0.05),  # in steps
    ],
)
def test_the_width_that_takes_as_long_as_the_slowest_arm(design, time_at, slower, expected, within):
    design = msgspec.structs.replace(
        design,
        arms=parse_arms("none,se,cbam,wide:time"),
        arm_options={**design.arm_options, "se": {"model": "se_resnet50"}},
    )
    asked = []

    def measure(measured, num_classes, device, progress):
        *others, wide = measured.arms
        width = measured.run_options(wide.name, 0)["width_factor"]
        asked.append(([arm.name for arm in others], width))
        times = {"se": (10.5, 1.0), "cbam": (10 * slower, 1.0), wide.name: (time_at(width), 1.0)}
        return costs_of(**{arm.name: times[arm.name] for arm in measured.arms})

    factor, costs = width_for_time(design, design.arms[-1], 10, torch.device("cpu"), measure, lambda *shown: None)
    assert asked[0] == (["se", "cbam"], 1.0)
    assert {tuple(others) for others, _ in asked[1:]} == {("cbam",)}
    assert len(asked) <= 7
    assert time_at(factor) == pytest.approx(10 * slower, rel=within)
    assert factor == pytest.approx(expected, rel=0.1)
    assert [row.arm for row in costs.rows] == ["cbam", "wide-time"]
    assert costs.rows[1].training_step_ms == time_at(factor)


def test_a_wider_network_for_an_arm_that_is_no_slower_is_refused(design, refused):
    timed = parse_arms("wide:time:cbam")[0]

    def measure(measured, *rest):
        return costs_of(**{arm.name: (10.0, 1.0) for arm in measured.arms})

    with refused():
        width_for_time(
            msgspec.structs.replace(design, arms=(*design.arms, timed)), timed, 10, torch.device("cpu"), measure, print
        )
