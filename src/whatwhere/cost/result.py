"""The figures of one model, and their tables, JSON, Markdown and CSV."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..base.tables import Table, comma_separated, html, markdown, rich_tables, text
from ..base.words import unsteady

METRICS = ("num_params", "macs", "flops", "other_flops", "param_bytes", "saved_bytes")
LATENCY = ("forward_ms", "training_step_ms", "peak_memory_bytes")
METRICS_BY_LAYER = ("num_params", "macs", "saved_bytes")
ITSELF = "(model itself)"
UNCOUNTED = "(not counted)"
LABELS = {
    "num_params": "parameters",
    "param_bytes": "parameter size",
    "macs": "MACs",
    "flops": "FLOPs",
    "other_flops": "other FLOPs",
    "saved_bytes": "saved for backward",
    "forward_ms": "forward pass",
    "training_step_ms": "training step",
    "peak_memory_bytes": "peak memory",
}


@dataclass(frozen=True)
class Figures:
    """The figures of one layer or a whole model, for the whole batch.

    Attributes:
        num_params: Number of parameters; a shared parameter counts once.
        param_bytes: Size of the parameters.
        macs: Multiply-accumulates of convolutions and matrix products in a forward pass.
        other_flops: FLOPs of all other operators in a forward pass (see `whatwhere.cost.operations`).
        saved_bytes: Bytes that a forward pass in training saves for backward: distinct storages, without parameters
            and buffers.
    """

    num_params: int = 0
    param_bytes: int = 0
    macs: int = 0
    other_flops: int = 0
    saved_bytes: int = 0

    @property
    def flops(self) -> int:
        """FLOPs of convolutions and matrix products: two per multiply-accumulate."""
        return 2 * self.macs

    def __add__(self, other: Figures) -> Figures:
        return Figures(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    def to_dict(self) -> dict[str, int]:
        """Return the figures by name."""
        values = asdict(self)
        return {"num_params": values.pop("num_params"), "macs": values.pop("macs"), "flops": self.flops, **values}


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer.

    Attributes:
        name: Dotted name in the model.
        type: Name of its class.
        output_size: Shape of its last output; None if it was not called or returned no tensor.
        num_calls: Number of calls in a forward pass.
        own: Figures without the layers inside it.
        total: Figures with the layers inside it.
    """

    name: str
    type: str
    output_size: tuple[int, ...] | None
    num_calls: int
    own: Figures
    total: Figures

    @property
    def depth(self) -> int:
        """Depth in the tree of modules, 1 for the model's own children."""
        return self.name.count(".") + 1

    def to_dict(self) -> dict[str, Any]:
        """Return the layer as plain values for JSON; the figures include the layers inside it."""
        size = None if self.output_size is None else list(self.output_size)
        head = {"name": self.name, "type": self.type, "output_size": size, "num_calls": self.num_calls}
        return head | self.total.to_dict()


@dataclass(frozen=True)
class Latency:
    """Times, as medians over rounds, and peak memory.

    Attributes:
        forward_ms: One forward pass in evaluation mode, without gradients.
        training_step_ms: Forward pass in training mode with the mean of the output as loss, and backward; no optimizer.
        peak_memory_bytes: Most memory that the model, its input and a training step take on the accelerator; other
            tensors there do not count. None on a CPU.
        spread: Factor by which the times contradict each other: the slowest round relative to the fastest, or a forward
            pass relative to a whole step, whatever is larger.
        steady: Whether the times mean something: the quartiles of the rounds are apart by a third of the median at
            most, and a training step takes no less than a forward pass.
    """

    forward_ms: float
    training_step_ms: float
    peak_memory_bytes: int | None
    spread: float = 1.0
    steady: bool = True


@dataclass(frozen=True, repr=False)
class Cost:
    """The cost of a model, in total and by layer. It prints as tables.

    Attributes:
        name: Name of the model.
        input_size: Shape of one input, without the batch.
        batch_size: Number of inputs. Every figure is for the whole batch.
        own: Figures of the model without its layers: its own parameters and the operators of its own forward.
        total: Figures of the whole model.
        layers: The layers in the order of `named_modules`, without nn.Identity.
        uncounted: Operators without a FLOP formula, and how often they ran; `other_flops` does not include them.
        latency: Times and peak memory, if `cost` was asked to measure them.
        training: Whether the bytes saved for backward, and the training step, were measured in training mode.
    """

    name: str
    input_size: tuple[int, ...]
    batch_size: int
    own: Figures
    total: Figures
    layers: tuple[LayerCost, ...]
    uncounted: dict[str, int] = field(default_factory=dict)
    latency: Latency | None = None
    training: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        head: dict[str, Any] = {"name": self.name, "input_size": list(self.input_size), "batch_size": self.batch_size}
        head["training"] = self.training
        times = {} if self.latency is None else asdict(self.latency)
        layers = [layer.to_dict() for layer in self.layers]
        return head | self.total.to_dict() | times | {"uncounted": self.uncounted, "layers": layers}

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self, depth: int = 2) -> str:
        """Return the tables in Markdown, with layers down to `depth`."""
        return markdown(self.tables(depth))

    def to_csv(self) -> str:
        """Return a CSV: a line for each layer, the model itself, the total, and each operator without a formula."""
        parts = [(layer.name, layer.type, _times(layer.output_size), layer.total) for layer in self.layers]
        parts += [(ITSELF, self.name, "", self.own), ("total", self.name, "", self.total)]
        lines = [(*head, *(getattr(figures, metric) for metric in METRICS)) for *head, figures in parts]
        lines += [(UNCOUNTED, operator, f"{count} x") for operator, count in sorted(self.uncounted.items())]
        return comma_separated(["layer", "type", "output_size", *METRICS], lines)

    def tables(self, depth: int = 2) -> list[Table]:
        """Return a table of the layers down to `depth`, and one of the totals."""
        parts = [
            (
                "  " * (layer.depth - 1) + layer.name.rpartition(".")[2],
                layer.type + (f" x{layer.num_calls}" if layer.num_calls > 1 else ""),
                _times(layer.output_size),
                layer.total,
            )
            for layer in self.layers
            if layer.depth <= depth
        ]
        if any(getattr(self.own, metric) for metric in METRICS_BY_LAYER):
            parts.append((ITSELF, "", "", self.own))
        rows = [
            (*head, *(format_figure(metric, getattr(figures, metric)) for metric in METRICS_BY_LAYER))
            for *head, figures in parts
        ]
        columns = ("layer", "type", "output", "parameters", "MACs", "saved")
        totals = [(LABELS[metric], format_figure(metric, getattr(self.total, metric))) for metric in METRICS]
        times = ((key, getattr(self.latency, key, None)) for key in LATENCY)
        totals += [(LABELS[key], format_figure(key, value)) for key, value in times if value is not None]
        notes = filter(None, [self.mode_note, self.latency_note, self.uncounted_note])
        return [
            *([Table(f"{self.name}, input {self.input_shape}", columns, rows, num_text_columns=3)] if rows else []),
            Table("total", ("", self.name), totals, note="\n".join(notes)),
        ]

    @property
    def input_shape(self) -> str:
        """Shape of the whole input, batch included, such as "1x3x224x224"."""
        return _times((self.batch_size, *self.input_size))

    @property
    def mode_note(self) -> str:
        """A sentence that tells figures of a training step that were measured in evaluation mode; "" if none were."""
        return "" if self.training else "saved for backward, and the training step: measured in evaluation mode"

    @property
    def latency_note(self) -> str:
        """A sentence that doubts times that differ from round to round; "" if they are steady."""
        if self.latency is None or self.latency.steady:
            return ""
        doubt = unsteady([self.name], self.latency.spread)
        return f"{doubt}: they mean little; measure again on a quiet machine"

    @property
    def uncounted_note(self) -> str:
        """A sentence that names the operators without a FLOP formula; "" if there are none."""
        if not self.uncounted:
            return ""
        names = ", ".join(f"{name} ({count} x)" for name, count in sorted(self.uncounted.items()))
        return f"not counted among the FLOPs of {self.name}: {names}"

    def __repr__(self) -> str:
        return text(rich_tables(self.tables()))

    def _repr_html_(self) -> str:
        return html(self.tables())


def format_figure(metric: str, value: float) -> str:
    """Return a figure with its unit: parameters exactly, sizes in MiB, times in ms, operations in M or G."""
    if metric == "num_params":
        return f"{value:,.0f}"
    if metric.endswith("_bytes"):
        return f"{value / 2**20:,.2f} MiB"
    if metric.endswith("_ms"):
        return f"{value:,.1f} ms"
    if abs(value) >= 1e9:
        return f"{value / 1e9:,.4f} G"
    return f"{value / 1e6:,.2f} M" if abs(value) >= 1e6 else f"{value:,.0f}"


def _times(size: Sequence[int] | None) -> str:
    return "" if size is None else "x".join(map(str, size))
