"""What a network looks at."""

from .gates import spatial_gates

__all__ = ["spatial_gates"]
