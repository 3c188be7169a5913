from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import Gate
from ..base.errors import UserError
from ..base.modules import modes_kept


@torch.no_grad()
def spatial_gates(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Run `model` on `images` in evaluation mode, and return the spatial gate of each of its attention modules.

    Shape:
        images (N, C, H, W) -> by module name, a gate (N, 1, h, w) with values in (0, 1).

    Raises:
        UserError: The network has no such gate; CBAM and SpatialAttention have.
    """
    gates: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        gates[name] = output.detach().float().cpu()

    handles = [
        module.where.register_forward_hook(partial(keep, name))
        for name, module in model.named_modules()
        if isinstance(module, Gate) and isinstance(module.where, nn.Module)
    ]
    if not handles:
        raise UserError(f"{type(model).__name__} has no spatial gate to show; networks built with CBAM have")
    try:
        with modes_kept(model):
            model.eval()
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return gates
