"""The page of a report: one file of HTML without scripts that asks nothing of the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.files import write_bytes
from ..base.words import printable
from .figures import typeset
from .view import view

if TYPE_CHECKING:
    import jinja2


_MARK = '<meta name="generator" content="whatwhere">'


def is_page(path: Path) -> bool:
    """Return whether a file is a page of ours."""
    with path.open("rb") as file:
        return _MARK.encode() in file.read(4096)


def write_page(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page of a comparison, whole or not at all.

    Args:
        path: The HTML file.
        content: Everything that is shown, as JSON values.

    Raises:
        UserError: It cannot be written.
    """
    write_bytes(path, page(content).encode())


def page(content: Mapping[str, Any]) -> str:
    """Return the page of a comparison, the same for the same content."""
    return _environment().get_template("page.html").render(**view(content), mark=_MARK)


def _environment() -> jinja2.Environment:
    import jinja2

    def shown(value: Any) -> Any:
        # names may come from anywhere; lone surrogates, for one, cannot be encoded
        return printable(value) if type(value) is str else value

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("whatwhere.report"),
        autoescape=True,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["typeset"] = typeset
    return environment
