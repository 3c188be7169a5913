"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError

_PART = ".part"


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary name, force it to disk, and rename: after a crash `path` is the old file or the new one.

    Raises:
        UserError: It cannot be written (disk full, read-only folder); `path` is as it was.
    """
    with writing(path):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART}")
        # not tempfile's, which only the user could read whatever the umask says
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left of `write_bytes` in `folder`, which no other process writes to."""
    for part in folder.glob(f".*{_PART}"):
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, as `write_bytes` does."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's errors inside the block into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Force the names in `folder` to disk, where the system can."""
    with contextlib.suppress(OSError):  # not every file system opens folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Create `folder` where it is missing, and raise UserError unless files can be made in it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot write to {str(folder)!r}: it is a file; give a folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write to {str(folder)!r}: {reason}; give another folder with --out") from error
