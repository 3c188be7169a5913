"""Comparing networks fairly."""

from .callables import Comparison, compare
from .metric import METRICS, Metric
from .paired import PairedDifference
from .plan import Plan
from .results import Results, read_results
from .verdict import ArmVerdict, Judgement, judge

__all__ = [
    "METRICS",
    "ArmVerdict",
    "Comparison",
    "Judgement",
    "Metric",
    "PairedDifference",
    "Plan",
    "Results",
    "compare",
    "judge",
    "read_results",
]
