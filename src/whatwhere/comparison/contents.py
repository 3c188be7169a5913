"""What a comparison's options name but do not hold, by content: attention of the user's, and weights to begin with."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..attention import attention_by_path
from ..base.errors import UserError
from ..base.words import short
from .arms import Arm, is_code


def hashes(arms: tuple[Arm, ...], options: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of the file of each arm that is code, which is imported for that, and of a file of weights.

    Of code it is the file of the named module alone, not of others that it imports.

    Raises:
        UserError: Code that cannot be imported, or a file that cannot be read.
    """
    for arm in arms:
        if is_code(arm.spec):
            attention_by_path(arm.attention)
    files = {f"the code of {arm.name}": _file_of(arm.attention) for arm in arms if is_code(arm.spec)}
    weights = Path(options["pretrained"])
    files["the file of weights"] = weights if options["pretrained"] and weights.is_file() else None
    return {what: _sha256(what, file) for what, file in files.items() if file is not None}


def check_unchanged(before: Mapping[str, str], now: Mapping[str, str], where: str) -> None:
    """Raise UserError if something has other content than before, or is gone."""
    for what, value in before.items():
        if what not in now:
            raise UserError(
                f"{short(what)}, which {where} began with, is not to be found any more; restore it, or give another "
                "--out"
            )
        if now[what] != value:
            raise UserError(
                f"{short(what)} has changed since {where} began, whose runs are of what it was; restore it, or give "
                "another --out"
            )


def _file_of(spec: str) -> Path | None:
    file = getattr(sys.modules.get(spec.partition(":")[0]), "__file__", None)
    return None if file is None else Path(file)


def _sha256(what: str, file: Path) -> str:
    try:
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {str(file)!r}, {what}: {error.strerror or error}") from error
