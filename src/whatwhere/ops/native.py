"""The library of the C++ passes: where it is, and why it is not used where it is not."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .block import empty_gradients, state_size

_FOLDER, _LIBRARY = Path(__file__).parent, "_passes*.so"
_VERSION = 3  # of the operators, as in csrc/library.cpp
_INSTRUCTIONS = {512: "AVX-512", 256: "AVX2", 128: "SSE2 or NEON"}
_blocks: list[str] = []  # in which the passes are switched off, now


def why_missing() -> str:
    """Return why the C++ passes are not used, "" if they are. The first call loads them."""
    if _blocks or os.environ.get("WHATWHERE_CPP") == "0":
        return "the C++ passes are switched off"
    return _loaded()


def _loaded() -> str:
    return _why_not_loaded()


# What torch.compiler.assume_constant_result sets, which imports the compiler: seconds. A compiler cannot trace a cached
# function that reads files, so it calls this one and takes the answer as it is. The switch stands outside, so that it
# still reaches compiled code.
_loaded._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _why_not_loaded() -> str:
    found = sorted(_FOLDER.glob(_LIBRARY))
    if not found:
        return "the C++ passes are not in this installation"
    try:
        torch.ops.load_library(found[0])  # type: ignore[no-untyped-call]
        if torch.ops.whatwhere.version() != _VERSION:
            raise OSError("they are of another version of whatwhere; install it again")
        _describe()
    except (OSError, RuntimeError, AttributeError) as error:
        reason = f"the C++ passes cannot be loaded: {' '.join(str(error.__cause__ or error).split())}"
        warnings.warn(f"{reason}; the passes in Python are used, which are slower", stacklevel=2)
        return reason
    return ""


@functools.cache
def _describe() -> None:
    """Tell torch the shapes of the operators' results, which its tests of operators and its compilers ask for.

    Once in a process: torch 2.10 takes it once.
    """

    def pooled(x: Tensor, variance: bool) -> tuple[Tensor, Tensor]:
        return _new(x, 4, *x.shape[:2]), _new(x, 2, *x.shape[:2], dtype=torch.int32)

    def mapped(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        num, pixels = len(x), x.shape[2] * x.shape[3]
        return _new(x, 2, num, pixels), _new(x, num, pixels, dtype=torch.int32)

    def reduced(
        g: Tensor,
        y: Tensor | None,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        m: Tensor | None,
        mean: Tensor | None,
        direct: bool,
        of_x: bool,
        dv: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        pixels = 0 if m is None else x.shape[2] * x.shape[3]
        return _new(x, len(x), pixels), _new(x, (4 if direct else 2) + of_x, *x.shape[:2])

    def weighted(x: Tensor, weight: Tensor, mean: Tensor | None) -> Tensor:
        return _new(x, *x.shape[:2])

    def block(
        x: Tensor,
        tensors: list[Tensor | None],
        numbers: list[float],
        flags: list[int],
        r: Tensor | None,
        relu: bool,
        keep: bool,
        *_: object,
    ) -> tuple[Tensor, Tensor]:
        values, indices = state_size(x, tensors, flags) if keep else (0, 0)
        return _new(x, values), _new(x, indices, dtype=torch.int32)

    def block_backward(
        g: Tensor, y: Tensor | None, x: Tensor, tensors: list[Tensor | None], *_: object
    ) -> tuple[Tensor, ...]:
        return tuple(empty_gradients(x, tensors))

    fakes: dict[str, Callable[..., Any]] = {"pool": pooled, "maps": mapped, "reduce": reduced, "weighted": weighted}
    fakes |= {"block": block, "block_backward": block_backward}
    for name, shapes in fakes.items():
        torch.library.register_fake(f"whatwhere::{name}", shapes)
    for name in ("apply", "spread"):
        torch.library.register_fake(f"whatwhere::{name}", lambda *_: None)


def _new(x: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return x.new_empty(shape, dtype=dtype)


def passes() -> str:
    """Return whose passes compute on a CPU, for records: "Python", or "C++" and the instruction set."""
    return "Python" if why_missing() else f"C++ {_INSTRUCTIONS[torch.ops.whatwhere.vector_bits()]}"


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Let the passes in Python compute inside the block."""
    _blocks.append("off")
    try:
        yield
    finally:
        _blocks.pop()
