"""Count the FLOPs of a forward pass, each operator at the layer that runs it.

Convolutions and matrix products use the formulas of `torch.utils.flop_counter`: two FLOPs per multiply-accumulate,
without biases (the convention of published tables). All other operators are counted apart:

- elementwise functions (activations, sums, products, gates): 1 per output element;
- reductions (mean, max, sum, ...): 1 per input element; variance 4, l2 norm 2, log-sum-exp 4, softmax 5;
- normalisation: 2 per element with fixed statistics (one scale, one shift), 7 with statistics of the batch;
- pooling: the window's size per output element; adaptive pooling: 1 per input element;
- bilinear resizing: 7 per output element;
- operators that move or create data (views, copies, concatenation, padding, indexing): 0.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..base.modules import tensors_in
from ..base.words import short

ROOT = ""
aten = torch.ops.aten
Formula = Callable[[Sequence[Any], Any], int]
# torch 2.10 has no formula for attention on a CPU
_MATRIX_PRODUCTS: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    **flop_registry,
}


def _packets(names: str) -> set[Any]:
    # a few operators are newer than torch 2.10
    return {getattr(aten, name) for name in names.split() if hasattr(aten, name)}


_FREE = _packets(
    "alias arange bernoulli bernoulli_ cat clone constant_pad_nd contiguous copy copy_ detach empty empty_like "
    "empty_strided eye fill fill_ flip full full_like gather index index_put index_put_ index_select "
    "lift_fresh linspace meshgrid narrow_copy new_empty new_empty_strided new_full new_ones new_zeros ones ones_like "
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle "
    "rand rand_like randn randn_like reflection_pad1d reflection_pad2d repeat replication_pad1d replication_pad2d "
    "resize_ roll scalar_tensor scatter select_scatter slice_scatter split_with_sizes_copy stack "
    "_local_scalar_dense _reshape_copy _to_copy _unsafe_view unfold_copy im2col "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d zero_ zeros zeros_like"
)
_PER_INPUT_ELEMENT = {
    1: "sum mean amax amin aminmax max min prod argmax argmin any all cumsum _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d adaptive_max_pool3d",
    2: "linalg_vector_norm norm",
    4: "var std var_mean std_mean logsumexp",
    5: "_softmax _log_softmax _safe_softmax",
}
_PER_OUTPUT_ELEMENT = {
    1: "hardswish hardswish_ rsub prelu _prelu_kernel native_dropout addcmul addcdiv lerp floor_divide",
    7: "native_layer_norm native_group_norm upsample_bilinear2d _upsample_bilinear2d_aa",
}


def _numel(value: Any) -> int:
    tensor = next(iter(tensors_in(value)), None)
    return 0 if tensor is None else tensor.numel()


def _per_input(weight: int) -> Formula:
    return lambda args, out: weight * _numel(args[0])


def _per_output(weight: int) -> Formula:
    return lambda args, out: weight * _numel(out)


def _pool(args: Sequence[Any], out: Any) -> int:
    kernel = args[1]
    dims = args[0].dim() - 2
    window: int = math.prod(kernel) if len(kernel) == dims else kernel[0] ** dims
    return window * _numel(out)


def _batch_norm(args: Sequence[Any], out: Any) -> int:
    computes_statistics = bool(args[5])
    return (7 if computes_statistics else 2) * _numel(out)


_FORMULAS: dict[Any, Formula] = {
    **{packet: _per_input(weight) for weight, names in _PER_INPUT_ELEMENT.items() for packet in _packets(names)},
    **{packet: _per_output(weight) for weight, names in _PER_OUTPUT_ELEMENT.items() for packet in _packets(names)},
    **dict.fromkeys(_packets("max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d"), _pool),
    **dict.fromkeys(_packets("native_batch_norm cudnn_batch_norm miopen_batch_norm"), _batch_norm),
    **dict.fromkeys(_packets("_native_batch_norm_legit_no_training"), _per_output(2)),
}


class LayerNames:
    """The dotted names of a model's modules, each under its first name; the model itself is "" (`ROOT`).

    The running layer is read from the Python stack: a module hook could change the path that a fused layer takes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self._name_of = {id(module): name for name, module in self.modules.items()}

    def current(self) -> str:
        """Return the name of the innermost layer with a method on the caller's stack, or `ROOT`."""
        names = (self._name_in(frame) for frame, _ in traceback.walk_stack(sys._getframe(1)))
        return next((name for name in names if name is not None), ROOT)

    def of(self, module: nn.Module) -> str | None:
        """Return the name of a module; None if it is no layer of the model."""
        return self._name_of.get(id(module))

    def innermost(self, trace: TracebackType | None) -> str:
        """Return the name of the innermost layer that an exception passed through, or `ROOT`."""
        names = [self._name_in(frame) for frame, _ in traceback.walk_tb(trace)]
        return next(filter(None, reversed(names)), ROOT)

    def describe(self, name: str) -> str:
        """Return `name` and the layer's repr, or its class if it contains layers."""
        module = self.modules[name]
        own = repr(module) if not list(module.children()) else type(module).__name__
        return f"{short(name) or 'the model'} ({short(own, 120)})"

    def _name_in(self, frame: FrameType) -> str | None:
        candidate: Any = frame.f_locals.get("self")
        return self._name_of.get(id(candidate)) if isinstance(candidate, nn.Module) else None


def is_within(name: str, layer: str) -> bool:
    """Return whether the layer `name` is `layer` or inside it."""
    return name == layer or name.startswith(f"{layer}.")


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class is untyped
    """Counts the operators that run while it is active."""

    def __init__(self, names: LayerNames) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names
        self.macs: Counter[str] = Counter()  # of convolutions and matrix products, by layer name
        self.other_flops: Counter[str] = Counter()  # of all other operators, by layer name
        self.uncounted: Counter[str] = Counter()  # runs of each operator that has no formula

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        is_elementwise = torch.Tag.pointwise in func.tags
        is_free = packet in _FREE or func.is_view or torch.Tag.inplace_view in func.tags
        if not (is_free or is_elementwise or packet in _MATRIX_PRODUCTS or packet in _FORMULAS):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if is_free or (out is None and not func._schema.is_mutable):
            return out
        layer = self.names.current()
        if out is None:  # an in-place operator without a result has no size to count
            self.uncounted[str(packet)] += 1
        elif _numel(out) == 0:
            pass
        # first, because max and min of two tensors are elementwise, and tagged so
        elif is_elementwise:
            self.other_flops[layer] += _numel(out)
        elif packet in _MATRIX_PRODUCTS:
            self.macs[layer] += _MATRIX_PRODUCTS[packet](*args, **kwargs, out_val=out) // 2
        elif packet in _FORMULAS:
            self.other_flops[layer] += _FORMULAS[packet](args, out)
        else:
            self.uncounted[str(packet)] += 1
        return out
