"""Documents from files, JSON and YAML: bounded and typed, and nothing in them is executed or imported."""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .errors import UserError
from .files import read_file
from .limits import DOCUMENT_BYTES, NUMBER_LETTERS, SETTINGS_BYTES, SETTINGS_DEPTH, SETTINGS_NODES
from .words import brief, cause, short

_STRING, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
# YAML reads 1_0 as 10, 010 as 8 and 1:30 as 90
_PLAIN_NUMBER = re.compile(
    r"[+-]?((0|[1-9][0-9]*)|([0-9]+\.[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|\.inf|\.nan)", re.IGNORECASE
)

T = TypeVar("T")


def read_json(path: Path, kind: type[T], *, most_bytes: int = DOCUMENT_BYTES) -> T:
    """Return the content of a JSON file as a `kind`. Arguments and errors as in `parse_json`.

    Raises:
        UserError: The file cannot be read, or has more than `most_bytes`.
    """
    return parse_json(read_file(path, most_bytes), kind)


def parse_json(content: str | bytes, kind: type[T], *, any_number: bool = False) -> T:
    """Return the value that a JSON text holds as a `kind`.

    Args:
        content: The text; bytes are UTF-8, UTF-16 or UTF-32.
        kind: The type that the value must have, as msgspec.convert takes it.
        any_number: Whether NaN and Infinity, which the module json writes, are numbers.

    Raises:
        ValueError: It is not JSON, nests too deeply, has a key twice, a number that is not finite or an integer of more
            than 100 letters, or it is of another type. The message says where.
    """

    def constant(name: str) -> float:
        if not any_number:
            raise ValueError(f"{name} is no number of JSON")
        return float(name)

    def decimal(text: str) -> float:
        number = float(text)
        if math.isinf(number):
            raise ValueError(f"the number {brief(text, 30)} is too large")
        return number

    try:
        value = json.loads(
            content, parse_int=_integer, parse_float=decimal, parse_constant=constant, object_pairs_hook=_mapping
        )
        return msgspec.convert(value, kind)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON, line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error


def _integer(text: str) -> int:
    if len(text) > NUMBER_LETTERS:
        raise ValueError(f"the number {brief(text, 30)} has {len(text):,} letters")
    return int(text)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {brief(twice, 40)} is there twice")
    return mapping


def read_yaml(path: Path, *, any_tag: bool = False) -> Any:
    """Return the content of a YAML file; None where it is empty. Arguments as in `parse_yaml`.

    Raises:
        UserError: The file cannot be read, is larger than 256 KiB, or `parse_yaml` refuses its content.
    """
    content = read_file(path, SETTINGS_BYTES)
    try:
        return parse_yaml(content, any_tag=any_tag)
    except ValueError as error:
        raise UserError(f"cannot read {str(path)!r} as YAML: {cause(error)}") from error


def parse_yaml(content: str | bytes, *, any_tag: bool = False) -> Any:
    """Return the value that a YAML text holds, made of Python's plain types alone.

    Args:
        content: The text; bytes are UTF-8, or UTF-16 with a byte order mark.
        any_tag: Whether a tag that YAML's safe loader does not know, such as `!!python/tuple`, is left out, so that
            what it tags is a plain value, a merge key (`<<`) is a key as any other, and a number may be 0x10 or 1_000.
            Else all of these are errors.

    Raises:
        ValueError: It is not YAML, or has a key twice, a number of more than 100 letters, more than 20 levels, or more
            values than a file of 256 KiB can hold without aliases.
    """
    import yaml

    if len(content) > SETTINGS_BYTES:
        raise ValueError(f"it is longer than {SETTINGS_BYTES // 1024} KiB")
    loader = _loader_class(any_tag)
    reader: Any = None
    try:
        reader = loader(content)
        root = reader.get_single_node()
        if root is None:
            return None
        _check(root, any_tag)
        return reader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        problem = str(error.problem).removeprefix("but ")
        raise ValueError(f"{_line(error.problem_mark)}{short(problem, 120)}") from error
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(cause(error)) from error
    except (AttributeError, LookupError, TypeError, ArithmeticError) as error:
        raise ValueError("a value does not fit its tag, such as !!bool maybe") from error
    finally:
        if reader is not None:
            reader.dispose()


@functools.cache
def _loader_class(any_tag: bool) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc] # yaml is untyped
        def flatten_mapping(self, node: Any) -> None:
            """Merge nothing: small files could grow without end by merge keys."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            """Refuse keys that are one although their texts differ, such as yes and true."""
            mapping = super().construct_mapping(node, deep)
            texts: dict[Any, Any] = {}
            for key, _ in node.value if len(mapping) < len(node.value) else ():
                value = self.construct_object(key, deep)
                if value in texts:
                    twice = f"the keys {brief(texts[value], 40)} and {brief(key.value, 40)} are one; keep one of them"
                    raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
                texts[value] = key.value
            return mapping

        def plain(self, node: Any) -> Any:
            if isinstance(node, yaml.ScalarNode):
                return node.value
            if isinstance(node, yaml.SequenceNode):
                return self.construct_sequence(node, deep=True)
            return {str(key.value): self.construct_object(value, deep=True) for key, value in node.value}

    if any_tag:
        Loader.add_constructor(None, Loader.plain)
    return Loader


def _check(root: Any, any_tag: bool) -> None:
    """Raise ValueError if composed YAML, with its aliases written out, is too large or too deep to be constructed."""
    import yaml

    # a depth-first walk: what waits is bounded by what was counted
    waiting, num_nodes = [(root, 0)], 1
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, yaml.ScalarNode):
            if node.tag != _STRING and len(node.value) > NUMBER_LETTERS:
                raise ValueError(f"{_line(node.start_mark)}a number or date has {len(node.value):,} letters")
            if node.tag in _NUMBERS and not any_tag and not _PLAIN_NUMBER.fullmatch(node.value):
                raise ValueError(
                    f"{_line(node.start_mark)}{brief(node.value, 40)} is no decimal number; write it with the "
                    "digits 0 to 9, or in quotes if it is text"
                )
            continue
        children = node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, any_tag)
            children = [part for pair in node.value for part in pair]
        num_nodes += len(children)
        if num_nodes > SETTINGS_NODES:
            raise ValueError(f"it has more than {SETTINGS_NODES:,} values")
        if children and depth == SETTINGS_DEPTH:
            raise ValueError(f"{_line(node.start_mark)}it nests more than {SETTINGS_DEPTH} levels")
        waiting += [(child, depth + 1) for child in children]


def _check_keys(node: Any, any_tag: bool) -> None:
    keys = [key for key, _ in node.value if isinstance(key.value, str)]
    twice = next((name for name, count in Counter(key.value for key in keys).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{_line(node.start_mark)}the key {brief(twice, 40)} is there twice; keep one of them")
    for key in keys:
        if key.tag == _MERGE and not any_tag:
            raise ValueError(f"{_line(key.start_mark)}merge keys (<<) are not read; write the values out")


def _line(mark: Any) -> str:
    return "" if mark is None else f"line {mark.line + 1}: "
