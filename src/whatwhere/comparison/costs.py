"""What the arms of a comparison cost, side by side on one machine."""

from __future__ import annotations

import torch

from ..cost import cost, measure_latency
from ..training.setup import device_name
from ..training.trainer import autocast
from .arms import build
from .content import CostRow, Costs
from .design import Design

_MOST_IMAGES = 8  # a step, above 64 px on a CPU, where one takes seconds
_SMALL = 64


def measure_costs(design: Design, num_classes: int, device: torch.device) -> Costs:
    """Return each arm's parameters, MACs, bytes saved for backward, and times, in turn within each round.

    At the image size, batch size, memory format and precision of the runs; above 64 px on a CPU with 8 images at most.
    Parameters and MACs are of one network and one image, bytes and times of the batch.
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
