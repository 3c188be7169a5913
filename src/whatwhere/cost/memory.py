"""What autograd keeps between the forward and the backward pass."""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..base.modules import tensors_in
from .layers import ROOT, LayerNames


class _Kept:
    """A saved tensor; alive exactly as long as the graph keeps it."""

    def __init__(self, tensor: Tensor, layer: str) -> None:
        # detached, because a node that held its own output would keep itself alive
        self.tensor = tensor.detach()
        self.layer = layer


def saved_bytes(model: nn.Module, images: Tensor, names: LayerNames) -> Counter[str]:
    """Return the bytes that one forward pass of `model`, in its present mode, keeps for backward, by layer.

    Distinct storages, counted whole and once, at the layer that saved them first; without parameters and buffers. What
    a custom autograd function keeps as attributes, unseen by the saved-tensor hooks, is found in the graph and counted
    at the model itself (`ROOT`), or, where it is a graph of its own, at the layer whose parameters that has. Runs
    without a module hook, so that the model takes the path it takes in training.
    """
    kept: list[weakref.ref[_Kept]] = []

    def pack(tensor: Tensor) -> _Kept:
        wrapped = _Kept(tensor, names.current())
        kept.append(weakref.ref(wrapped))
        return wrapped

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda wrapped: wrapped.tensor):
        outputs = tensors_in(model(images))

    seen = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    by_layer: Counter[str] = Counter()

    def count(tensor: Tensor, layer: str) -> None:
        key = _storage(tensor)
        if key and key not in seen:
            seen.add(key)
            by_layer[layer] += tensor.untyped_storage().nbytes()

    for reference in kept:
        wrapped = reference()
        if wrapped is not None:
            count(wrapped.tensor, wrapped.layer)
    owners = {id(parameter): name.rpartition(".")[0] for name, parameter in model.named_parameters()}
    for node in _nodes(output.grad_fn for output in outputs):
        attributes = tensors_in(vars(node)) if hasattr(node, "__dict__") else []
        inner = list(_nodes(tensor.grad_fn for tensor in attributes))
        layer = _common(
            owners[id(leaf)] for leaf in (getattr(n, "variable", None) for n in inner) if id(leaf) in owners
        )
        for tensor in (*attributes, *_saved_by(inner)):
            count(tensor, layer)
    return by_layer


def _common(layers: Iterable[str]) -> str:
    """Return the innermost layer that has all of `layers` inside, `ROOT` where there are none."""
    paths = [layer.split(".") for layer in layers]
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return ".".join(parts[0] for parts in same) or ROOT


def _saved_by(nodes: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors that operators saved, which is what their nodes call "_saved_..."."""
    for node in nodes:
        for name in dir(node):
            if name.startswith("_saved_"):
                yield from tensors_in(getattr(node, name))


def _storage(tensor: Tensor) -> int:
    # only strided tensors have one storage; 0 stands for none
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _nodes(roots: Iterable[Any]) -> Iterator[Any]:
    pending = [root for root in roots if root is not None]
    visited = set()
    while pending:
        node = pending.pop()
        if node in visited:
            continue
        visited.add(node)
        yield node
        pending.extend(parent for parent, _ in node.next_functions if parent is not None)
