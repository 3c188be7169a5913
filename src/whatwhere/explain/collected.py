"""From a network and batches of images to an explanation, in memory that does not grow with the images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import UserError
from ..base.modules import undisturbed
from ..base.words import brief, few
from .explanation import Batch, Explanation, Layer, spread
from .faithfulness import beside_random, is_classifier, is_distribution, probabilities
from .gates import LayerGates, has_attention, maps
from .grad_cam import INSTALL, grad_cam, has_captum, last_map
from .health import LEAST_IMAGES, Finding, Health
from .randomization import GRAD_CAM, check, plane_name

_MOST_CLASSES = 20  # with the means of their channels
_LEAST_OF_CLASS = 5  # images for a mean


def explain(
    model: nn.Module,
    batches: Iterable[Batch | Tensor | Sequence[Tensor]],
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
    left as it was. All images count for gate health and the means of classes; in memory stay those that are shown, and
    the sums of the channel gates of each predicted class.

    Args:
        model: The network, with its images on its device.
        batches: Tensors that it takes, (N, C, H, W); or `Batch`es; or pairs (images, labels), as of a DataLoader.
        classes: Names of the classes, in the order of the logits; by default their numbers.
        network: Its name.
        most_shown: Most images to show, the first ones, where the batches do not say which.
        layer: The layer of Grad-CAM, as in `grad_cam`.
        target: The class of Grad-CAM and of the curves; by default the predicted one of each image.
        sampled: Of how many images, spread over those shown, curves and check are computed; 0 for none.
        progress: Called with what is done, and how many of how many; the total is 0 where it is not known.

    Raises:
        UserError: No images, or images of several sizes to show; a network without gates that is no classifier either;
            errors of `maps`, and of `grad_cam` where a layer is named or there are no gates.
    """
    model = getattr(model, "_orig_mod", model)
    collected = _Collected(model, tuple(classes), most_shown, layer, target)
    if target is not None and (isinstance(target, bool) or not isinstance(target, int)):
        raise UserError(f"target must be the number of a class, got {brief(target)}; grad_cam takes functions too")
    for batch in batches:
        given, labels = _as_batch(batch)
        if len(given.inputs):
            collected.add(given, labels)
            progress("images", collected.num_images, 0)
    found = collected.explanation(network or type(model).__name__)
    if sampled:
        collected.add_checks(found, sampled, progress)
    return found


def _as_batch(batch: Any) -> tuple[Batch, list[int]]:
    """Return a batch, and the numbers of the classes of its images where it is a pair that tells them."""
    given, labels = batch, []
    if isinstance(batch, (list, tuple)) and not isinstance(batch, Batch) and 1 <= len(batch) <= 2:
        given = Batch(batch[0])
        if len(batch) == 2 and isinstance(batch[1], Tensor) and batch[1].dim() == 1:
            is_whole = not (batch[1].is_floating_point() or batch[1].is_complex())
            labels = batch[1].long().tolist() if is_whole else []
    elif not isinstance(batch, Batch):
        given = Batch(batch)
    inputs = given.inputs
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not inputs.is_floating_point():
        what = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UserError(f"explain takes batches of images, floating-point (N, C, H, W), in a list; got {what}")
    if labels and len(labels) != len(inputs):
        raise UserError(f"a batch has {len(inputs)} images and {len(labels)} labels")
    return given, labels


class _Collected:
    """What comes in, batch by batch; it grows with the images that are shown, not with all of them."""

    def __init__(
        self, model: nn.Module, classes: tuple[str, ...], most_shown: int, layer: str, target: int | None
    ) -> None:
        self.model, self.classes, self.most_shown, self.target = model, classes, most_shown, target
        self.layer, self.is_layer_given = layer, bool(layer)
        self.is_attentive, self.with_cam = has_attention(model), has_captum()
        self.notes: dict[str, None] = {} if self.with_cam else {f"Grad-CAM needs captum: {INSTALL}": None}
        self.health = Health()
        self.are_given: bool | None = None  # probabilities instead of logits
        self.inputs: list[Tensor] = []
        self.pictures: list[Tensor] = []
        self.names: list[str] = []
        self.labels: list[str] = []
        self.predictions: list[list[tuple[str, float]]] = []
        self.cams: list[Tensor] = []
        self.cam_classes: list[str] = []
        self.gates: dict[str, list[LayerGates]] = defaultdict(list)
        self.sums: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
        self.num_predicted: dict[str, int] = defaultdict(int)
        self.num_images = self.num_shown_batches = 0
        self.device = torch.device("cpu")

    def add(self, given: Batch, labels: Sequence[int]) -> None:
        """Take in a batch; `labels` are the numbers of its classes, negative where one is not known."""
        num, self.device = len(given.inputs), given.inputs.device
        output, gates = maps(self.model, given.inputs) if self.is_attentive else (self._output(given.inputs), [])
        self._check_output(output)
        rows = None
        if is_classifier(output):
            given = self._labelled(given, labels) if labels else given
            rows = probabilities(output, are_given=bool(self.are_given)).cpu()
        self.health.add(gates)
        # an attention may see parts of an image as a batch of their own
        strange = [layer.layer for layer in gates if any(len(gate) != num for gate in layer.gates.values())]
        if strange:
            self.notes[f"the gates of {few(strange)} are not of whole images, and are not shown"] = None
        gates = [layer for layer in gates if layer.layer not in strange]
        if rows is not None:
            self._add_classes(gates, rows)
        numbers = list(range(num) if given.shown is None else given.shown)[: self.most_shown - len(self.names)]
        if numbers:
            self._add_shown(given, numbers, gates, rows)
            if rows is not None and self.with_cam:
                self._add_cam(given.inputs[numbers], output[numbers].argmax(1))
        self.num_images += num

    @torch.no_grad()
    def _output(self, inputs: Tensor) -> Any:
        with undisturbed(self.model), torch.compiler.set_stance("force_eager"):
            self.model.eval()
            return self.model(inputs)

    def _check_output(self, output: Any) -> None:
        name = type(self.model).__name__
        if not is_classifier(output):
            if not self.is_attentive:
                raise UserError(
                    f"{name} has no attention of whatwhere and returns no scores of classes: there is nothing to "
                    "explain; grad_cam(model, images, function) takes any score"
                )
            if self.is_layer_given or self.target is not None:
                raise UserError(
                    f"{name} returns no scores of two or more classes, for which explain shows Grad-CAM; "
                    "grad_cam(model, images, function) takes any score"
                )
            self.notes["no Grad-CAM and no curves: the network returns no scores of two or more classes"] = None
            return
        if not self.is_attentive and not self.with_cam:
            raise UserError(f"{name} has no attention of whatwhere, and Grad-CAM needs captum", INSTALL)
        if not self.classes:
            self.classes = tuple(map(str, range(output.shape[1])))
        if len(self.classes) != output.shape[1]:
            raise UserError(f"{name} has scores of {output.shape[1]} classes, and {len(self.classes)} names are given")
        if self.are_given is None:
            self.are_given = is_distribution(output)
            if self.are_given:
                self.notes[
                    "the network returns probabilities: where it is sure, Grad-CAM fades; logits would be better"
                ] = None

    def _labelled(self, given: Batch, labels: Sequence[int]) -> Batch:
        if max(labels) >= len(self.classes):
            raise UserError(
                f"an image has the label {max(labels)}, and the network has classes 0 to {len(self.classes) - 1}; "
                "give -1 where the class is not known"
            )
        return given._replace(labels=[self.classes[n] if n >= 0 else "" for n in labels])

    def _add_classes(self, gates: list[LayerGates], rows: Tensor) -> None:
        """Add up the channel gates of the images of each predicted class."""
        predicted = [self.classes[number] for number in rows.argmax(1).tolist()]
        for name in dict.fromkeys(predicted):
            of_class = [n for n, one in enumerate(predicted) if one == name]
            self.num_predicted[name] += len(of_class)
            for layer in gates:
                for gate, values in layer.channels().items():
                    sums = self.sums[layer.layer, gate]
                    sums[name] = sums.get(name, 0) + values[of_class].double().sum(0)

    def _add_shown(self, given: Batch, numbers: list[int], gates: list[LayerGates], rows: Tensor | None) -> None:
        inputs = given.inputs[numbers].detach().cpu()
        pictures = _pictures(inputs) if given.pictures is None else given.pictures[numbers].cpu()
        if pictures.dtype != torch.uint8 or pictures.dim() != 4 or pictures.shape[1] != 3:
            raise UserError(f"pictures must be uint8 (N, 3, H, W), got {pictures.dtype} {tuple(pictures.shape)}")
        for before, now in ((self.inputs, inputs), (self.pictures, pictures)):
            if before and before[0].shape[1:] != now.shape[1:]:
                sizes = [f"{one.shape[-2]} x {one.shape[-1]}" for one in (before[0], now)]
                raise UserError(f"images that are shown must have one size, got {sizes[0]} and {sizes[1]}; resize them")
        self.inputs.append(inputs)
        self.pictures.append(pictures)
        self.names += [given.names[n] if given.names else f"image {self.num_images + n + 1}" for n in numbers]
        self.labels += [given.labels[n] if given.labels else "" for n in numbers]
        if rows is not None:
            best = rows[numbers].topk(min(3, rows.shape[1]))
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                self.predictions.append([(self.classes[n], value) for n, value in zip(indices, values, strict=True)])
        self.num_shown_batches += 1
        for layer in gates:
            kept = LayerGates(layer.layer, layer.kind, {name: gate[numbers] for name, gate in layer.gates.items()})
            small = {name: values[:, :, None, None] for name, values in kept.channels().items()}
            self.gates[layer.layer].append(
                LayerGates(layer.layer, layer.kind, kept.planes() | small, layer.bounds, layer.mix, layer.is_placebo)
            )

    def _add_cam(self, inputs: Tensor, predicted: Tensor) -> None:
        wanted = predicted if self.target is None else torch.full_like(predicted, self.target)
        try:
            self.layer = self.layer or last_map(self.model, inputs)
            self.cams.append(grad_cam(self.model, inputs, wanted, layer=self.layer)[:, 0])
        except UserError as error:
            if self.is_layer_given or self.target is not None or not self.is_attentive:
                raise
            self.with_cam = False
            self.notes[f"no Grad-CAM: {error}"] = None
            return
        self.cam_classes += [self.classes[n] for n in wanted.tolist()]

    def explanation(self, network: str) -> Explanation:
        """Return what is known without the checks."""
        if not self.names:
            raise UserError("no images to explain; give at least one")
        layers = self._layers()
        cam = torch.cat(self.cams) if self.with_cam and self.cams else None
        if cam is not None and not cam.isfinite().all():
            cam = None
            self.notes["no Grad-CAM: it has values that are NaN or infinite"] = None
        findings: list[Finding] = []
        if self.is_attentive and self.num_images >= LEAST_IMAGES:
            findings = self.health.findings()
            _add_doubts(layers, findings)
        elif self.is_attentive:
            self.notes[f"gate health needs at least {LEAST_IMAGES} images, got {self.num_images}"] = None
        for layer in layers:
            for gate, plane in layer.planes.items():
                if not plane.isfinite().all():
                    layer.doubts[gate] = "not finite"
        return Explanation(
            network,
            self.num_images,
            torch.cat(self.pictures),
            self.names,
            self.labels,
            self.predictions,
            dict(self.num_predicted),
            layers,
            cam,
            "" if cam is None else self.layer,
            [] if cam is None else self.cam_classes,
            findings=findings,
            notes=list(self.notes),
        )

    def _layers(self) -> list[Layer]:
        frequent = sorted(self.num_predicted, key=lambda name: -self.num_predicted[name])[:_MOST_CLASSES]
        frequent = [name for name in self.classes if name in frequent and self.num_predicted[name] >= _LEAST_OF_CLASS]
        # one that is called a different number of times with other images would stand at the wrong ones
        strange = [name for name, parts in self.gates.items() if len(parts) != self.num_shown_batches]
        if strange:
            self.notes[f"{few(strange)} is not called with all images, and is not shown"] = None
        layers = []
        for name, parts in self.gates.items():
            if name in strange:
                continue
            gates = {gate: torch.cat([part.gates[gate] for part in parts]) for gate in parts[0].gates}
            whole = LayerGates(name, parts[0].kind, gates)
            sums = {gate: self.sums[name, gate] for gate in whole.channels() if (name, gate) in self.sums}
            means = {
                gate: {one: of[one] / self.num_predicted[one] for one in frequent if one in of}
                for gate, of in sums.items()
            }
            planes = {gate: plane[:, 0] for gate, plane in whole.planes().items()}
            first = parts[0]
            layers.append(
                Layer(name, first.kind, first.bounds, first.mix, first.is_placebo, planes, whole.channels(), means)
            )
        return layers

    def add_checks(self, found: Explanation, sampled: int, progress: Callable[[str, int, int], None]) -> None:
        """Add the curves and the check with random weights, on images spread over those that are shown."""
        inputs = torch.cat(self.inputs)
        chosen = spread(len(inputs), sampled)
        images = inputs[chosen].to(self.device)
        if found.predictions:
            planes = {} if found.cam is None else {GRAD_CAM: found.cam[chosen]}
            planes |= {
                # where the mixing is negative, the least of the gate is let through most
                plane_name(layer.name, gate): plane[chosen] * (-1 if layer.mix is not None and layer.mix < 0 else 1)
                for layer in found.layers[-1:]
                for gate, plane in layer.planes.items()
                if plane.isfinite().all()
            }
            of_class = None if self.target is None else torch.full((len(chosen),), self.target, device=self.device)
            for done, (name, plane) in enumerate(planes.items(), start=1):
                found.faithfulness[name] = beside_random(self.model, images, plane[:, None], of_class)
                progress("curves", done, len(planes))
        try:
            found.randomized = check(self.model, images, self.target, layer=found.cam_layer)
        except UserError as error:
            found.notes.append(str(error))
            return
        progress("check with random weights", 1, 1)
        remarks = found.randomized.remarks()
        for layer in found.layers:
            names = {gate: plane_name(layer.name, gate) for gate in layer.planes}
            layer.remarks = {gate: remarks[name] for gate, name in names.items() if name in remarks}


def _add_doubts(layers: list[Layer], findings: list[Finding]) -> None:
    for layer in layers:
        for finding in findings:
            if finding.layer == layer.name:
                for gate in [finding.gate] if finding.gate else layer.planes:
                    layer.doubts.setdefault(gate, finding.fault)


def _pictures(inputs: Tensor) -> Tensor:
    """Return uint8 pictures (N, 3, H, W) of inputs (N, C, H, W), each scaled to its own range."""
    colours = inputs.float()
    colours = colours[:, :3] if colours.shape[1] >= 3 else colours[:, :1].expand(-1, 3, -1, -1)
    low, high = colours.amin((1, 2, 3), keepdim=True), colours.amax((1, 2, 3), keepdim=True)
    return ((colours - low) / (high - low).clamp(min=1e-12) * 255).nan_to_num().round().to(torch.uint8)
