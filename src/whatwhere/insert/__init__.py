"""Put attention into any convolutional network (`attend`), take it out (`detach`), or only show where (`plan`)."""

from __future__ import annotations

from .attend import attend, detach, plan
from .plan import Plan

__all__ = ["Plan", "attend", "detach", "plan"]
