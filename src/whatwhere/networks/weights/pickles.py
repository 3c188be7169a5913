"""Refuse PyTorch checkpoints whose pickle makes objects that the bytes of the file do not justify, before it is loaded.

torch.load(weights_only=True) runs nothing from a file, but it makes `torch.Tensor(10**9)` and `bytearray(10**9)`, and
copies one list as often as a file says. So the pickle is followed here, with the sizes of its values instead of them.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from ...base.errors import UserError
from ...base.limits import WEIGHTS_VALUES

# what torch.save calls to make tensors and plain values; none takes more memory than its arguments
_CALLS = {
    *(f"collections {name}" for name in ("OrderedDict", "Counter")),
    *(f"{module} {name}" for module in ("builtins", "__builtin__") for name in ("set", "complex")),
    *(f"torch {name}" for name in ("Size", "device")),
    *(f"torch._utils _rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "qtensor", "sparse_tensor")),
    *(f"torch._utils _rebuild_{kind}" for kind in ("parameter", "parameter_with_state", "meta_tensor_no_storage")),
    "torch.nn.parameter Parameter",
    "torch.serialization _get_layout",
}
_REBUILD = "torch._tensor _rebuild_from_type_v2"  # calls its first argument
_ENCODE = "_codecs encode"
_TEXT = (str, bytes)
_BYTES_OF_A_VALUE = 64
_DEPTH = 3  # tuples inside each other that a call reads
_LEGACY_PICKLES = 5  # the magic number, the version, the system, the content, the keys of its storages


class _Global(str):
    """The module and the name of what a pickle names."""


class _Sized:
    """A list, dict, set, or what a call returned."""

    def __init__(self, size: int = 0) -> None:
        self.size = size


# opcodes that make a value, and those that take values from the stack: how many, or None for all above the last mark
_MAKES: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), _Sized),
    "EMPTY_TUPLE": tuple,
}
_TAKES = {
    **dict.fromkeys(("TUPLE", "APPENDS", "SETITEMS"), None),
    **dict.fromkeys(("TUPLE1", "APPEND", "BUILD", "BINPERSID"), 1),
    **dict.fromkeys(("TUPLE2", "SETITEM", "REDUCE", "NEWOBJ"), 2),
    "TUPLE3": 3,
}


def check_pickles(file: Path) -> None:
    """Raise unless loading the pickles in a checkpoint takes about as much memory as their bytes justify.

    Raises:
        UserError: They make more values than the file has bytes, or than any network has.
        pickle.UnpicklingError: They call what no tensor needs; the message ends in "GLOBAL " and its name.
        Exception: They are damaged, as torch.load would find.
    """
    most = min(2 * file.stat().st_size, WEIGHTS_VALUES)
    with file.open("rb") as stream:
        # as torch.load tells its two formats apart
        if stream.read(4) == b"PK\3\4":
            _check(io.BytesIO(torch._C.PyTorchFileReader(str(file)).get_record("data.pkl")), str(file), most)
            return
        stream.seek(0)
        for _ in range(_LEGACY_PICKLES):
            most = _check(stream, str(file), most)


def _check(stream: IO[bytes], source: str, most: int) -> int:
    """Check one pickle that may make `most` values, and return how many are left."""
    follower = _Follower(source, most)
    for opcode, argument, _ in pickletools.genops(stream):
        follower.follow(opcode, argument)
    return follower.left


class _Follower:
    """Follows the opcodes that torch.load knows: texts, tuples and names as they are, of other values the size."""

    def __init__(self, source: str, most: int) -> None:
        self.source, self.left = source, most
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Take one opcode with its argument."""
        self._spend(1)
        name, stack = opcode.name, self.stack
        if name in _TAKES:
            self._combine(name, self._popped(_TAKES[name]))
        elif name == "MARK":
            self.outer.append(stack)
            self.stack = []
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in _MAKES:
            stack.append(_MAKES[name]())
        elif name == "GLOBAL":
            stack.append(_Global(argument))
        elif opcode.stack_after and not opcode.stack_before:
            stack.append(argument if isinstance(argument, _TEXT) else None)
        elif name not in ("PROTO", "STOP"):
            raise pickle.UnpicklingError(f"unsupported operand {name}")

    def _popped(self, count: int | None) -> list[Any]:
        """Take `count` values from the stack; None takes those above the last mark."""
        if count is None:
            items, self.stack = self.stack, self.outer.pop()
            return items
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _combine(self, name: str, items: list[Any]) -> None:
        if name.startswith("TUPLE"):
            self.stack.append(tuple(items))
        elif name in ("REDUCE", "NEWOBJ"):
            self.stack.append(self._called(*items))
        elif name == "BINPERSID":  # a storage
            self.stack.append(None)
        elif name == "BUILD":
            self._copy(items[0], _DEPTH)
        else:
            self.stack[-1].size += len(items)

    def _called(self, function: Any, arguments: Any) -> _Sized:
        before = self.left
        if arguments != ():
            made = arguments[0] if function == _REBUILD else function
            is_latin = function == _ENCODE and arguments[1:] == ("latin1",)
            if not (isinstance(arguments, tuple) and isinstance(made, _Global) and (is_latin or made in _CALLS)):
                raise pickle.UnpicklingError(f"GLOBAL {str(made).replace(' ', '.')}")
            self._copy(arguments, _DEPTH)
        return _Sized(before - self.left)

    def _copy(self, value: Any, depth: int) -> None:
        """Count what a call that gets `value` may copy."""
        if isinstance(value, tuple) and depth:
            self._spend(len(value))
            for item in value:
                self._copy(item, depth - 1)
        elif isinstance(value, _TEXT):
            self._spend(len(value) // _BYTES_OF_A_VALUE)
        elif isinstance(value, _Sized):
            self._spend(value.size)

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise UserError(
                f"{self.source!r} holds more values beside its tensors than its size justifies; "
                "save model.state_dict() alone"
            )
