"""What attention would be put where, and what it would add."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..base.tables import Table, rich_tables, text
from .place import Place, Skipped


@dataclass(frozen=True)
class Plan:
    """Where `attend` puts attention.

    Attributes:
        attention: Its name.
        start: "identity" or "paper".
        places: Where, in order of execution.
        skipped: Residual blocks that cannot take it, and why.
        num_params: Parameters of the network without it.
        added_params: Parameters that it adds, by place; less those of what it replaces.
        in_norm: Which places share the passes of a BatchNorm before them.
    """

    attention: str
    start: str
    places: tuple[Place, ...]
    skipped: tuple[Skipped, ...]
    num_params: int
    added_params: tuple[int, ...]
    in_norm: tuple[bool, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
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
        }

    def tables(self) -> list[Table]:
        """Return it for a terminal."""
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
        title = f"{self.attention} in {len(rows)} place{'' if len(rows) == 1 else 's'}"
        columns = ("module", "where", "channels", "features", "parameters")
        return [Table(title, columns, rows, num_text_columns=2, note=note)]

    def __repr__(self) -> str:
        return text(rich_tables(self.tables()))
