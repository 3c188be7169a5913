"""Show what the gates of a network do."""

from .gates import spatial_gates

__all__ = ["spatial_gates"]
