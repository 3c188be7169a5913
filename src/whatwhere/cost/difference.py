"""Compare the costs of two models, layer by layer."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from ..base.errors import UserError
from ..base.tables import Table, comma_separated, html, markdown, rich_tables, text
from ..base.words import brief
from .operations import is_within
from .result import (
    ITSELF,
    LABELS,
    LATENCY,
    METRICS,
    METRICS_BY_LAYER,
    UNCOUNTED,
    Cost,
    Figures,
    LayerCost,
    format_figure,
)

Status = Literal["both", "added", "removed"]


@dataclass(frozen=True)
class Difference:
    """One figure of both models, 0 in a model that does not have the layer."""

    a: float
    b: float

    @property
    def difference(self) -> float:
        """The change b - a."""
        return self.b - self.a

    @property
    def ratio(self) -> float | None:
        """The ratio b / a; None if a is 0."""
        return self.b / self.a if self.a else None

    def to_dict(self) -> dict[str, float | None]:
        """Return a, b, difference and ratio by name."""
        return {"a": self.a, "b": self.b, "difference": self.difference, "ratio": self.ratio}


@dataclass(frozen=True)
class ComparedLayer:
    """A layer of one model, or of both under the same name."""

    name: str
    a: LayerCost | None
    b: LayerCost | None

    @property
    def status(self) -> Status:
        """Return "both", "added" if only the second model has the layer, or "removed" if only the first has it."""
        if self.a is None:
            return "added"
        return "removed" if self.b is None else "both"

    @property
    def depth(self) -> int:
        """Depth in the tree of modules."""
        return self.name.count(".") + 1

    @property
    def type(self) -> str:
        """Name of its class; both names if they differ."""
        return " -> ".join(dict.fromkeys(layer.type for layer in (self.a, self.b) if layer is not None))

    def __getitem__(self, metric: str) -> Difference:
        return _difference(metric, *(Figures() if layer is None else layer.total for layer in (self.a, self.b)))


@dataclass(frozen=True, repr=False)
class CostComparison:
    """The cost of model `b` beside that of model `a`, in total and by layer. It prints as tables."""

    a: Cost
    b: Cost

    @cached_property
    def layers(self) -> tuple[ComparedLayer, ...]:
        """The layers of both models, aligned by name, in the models' order."""
        in_a = {layer.name: layer for layer in self.a.layers}
        in_b = {layer.name: layer for layer in self.b.layers}
        return tuple(ComparedLayer(name, in_a.get(name), in_b.get(name)) for name in _merged(list(in_a), list(in_b)))

    def __getitem__(self, metric: str) -> Difference:
        return _difference(metric, self.a.total, self.b.total)

    @property
    def _totals(self) -> dict[str, Difference]:
        """The total figures, and the times and peak memory that were measured of both models."""
        times = ((metric, [getattr(side.latency, metric, None) for side in (self.a, self.b)]) for metric in LATENCY)
        measured = {metric: Difference(a, b) for metric, (a, b) in times if a is not None and b is not None}
        return {metric: self[metric] for metric in METRICS} | measured

    @cached_property
    def added(self) -> tuple[ComparedLayer, ...]:
        """The outermost layers that only the second model has, such as the attention added to it."""
        return self._outermost("added")

    @cached_property
    def removed(self) -> tuple[ComparedLayer, ...]:
        """The outermost layers that only the first model has."""
        return self._outermost("removed")

    def summed(self, layers: tuple[ComparedLayer, ...]) -> Figures:
        """Return the summed figures of `layers`, which must not contain each other, in the model that has them."""
        present = [layer.b or layer.a for layer in layers]
        return sum((layer.total for layer in present if layer is not None), Figures())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return {
            "a": self.a.name,
            "b": self.b.name,
            "total": {metric: value.to_dict() for metric, value in self._totals.items()},
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
        """Return the tables in Markdown, with layers down to `depth`."""
        return markdown(self.tables(depth))

    def to_csv(self) -> str:
        """Return a CSV with one line for each layer and figure, and the totals last."""
        parts: list[tuple[str, str, str, str, Difference]] = [
            (layer.name, layer.type, layer.status, metric, layer[metric]) for layer in self.layers for metric in METRICS
        ]
        parts += [("total", "", "", metric, self[metric]) for metric in METRICS]
        for operator in sorted({*self.a.uncounted, *self.b.uncounted}):
            count = Difference(self.a.uncounted.get(operator, 0), self.b.uncounted.get(operator, 0))
            parts.append((UNCOUNTED, operator, "", "calls", count))
        lines = [(*head, *value.to_dict().values()) for *head, value in parts]
        return comma_separated(["layer", "type", "status", "figure", "a", "b", "difference", "ratio"], lines)

    def tables(self, depth: int = 1) -> list[Table]:
        """Return a table of the totals, then one table for each figure with the layers down to `depth`.

        Added or removed layers below `depth` are summed by type, under the layer that contains them. A layer with the
        figure 0 in both models has no line.
        """
        head = (self.a.name, self.b.name, "difference", "ratio")
        totals = [(LABELS[metric], *_cells(metric, value)) for metric, value in self._totals.items()]
        notes = [self._changes("added", self.added), self._changes("removed", self.removed)]
        notes += [self.a.mode_note, self.a.latency_note, self.b.latency_note]
        notes += [self.a.uncounted_note, self.b.uncounted_note]
        title = f"{self.a.name} and {self.b.name}, input {self.a.input_shape}"
        tables = [Table(title, ("", *head), totals, note="\n".join(filter(None, notes)))]
        for metric in METRICS_BY_LAYER:
            rows = []
            for layer in self.layers:
                if layer.depth <= depth and (layer[metric].a or layer[metric].b):
                    mark = {"both": "", "added": "+ ", "removed": "- "}[layer.status]
                    kind = f" ({layer.type})" if mark or " -> " in layer.type else ""
                    label = "  " * (layer.depth - 1) + mark + layer.name.rpartition(".")[2] + kind
                    rows.append((label, *_cells(metric, layer[metric])))
                    rows += self._gathered(layer, depth, metric)
            own = _difference(metric, self.a.own, self.b.own)
            if own.a or own.b:
                rows.append((ITSELF, *_cells(metric, own)))
            tables.append(Table(f"{LABELS[metric]} by layer", ("layer", *head), rows))
        return tables

    def __repr__(self) -> str:
        return text(rich_tables(self.tables()))

    def _repr_html_(self) -> str:
        return html(self.tables())

    def _gathered(self, parent: ComparedLayer, depth: int, metric: str) -> list[tuple[str, str, str, str, str]]:
        """Return a line for each type of added or removed layer inside `parent` and below `depth`."""
        if parent.depth != depth or parent.status != "both":
            return []
        rows = []
        for mark, layers in (("+", self.added), ("-", self.removed)):
            inside = [layer for layer in layers if layer.name.startswith(f"{parent.name}.")]
            for kind, count in Counter(layer.type for layer in inside).items():
                figure = getattr(self.summed(tuple(layer for layer in inside if layer.type == kind)), metric)
                value = Difference(0, figure) if mark == "+" else Difference(figure, 0)
                if figure:
                    rows.append(("  " * parent.depth + f"{mark} {count} x {kind}", *_cells(metric, value)))
        return rows

    def _changes(self, word: str, layers: tuple[ComparedLayer, ...]) -> str:
        # layers without any figure, such as a ReLU, are not worth a note
        layers = tuple(layer for layer in layers if self.summed((layer,)) != Figures())
        if not layers:
            return ""
        figures = self.summed(layers)
        kinds = ", ".join(f"{count} x {kind}" for kind, count in Counter(layer.type for layer in layers).items())
        macs, saved = format_figure("macs", figures.macs), format_figure("saved_bytes", figures.saved_bytes)
        return f"{word}: {kinds}, themselves {figures.num_params:,} parameters, {macs} MACs, {saved} saved for backward"

    def _outermost(self, status: Status) -> tuple[ComparedLayer, ...]:
        outermost: list[ComparedLayer] = []
        for layer in self.layers:
            inside = outermost and is_within(layer.name, outermost[-1].name)
            if layer.status == status and not inside:
                outermost.append(layer)
        return tuple(outermost)


def compare_costs(a: Cost, b: Cost) -> CostComparison:
    """Compare two costs, with layers aligned by name.

    Args:
        a: The cost to compare with, usually of the plain network.
        b: The other cost, usually of the network with attention.

    Raises:
        UserError: One is no `Cost`, or they were measured on inputs of different shapes, or in different modes.

    Example:
        >>> from whatwhere import compare_costs, cost, create_model
        >>> plain, cbam = (cost(create_model(name), (3, 64, 64)) for name in ("resnet18", "cbam_resnet18"))
        >>> params = compare_costs(plain, cbam)["num_params"]
        >>> params.a, params.b, round(params.ratio, 4)
        (11689512, 11779392, 1.0077)
    """
    for side in (a, b):
        if not isinstance(side, Cost):
            raise UserError(f"compare_costs takes two results of cost(model, input_size), got a {type(side).__name__}")
    first, second = ((side.batch_size, *side.input_size) for side in (a, b))
    if first != second:
        raise UserError(f"costs on inputs of different shapes, {brief(first)} and {brief(second)}, cannot be compared")
    if a.training != b.training:
        raise UserError(
            "a cost in training mode and one in evaluation mode cannot be compared; give both one `training`"
        )
    return CostComparison(a, b)


def _difference(metric: str, a: Figures, b: Figures) -> Difference:
    if metric not in METRICS:
        raise UserError(f"no figure {brief(metric)}; known: {', '.join(METRICS)}")
    return Difference(getattr(a, metric), getattr(b, metric))


def _merged(first: list[str], second: list[str]) -> list[str]:
    """Return the names of both lists: `first` in its order, each other name behind its predecessor in `second`."""
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


def _cells(metric: str, value: Difference) -> tuple[str, str, str, str]:
    sign = "+" if value.difference > 0 else ""
    difference = "0" if value.difference == 0 else sign + format_figure(metric, value.difference)
    ratio = "" if value.ratio is None else f"x{value.ratio:.3f}"
    return format_figure(metric, value.a), format_figure(metric, value.b), difference, ratio
