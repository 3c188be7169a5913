"""Does a map depend on what a network has learned? The check of Adebayo et al. with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from ..base.errors import UserError, check_integer
from ..base.modules import undisturbed
from ..insert.flow import check_can_change
from .gates import has_attention, maps
from .grad_cam import Target, grad_cam, has_captum, last_map

GRAD_CAM = "Grad-CAM"
STILL_ALIKE = 0.5  # the mean rank correlation from which on much of a map comes from image and architecture
ANYWHERE_ALIKE = 0.8  # the same for two images: the map hardly depends on the image
LEAST_PLACES = 9  # two independent orders of 4 places have a mean |rank correlation| of 0.5, of 9 places 0.28


@dataclass(frozen=True)
class Randomized:
    """How alike maps stay as the layers of a network lose what they learned, from the last to the first.

    Attributes:
        layers: The layers of each step; those of the steps before are random too.
        likeness: By map, after each step: the mean over images and draws of |rank correlation| with the map of the
            network as it was, from 0 to 1. Smooth maps that have nothing in common reach about 0.3. NaN where that map
            is the same everywhere, is not finite, or has fewer than 9 places.
        of_others: By map: the same for maps of two different images, in the network as it was.
    """

    layers: tuple[tuple[str, ...], ...]
    likeness: dict[str, tuple[float, ...]]
    of_others: dict[str, float]

    def remarks(self) -> dict[str, str]:
        """Return what is to be kept in mind about maps; none for those that fall apart and differ between images."""
        found = {}
        for name, values in self.likeness.items():
            parts = []
            if values[-1] >= STILL_ALIKE:
                parts.append(f"much the same with random weights ({values[-1]:.2f})")
            if self.of_others[name] >= ANYWHERE_ALIKE:
                parts.append(f"much the same for different images ({self.of_others[name]:.2f})")
            if parts:
                found[name] = " and ".join(parts)
        return found


def check(
    model: nn.Module, images: Tensor, target: Target = None, *, layer: str = "", steps: int = 8, draws: int = 3
) -> Randomized:
    """Return how alike the maps of `images` stay when the layers of `model` are random, from the last to the first.

    Adebayo et al., "Sanity Checks for Saliency Maps" (2018), cascading randomisation. The maps are the gates of the
    attention and, where captum is installed and the network is a classifier, Grad-CAM. A map that stays alike shows
    the image, and what the architecture makes of it, not what the network has learned.

    Each parameter is drawn anew from a normal distribution with mean 0 and the root mean square of its values; those of
    norms, frozen ones too, are 1 and 0, and their running statistics are measured again on `images`. `model` itself
    stays as it is: a copy is changed.

    Args:
        model: The network.
        images: What it takes, (N, C, H, W), at least 2; 8 to 16 say enough.
        target: The score of Grad-CAM, as in `grad_cam`; by default that of the classes that `model` predicts, also
            for the random networks.
        layer: The layer of Grad-CAM, as in `grad_cam`.
        steps: Number of groups into which the layers are cut, as equal as possible.
        draws: How often everything is drawn anew; one draw may come near the trained map by chance.

    Raises:
        UserError: Fewer than 2 images, or a network without any map, or without parameters.
    """
    model = getattr(model, "_orig_mod", model)
    check_can_change(model, "check")
    check_integer("steps", steps)
    check_integer("draws", draws)
    if len(images) < 2:
        raise UserError(f"the check with random weights needs at least 2 images, got {len(images)}")
    # a copy that is made in inference mode has no gradients
    with torch.inference_mode(False), undisturbed(model):
        return _check(model, images, target, layer, steps, draws)


def _check(model: nn.Module, images: Tensor, target: Target, layer: str, steps: int, draws: int) -> Randomized:
    maps_of = _maps_of(model, images, target, layer)
    trained = maps_of(model)
    order = _in_order(model, images)[::-1]
    if not order:
        raise UserError(f"{type(model).__name__} has no parameters to randomise")
    groups = [[order[n] for n in group] for group in np.array_split(np.arange(len(order)), min(steps, len(order)))]
    likeness = {name: np.zeros(len(groups)) for name in trained}
    for draw in range(draws):
        changed, generator = copy.deepcopy(model), torch.Generator().manual_seed(draw)
        norms: list[nn.Module] = []
        for step, group in enumerate(groups):
            for module in map(changed.get_submodule, group):
                _randomize(module, generator)
                norms += [module] if _has_statistics(module) else []
            _measure(changed, norms, images)
            for name, found in maps_of(changed).items():
                likeness[name][step] += _mean_correlation(trained[name], found) / draws
    return Randomized(
        tuple(map(tuple, groups)),
        {name: tuple(values.tolist()) for name, values in likeness.items()},
        {name: _mean_correlation(found, found.roll(1, 0)) for name, found in trained.items()},
    )


def plane_name(layer: str, gate: str) -> str:
    """Return the name of a map: "layer3.0.attention spatial"."""
    return f"{layer} {gate}".strip()


def _maps_of(model: nn.Module, images: Tensor, target: Target, layer: str) -> Callable[[nn.Module], dict[str, Tensor]]:
    """Return the function from a network to its maps of `images`, (N, values) by name."""
    is_attentive = has_attention(model)
    classes: Target = None
    if has_captum():
        classes = _classes(model, images) if target is None else target
    if not is_attentive and classes is None:
        raise UserError(
            f"{type(model).__name__} has no maps to check: it has no attention of whatwhere, and Grad-CAM needs captum "
            "and scores of classes"
        )
    target_layer = layer
    if classes is not None:
        try:
            target_layer = layer or last_map(model, images)
            grad_cam(model, images, classes, layer=target_layer)
        except UserError:
            if layer or not is_attentive:
                raise
            classes = None

    def maps_of(network: nn.Module) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if is_attentive:
            for gates in maps(network, images)[1]:
                found |= {plane_name(gates.layer, name): plane for name, plane in gates.planes().items()}
        if classes is not None:
            found[GRAD_CAM] = grad_cam(network, images, classes, layer=target_layer)
        return {name: values.flatten(1) for name, values in found.items()}

    return maps_of


@torch.no_grad()
def _classes(model: nn.Module, images: Tensor) -> Tensor | None:
    """Return the predicted classes; None for a network that is no classifier."""
    with undisturbed(model):
        model.eval()
        output = model(images)
    return output.argmax(1) if isinstance(output, Tensor) and output.dim() == 2 else None


def _has_statistics(module: nn.Module) -> bool:
    return getattr(module, "running_mean", None) is not None


def _is_norm(module: nn.Module) -> bool:
    # a layer that normalises its weights has "norm" in its name too
    is_called_so = "norm" in type(module).__name__.lower()
    is_flat = all(parameter.dim() < 2 for parameter in module.parameters(recurse=False))
    return _has_statistics(module) or isinstance(module, nn.LayerNorm) or (is_called_so and is_flat)


@torch.no_grad()
def _in_order(model: nn.Module, images: Tensor) -> list[str]:
    """Return the modules with parameters or statistics of their own, in the order of their calls.

    Those that are not called, because others use their parameters, are the first.
    """
    owners = {
        module: name
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False)) or _has_statistics(module)
    }
    called: dict[nn.Module, None] = {}
    handles = [owner.register_forward_pre_hook(lambda module, args: called.setdefault(module)) for owner in owners]
    try:
        with undisturbed(model):
            model.eval()
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return [name for owner, name in owners.items() if owner not in called] + [owners[owner] for owner in called]


@torch.no_grad()
def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    learned: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    if _is_norm(module):
        # a frozen norm keeps its weight and its bias as buffers
        learned |= {name: value for name, value in module.named_buffers(recurse=False) if name in ("weight", "bias")}
    for name, value in learned.items():
        if _is_norm(module):
            value.fill_(0.0 if name in ("bias", "beta") else 1.0)
        else:
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float32)
            value.copy_(drawn * value.float().square().mean().sqrt().cpu())


@torch.no_grad()
def _measure(model: nn.Module, norms: Iterable[nn.Module], images: Tensor) -> None:
    """Set the running statistics of norms, one after another in the order of their calls, to those of `images`."""

    def measure(norm: Any, args: tuple[Tensor, ...]) -> None:
        x = args[0].float()
        places = [dim for dim in range(x.dim()) if dim != 1]
        norm.running_mean.copy_(x.mean(places))
        norm.running_var.copy_(x.var(places, correction=0))

    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    model.eval()
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()


def _mean_correlation(one: Tensor, other: Tensor) -> float:
    """Return the mean of |rank correlation| over the rows of `one` that have an order; 0 where `other` has none."""
    if one.shape[1] < LEAST_PLACES:
        return float("nan")
    correlations = [
        abs(float(spearmanr(a, b).statistic)) if np.isfinite(b).all() and b.min() < b.max() else 0.0
        for a, b in zip(one.double().numpy(), other.double().numpy(), strict=True)
        if np.isfinite(a).all() and a.min() < a.max()
    ]
    return float(np.mean(correlations)) if correlations else float("nan")
