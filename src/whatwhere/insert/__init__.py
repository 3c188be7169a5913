"""Attention into any convolutional network: `attend`, `detach`, and `plan`, which only says where it would go."""

from __future__ import annotations

from .attend import attend, detach, plan
from .plan import Plan

__all__ = ["Plan", "attend", "detach", "plan"]
