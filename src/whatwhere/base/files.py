"""Files: written whole or not at all, locked by one process, read as CSV."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from .errors import UserError
from .limits import IMAGE_LIST_BYTES

_PART = ".part"


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file so that after a crash it is the old one or the new one: write another, sync it to disk, rename it.

    `mode` is the permissions of a new file, before the umask.

    Raises:
        UserError: The file cannot be written (disk full, read-only folder); `path` is unchanged.
    """
    with writing(path):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not every file system opens folders
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that killed processes left in `folder`; no other process may be writing there."""
    for part in folder.glob(f".*{_PART}"):
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, with `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        UserError: No such file, one that may not be read, or no regular file: a pipe would be waited for without end,
            and a device may have no end.
    """
    try:
        # O_NONBLOCK: to open a pipe does not wait for a writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise _unread(path, error) from error
    raise UserError(f"cannot read {str(path)!r}: it is {_kind(mode)}, not a file")


class Unreadable(UserError):  # noqa: N818 - a UserError by its base
    """The system did not let a file be read that is there: its content may be sound."""


_ADVICE = {
    errno.EACCES: "; change its permissions",
    errno.EPERM: "; change its permissions",
    errno.EMFILE: "; raise the limit of open files (ulimit -n)",
    errno.ENFILE: "; close other programs",
    errno.ENOMEM: "; close other programs",
    errno.EIO: "; look after the disk",
}


def _unread(path: Path, error: Exception) -> UserError:
    """Return the error about a file that cannot be opened or read."""
    advice = _ADVICE.get(getattr(error, "errno", 0))
    text = f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}"
    return UserError(text) if advice is None else Unreadable(text + advice)


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"


def read_file(path: Path, most_bytes: int = 0) -> bytes:
    """Return the content of a regular file, as `open_file`.

    Raises:
        Unreadable: The system does not let it be read: permissions, too many open files, a failing disk.
        UserError: As `open_file`, or the file has more than `most_bytes`, if that is not 0.
    """
    with open_file(path) as file:
        try:
            content = file.read(most_bytes + 1 if most_bytes else -1)
        except OSError as error:
            raise _unread(path, error) from error
    if most_bytes and len(content) > most_bytes:
        raise UserError(f"{str(path)!r} is larger than {most_bytes // 1024:,} KiB; no file of its kind is that long")
    return content


def read_csv(path: Path) -> tuple[str, list[tuple[int, list[str]]]]:
    """Read a CSV file in UTF-8: its delimiter, and its rows that are not blank, each with the number of its last line.

    The delimiter is a tab in a .tsv file; else it is the one of comma, semicolon and tab that the first line holds most
    often.

    Raises:
        UserError: The file cannot be read (`read_file`), is not UTF-8, or is not CSV: a quote is not closed, or ends
            inside a cell.
    """
    try:
        text = read_file(path, IMAGE_LIST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"line {line} of {str(path)!r} is not UTF-8; save the file as UTF-8") from error
    first = text.lstrip("\r\n ").partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    # newlines inside quotes are kept; a lone carriage return ends a line too
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        return delimiter, [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {str(path)!r} is not CSV: {error}") from error


class DiskFull(UserError):  # noqa: N818 - a UserError by its base
    """A file could not be written for lack of space."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else UserError
        raise kind(f"cannot write {str(path)!r}: {error.strerror or error}") from error


@contextlib.contextmanager
def looking_into(folder: Path) -> Iterator[None]:
    """Turn an OSError, or an impossible name, inside the block into a UserError about `folder`, which --out names."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write to {str(folder)!r}: {reason}; give another folder with --out") from error


def check_writable(folder: Path) -> None:
    """Create `folder` if it is missing; raise UserError unless files can be created in it."""
    check_is_no_file(folder)
    with looking_into(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def check_can_write(path: Path, *, makes_folders: bool = False) -> None:
    """Raise UserError unless a file can be written at `path`; leave nothing there.

    `makes_folders` says that folders which are missing are made before it is written.
    """
    end = Path(os.path.realpath(path))
    with writing(path):
        if end.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = next(folder for folder in end.parents if folder.exists()) if makes_folders else end.parent
        with tempfile.TemporaryFile(dir=folder):
            pass


def check_replaceable(path: Path, option: str = "--out") -> None:
    """Raise UserError where something stands at `path` that is no file, such as a device."""
    # a link whose end is missing is written through, one that leads round to itself cannot be
    end = Path(os.path.realpath(path))
    if end.is_symlink() or (end.exists() and not end.is_file()):
        raise UserError(f"{str(path)!r} cannot be overwritten; give another file with {option}")


def check_is_no_file(folder: Path) -> None:
    """Raise UserError if `folder` is a file; it need not exist."""
    with looking_into(folder):
        is_file = folder.exists() and not folder.is_dir()
    if is_file:
        raise UserError(f"cannot write to {str(folder)!r}: it is a file; give a folder with --out")


class InUse(UserError):  # noqa: N818 - a UserError by its base
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: Path, *, is_file: bool = False) -> Iterator[None]:
    """Lock a folder, or a file that need not exist, for this process inside the block.

    The lock is a record lock of the operating system: it ends with the process, even if that is killed, and worker
    processes do not inherit it.

    Raises:
        InUse: Another process holds it.
    """
    lock = path.with_name(f".{path.name}.lock") if is_file else path / ".lock"
    with writing(lock):
        if lock.exists() and not lock.is_file():
            raise UserError(f"cannot lock {str(lock)!r}: it is {_kind(lock.stat().st_mode)}, not a file; remove it")
        file = open(lock, "a+b")  # noqa: SIM115 - held open as long as the lock
    with file:
        if not _lock(file):
            another = "file" if is_file else "folder with --out"
            raise InUse(f"{str(path)!r} is in use by another process; wait for it, stop it, or give another {another}")
        yield


def _lock(file: IO[bytes]) -> bool:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        import msvcrt  # type: ignore[unreachable, unused-ignore]

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # a file system without locks: go on without one
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
