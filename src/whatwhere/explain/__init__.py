"""Show what a network looks at."""

from .collected import explain
from .explanation import Batch, Explanation
from .faithfulness import Curves, Faithfulness, faithfulness
from .gates import LayerGates, maps, spatial_gates
from .grad_cam import grad_cam
from .health import Finding, Health
from .randomization import Randomized, check

__all__ = [
    "Batch",
    "Curves",
    "Explanation",
    "Faithfulness",
    "Finding",
    "Health",
    "LayerGates",
    "Randomized",
    "check",
    "explain",
    "faithfulness",
    "grad_cam",
    "maps",
    "spatial_gates",
]
