"""What the arms of a comparison cost, measured in turn on one machine, and about how long its runs take."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import torch

from ..cost import cost, measure_latency
from ..statistics.looks import LEAST_PAIRS
from ..training.setup import device_name
from ..training.trainer import autocast
from .arms import Arm, build
from .content import CostRow, Costs
from .design import Design

Measure = Callable[[Design, int, torch.device], Costs]  # what `measure_costs` is

_MOST_IMAGES, _SMALL = 8, 64  # above 64 px a CPU takes seconds for a larger batch
HOUR, _FEWEST_EPOCHS = 3600, 10  # seconds


def measure_costs(design: Design, num_classes: int, device: torch.device) -> Costs:
    """Measure each arm's parameters, MACs of one image, and bytes saved for backward and times of a batch.

    Image size, batch size, memory format and precision are those of the runs; above 64 px on a CPU the batch has 8
    images at most. The arms take turns, so that a slower moment of the machine slows all of them.
    """
    options = design.options
    size, num_images = options["image_size"], options["batch_size"]
    if device.type == "cpu" and size > _SMALL:
        num_images = min(num_images, _MOST_IMAGES)
    layout = torch.channels_last if options["channels_last"] else torch.contiguous_format
    models = [
        build(design.run_options(arm.name, 0), num_classes, 0).to(device=device, memory_format=layout)
        for arm in design.arms
    ]
    costs = [cost(model, (3, size, size), batch_size=num_images) for model in models]
    images = torch.randn(num_images, 3, size, size, device=device).to(memory_format=layout)
    with autocast(device, options["amp"]):
        times = measure_latency(models, [images] * len(models))
    rows = tuple(
        CostRow(
            arm=arm.name,
            num_params=item.total.num_params,
            macs=item.total.macs // num_images,
            saved_bytes=item.total.saved_bytes,
            forward_ms=latency.forward_ms,
            training_step_ms=latency.training_step_ms,
            images_per_second=1000 * num_images / latency.training_step_ms,
        )
        for arm, item, latency in zip(design.arms, costs, times, strict=True)
    )
    return Costs(
        num_images=num_images, image_size=size, precision=options["amp"], device=device_name(device), rows=rows
    )


def seconds_of_run(costs: Costs, arm: str, epochs: int, num_images: Mapping[str, int]) -> float:
    """Estimate the seconds of a run of `arm`: its training steps and evaluations, not its start or reading of images.

    epochs * train * step + ((epochs + 1) * val + test) * forward, with the numbers of images of the parts
    (`num_images`), and the measured times for an image.
    """
    row = next(row for row in costs.rows if row.arm == arm)
    evaluated = (epochs + 1) * num_images["val"] + num_images["test"]
    step, forward = row.training_step_ms or 0.0, row.forward_ms or 0.0  # None in files of earlier versions
    return (epochs * num_images["train"] * step + evaluated * forward) / costs.num_images / 1000


def within_an_hour(
    design: Design,
    num_classes: int,
    num_images: Mapping[str, int],
    device: torch.device,
    measure: Measure = measure_costs,
) -> tuple[str, float]:
    """Return options with which the comparison takes at most an hour on `device`, and about how many seconds.

    Takes the first of ever smaller networks and images that can train for 10 epochs, or for the design's if these are
    fewer; the last one if none can. Images do not get larger, and a network has weights where the design asks for
    pretrained ones: a file is for the design's network alone, and of the small networks only resnet18 has ImageNet
    weights. The plain network is measured, and half of its time is added for attention.
    """
    num_runs = (LEAST_PAIRS + len(design.lr_search)) * len(design.arms)
    size, weights = design.options["image_size"], design.options["pretrained"]
    medium, small = min(size, 64), min(size, 32)
    if weights:
        network = "resnet18" if weights == "imagenet" else design.backbone
        tried = [(design.backbone, size), (network, medium), (network, small)]
    else:
        tried = [(design.backbone, size), ("resnet18", medium), ("resnet20", small), ("resnet8", small)]
    for backbone, pixels in dict.fromkeys(tried):
        plain = msgspec.structs.replace(
            design,
            arms=(Arm("none", "none"),),
            arm_options={"none": {"model": backbone}},
            options={**design.options, "image_size": pixels, "at": ""},
        )
        costs = measure(plain, num_classes, device)
        per_epoch = 1.5 * seconds_of_run(costs, "none", 1, {**num_images, "test": 0})
        epochs = min(design.options["epochs"], int(HOUR / num_runs / per_epoch))
        if epochs >= min(_FEWEST_EPOCHS, design.options["epochs"]) or (backbone, pixels) == tried[-1]:
            break
    epochs = max(1, epochs)
    options = f"--backbone {backbone} --image-size {pixels} --epochs {epochs} --seeds {LEAST_PAIRS}"
    return options, num_runs * epochs * per_epoch
