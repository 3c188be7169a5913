"""Which layer of a model is running, read from the Python stack: no hook that could change the path it takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from torch import nn

from ..base.words import short

ROOT = ""


class LayerNames:
    """The dotted names of a model's modules, each module under its first; the model itself is "" (`ROOT`)."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self._name_of = {id(module): name for name, module in self.modules.items()}

    def current(self) -> str:
        """Return the name of the innermost layer whose method is on the caller's stack, or `ROOT`."""
        frame = sys._getframe(1)
        for caller in _callers(frame):
            name = self._name_in(caller)
            if name is not None:
                return name
        return ROOT

    def innermost(self, traceback: TracebackType | None) -> str:
        """Return the name of the innermost layer that an exception passed through, or `ROOT`."""
        found = ROOT
        while traceback is not None:
            found = self._name_in(traceback.tb_frame) or found
            traceback = traceback.tb_next
        return found

    def describe(self, name: str) -> str:
        """Return `name` with the layer's own description if that is short, else its type."""
        module = self.modules[name]
        own = repr(module) if not list(module.children()) else type(module).__name__
        return f"{short(name) or 'the model'} ({short(own, 120)})"

    def _name_in(self, frame: FrameType) -> str | None:
        candidate: Any = frame.f_locals.get("self")
        return self._name_of.get(id(candidate)) if isinstance(candidate, nn.Module) else None


def is_within(name: str, layer: str) -> bool:
    """Return whether the layer `name` is `layer` or inside it."""
    return name == layer or name.startswith(f"{layer}.")


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
