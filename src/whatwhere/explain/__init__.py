"""Show what the gates of a network do."""

from .gates import LayerGates, maps, spatial_gates
from .health import Finding, Health

__all__ = ["Finding", "Health", "LayerGates", "maps", "spatial_gates"]
