"""A place for attention in a network, and a block that has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    """

    label: str
    kind: Kind
    host: str
    owner: str
    name: str
    channels: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Skipped:
    """A residual block that cannot take attention.

    Attributes:
        label: The block.
        reason: Why not.
    """

    label: str
    reason: str
