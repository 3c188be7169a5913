"""Under which conditions a training repeats to the last bit: what the sessions of run.json say about theirs."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..ops import native

# what a repetition to the last bit needs, by its name in a session of run.json
_NEEDED = {
    "device": "the device",
    "instructions": "the instruction set",
    "passes": "the backend",
    "num_threads": "the number of threads",
    "num_processes": "the number of processes",
    "torch": "torch",
    "torchvision": "torchvision",
    "pillow": "Pillow",
    "python": "Python",
    "whatwhere": "whatwhere",
}
_BEFORE = {"passes": "Python"}  # of sessions that do not say: there were no others
_MOST_THREADS = 256  # a number from a file


@dataclass(frozen=True)
class Conditions:
    """Why trainings need not be equal to the last bit, as clauses.

    Attributes:
        differing: What differs.
        is_same_machine: Whether all were on one machine by its name.
        processor: That the processors differ, or are not recorded; "" where they are one. Other processors often
            compute the same bits, so equal weights still ask for equal figures.
    """

    differing: tuple[str, ...]
    is_same_machine: bool
    processor: str = ""

    @classmethod
    def of(cls, sessions: Sequence[Mapping[str, Any]], is_random: bool) -> Conditions:
        """Compare the sessions of run.json; `is_random` says that nothing asks the device to repeat bits."""
        differing = ["a GPU repeats no bits without --deterministic"] if is_random else []
        is_same_machine = len({known.get("host") for known in sessions}) == 1
        for name, label in _NEEDED.items():
            values = {str(known.get(name, _BEFORE.get(name, "unknown"))) for known in sessions}
            if is_same_machine:  # sessions of old versions lack some
                values.discard("unknown")
            if len(values) > 1:
                differing.append(f"{label} differs, {' and '.join(sorted(values))}")
        # virtual machines of one name may have different processors
        processors = {str(known.get("processor", "")) for known in sessions}
        return cls(tuple(differing), is_same_machine, _told_of(processors))


def _told_of(processors: Collection[str]) -> str:
    if "" in processors:
        return "the processor is not recorded"
    return "" if len(processors) == 1 else f"the processor differs, {' and '.join(sorted(processors))}"


@contextlib.contextmanager
def computed_as_in(sessions: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Compute in as many threads as these sessions inside the block, and by their passes: both decide the last bits."""
    last = sessions[-1]
    before, number = torch.get_num_threads(), last.get("num_threads")
    torch.set_num_threads(number if type(number) is int and 1 <= number <= _MOST_THREADS else before)
    in_python = last.get("passes", _BEFORE["passes"]) == "Python"
    try:
        with native.switched_off() if in_python else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads(before)
