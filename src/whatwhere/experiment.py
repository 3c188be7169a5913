"""Comparing networks fairly."""

from .comparison.callables import Comparison, compare
from .statistics.looks import Schedule
from .statistics.metric import METRICS, Metric
from .statistics.paired import PairedDifference
from .statistics.results import Results
from .statistics.table import read_results
from .statistics.verdict import ArmVerdict, Judgement, judge

Plan = Schedule  # the name of version 0.1

__all__ = [
    "METRICS",
    "ArmVerdict",
    "Comparison",
    "Judgement",
    "Metric",
    "PairedDifference",
    "Plan",
    "Results",
    "Schedule",
    "compare",
    "judge",
    "read_results",
]
