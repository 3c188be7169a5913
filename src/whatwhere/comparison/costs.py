"""What the arms of a comparison cost, measured in turn on one machine, and about how long its runs take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from ..base.documents import read_json
from ..base.errors import UserError
from ..cost import Cost, cost, measure_latency
from ..networks.spec import MAX_WIDTH_FACTOR
from ..statistics.looks import LEAST_PAIRS
from ..training.estimate import HOUR, NOTHING, Pace
from ..training.setup import device_name
from ..training.trainer import autocast
from .arms import Arm, build, plain_options, timed_as
from .content import COST, CostRow, Costs
from .design import Design

Progress = Callable[[str, int, int], None]  # `Screen.progress`
Measure = Callable[[Design, int, torch.device, Progress], Costs]  # what `measure_costs` is

# on a CPU, an image takes about as long in a batch of so many pixels as in a larger one; in a much smaller one, longer
_ENOUGH_PIXELS, _LEAST_IMAGES = 32 * 96 * 96, 8
_MOST_SECONDS = 20.0  # after which no new round of timing starts, if the times are steady
FEWEST_EPOCHS = 10
_NEAR, _MOST_WIDTHS, _USUAL_POWER = 0.03, 6, 1.5


def measure_costs(design: Design, num_classes: int, device: torch.device, progress: Progress) -> Costs:
    """Measure each arm's parameters, MACs of one image, and bytes saved for backward and times of a batch.

    Image size, batch size, memory format and precision are those of the runs. On a CPU the batch has 32 images at most,
    above 96 px fewer, and 8 from 192 px on. The arms take turns, so that a slower moment of the machine slows all;
    where the times differ much from round to round, more rounds are measured, and rows whose times still do are marked.
    """
    what, rounds = "measuring what each arm costs", 10
    options = design.options
    size, num_images = options["image_size"], options["batch_size"]
    if device.type == "cpu":
        num_images = min(num_images, 32, max(_LEAST_IMAGES, _ENOUGH_PIXELS // size**2))
    layout = torch.channels_last if options["channels_last"] else torch.contiguous_format
    models = [
        build(design.run_options(arm.name, 0), num_classes, 0).to(device=device, memory_format=layout)
        for arm in design.arms
    ]
    costs: list[Cost] = []
    for model in models:
        progress(what, len(costs), len(models) + rounds)
        costs.append(cost(model, (3, size, size), batch_size=num_images))
    images = torch.randn(num_images, 3, size, size, device=device).to(memory_format=layout)
    with autocast(device, options["amp"]):
        times = measure_latency(
            models,
            [images] * len(models),
            rounds,
            _MOST_SECONDS,
            progress=lambda done, total: progress(what, len(models) + done, len(models) + total),
        )
    rows = tuple(
        CostRow(
            arm=arm.name,
            num_params=item.total.num_params,
            macs=item.total.macs // num_images,
            saved_bytes=item.total.saved_bytes,
            forward_ms=latency.forward_ms,
            training_step_ms=latency.training_step_ms,
            images_per_second=1000 * num_images / latency.training_step_ms,
            spread=latency.spread,
            steady=latency.steady,
        )
        for arm, item, latency in zip(design.arms, costs, times, strict=True)
    )
    return Costs(
        num_images=num_images, image_size=size, precision=options["amp"], device=device_name(device), rows=rows
    )


def width_for_time(
    design: Design, timed: Arm, num_classes: int, device: torch.device, measure: Measure, progress: Progress
) -> tuple[float, Costs]:
    """Return the `width_factor` at which the backbone's training step takes as long as that of the arm.

    The arm is the slowest of those that `timed_as` names. Each width is measured in turn with the arm, and the next one
    lies where the time would reach that of the arm, as if it were a power of the width. The search ends within 3 %, or
    after six widths with the nearest of them: the time grows in steps, as some numbers of channels suit a machine
    better.

    Returns:
        The factor, to two decimals, and its measurement: the row of the arm, and that of the wider network.

    Raises:
        UserError: The arm's step takes no longer than the backbone's.
    """
    plain = plain_options(design.backbone, design.options["at"])

    def ratio_at(factor: float, names: Sequence[str]) -> tuple[float, str, Costs]:
        """Return the arm's time by that of the backbone at this width, the arm, and the measurement."""
        arms = [arm for arm in design.arms if arm.name in names]
        options = {**design.arm_options, timed.name: {**plain, "width_factor": factor}}
        costs = measure(
            msgspec.structs.replace(design, arms=(*arms, timed), arm_options=options), num_classes, device, progress
        )
        *others, wide = costs.rows
        slowest = max(others, key=lambda row: row.training_step_ms or 0.0)
        return (slowest.training_step_ms or 0.0) / (wide.training_step_ms or math.inf), slowest.arm, costs

    ratio, other, costs = ratio_at(1.0, timed_as(timed, design.arms))
    if ratio <= 1 + _NEAR:
        raise UserError(
            f"the arm {timed.name} would be no wider than {design.backbone}: a training step of {other} takes no "
            "longer; leave out the arm"
        )
    # log(factor) and log(ratio): of the largest width known to be faster than the arm, of the smallest slower one
    faster, slower, power = (0.0, math.log(ratio)), None, _USUAL_POWER
    tried: list[tuple[float, float, Costs]] = []
    for _ in range(_MOST_WIDTHS):
        if slower is None:
            step = faster[1] / power
        else:
            part = faster[1] / (faster[1] - slower[1])
            step = (slower[0] - faster[0]) * min(0.75, max(0.25, part))
        factor = min(MAX_WIDTH_FACTOR, round(math.exp(faster[0] + step), 2))
        if factor in (known for known, *_ in tried):
            break
        ratio, _, costs = ratio_at(factor, [other])
        found = (math.log(factor), math.log(ratio))
        tried.append((factor, abs(found[1]), costs))
        if abs(ratio - 1) <= _NEAR:
            break
        if ratio < 1:
            slower = found
        else:
            # of a small network, the time hardly grows with the width at first
            power = min(2.5, max(0.5, (faster[1] - found[1]) / (found[0] - faster[0])))
            faster = found
    factor, _, costs = min(tried, key=lambda known: known[1])
    return factor, costs


def pace(costs: Costs, arm: str, reading: Pace = NOTHING) -> Pace:
    """Return the seconds that a run of `arm` takes for an image: those of its network, and those of `reading`."""
    row = next(row for row in costs.rows if row.arm == arm)
    step, forward = row.training_step_ms or 0.0, row.forward_ms or 0.0  # None in files of earlier versions
    forward = min(forward, step)  # a part of the step; what seems longer was disturbed
    per_image = 1000 * costs.num_images
    return Pace(step / per_image + reading.trained, forward / per_image + reading.evaluated, reading.start)


@dataclass(frozen=True)
class Estimate:
    """About how long the runs of a comparison take.

    Attributes:
        costs: The cost of each arm.
        reading: What reading and augmenting the images takes.
        num_images: The images of each part.
    """

    costs: Costs
    reading: Pace
    num_images: Mapping[str, int]

    def of_run(self, arm: str, epochs: int, searching: bool = False) -> float:
        """Return the seconds of a run; one that searches for a learning rate uses no test images."""
        parts = {**self.num_images, "test": 0} if searching else self.num_images
        return pace(self.costs, arm, self.reading).seconds(epochs, parts)


def within_an_hour(
    design: Design,
    num_classes: int,
    num_images: Mapping[str, int],
    device: torch.device,
    measure: Measure = measure_costs,
    *,
    reading: Pace = NOTHING,
    progress: Progress = lambda what, done, total: None,
) -> tuple[str, float]:
    """Return options with which the comparison takes at most an hour on `device`, and about how many seconds.

    Takes the first of ever smaller networks and images that can train for 10 epochs, or for the design's if these are
    fewer; the last one if none can. Images do not get larger, and a network has weights where the design asks for
    pretrained ones: a file is for the design's network alone, and of the small networks only resnet18 has ImageNet
    weights. The plain network is measured, and half of its time is added for attention. `reading` is what reading takes
    in the design; smaller images take no longer.
    """
    num_runs = (LEAST_PAIRS + len(design.lr_search)) * len(design.arms)
    size, weights = design.options["image_size"], design.options["pretrained"]
    medium, small = min(size, 64), min(size, 32)
    places_by_name = design.options["at"] not in ("", "blocks", "stages")  # other networks have other modules
    if weights or places_by_name:
        network = "resnet18" if weights == "imagenet" and not places_by_name else design.backbone
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
        of_network = pace(measure(plain, num_classes, device, progress), "none")
        parts = {**num_images, "test": 0}
        per_epoch = 1.5 * of_network.seconds(1, parts) + replace(reading, start=0.0).seconds(1, parts)
        epochs = min(design.options["epochs"], int((HOUR / num_runs - reading.start) / per_epoch))
        if epochs >= min(FEWEST_EPOCHS, design.options["epochs"]) or (backbone, pixels) == tried[-1]:
            break
    epochs = max(1, epochs)
    options = f"--backbone {backbone} --image-size {pixels} --epochs {epochs} --seeds {LEAST_PAIRS}"
    return options, num_runs * (reading.start + epochs * per_epoch)


def read_costs(out: Path) -> Costs | None:
    """Return what the arms cost; None where the file is missing or damaged, as it can be measured again."""
    try:
        costs = read_json(out / COST, Costs)
    except ValueError:  # a UserError too
        return None
    return costs if costs.rows else None
