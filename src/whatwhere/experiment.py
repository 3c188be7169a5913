"""Comparing networks fairly."""

from .collect.collect import Collected, collect
from .comparison.across import read_comparisons
from .comparison.callables import Comparison, compare
from .statistics.across import Across, across
from .statistics.columns import Reading
from .statistics.looks import Schedule
from .statistics.metric import METRICS, Metric
from .statistics.paired import PairedDifference
from .statistics.results import Results
from .statistics.table import read_results
from .statistics.verdict import ArmVerdict, Judgement, judge

Plan = Schedule  # the name of version 0.1

__all__ = [
    "METRICS",
    "Across",
    "ArmVerdict",
    "Collected",
    "Comparison",
    "Judgement",
    "Metric",
    "PairedDifference",
    "Plan",
    "Reading",
    "Results",
    "Schedule",
    "across",
    "collect",
    "compare",
    "judge",
    "read_comparisons",
    "read_results",
]
