"""Gate health: which gates of a network do not do what gates are for, and what to try."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import ATTENTION
from ..base.errors import UserError
from ..collect.result import HARDLY_BEGUN
from .gates import LayerGates, has_attention, maps

Fault = Literal["off", "not finite", "constant", "saturated", "nearly the same for all images"]

LEAST_SPREAD = 0.01  # of the bounds' distance, from the least to the greatest value: below, a gate is a constant
EDGE = 0.01  # of the bounds' distance: nearer to a bound a sigmoid has 4 % of its steepest slope, or less
MOST_SATURATED = 0.9  # of the values near a bound
LEAST_SHARE = 0.01  # of the variance that is from image to image
LEAST_IMAGES = 8

_ADVICE = {
    "off": "train longer, or with a higher learning rate for `mix`",
    "not finite": "training went wrong; start it again with a lower learning rate, or in float32",
    "constant": "check that its weights are trained, and that the weight of the last norm in it is not 0",
    "saturated": "almost no gradient comes through; try a lower learning rate, weight decay, or start='identity'",
    "nearly the same for all images": "it scales, but hardly looks; compare it with its placebo, attention static:{}",
}
_NAMES = {kind.__name__: name for name, kind in ATTENTION.items()}  # by the class, as `LayerGates.kind` has it


class Finding(NamedTuple):
    """A gate that does not do what it is for.

    Attributes:
        layer: The name of the module.
        gate: Which of its gates; "" for the module.
        fault: What is wrong.
        figure: The figure that says so: |a|, the only value, the share of values near a bound, or the share of the
            variance that is from image to image; NaN where values are not finite.
        sentence: All that in words, with what to try.
    """

    layer: str
    gate: str
    fault: Fault
    figure: float
    sentence: str


@dataclass
class _Sums:
    """Of one gate, over images: for each channel and position, in float64."""

    kind: str
    bounds: tuple[float, float]
    is_placebo: bool
    mean: Tensor
    squares: Tensor  # sum of squared distances from the mean
    least: float
    greatest: float
    num_images: int = 0
    num_values: int = 0
    num_low: int = 0
    num_high: int = 0

    def add(self, gate: Tensor) -> None:
        if not len(gate):
            return
        low, high = self.bounds
        edge = EDGE * (high - low)
        self.num_low += int((gate < low + edge).sum())
        self.num_high += int((gate > high - edge).sum())
        self.num_values += gate.numel()
        self.least, self.greatest = min(self.least, float(gate.min())), max(self.greatest, float(gate.max()))
        gate = gate.double()
        if gate.shape[2:] != self.mean.shape[1:]:
            # images of another size
            gate = F.interpolate(gate, self.mean.shape[1:], mode="area")
        mean = gate.mean(0)
        squares, total = (gate - mean).square().sum(0), self.num_images + len(gate)
        away = mean - self.mean
        self.squares += squares + away.square() * self.num_images * len(gate) / total
        self.mean += away * len(gate) / total
        self.num_images = total

    def share_from_images(self) -> float:
        """Return the share of the variance that is from image to image, the rest being between channels and pixels."""
        of_images = float((self.squares / self.num_images).mean())
        of_places = float(self.mean.var(correction=0))
        return of_images / (of_images + of_places) if of_images > 0 else 0.0


class Health:
    """Gate health over any number of images: `add` each batch's gates, then ask for `findings`.

    What is kept is the size of one image's gates, however many images there are.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], _Sums] = {}
        self._mixes: dict[str, float] = {}
        self._num_layers = 0

    def add(self, layers: Iterable[LayerGates]) -> None:
        """Take in the gates of one batch, as `maps` returns them."""
        for layer in layers:
            self._num_layers += 1
            if layer.mix is not None:
                self._mixes[layer.layer] = layer.mix
            for name, gate in layer.gates.items():
                if (layer.layer, name) not in self._sums:
                    zero = torch.zeros(gate.shape[1:], dtype=torch.float64)
                    infinite = float("inf")
                    self._sums[layer.layer, name] = _Sums(
                        layer.kind, layer.bounds, layer.is_placebo, zero, zero.clone(), infinite, -infinite
                    )
                self._sums[layer.layer, name].add(gate)

    def findings(self) -> list[Finding]:
        """Return what is wrong, each with what to try; nothing for gates that are sound.

        Of a gate that saw fewer than 8 images nothing is said. A layer that is off has no other finding, unless its
        gates are not finite. The gates of a placebo are the same for all images by design: that is no finding.

        Raises:
            UserError: Nothing was added, or fewer than 8 images: too few to say how gates differ between images.
        """
        if not self._num_layers:
            raise UserError("gate health needs gates; add what maps(model, images) returns")
        most = max((sums.num_images for sums in self._sums.values()), default=LEAST_IMAGES)
        if most < LEAST_IMAGES:
            raise UserError(f"gate health needs at least {LEAST_IMAGES} images, got {most}")
        found = [
            _finding(layer, "", "not finite", mix, f"its mixing is {mix}")
            for layer, mix in self._mixes.items()
            if not math.isfinite(mix)
        ]
        found += [
            _finding(layer, "", "off", abs(mix), f"its mixing is {mix:.3f}, so the gates change almost nothing")
            for layer, mix in self._mixes.items()
            if abs(mix) < HARDLY_BEGUN
        ]
        off = {finding.layer for finding in found}
        known = {key: sums for key, sums in self._sums.items() if sums.num_images >= LEAST_IMAGES}
        for (layer, name), sums in known.items():
            found += [fault for fault in _faults(layer, name, sums) if layer not in off or fault.fault == "not finite"]
        return found


def health_of(model: nn.Module, batches: Iterable[Tensor], most: int) -> list[Finding] | None:
    """Return the findings on the gates of `model` over the first `most` images.

    None where there are no gates, or fewer than 8 images. `model` is left as it was.
    """
    if not has_attention(model):
        return None
    health, done = Health(), 0
    for batch in batches:
        images = batch[: most - done]
        health.add(maps(model, images)[1])
        done += len(images)
        if done >= most:
            break
    return health.findings() if done >= LEAST_IMAGES else None


def advice_on(fault: str, attention: str) -> str:
    """Return what to try, for attention of this name; "" for a fault that is not known."""
    return _ADVICE.get(fault, "").format(attention if attention in ATTENTION else "NAME")


def _faults(layer: str, name: str, sums: _Sums) -> Iterator[Finding]:
    low, high = sums.bounds
    if not sums.mean.isfinite().all():
        yield _finding(layer, name, "not finite", float("nan"), "it has values that are NaN or infinite")
        return
    at_low, at_high = sums.num_low / sums.num_values, sums.num_high / sums.num_values
    if at_low + at_high >= MOST_SATURATED:
        said = f"{at_low:.0%} of its values are near {low:g}, {at_high:.0%} near {high:g}"
        yield _finding(layer, name, "saturated", at_low + at_high, said)
        return
    if sums.greatest - sums.least < LEAST_SPREAD * (high - low):
        value = (sums.greatest + sums.least) / 2
        yield _finding(layer, name, "constant", value, f"it is {value:.2f} everywhere")
        return
    share = sums.share_from_images()
    if share < LEAST_SHARE and not sums.is_placebo:
        told = f"{share:.1%}" if share >= 0.0005 else "less than 0.1%"
        said = f"{told} of its variance is from image to image"
        yield _finding(layer, name, "nearly the same for all images", share, said, sums.kind)


def _finding(layer: str, name: str, fault: Fault, figure: float, said: str, kind: str = "") -> Finding:
    where = f"{layer or 'the network'}: the {name} gate" if name else layer or "the network"
    advice = advice_on(fault, _NAMES.get(kind, ""))
    verb = "is" if fault != "off" else "has attention that is"
    return Finding(layer, name, fault, figure, f"{where} {verb} {fault}: {said}; {advice}")
