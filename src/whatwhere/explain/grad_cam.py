"""Grad-CAM: which places of a feature map a class rests on."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import UserError
from ..base.modules import module_at, undisturbed
from ..base.words import brief, cause, few, suggest
from ..insert.flow import check_can_change

INSTALL = "pip install captum"
Target = int | Sequence[int] | Tensor | Callable[[Any], Tensor] | None

_MOST_TRIED = 16  # maps, from the last on
_ALIKE = 0.02  # by what share of the distance of two outputs they may differ to be taken for one
_ANOTHER_SHAPE = 0.1  # by what share of its size a map's sides may differ from the image's shape, besides rounding


def grad_cam(model: nn.Module, images: Tensor, target: Target = None, *, layer: str = "") -> Tensor:
    """Return the Grad-CAM maps of `images`, by captum: relu(sum_c a_c A_c), a_c the mean of d score / d A_c.

    A are the features that `layer` returns, (C, h, w), and that mean is over the places. Selvaraju et al., "Grad-CAM:
    Visual Explanations from Deep Networks via Gradient-based Localization" (2017), equations 1 and 2.

    Any convolutional network, with and without attention. It runs in evaluation mode, keeps its mode, gradients and
    hooks, and stores only what the layers behind `layer` need for the backward pass.

    Args:
        model: The network.
        images: What it takes, (N, ...), on its device.
        target: The score whose gradient is taken: one class for all images; a class for each; a function from the
            network's output to a score for each image, (N,); by default the highest score of each image, before a
            softmax.
        layer: Name in `model.named_modules()` of the layer whose output is looked at; by default `last_map` finds it.

    Shape:
        (N, 1, h, w), float32, on the CPU, not normalised; all 0 where nothing speaks for the class.

    Raises:
        UserError: captum is missing, the layer does not exist or gives no map, or the output has no scores of classes.
    """
    model = getattr(model, "_orig_mod", model)
    check_can_change(model, "grad_cam")
    grad_cam_of = _captum()
    if any(value.is_inference() for value in [*model.parameters(), *model.buffers()]):
        raise UserError(
            f"{type(model).__name__} was made in inference mode, so Grad-CAM has no gradient; make it outside"
        )
    layer = layer or last_map(model, images)
    module = module_at(model, layer)
    if module is None:
        names = [name for name, _ in model.named_modules() if name]
        hint = suggest(layer, names) or f"; there are {few(names, 8)} (model.named_modules() has all)"
        raise UserError(f"no layer {brief(layer)} in {type(model).__name__}{hint}")
    seen: list[Any] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output)

    handle = module.register_forward_hook(note)
    # images that were made in inference mode cannot be in a graph
    with torch.inference_mode(False), _frozen(model), undisturbed(model), torch.compiler.set_stance("force_eager"):
        model.eval()
        scored = _score(target, len(images))
        try:
            found = grad_cam_of(lambda x: scored(model(x)), module).attribute(images.clone(), relu_attributions=True)
        except (AssertionError, RuntimeError, KeyError, AttributeError) as error:
            _check_seen(layer, seen, len(images))
            if "does not require grad" in str(error) or "not have been used in the graph" in str(error):
                raise UserError(
                    f"no gradient goes from the score back to the layer {brief(layer)}; name another for Grad-CAM"
                ) from error
            raise
        finally:
            handle.remove()
    _check_seen(layer, seen, len(images))
    maps: Tensor = found
    return maps.detach().float().cpu()


@torch.no_grad()
def last_map(model: nn.Module, images: Tensor) -> str:
    """Return the name of the last layer whose output is a map of features, of more than one place, shaped as the image.

    Preferred are maps that everything the output rests on goes through: not one within a branch that a shortcut goes
    around. Of several layers that return the same map, the outermost: `layer4`, not `layer4.2`.

    Raises:
        UserError: There is none, as in a network that is not convolutional.
    """
    found: list[tuple[str, Tensor, int]] = []  # with the number of tokens before it
    num_calls: Counter[str] = Counter()
    ratio = images.shape[-2] / images.shape[-1]
    num_tokens = 0  # outputs (N, tokens, C)

    def note(name: str, module: nn.Module, output: Any) -> None:
        nonlocal num_tokens
        num_calls[name] += 1
        if not isinstance(output, Tensor) or isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
            return
        if output.dim() == 4 and len(output) == len(images) and output.shape[1] > 1 and output.shape[2:].numel() > 1:
            height, width = output.shape[2:]
            # features that end with their channels, as those of Swin, are no map (N, C, h, w)
            if abs(height - ratio * width) <= max(1.0, ratio) * (1 + _ANOTHER_SHAPE * max(height, width)):
                found.append((name, output, num_tokens))
        elif output.dim() == 3:
            num_tokens += 1

    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: note(name, module, output))
        for name, module in model.named_modules()
        if name
    ]
    with undisturbed(model), torch.compiler.set_stance("force_eager"):
        model.eval()
        try:
            output = model(images)
        finally:
            for handle in handles:
                handle.remove()
        maps = [(name, tokens) for name, features, tokens in found if features is not output and num_calls[name] == 1]
        last = {id(features): name for name, features, _ in found}  # the outermost of each
        outermost = [(name, tokens) for name, tokens in maps if name in last.values()]
        name, before = next(
            (one for one in outermost[: -_MOST_TRIED - 1 : -1] if _carries_all(model, images, one[0])), ("", 0)
        )
    num_maps = [one for one, _ in maps].index(name) + 1 if name else len(maps)
    # a transformer has maps at its beginning only, where every class rests on every place
    if not maps or num_tokens - before > num_maps:
        raise UserError(f"{type(model).__name__} does not end with feature maps; name a layer for Grad-CAM")
    return name or maps[-1][0]


def _carries_all(model: nn.Module, images: Tensor, layer: str) -> bool:
    """Return whether the output rests on the image through `layer` only: features of another image give its output."""
    two = images[:2] if len(images) > 1 else torch.cat([images, -images.flip(-1)])
    module = model.get_submodule(layer)
    try:
        expected = model(two)
        handle = module.register_forward_hook(lambda module, args, output: output.flip(0))
        try:
            found = model(two)
        finally:
            handle.remove()
    except RuntimeError:  # a network for another number of images
        return False
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return False
    wanted = expected.flip(0).float()
    apart = float((wanted - expected).abs().max())
    return 0 < apart < math.inf and bool(((found - wanted).abs() < _ALIKE * apart).all())


def has_captum() -> bool:
    """Return whether captum is installed, without importing it."""
    return importlib.util.find_spec("captum") is not None


def _captum() -> Any:
    try:
        from captum.attr import LayerGradCam
    except ImportError as error:
        raise UserError(f"Grad-CAM needs captum ({cause(error)})", INSTALL) from error
    return LayerGradCam


def _score(target: Target, num_images: int) -> Callable[[Any], Tensor]:
    """Return the function from the network's output to the score of each image."""
    if callable(target) and not isinstance(target, Tensor):
        score = target
    else:
        try:
            # a clone, as classes that were found in inference mode cannot be in a graph
            wanted = None if target is None else torch.as_tensor(target).reshape(-1).clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"target must be numbers of classes, or a function, got {brief(target)}") from error
        if wanted is not None and len(wanted) not in (1, num_images):
            raise UserError(f"target must be one class, or one for each of {num_images} images, got {len(wanted)}")
        wanted = None if wanted is None else wanted.expand(num_images)

        def score(output: Any) -> Tensor:
            if not isinstance(output, Tensor) or output.dim() != 2:
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise UserError(
                    f"Grad-CAM needs scores of classes, (N, classes), and the network returns {shape}; "
                    "give as target a function from the output to one score for each image"
                )
            if wanted is None:
                return output.max(1).values
            if not bool(((wanted >= 0) & (wanted < output.shape[1])).all()):
                raise UserError(f"target must be classes from 0 to {output.shape[1] - 1}, got {brief(wanted.tolist())}")
            return output.gather(1, wanted.to(output.device)[:, None])[:, 0]

    def checked(output: Any) -> Tensor:
        scores = score(output)
        if scores.shape != (num_images,):
            raise UserError(f"target must give one score for each of {num_images} images, got {tuple(scores.shape)}")
        return scores

    return checked


def _check_seen(layer: str, seen: list[Any], num_images: int) -> None:
    """Raise UserError where what a layer returned is no map of each image."""
    if len(seen) != 1:
        why = f"is called {len(seen)} times" if seen else "is not called; a norm that is fused with attention is none"
        raise UserError(f"the layer {brief(layer)} {why}; name another for Grad-CAM")
    (output,) = seen
    if not isinstance(output, Tensor) or output.dim() != 4 or len(output) != num_images:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"the layer {brief(layer)} returns {shape}, no map of each of {num_images} images, (N, C, h, w); "
            "name another for Grad-CAM"
        )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter require a gradient in the block: then the layers before the one looked at store nothing."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
