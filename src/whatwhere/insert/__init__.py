"""Attention into any convolutional network: `attend`, `detach`, and `plan`, which only says where it would go."""

from __future__ import annotations

from .attending import attend, detach, plan
from .norm import AttendedBatchNorm2d
from .plan import Plan

__all__ = ["AttendedBatchNorm2d", "Plan", "attend", "detach", "plan"]
