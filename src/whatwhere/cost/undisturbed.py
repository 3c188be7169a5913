from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..base.modes import modes_kept


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore mode, buffers and gradients of `model`, and the CPU's random state, after the block, come what may.

    Parameters are not copied: a model whose forward or backward pass changes its own parameters keeps the change.
    """
    registered = [(module, dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with modes_kept(model):
            yield
    finally:
        torch.set_rng_state(random_state)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, entries in registered:
            module._buffers.clear()
            module._buffers.update(entries)
        for buffer, value in buffers:
            _restore(buffer, value)


def _restore(buffer: Tensor, value: Tensor) -> None:
    if buffer.shape != value.shape:
        buffer.data = value
    # an unchanged buffer is not written to: it may be one that cannot be, such as an expanded one
    elif buffer.layout != torch.strided or not torch.equal(buffer, value):
        with torch.no_grad():
            buffer.copy_(value)
