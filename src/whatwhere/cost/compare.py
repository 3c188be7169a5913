"""Two costs side by side: `compare_costs` and its result."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from ..errors import UserError
from .measure import Cost, Figures, LayerCost, is_within

Status = Literal["both", "added", "removed"]
METRICS = ("num_params", "macs", "flops", "other_flops", "param_bytes", "saved_bytes")
TIMES = ("forward_ms", "training_step_ms", "peak_memory_bytes")


@dataclass(frozen=True)
class Difference:
    """One figure of both models.

    Attributes:
        a: The first model's, 0 where the layer is the second's alone.
        b: The second model's, 0 where the layer is the first's alone.
    """

    a: float
    b: float

    @property
    def difference(self) -> float:
        """The change b - a."""
        return self.b - self.a

    @property
    def ratio(self) -> float | None:
        """The ratio b / a, None where a is 0."""
        return self.b / self.a if self.a else None

    def to_dict(self) -> dict[str, float | None]:
        """Return all four by name."""
        return {"a": self.a, "b": self.b, "difference": self.difference, "ratio": self.ratio}


@dataclass(frozen=True)
class ComparedLayer:
    """A layer of either model, or of both under the same name."""

    name: str
    a: LayerCost | None
    b: LayerCost | None

    @property
    def status(self) -> Status:
        """Whether both models have the layer, or only the second ("added") or the first ("removed")."""
        if self.a is None:
            return "added"
        return "removed" if self.b is None else "both"

    @property
    def depth(self) -> int:
        """Depth in the tree of modules."""
        return self.name.count(".") + 1

    @property
    def type(self) -> str:
        """The name of its class; both, if they differ."""
        kinds = dict.fromkeys(layer.type for layer in (self.a, self.b) if layer is not None)
        return " -> ".join(kinds)

    def __getitem__(self, metric: str) -> Difference:
        return Difference(*(0 if layer is None else getattr(layer.total, metric) for layer in (self.a, self.b)))


@dataclass(frozen=True)
class CostComparison:
    """What model `b` costs beside model `a`, in total and by layer; prints itself as tables."""

    a: Cost
    b: Cost

    @cached_property
    def layers(self) -> tuple[ComparedLayer, ...]:
        """The layers of both, aligned by name, in the order of the models."""
        in_a = {layer.name: layer for layer in self.a.layers}
        in_b = {layer.name: layer for layer in self.b.layers}
        return tuple(ComparedLayer(name, in_a.get(name), in_b.get(name)) for name in _merged(list(in_a), list(in_b)))

    def __getitem__(self, metric: str) -> Difference:
        return Difference(getattr(self.a.total, metric), getattr(self.b.total, metric))

    def time(self, metric: str) -> Difference | None:
        """Return one of `TIMES`, None unless both models were timed."""
        values = [getattr(side.latency, metric, None) for side in (self.a, self.b)]
        return None if None in values else Difference(*values)  # type: ignore[arg-type]

    @cached_property
    def added(self) -> tuple[ComparedLayer, ...]:
        """The outermost layers that only the second model has: the attention, where it was added."""
        return self._outermost("added")

    @cached_property
    def removed(self) -> tuple[ComparedLayer, ...]:
        """The outermost layers that only the first model has."""
        return self._outermost("removed")

    def summed(self, layers: tuple[ComparedLayer, ...]) -> Figures:
        """Return the figures of `layers`, which must not contain one another, in the model that has them."""
        present = [layer.b or layer.a for layer in layers]
        return sum((layer.total for layer in present if layer is not None), Figures())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        times = {metric: self.time(metric) for metric in TIMES}
        return {
            "a": self.a.name,
            "b": self.b.name,
            "total": {metric: self[metric].to_dict() for metric in METRICS}
            | {metric: value.to_dict() for metric, value in times.items() if value is not None},
            "added": self.summed(self.added).to_dict() | {"layers": dict(Counter(layer.type for layer in self.added))},
            "layers": [
                {"name": layer.name, "type": layer.type, "status": layer.status}
                | {metric: layer[metric].to_dict() for metric in METRICS}
                for layer in self.layers
            ],
        }

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self, depth: int = 1) -> str:
        """Return the tables in Markdown, layers down to `depth`."""
        from . import render

        return render.markdown(render.comparison_tables(self, depth))

    def to_csv(self) -> str:
        """Return all layers as comma-separated values, one line per layer and figure, the totals last."""
        from . import render

        return render.comparison_csv(self)

    def table(self, depth: int = 1) -> Any:
        """Return the tables as something rich can print, layers down to `depth`."""
        from . import render

        return render.rich_tables(render.comparison_tables(self, depth))

    def __str__(self) -> str:
        from . import render

        return render.text(self.table())

    def _repr_html_(self) -> str:
        from . import render

        return render.html(render.comparison_tables(self, depth=1))

    def _outermost(self, status: Status) -> tuple[ComparedLayer, ...]:
        outermost: list[ComparedLayer] = []
        for layer in self.layers:
            inside = outermost and is_within(layer.name, outermost[-1].name)
            if layer.status == status and not inside:
                outermost.append(layer)
        return tuple(outermost)


def compare_costs(a: Cost, b: Cost) -> CostComparison:
    """Put two costs side by side, layers aligned by name.

    Args:
        a: The cost to compare with, usually of the plain network.
        b: The other, usually of the network with attention.

    Raises:
        UserError: They were measured on inputs of different shapes.
    """
    if (a.input_size, a.batch_size) != (b.input_size, b.batch_size):
        shapes = [(cost.batch_size, *cost.input_size) for cost in (a, b)]
        raise UserError(f"costs on inputs of different shapes, {shapes[0]} and {shapes[1]}, cannot be compared")
    return CostComparison(a, b)


def _merged(first: list[str], second: list[str]) -> list[str]:
    """Return the names of both: those of `first` in their order, the others behind their predecessor in `second`."""
    following: dict[str | None, list[str]] = {}
    known, predecessor = set(first), None
    for name in second:
        if name in known:
            predecessor = name
        else:
            following.setdefault(predecessor, []).append(name)
    merged = following.get(None, [])
    for name in first:
        merged += [name, *following.get(name, [])]
    return merged
