"""What a model costs, layer by layer, alone and beside another."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .compare import CostComparison, compare_costs
from .latency import Latency, measure_latency
from .measure import cost
from .result import Cost, Figures, LayerCost

__all__ = [
    "Cost",
    "CostComparison",
    "Figures",
    "Latency",
    "LayerCost",
    "compare_costs",
    "cost",
    "measure_latency",
]


class _CallableModule(ModuleType):
    # The room and its main function share a name: both `whatwhere.cost(model)` and `from whatwhere.cost import cost`
    # work, in whichever order they are used.
    def __call__(self, *args: Any, **kwargs: Any) -> Cost:
        return cost(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
