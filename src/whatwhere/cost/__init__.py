"""Measure what a model costs, layer by layer, and compare two models."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .difference import CostComparison, compare_costs
from .measure import TrainingModeError, cost, measure_latency
from .result import Cost, Figures, Latency, LayerCost

__all__ = [
    "Cost",
    "CostComparison",
    "Figures",
    "Latency",
    "LayerCost",
    "TrainingModeError",
    "compare_costs",
    "cost",
    "measure_latency",
]


class _CallableModule(ModuleType):
    # The package and its main function share a name. Both `whatwhere.cost(model)` and `from whatwhere.cost import cost`
    # work, in any order.
    def __call__(self, *args: Any, **kwargs: Any) -> Cost:
        return cost(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
