"""`whatwhere backends`."""

from __future__ import annotations

from ..base.tables import say


def backends_command() -> None:
    """Which backends compute the attention modules here, and why one does not."""
    from ..ops import native

    missing = native.why_missing()
    say(f"cpp        no: {missing}" if missing else f"cpp        yes: {native.passes()}; float32 and bfloat16 on a CPU")
    say("lean       yes: PyTorch on any device; keeps little for the backward pass")
    say("reference  yes: PyTorch on any device; autograd keeps what it needs")
