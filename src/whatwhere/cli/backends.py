"""`whatwhere backends`."""

from __future__ import annotations

import typer


def backends_command() -> None:
    """Which backends compute the attention modules here, and why one does not."""
    from ..ops import native

    missing = native.why_missing()
    typer.echo(f"cpp        no: {missing}" if missing else f"cpp        yes: {native.passes()}; float32, bfloat16; CPU")
    typer.echo("lean       yes: PyTorch on any device; keeps little for the backward pass")
    typer.echo("reference  yes: PyTorch on any device; autograd keeps what it needs")
