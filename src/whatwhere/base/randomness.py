"""Random numbers as a function of (seed, name): each use has a stream of its own, independent of what ran before."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def stream_seed(seed: int, name: str) -> int:
    """Return the 63-bit seed of the random stream `name` under `seed`."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Let torch's CPU generator draw from the stream `name` under `seed` inside the block."""
    state = torch.get_rng_state()
    # torch.manual_seed would reseed the accelerators as well
    torch.default_generator.manual_seed(stream_seed(seed, name))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator at the start of the stream `name` under `seed`."""
    return torch.Generator().manual_seed(stream_seed(seed, name))
