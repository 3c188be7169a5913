"""What a network shows for images: its gates, Grad-CAM and what these maps are worth, and all that as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from .faithfulness import Faithfulness
from .health import LEAST_SPREAD, Finding
from .picture import gate_figure, png
from .randomization import GRAD_CAM, Randomized

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_IN_PICTURE, _MOST_GATES_IN_PICTURE = 6, 4


class Batch(NamedTuple):
    """Images for `explain`.

    Attributes:
        inputs: What the network takes, (N, C, H, W).
        pictures: What is shown, uint8 (N, 3, H, W); by default the inputs, each scaled to its own range.
        names: A name for each image.
        labels: The class that each image is of; "" where that is not known.
        shown: The images that are shown, by their numbers in the batch; all by default, as long as there is room.
    """

    inputs: Tensor
    pictures: Tensor | None = None
    names: Sequence[str] = ()
    labels: Sequence[str] = ()
    shown: Sequence[int] | None = None


@dataclass
class Layer:
    """The gates of one attention module, for the images that are shown.

    Attributes:
        name, kind, bounds, mix, is_placebo: As in `LayerGates`.
        planes: By gate, (N, h, w), as `LayerGates.planes`.
        channels: By gate, (N, C).
        class_means: By gate and class, (C,): the mean over all images for which the class was predicted; for the 20
            most frequent classes of 5 images or more.
        doubts: By gate, why its map says little; none where nothing speaks against it.
        remarks: By gate, what else is to be kept in mind about its map: what the check with random weights found.
    """

    name: str
    kind: str
    bounds: tuple[float, float]
    mix: float | None
    is_placebo: bool
    planes: dict[str, Tensor]
    channels: dict[str, Tensor]
    class_means: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)


@dataclass(repr=False)
class Explanation:
    """What one network shows for images.

    Attributes:
        network: Its name.
        num_images: Of all images; findings and the means of classes are over all of them.
        pictures: The images that are shown, uint8 (N, 3, H, W).
        names: Their names.
        labels: What they are of, "" where that is not known.
        predictions: Of each, the classes with their probabilities, the most probable first; none without a classifier.
        num_predicted: For how many of all images each class was predicted.
        layers: The gates, in the order of their calls.
        cam: Grad-CAM, (N, h, w), from the layer `cam_layer`, for the classes `cam_classes`; None where there is none.
        faithfulness: By map, insertion and deletion curves of some of the images that are shown.
        randomized: The check with random weights, on some of the images that are shown.
        findings: What gate health found, also in layers that cannot be shown.
        notes: What is missing, and why.
    """

    network: str
    num_images: int
    pictures: Tensor
    names: list[str]
    labels: list[str]
    predictions: list[list[tuple[str, float]]]
    num_predicted: dict[str, int]
    layers: list[Layer]
    cam: Tensor | None = None
    cam_layer: str = ""
    cam_classes: list[str] = field(default_factory=list)
    faithfulness: dict[str, Faithfulness] = field(default_factory=dict)
    randomized: Randomized | None = None
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        shown = f"{len(self.names)} of {self.num_images:,} images shown, {len(self.layers)} layers of attention"
        return f"<Explanation of {self.network}: {shown}, {len(self.findings)} findings>"

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows."""
        return png(explanation_figure([self]))


def spread(total: int, most: int) -> list[int]:
    """Return `most` of the numbers from 0 to `total` - 1, or all of them, as far apart as they can be."""
    numbers: list[int] = np.linspace(0, total - 1, min(most, total)).round().astype(int).tolist()
    return numbers


def explanation_figure(explanations: Sequence[Explanation]) -> Figure:
    """Draw some of the images that were explained: a column for up to 4 gates of each network, and for Grad-CAM.

    Each map of Grad-CAM is divided by its greatest value, so that 1 is the place that speaks most for the class.
    """
    first = explanations[0]
    rows = spread(len(first.names), _MOST_IN_PICTURE)
    columns: dict[str, Tensor] = {}
    for number, one in enumerate(explanations):
        whose = f", {'AB'[number]}" if len(explanations) > 1 else ""
        gates = [
            (f"{layer.name}\n{name}", plane, layer.doubts.get(name, ""))
            for layer in one.layers
            for name, plane in layer.planes.items()
            # one value everywhere would be drawn as noise
            if plane.isfinite().all()
            and plane.max() - plane.min() >= LEAST_SPREAD * (layer.bounds[1] - layer.bounds[0])
        ]
        for n in spread(len(gates), _MOST_GATES_IN_PICTURE):
            name, plane, doubt = gates[n]
            columns[f"{name}{whose}{doubt and f', {doubt}'}".strip()] = plane[rows][:, None]
        if one.cam is not None:
            cam, of_all = one.cam[rows][:, None], set(one.cam_classes)
            target = f" for {one.cam_classes[0]}" if len(of_all) == 1 else ""
            high, low = cam.amax((1, 2, 3), keepdim=True), cam.amin((1, 2, 3), keepdim=True)
            # in a map that is the same everywhere no place stands out
            columns[f"{GRAD_CAM}{target}{whose}"] = (cam / high.clamp(min=1e-12)).where(high > low, 0)
    names = "; ".join(f"{'AB'[number]}: {one.network}" for number, one in enumerate(explanations))
    captions = [
        ", ".join(
            dict.fromkeys(
                (f"{'AB'[number]}: " if len(explanations) > 1 else "") + one.predictions[n][0][0]
                for number, one in enumerate(explanations)
                if one.predictions
            )
        )
        + (f"\nis {first.labels[n]}" if first.labels[n] else "")
        for n in rows
    ]
    title = names if len(explanations) > 1 else first.network
    return gate_figure(first.pictures[rows].float() / 255, columns, captions, title)
