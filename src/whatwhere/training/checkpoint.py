"""Checkpoints of a run: tensors as safetensors and the rest as JSON, with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor
from torch.utils._pytree import tree_map

from ..base.documents import parse_json
from ..base.errors import UserError
from ..base.files import Unreadable, read_file, remove_parts, write_bytes, write_json, writing
from ..base.limits import DOCUMENT_BYTES
from ..base.words import cause
from ..networks.weights.files import tensors_to_bytes

_TENSOR = "tensor:"
_NAME = re.compile(r"(\d{9})\.json")


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` (nested dicts and lists of tensors, numbers and strings) as the checkpoint of `step`.

    The JSON file is written last, with the checksum of both: without it there is no checkpoint. Then all older
    checkpoints but the last one are removed.

    Raises:
        UserError: It cannot be written; the older checkpoints stay.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    tree = _without_tensors(state, "", tensors)
    content = tensors_to_bytes(tensors)
    write_bytes(_file(folder, step, ".safetensors"), content)
    write_json(_file(folder, step, ".json"), {"sha256": _checksum(content, tree), "state": tree})
    for old in sorted(_steps(folder))[:-2]:  # where the newest is damaged the one before is used
        _remove(folder, old)
    for orphan in folder.glob("*.safetensors"):  # a crash cut this save short
        if not orphan.with_suffix(".json").exists():
            orphan.unlink(missing_ok=True)
    remove_parts(folder)


def newest(folder: Path, warn: Callable[[str], None]) -> tuple[int, dict[str, Any]] | None:
    """Return the step and state of the newest checkpoint that is not damaged; None if there is no checkpoint.

    `warn` is called with a sentence for each damaged one.

    Raises:
        Unreadable: The system does not let one be read, which may be sound.
        UserError: All checkpoints are damaged.
    """
    steps = sorted(_steps(folder), reverse=True)
    for step in steps:
        try:
            return step, read(folder, step)
        except Unreadable:
            raise
        except UserError as error:
            warn(f"{error}; trying the one before")
    if steps:
        raise UserError(f"all checkpoints in {str(folder)!r} are damaged; start again with another --out")
    return None


def read(folder: Path, step: int) -> dict[str, Any]:
    """Return the state of the checkpoint of `step`.

    Raises:
        Unreadable: The system does not let it be read.
        UserError: It is damaged.
    """
    from safetensors.torch import load as from_bytes

    try:
        # a state may hold NaN and Infinity
        text = read_file(_file(folder, step, ".json"), DOCUMENT_BYTES)
        description = parse_json(text, _Description, any_number=True)
        if not (weights := _file(folder, step, ".safetensors")).exists():
            raise ValueError(f"{weights.name} is missing")
        content = read_file(weights)
        if _checksum(content, description.state) != description.sha256:
            raise ValueError("the checksum differs")
        tensors = from_bytes(content)
        state: dict[str, Any] = tree_map(
            lambda leaf: tensors[leaf.removeprefix(_TENSOR)] if str(leaf).startswith(_TENSOR) else leaf,
            description.state,
        )
    except (Unreadable, MemoryError):
        raise
    # safetensors and a wrong reference to a tensor raise many kinds of errors
    except Exception as error:
        raise UserError(f"the checkpoint {str(_file(folder, step, ''))!r} is damaged ({cause(error)})") from error
    return state


@contextlib.contextmanager
def check_fits(folder: Path, step: int) -> Iterator[None]:
    """Turn a ValueError inside the block into a UserError: the checkpoint of `step` is not one of this run."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"the checkpoint {str(_file(folder, step, ''))!r} is not one of this run ({cause(error)}); move its files "
            "away, so that the one before is used, or start again with another --out"
        ) from error


def clear_after(folder: Path, step: int) -> None:
    """Remove the checkpoints after `step`: they are damaged."""
    for later in _steps(folder):
        if later > step:
            _remove(folder, later)


def _file(folder: Path, step: int, suffix: str) -> Path:
    return folder / f"{step:09d}{suffix}"


def _remove(folder: Path, step: int) -> None:
    for suffix in (".json", ".safetensors"):
        _file(folder, step, suffix).unlink(missing_ok=True)


def _steps(folder: Path) -> list[int]:
    matches = [_NAME.fullmatch(file.name) for file in folder.glob("*.json")]
    return [int(match[1]) for match in matches if match]


class _Description(msgspec.Struct):
    """The content of a checkpoint's JSON file: `state` has "tensor:NAME" in place of each tensor."""

    sha256: str
    state: dict[str, Any]


def _checksum(content: bytes, tree: Any) -> str:
    digest = hashlib.sha256(content)
    digest.update(json.dumps(tree).encode())
    return digest.hexdigest()


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` with "tensor:NAME" for each tensor, and put the tensors into `tensors` by name."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return _TENSOR + name
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value), name
        return {key: _without_tensors(item, f"{name}/{key}" if name else key, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
    assert not (isinstance(value, str) and value.startswith(_TENSOR)), name
    assert value is None or isinstance(value, (str, bool, int, float)), name
    return value
