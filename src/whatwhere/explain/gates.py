"""The gates of a network, layer by layer, from one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import Attention, Gate, IdentityStart, ScalingAttention
from ..attention.static import RunningMeans
from ..base.errors import UserError
from ..base.modules import undisturbed
from ..insert.flow import check_can_change


@dataclass(frozen=True)
class LayerGates:
    """What one attention module computed for a batch.

    Attributes:
        layer: Its name in `model.named_modules()`; with " (2)" behind it at its second call in a forward pass.
        kind: Its class.
        gates: By name, float32 on the CPU, with h x w the size of its features there:

            channel (N, C, 1, 1), spatial (N, 1, h, w), rows (N, C, h, 1), columns (N, C, 1, w), groups (N, G, h, w)
            with a map for each group of channels, or gates, broadcastable to (N, C, h, w), which have no parts.

        bounds: Between what they lie: 0 and 1, as those of a sigmoid, where the module does not say otherwise.
        mix: a of the module, y = x * (1 - a + a * gates); None where y = x * gates.
        is_placebo: Whether it looks at no image (see `Static`).
    """

    layer: str
    kind: str
    gates: dict[str, Tensor] = field(default_factory=dict)
    bounds: tuple[float, float] = (0.0, 1.0)
    mix: float | None = None
    is_placebo: bool = False

    def planes(self) -> dict[str, Tensor]:
        """Return the gates that differ from place to place, (N, 1, h, w): the mean over their channels or groups."""
        return {name: gate.mean(1, keepdim=True) for name, gate in self.gates.items() if gate.shape[2:].numel() > 1}

    def channels(self) -> dict[str, Tensor]:
        """Return the gates that are one for all places, (N, C)."""
        return {name: gate.flatten(1) for name, gate in self.gates.items() if gate.shape[2:].numel() == 1}


def has_attention(model: nn.Module) -> bool:
    """Return whether a network holds attention of this package, which `maps` can show."""
    return any(isinstance(module, (Attention, IdentityStart)) for module in model.modules())


@torch.no_grad()
def maps(model: nn.Module, *inputs: Any) -> tuple[Any, list[LayerGates]]:
    """Run `model` on `inputs` in evaluation mode; return its output, and the gates of its attention modules.

    Any network that holds attention of this package: its own, one that `attend` has changed, a detector. The modules
    stand in the order of their calls. `model` keeps its mode, its gradients and its hooks, and computes what it
    computes without, to rounding: gates come from PyTorch's operators, not from the one of C++. The layers inside a
    `ScalingAttention` run twice.

    Raises:
        UserError: The network has no attention of this package, or calls none of it; two modules share a gate; a
            wrapper, such as DataParallel or `YOLO(...)`: give the network inside it.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile was given
    check_can_change(model, "maps")
    found: list[LayerGates] = []
    # hooks that come after torch.compile are not heard in what it has compiled
    with _recording(model, found), undisturbed(model), torch.compiler.set_stance("force_eager"):
        model.eval()
        output = model(*inputs)
    if not found:
        raise UserError(f"{type(model).__name__} calls none of its attention; give an input that goes through it")
    return output, found


def spatial_gates(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Run `model` on `images` in evaluation mode, and return the spatial gate of each of its attention modules.

    Shape:
        images (N, C, H, W) -> by layer, as in `LayerGates`, a gate (N, 1, h, w) with values in (0, 1).

    Raises:
        UserError: The network has no such gate; CBAM, SpatialAttention, scSE and triplet attention have.
    """
    found = maps(model, images)[1] if has_attention(model) else []
    gates = {layer.layer: layer.gates["spatial"] for layer in found if "spatial" in layer.gates}
    if not gates:
        raise UserError(f"{type(model).__name__} has no spatial gate to show; networks built with CBAM have")
    return gates


@contextmanager
def _recording(model: nn.Module, found: list[LayerGates]) -> Iterator[None]:
    """Hook the attention modules of `model` in the block; what they compute comes to the end of `found`."""
    names = {id(module): name for name, module in model.named_modules()}
    attentions = [module for module in model.modules() if isinstance(module, (Attention, IdentityStart))]
    if not attentions:
        raise UserError(f"{type(model).__name__} has no attention of whatwhere; `attend` puts it into any network")
    # what is inside an IdentityStart is mixed by it
    starts = [module for module in attentions if isinstance(module, IdentityStart)]
    mixed = {id(inside): start for start in starts for inside in start.modules()}
    handles: list[Any] = []
    hooked: set[int] = set()
    try:
        for module in attentions:
            if isinstance(module, IdentityStart) and any(isinstance(inside, Attention) for inside in module.modules()):
                continue
            keep = partial(_keep, found, names[id(module)], module, mixed.get(id(module), module))
            if not isinstance(module, Gate):
                handles.append(module.register_forward_hook(partial(_keep_parts, keep), with_kwargs=True))
                continue
            # not the module itself, which is not called where its gates are fused with a norm
            functions: tuple[tuple[str, Any], ...] = (("channel", module.what), ("spatial", module.where))
            for name, function in functions:
                if not isinstance(function, nn.Module):
                    continue
                if id(function) in hooked:
                    raise UserError(f"{names[id(module)]} shares its {name} gate with another module; give it its own")
                hooked.add(id(function))
                handles.append(function.register_forward_hook(partial(_keep_gate, keep, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(found: list[LayerGates], name: str, module: Any, mixing: Any, gates: dict[str, Tensor]) -> None:
    """Note gates of a module, mixed by `mixing`: with those of the same call where there are others of it."""
    numbered = [layer for layer in found if layer.layer == name or layer.layer.startswith(f"{name} (")]
    gates = {key: value.detach().float().cpu() for key, value in gates.items()}
    if numbered and numbered[-1].gates and not gates.keys() & numbered[-1].gates.keys():
        numbered[-1].gates.update(gates)
        return
    called = name if not numbered else f"{name} ({len(numbered) + 1})"
    mix = getattr(mixing, "mix", None)
    mix = None if mix is None else float(mix.detach())
    inner = module.attention if isinstance(module, IdentityStart) else module
    is_placebo = any(isinstance(part, RunningMeans) for part in inner.modules())
    bounds = getattr(inner, "bounds", (0.0, 1.0))
    found.append(LayerGates(called, type(inner).__name__, gates, bounds, mix, is_placebo))


def _keep_gate(
    keep: Callable[[dict[str, Tensor]], None], name: str, function: nn.Module, args: tuple[Tensor, ...], gate: Tensor
) -> None:
    gate = gate[:, :, None, None] if gate.dim() == 2 else gate
    # it may be one for all images
    keep({name: gate.expand(len(args[0]), -1, -1, -1)})


def _keep_parts(
    keep: Callable[[dict[str, Tensor]], None],
    module: nn.Module,
    args: tuple[Tensor, ...],
    named: dict[str, Tensor],
    output: Tensor,
) -> None:
    if not isinstance(module, ScalingAttention):
        # a GlobalContext adds, and of a module of others only the mixing is known
        keep({})
        return
    x = module.seen(args[0] if args else named["x"])
    # a class of a user may have gates of its own, of which the parts it inherits know nothing
    owner = next(kind for kind in type(module).__mro__ if "parts" in vars(kind) or "gates" in vars(kind))
    parts = module.parts(x) if "parts" in vars(owner) else {"gates": module.gates(x)}
    keep({name: part.expand(len(x), -1, -1, -1) for name, part in parts.items()})
