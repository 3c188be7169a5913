"""Comparing networks fairly."""

from .comparison.callables import Comparison, compare
from .statistics.looks import Plan
from .statistics.metric import METRICS, Metric
from .statistics.paired import PairedDifference
from .statistics.results import Results, read_results
from .statistics.verdict import ArmVerdict, Judgement, judge

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
