"""What a network looks at in given images, collected for a page or a picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..base.errors import UserError
from ..base.modules import modes_kept
from .faithfulness import Curves, faithfulness
from .gates import LayerGates, has_attention, maps
from .grad_cam import INSTALL, grad_cam, has_captum, last_map
from .health import LEAST_IMAGES, Finding, Health
from .randomization import GRAD_CAM, Randomized, check, plane_name

AT_RANDOM = "random order"
_MOST_CLASSES = 20  # with the means of their channels


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
        name: Of the module, as in `LayerGates`.
        kind: Its class.
        planes: By gate, (N, h, w), as `LayerGates.planes`.
        channels: By gate, (N, C).
        class_means: By gate and class, (C,): the mean over all images for which the class was predicted.
        findings: What gate health found.
        doubts: By gate, why its map says little; none where nothing speaks against it.
        remarks: By gate, what else is to be kept in mind about its map: what the check with random weights found.
    """

    name: str
    kind: str
    planes: dict[str, Tensor]
    channels: dict[str, Tensor]
    class_means: dict[str, dict[str, Tensor]]
    findings: list[Finding] = field(default_factory=list)
    doubts: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)


@dataclass
class Explanation:
    """What one network shows for images.

    Attributes:
        network: Its name.
        num_images: Of all images; findings and the means of classes are over all of them.
        pictures: The images that are shown, uint8 (N, 3, H, W).
        names: Their names.
        labels: What they are of, "" where that is not known.
        predictions: Of each, the classes with their probabilities, the most probable first; none without a classifier.
        layers: The gates, in the order of their calls.
        cam: Grad-CAM, (N, h, w), from the layer `cam_layer`, for the classes `cam_classes`; None where there is none.
        curves: By map, insertion and deletion curves of some of the images that are shown; that of pixels in random
            order is the first.
        randomized: The check with random weights, on some of the images that are shown.
        notes: What is missing, and why.
    """

    network: str
    num_images: int
    pictures: Tensor
    names: list[str]
    labels: list[str]
    predictions: list[list[tuple[str, float]]]
    layers: list[Layer]
    cam: Tensor | None = None
    cam_layer: str = ""
    cam_classes: list[str] = field(default_factory=list)
    curves: dict[str, Curves] = field(default_factory=dict)
    randomized: Randomized | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        """What gate health found in all layers."""
        return [finding for layer in self.layers for finding in layer.findings]

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows."""
        from .picture import explanation_figure, png

        return png(explanation_figure([self]))


class _Collected:
    """What comes in, batch by batch; it grows with the images that are shown, not with all of them."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.pictures: list[Tensor] = []
        self.names: list[str] = []
        self.labels: list[str] = []
        self.predictions: list[list[tuple[str, float]]] = []
        self.cams: list[Tensor] = []
        self.cam_classes: list[str] = []
        self.gates: dict[str, list[LayerGates]] = defaultdict(list)
        self.sums: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
        self.predicted: dict[str, int] = defaultdict(int)
        self.num_images = 0
        self.device = torch.device("cpu")


def explain(
    model: nn.Module,
    batches: Iterable[Batch | Tensor],
    *,
    classes: Sequence[str] = (),
    network: str = "",
    most_shown: int = 100,
    layer: str = "",
    target: int | None = None,
    sampled: int = 16,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Explanation:
    """Return what `model` looks at in images: gates, gate health, Grad-CAM, curves and the check with random weights.

    Any network; one with attention of this package shows gates, a classifier Grad-CAM, if captum is installed. It is
    left as it was. All images count for gate health and the means of classes; in memory stay those that are shown.

    Args:
        model: The network, with its images on its device.
        batches: Tensors that it takes, (N, C, H, W), or `Batch`es.
        classes: Names of the classes, in the order of the logits; by default their numbers.
        network: Its name.
        most_shown: Most images to show, the first ones, where the batches do not say which.
        layer: The layer of Grad-CAM, as in `grad_cam`.
        target: The class of Grad-CAM and of the curves; by default the predicted one of each image.
        sampled: Of how many images, spread over those shown, curves and check are computed; 0 for none.
        progress: Called with what is done, and how many of how many; the total is 0 where it is not known.

    Raises:
        UserError: No images; a network without gates that is no classifier either; errors of `maps` and `grad_cam`.
    """
    model = getattr(model, "_orig_mod", model)
    is_attentive, with_cam = has_attention(model), has_captum()
    health, seen, notes = Health(), _Collected(), []
    if not with_cam:
        notes.append(f"Grad-CAM needs captum: {INSTALL}")
    for batch in batches:
        given = batch if isinstance(batch, Batch) else Batch(batch)
        if not len(given.inputs):
            continue
        output, gates = maps(model, given.inputs) if is_attentive else (_output(model, given.inputs), [])
        is_classifier = isinstance(output, Tensor) and output.dim() == 2
        if not is_attentive and not (is_classifier and with_cam):
            _refuse(model, is_classifier)
        if with_cam and is_classifier and not layer:
            layer = last_map(model, given.inputs)
        names = classes or [str(number) for number in range(output.shape[1] if is_classifier else 0)]
        rows = output.float().softmax(1).cpu() if is_classifier else None
        health.add(gates)
        _add_classes(seen, gates, rows, names)
        numbers = list(range(len(given.inputs)) if given.shown is None else given.shown)
        numbers = numbers[: most_shown - len(seen.names)]
        if numbers:
            _add_shown(seen, given, numbers, gates, rows, names)
        if numbers and is_classifier and with_cam:
            wanted = output[numbers].argmax(1) if target is None else target
            seen.cams.append(grad_cam(model, given.inputs[numbers], wanted, layer=layer)[:, 0])
            seen.cam_classes += [names[n] for n in torch.as_tensor(wanted).expand(len(numbers)).tolist()]
        seen.num_images += len(given.inputs)
        progress("images", seen.num_images, 0)
    if not seen.names:
        raise UserError("no images to explain; give at least one")
    found = Explanation(
        network or type(model).__name__,
        seen.num_images,
        torch.cat(seen.pictures),
        seen.names,
        seen.labels,
        seen.predictions,
        _layers(seen),
        torch.cat(seen.cams) if seen.cams else None,
        layer if seen.cams else "",
        seen.cam_classes,
        notes=notes,
    )
    if is_attentive and seen.num_images >= LEAST_IMAGES:
        _add_findings(found.layers, health.findings())
    elif is_attentive:
        notes.append(f"gate health needs at least {LEAST_IMAGES} images, got {seen.num_images}")
    _add_checks(found, model, torch.cat(seen.inputs), seen.device, target, sampled, progress)
    return found


@torch.no_grad()
def _output(model: nn.Module, inputs: Tensor) -> Any:
    with modes_kept(model), torch.compiler.set_stance("force_eager"):
        model.eval()
        return model(inputs)


def _refuse(model: nn.Module, is_classifier: bool) -> None:
    name = type(model).__name__
    if is_classifier:
        raise UserError(f"{name} has no attention of whatwhere, and Grad-CAM needs captum", INSTALL)
    raise UserError(f"{name} has no attention of whatwhere and is no classifier, so that there is nothing to explain")


def _add_classes(seen: _Collected, gates: list[LayerGates], rows: Tensor | None, names: Sequence[str]) -> None:
    """Add up the channel gates of the images of each predicted class."""
    if rows is None:
        return
    predicted = [names[number] for number in rows.argmax(1).tolist()]
    for name in dict.fromkeys(predicted):
        of_class = [n for n, one in enumerate(predicted) if one == name]
        seen.predicted[name] += len(of_class)
        for layer in gates:
            for gate, values in layer.channels().items():
                sums = seen.sums[layer.layer, gate]
                sums[name] = sums.get(name, 0) + values[of_class].double().sum(0)


def _add_shown(
    seen: _Collected,
    given: Batch,
    numbers: list[int],
    gates: list[LayerGates],
    rows: Tensor | None,
    names: Sequence[str],
) -> None:
    seen.device = given.inputs.device
    seen.inputs.append(given.inputs[numbers].detach().cpu())
    seen.pictures.append(_pictures(given.inputs[numbers]) if given.pictures is None else given.pictures[numbers].cpu())
    seen.names += [given.names[n] if given.names else f"image {seen.num_images + n + 1}" for n in numbers]
    seen.labels += [given.labels[n] if given.labels else "" for n in numbers]
    if rows is not None:
        best = rows[numbers].topk(min(3, rows.shape[1]))
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            seen.predictions.append([(names[n], value) for n, value in zip(indices, values, strict=True)])
    for layer in gates:
        kept = {name: gate[numbers] for name, gate in layer.gates.items()}
        planes = LayerGates(layer.layer, layer.kind, kept).planes()
        channels = {name: gate for name, gate in kept.items() if gate.shape[2:].numel() == 1}
        seen.gates[layer.layer].append(LayerGates(layer.layer, layer.kind, planes | channels))


def _pictures(inputs: Tensor) -> Tensor:
    """Return uint8 pictures (N, 3, H, W) of inputs (N, C, H, W), each scaled to its own range."""
    colours = inputs.detach().float().cpu()
    colours = colours[:, :3] if colours.shape[1] >= 3 else colours[:, :1].expand(-1, 3, -1, -1)
    low, high = colours.amin((1, 2, 3), keepdim=True), colours.amax((1, 2, 3), keepdim=True)
    return ((colours - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)


def _layers(seen: _Collected) -> list[Layer]:
    frequent = sorted(seen.predicted, key=lambda name: -seen.predicted[name])[:_MOST_CLASSES]
    layers = []
    for name, parts in seen.gates.items():
        gates = {gate: torch.cat([part.gates[gate] for part in parts]) for gate in parts[0].gates}
        whole = LayerGates(name, parts[0].kind, gates)
        means = {
            gate: {one: seen.sums[name, gate][one] / seen.predicted[one] for one in frequent}
            for gate in whole.channels()
            if (name, gate) in seen.sums
        }
        planes = {gate: plane[:, 0] for gate, plane in whole.planes().items()}
        layers.append(Layer(name, parts[0].kind, planes, whole.channels(), means))
    return layers


def _add_findings(layers: list[Layer], findings: list[Finding]) -> None:
    for layer in layers:
        layer.findings = [finding for finding in findings if finding.layer == layer.name]
        for finding in layer.findings:
            for gate in [finding.gate] if finding.gate else layer.planes:
                layer.doubts.setdefault(gate, finding.fault)


def _add_checks(
    found: Explanation,
    model: nn.Module,
    inputs: Tensor,
    device: torch.device,
    target: int | None,
    sampled: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Add the curves and the check with random weights, on images spread over those that are shown."""
    if not sampled or len(inputs) < 2:
        return
    chosen = np.linspace(0, len(inputs) - 1, min(sampled, len(inputs))).round().astype(int).tolist()
    images = inputs[chosen].to(device)
    if found.predictions:
        generator = torch.Generator().manual_seed(0)
        shape = found.cam.shape[1:] if found.cam is not None else (7, 7)
        planes = {AT_RANDOM: torch.rand(len(chosen), *shape, generator=generator)}
        if found.cam is not None:
            planes[GRAD_CAM] = found.cam[chosen]
        planes |= {
            plane_name(layer.name, gate): plane[chosen]
            for layer in found.layers[-1:]
            for gate, plane in layer.planes.items()
            if plane.isfinite().all()
        }
        for done, (name, plane) in enumerate(planes.items(), start=1):
            of_class = None if target is None else [target] * len(chosen)
            found.curves[name] = faithfulness(model, images, plane[:, None], of_class)
            progress("curves", done, len(planes))
    found.randomized = check(model, images, layer=found.cam_layer)
    progress("check with random weights", 1, 1)
    remarks = found.randomized.remarks()
    for layer in found.layers:
        layer.remarks = {
            gate: remarks[name] for gate in layer.planes if (name := plane_name(layer.name, gate)) in remarks
        }
