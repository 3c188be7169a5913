"""A place for attention in a network, and a block that has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["behind", "before", "instead of"]


@dataclass(frozen=True, eq=False)
class Place:
    """One place for attention.

    Attributes:
        label: What it belongs to: the block, the stage, the module.
        kind: Behind the host's output, before its input, or instead of the host.
        host: Name of the module.
        owner: Name of the module that gets the attention as a child.
        name: What the child is called.
        channels: Channels there.
        size: Height and width there, with the input that was tried.
        keeper: Name of the module that keeps the attention in its place, around host and owner.
        feeder: Name of the convolution whose output the host, a norm, takes.
        follower: Name of the norm that takes the output of the host, a convolution.
    """

    label: str
    kind: Kind
    host: str
    owner: str
    name: str
    channels: int
    size: tuple[int, int]
    keeper: str = ""
    feeder: str | None = None
    follower: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what a plan shows of it, as JSON values."""
        shown = ("label", "kind", "host", "owner", "name", "channels")
        return {**{name: getattr(self, name) for name in shown}, "size": list(self.size)}


def relative(name: str | None, around: str) -> str | None:
    """Return a module's name inside the module `around`; None where it is not in there."""
    if name is None or not around:
        return name
    return f"{name}.".removeprefix(f"{around}.").rstrip(".") if f"{name}.".startswith(f"{around}.") else None


@dataclass(frozen=True)
class Skipped:
    """A residual block that cannot take attention.

    Attributes:
        label: The block.
        reason: Why not.
    """

    label: str
    reason: str
