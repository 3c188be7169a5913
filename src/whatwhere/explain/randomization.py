"""Does a map depend on what a network has learned? The check of Adebayo et al. with randomised weights."""

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
from ..base.modules import modes_kept
from .gates import has_attention, maps
from .grad_cam import grad_cam, has_captum, last_map

GRAD_CAM = "Grad-CAM"
STILL_ALIKE = 0.5  # the mean rank correlation from which on much of a map comes from image and architecture

ANYWHERE_ALIKE = 0.8  # the same for two images: the map hardly depends on the image


@dataclass(frozen=True)
class Randomized:
    """How alike maps stay as the layers of a network lose what they learned, from the last to the first.

    Attributes:
        layers: The layers of each step; those of the steps before are randomised too.
        likeness: By map, after each step: the mean over images and draws of |rank correlation| with the map of the
            network as it was, from 0 to 1. NaN where that map is the same everywhere.
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
                parts.append(f"with random weights it stays alike ({values[-1]:.2f})")
            if self.of_others[name] >= ANYWHERE_ALIKE:
                parts.append(f"maps of different images are alike ({self.of_others[name]:.2f})")
            if parts:
                found[name] = " and ".join(parts)
        return found


def check(model: nn.Module, images: Tensor, *, layer: str = "", steps: int = 8, draws: int = 3) -> Randomized:
    """Return how alike the maps of `images` stay when the layers of `model` are randomised, from the last to the first.

    Adebayo et al., "Sanity Checks for Saliency Maps" (2018), cascading randomisation. The maps are the gates of the
    attention and, where captum is installed and the network is a classifier, Grad-CAM for the classes that the network
    itself predicts. A map that stays alike shows the image, and what the architecture makes of it, not what the network
    has learned.

    A layer is randomised by shuffling the values of each of its parameters, which keeps their distribution and needs
    nothing to be known of how it began; the running statistics of the norms are then measured again on `images`.
    `model` itself stays as it is: a copy is changed.

    Args:
        model: The network.
        images: What it takes, (N, C, H, W), at least 2; 8 to 16 say enough.
        layer: The layer of Grad-CAM, as in `grad_cam`.
        steps: Number of groups into which the layers are cut, as equal as possible.
        draws: How often everything is randomised anew; one draw may come near the trained map by chance.

    Raises:
        UserError: Fewer than 2 images, or a network without any map.
    """
    check_integer("steps", steps)
    if len(images) < 2:
        raise UserError(f"the check with random weights needs at least 2 images, got {len(images)}")
    check_integer("draws", draws)
    maps_of = _maps_of(model, images, layer)
    trained = maps_of(model)
    order = [name for name, _ in _in_order(model, images[:1])][::-1]
    groups = [[order[n] for n in group] for group in np.array_split(np.arange(len(order)), min(steps, len(order)))]
    likeness = {name: np.zeros(len(groups)) for name in trained}
    for draw in range(draws):
        changed, generator = copy.deepcopy(model), torch.Generator().manual_seed(draw)
        norms: list[nn.Module] = []
        for step, group in enumerate(groups):
            for module in map(changed.get_submodule, group):
                _shuffle(module, generator)
                norms += [module] if getattr(module, "running_mean", None) is not None else []
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


def _maps_of(model: nn.Module, images: Tensor, layer: str) -> Callable[[nn.Module], dict[str, Tensor]]:
    """Return the function from a network to its maps of `images`, (N, values) by name."""
    is_attentive = has_attention(model)
    classes = _classes(model, images) if has_captum() else None
    if not is_attentive and classes is None:
        raise UserError(
            f"{type(model).__name__} has no maps to check: it has no attention of whatwhere, and Grad-CAM needs captum "
            "and scores of classes"
        )
    target_layer = "" if classes is None else layer or last_map(model, images)

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
    with modes_kept(model):
        model.eval()
        output = model(images)
    return output.argmax(1) if isinstance(output, Tensor) and output.dim() == 2 else None


@torch.no_grad()
def _in_order(model: nn.Module, images: Tensor) -> list[tuple[str, nn.Module]]:
    """Return the modules that have parameters of their own and are called, by name, in the order of their calls."""
    called: dict[nn.Module, None] = {}
    owners = {module: name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    handles = [owner.register_forward_pre_hook(lambda module, args: called.setdefault(module)) for owner in owners]
    with modes_kept(model):
        model.eval()
        model(images)
    for handle in handles:
        handle.remove()
    return [(owners[module], module) for module in called]


@torch.no_grad()
def _shuffle(module: nn.Module, generator: torch.Generator) -> None:
    for parameter in module.parameters(recurse=False):
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


@torch.no_grad()
def _measure(model: nn.Module, norms: Iterable[Any], images: Tensor) -> None:
    """Set the running statistics of norms to those of `images`."""
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(images)
    model.eval()


def _mean_correlation(one: Tensor, other: Tensor) -> float:
    """Return the mean of |rank correlation| over the rows of `one` that are not constant; 0 where `other` is."""
    correlations = [
        0.0 if b.min() == b.max() else abs(float(spearmanr(a, b).statistic))
        for a, b in zip(one.double().numpy(), other.double().numpy(), strict=True)
        if a.min() < a.max()
    ]
    return float(np.mean(correlations)) if correlations else float("nan")
