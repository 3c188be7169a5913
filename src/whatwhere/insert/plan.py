"""Places for attention in a network, and the plan that lists them before anything is changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..base.tables import Table, rich_tables, text

Kind = Literal["behind", "before", "instead of"]


@dataclass(frozen=True, eq=False)
class Place:
    """One place for attention. All names are names of modules in the network.

    Attributes:
        label: The block, stage or module that the place belongs to.
        kind: Attention takes the host's output ("behind"), makes its input ("before"), or replaces it ("instead of").
        host: The module where attention stands.
        owner: The module that gets the attention as a child.
        name: The child's name.
        channels: Channels of the features there.
        size: Their height and width for the example input.
        keeper: The module around host and owner that checks, at each forward pass, that the attention is still there.
        feeder: If the host is a norm: the convolution before it.
        follower: If the host is a convolution: the norm behind it.
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
        """Return the part that a plan shows, as JSON values."""
        shown = ("label", "kind", "host", "owner", "name", "channels")
        return {**{name: getattr(self, name) for name in shown}, "size": list(self.size)}


@dataclass(frozen=True)
class Skipped:
    """A residual block that cannot take attention.

    Attributes:
        label: Name of the block.
        reason: Why not.
    """

    label: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Where `attend` would put attention, and what that adds.

    Attributes:
        attention: Its name.
        start: "identity" or "paper".
        places: In order of execution.
        skipped: Residual blocks that cannot take attention, and why.
        num_params: Parameters of the network without attention.
        added_params: Parameters that each place adds, less those of a module that is replaced.
        in_norm: Whether each place shares the passes of the BatchNorm before it.
        note: Why there are so few places, and where there would be more; "" where nothing is left out.
    """

    attention: str
    start: str
    places: tuple[Place, ...]
    skipped: tuple[Skipped, ...]
    num_params: int
    added_params: tuple[int, ...]
    in_norm: tuple[bool, ...]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        rows = [
            {**place.to_dict(), "added_params": added, "in_norm": in_norm}
            for place, added, in_norm in zip(self.places, self.added_params, self.in_norm, strict=True)
        ]
        return {
            "attention": self.attention,
            "start": self.start,
            "num_params": self.num_params,
            "added_params": sum(self.added_params),
            "places": rows,
            "skipped": [asdict(skipped) for skipped in self.skipped],
            "note": self.note,
        }

    def tables(self) -> list[Table]:
        """Return the plan as a table for a terminal."""
        rows = [
            (
                f"{place.owner}.{place.name}".lstrip("."),
                f"{place.kind} {place.host}{', in one pass' if in_norm else ''}",
                str(place.channels),
                "x".join(map(str, place.size)),
                f"{added:+,}",
            )
            for place, added, in_norm in zip(self.places, self.added_params, self.in_norm, strict=True)
        ]
        total, added = self.num_params, sum(self.added_params)
        share = f" ({added / total:+.2%})" if total else ""
        note = f"{total:,} parameters and {added:+,}{share}; start: {self.start}"
        note += "".join(f"\n{skipped.label} takes none: {skipped.reason}" for skipped in self.skipped)
        note += f"\n{self.note}" if self.note else ""
        title = f"{self.attention} in {len(rows)} place{'' if len(rows) == 1 else 's'}"
        columns = ("module", "where", "channels", "features", "parameters")
        return [Table(title, columns, rows, num_text_columns=2, note=note)]

    def __repr__(self) -> str:
        return text(rich_tables(self.tables()))
