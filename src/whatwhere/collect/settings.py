"""Settings of a run from YAML or JSON, as flat texts; no tag and no path in a file is ever executed or imported."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.documents import parse_json, read_yaml
from ..base.errors import UserError
from ..base.files import open_file, read_file
from ..base.limits import SETTING_LETTERS, SETTINGS_BYTES, SETTINGS_DEPTH, SETTINGS_LIST, SETTINGS_VALUES
from ..base.words import cause, printable
from ..statistics.cells import NOT_SET


def read_settings(path: Path) -> dict[str, str]:
    """Return the settings in a YAML or JSON file by name, nested ones as `model.depth`.

    Values are texts: those of equal settings are equal. A tag that YAML's safe loader does not know, such as
    `!!python/tuple`, is left out, and what it tags is read as a plain value.

    Raises:
        UserError: No such file, one of more than 256 KiB or 10,000 values, or no mapping of names to values.
    """
    content = _parsed(path)
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} holds no settings; it should map names to values, such as `seed: 0`")
    return flat(content, path)


def has_settings(path: Path, *settings: str) -> bool:
    """Return whether lines of a YAML file begin with these settings, without reading it as YAML."""
    with open_file(path) as file:
        content = file.read(SETTINGS_BYTES)
    return all(re.search(rf"^{re.escape(text)}\b".encode(), content, re.MULTILINE) for text in settings)


def flat(content: dict[Any, Any], path: Path) -> dict[str, str]:
    """Return nested settings of the file `path` as texts by name, nested ones as `model.depth`."""
    settings: dict[str, str] = {}
    # YAML's aliases can make a small file a huge value, or one that holds itself
    for number, (name, text) in enumerate(_leaves(content, "", 0) if content else ()):
        if number == SETTINGS_VALUES or name is None:
            raise UserError(f"{str(path)!r} has more than {SETTINGS_VALUES:,} settings, or nests them too deeply")
        settings[printable(name)] = printable(text)
    return settings


def _leaves(value: Any, name: str, depth: int) -> Iterator[tuple[str | None, str]]:
    if depth > SETTINGS_DEPTH:
        yield None, ""
    elif isinstance(value, dict) and value:
        for key, held in value.items():
            yield from _leaves(held, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(value, (list, tuple, set)):
        items = sorted(value, key=str) if isinstance(value, set) else value
        if len(items) > SETTINGS_LIST or any(isinstance(item, (dict, list, tuple)) for item in items):
            for index, held in enumerate(items):
                yield from _leaves(held, f"{name}.{index}", depth + 1)
        else:
            yield name, f"[{', '.join(map(_text, items))}]"
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    if value is None or value == {}:
        return NOT_SET
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))  # 8 and 8.0 are one setting
    text = str(value)
    if len(text) <= SETTING_LETTERS:
        return text
    return f"{text[:SETTING_LETTERS]}... (SHA-256 {hashlib.sha256(text.encode(errors='replace')).hexdigest()[:12]})"


def _parsed(path: Path) -> Any:
    if path.suffix != ".json":
        return read_yaml(path, any_tag=True)
    content = read_file(path, SETTINGS_BYTES)
    try:
        return parse_json(content, Any, any_number=True)
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not JSON: {cause(error)}") from error
