"""Read weights files safely: nothing in a file is executed."""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import re
import urllib.error
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...base.errors import UserError
from ...base.limits import WEIGHTS_DEPTH, WEIGHTS_NETWORKS
from ...base.words import brief, cause, counted, few, printable
from .bounds import check_archive, check_entries, check_network
from .fit import shown
from .pickles import check_pickles

StateDict = dict[str, Tensor]

# entries of a file that usually hold the network, the first one first
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
_AVERAGED = {"ema", "swa", "averaged"}  # words in the names of averaged weights
# tensors that tools leave behind, by the last part of the name
_LEFTOVERS = {"total_ops": "thop", "total_params": "thop", "n_averaged": "torch's AveragedModel"}
# put around parts of a network by torch.compile, activation checkpointing and FSDP
_WRAPPER_INSIDE = re.compile(r"(?<=\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_COUNTER = "num_batches_tracked"
# first bytes of files that are often in the place of weights
_NO_WEIGHTS = {
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` fetches the file itself",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}
_CODE_IN_PICKLE = re.compile(r"GLOBAL ([A-Za-z_][\w.]{0,80})")


@dataclass(frozen=True)
class Wanted:
    """The tensors that identify a network in a file."""

    shapes: Mapping[str, torch.Size | None]  # their names and shapes; None for any shape
    least: int  # a part of the file with at least this many of them is taken for the network


# tensors that every layout of a ResNet has
RESNET = Wanted({"layer1.0.conv1.weight": None, "layer1.0.conv2.weight": None}, 1)


@dataclass(frozen=True)
class WeightsFile:
    """The content of a weights file."""

    path: str  # the file, as given
    state: StateDict  # the network's tensors without the prefix of their names; the values are not checked
    wrapper: str  # the entry that held them, such as "state_dict"; "" for the whole file
    prefix: str  # the prefix of their names, such as "module."; "" for none
    around: dict[str, str]  # what else the file holds, in a few words for each entry
    metadata: dict[str, str]  # the metadata of a safetensors file
    left_out: dict[str, str]  # tensors that do not belong to the network, in a few words for each group
    notes: tuple[str, ...]  # what was changed in the tensors, in words

    def non_finite(self) -> dict[str, int]:
        """Return the number of NaN and infinite values of each tensor that has some."""
        counts = {key: _num_non_finite(value) for key, value in self.state.items()}
        return {key: count for key, count in counts.items() if count}


@dataclass(frozen=True)
class _Part:
    """The tensors of one module in one mapping of a file."""

    where: tuple[str, ...]  # the names of the mappings around them, the outermost first
    prefix: str  # the prefix of their names
    state: StateDict  # the tensors without the prefix
    num_wanted: int = 0  # number of tensors that identify the network

    @property
    def name(self) -> str:
        return ".".join((*self.where, self.prefix)).removesuffix(".")

    @property
    def is_averaged(self) -> bool:
        return not _AVERAGED.isdisjoint(re.split(r"[._]", self.name.lower()))

    def equals(self, other: _Part) -> bool:
        return self.state.keys() == other.state.keys() and all(
            value.dtype == other.state[key].dtype and torch.equal(value, other.state[key])
            for key, value in self.state.items()
        )


def read_file(path: str | os.PathLike[str], wanted: Wanted = RESNET) -> WeightsFile:
    """Read a network's tensors from a .safetensors file or a PyTorch checkpoint (with `weights_only=True`).

    Raises:
        UserError: There is no such file, it is damaged or no file of tensors, or as `find_weights`.
    """
    name = os.fspath(path)
    try:
        found = Path(name).is_file()
    except (OSError, ValueError):  # no file can have such a name
        found = False
    if not found:
        raise UserError(f"no weights file {brief(name, 200)}; give a .safetensors or .pth file")
    content, metadata = _content(Path(name))
    return find_weights(content, name, wanted, metadata, os.path.getsize(name))


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file, without its tensors; raise UserError as `read_file`."""
    with _damage_of(path), _opened(path) as tensors:
        return dict(tensors.metadata() or {})


def find_weights(
    content: Any,
    source: str,
    wanted: Wanted = RESNET,
    metadata: Mapping[str, str] | None = None,
    num_bytes: int | None = None,
) -> WeightsFile:
    """Find a network's tensors in the content of a file.

    They can be in any mapping ("state_dict", "model", ...) and below any module ("module.", "encoder.", ...). Averaged
    weights ("ema" or "swa" in their name) are preferred to the weights that they average. Tensors of thop are ignored,
    and counters of batches become integers.

    Args:
        content: The content of a file.
        source: The name of the file, for error messages.
        wanted: The tensors that identify the network; if none is there, the most likely tensors are returned.
        metadata: The metadata of a safetensors file.
        num_bytes: The size of the file; None for content that comes from no file.

    Raises:
        UserError: There are no tensors, several networks, or sparse, quantized or empty tensors.
    """
    holders = _holders(content, source)
    if not holders:
        raise UserError(f"{source!r} holds no state dict (names to tensors)")
    parts = [part for where, state in holders.items() for part in _parts(where, state, wanted)]
    if parts:
        part = _chosen(parts, source, num_bytes)
    else:  # no name identifies the network: the most likely tensors
        named = [(name,) for name in _WRAPPERS if (name,) in holders]
        where = named[0] if named else max(holders, key=lambda where: len(holders[where]))
        part = _Part(where, "", holders[where])
    check_network(part.state, source, num_bytes)
    whole = {
        key: value
        for key, value in holders[part.where].items()
        if key.rpartition(".")[2] not in _LEFTOVERS or value.numel() != 1
    }
    counts = Counter(key.rpartition(".")[2] for key in holders[part.where].keys() - whole.keys())
    leftovers = {
        name: f"left by {_LEFTOVERS[name]}, {counted(count, 'tensor')}" for name, count in sorted(counts.items())
    }
    bare = {f"{part.prefix}{key}": key for key in part.state}
    state, notes = _with_integer_counters({bare[key]: value for key, value in whole.items() if key in bare})
    left_out = _grouped({key: value for key, value in whole.items() if key not in bare}, part.prefix)
    around = {**_around(content, part.where), **leftovers}
    return WeightsFile(source, state, ".".join(part.where), part.prefix, around, dict(metadata or {}), left_out, notes)


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Read the tensors of a file under the names in it.

    Raises:
        UserError: As `read_file`, or a tensor holds NaN or infinite values.
    """
    file = read_file(path, Wanted({}, 1))
    check_finite(file)
    return file.state


def check_finite(file: WeightsFile) -> None:
    """Raise UserError if a tensor of `file` holds NaN or infinite values."""
    for key, value in file.state.items():
        if _num_non_finite(value):
            raise UserError(f"{file.path!r} holds weights that are NaN or infinite: {brief(key)}")


def warn_of_left_out(file: WeightsFile) -> None:
    """Warn of tensors in `file` that do not belong to the network."""
    if file.left_out:
        groups = [f"{shown(name)} ({what})" for name, what in file.left_out.items()]
        named = ", ".join([*groups[:3], *(["..."] if len(groups) > 3 else [])])
        warnings.warn(f"left out of the weights from {file.path!r}: {named}", stacklevel=5)


def _num_non_finite(value: Tensor) -> int:
    if not value.is_floating_point():
        return 0
    # some 8-bit floats have no `isfinite`
    value = value if value.dtype == torch.float64 else value.float()
    return value.numel() - int(value.isfinite().sum())


def _content(file: Path) -> tuple[Any, dict[str, str]]:
    """Return the content of `file` and its metadata."""
    with _damage_of(file):
        if file.suffix == ".safetensors":
            with _opened(file) as tensors:
                check_entries(len(tensors.keys()), str(file))
                return {key: tensors.get_tensor(key) for key in tensors.keys()}, dict(tensors.metadata() or {})  # noqa: SIM118
        check_archive(file)
        check_pickles(file)
        # training scripts save their arguments beside the weights; a Namespace holds plain values and runs nothing
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles; the errors below tell what is wrong
            return torch.load(file, map_location="cpu", weights_only=True), {}


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a .safetensors file."""
    from safetensors import safe_open

    # safetensors reads no path that is not UTF-8, which few systems other than Linux have
    with file.open("rb") as stream:
        path = file if str(file) == printable(str(file)) else f"/dev/fd/{stream.fileno()}"
        with safe_open(path, framework="pt") as tensors:
            yield tensors


@contextlib.contextmanager
def _damage_of(file: Path) -> Iterator[None]:
    """Raise UserError where a file of weights cannot be read."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {str(file)!r}: {error.strerror or cause(error)}") from error
    # the readers can raise nearly anything on a damaged or hostile file
    except Exception as error:
        raise UserError(
            f"cannot read weights from {str(file)!r}: {_what_is_wrong(file, error)}, and nothing in it is executed; "
            "save model.state_dict() with safetensors or torch.save"
        ) from error


def _what_is_wrong(file: Path, error: Exception) -> str:
    with contextlib.suppress(OSError), file.open("rb") as stream:
        beginning = stream.read(64).lstrip().lower()
        for signature, kind in _NO_WEIGHTS.items():
            if beginning.startswith(signature):
                return f"it is {kind}"
    if file.suffix == ".safetensors":
        return "it is damaged, or no safetensors file"
    code = _CODE_IN_PICKLE.search(str(error))
    if code is not None:
        return f"beside tensors it holds code to run, {code[1]}"
    return "it is damaged, or no file of tensors and plain values"


def _holders(content: Any, source: str) -> dict[tuple[str, ...], StateDict]:
    """Return the tensors of each mapping in `content`, by the names that lead to the mapping.

    Raises:
        UserError: There are too many.
    """
    holders: dict[tuple[str, ...], StateDict] = {}
    seen: set[int] = set()  # a mapping can hold itself
    num_entries = 0
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), content)] if isinstance(content, Mapping) else [])
    while waiting:
        where, mapping = waiting.popleft()
        if id(mapping) in seen or len(where) > WEIGHTS_DEPTH:
            continue
        seen.add(id(mapping))
        num_entries += len(mapping)
        check_entries(num_entries, source)
        own = {key: value for key, value in mapping.items() if isinstance(key, str) and isinstance(value, Tensor)}
        if own:
            bare = {_WRAPPER_INSIDE.sub("", key): value for key, value in own.items()}
            holders[where] = bare if len(bare) == len(own) else own
        inside = [(key, value) for key, value in mapping.items() if isinstance(key, str) and isinstance(value, Mapping)]
        waiting += [((*where, key), value) for key, value in inside]
    return holders


def _parts(where: tuple[str, ...], state: StateDict, wanted: Wanted) -> list[_Part]:
    """Return the parts of one mapping that may be the network, each without the parts below it."""
    counts: Counter[str] = Counter()
    for key, value in state.items():
        for prefix in _prefixes(key):
            name = key[len(prefix) :]
            if name in wanted.shapes and wanted.shapes[name] in (None, value.shape):
                counts[prefix] += 1
    # a prefix of all names belongs to the network
    shared = {prefix for prefix in counts if prefix and all(key.startswith(prefix) for key in state)}
    parts: dict[str, StateDict] = {
        prefix: {}
        for prefix, count in counts.items()
        if count >= wanted.least or (prefix in shared and count > counts[""])
    }
    for key, value in state.items():
        longest = max((prefix for prefix in _prefixes(key) if prefix in parts), key=len, default=None)
        if longest is not None:
            parts[longest][key[len(longest) :]] = value
    return [_Part(where, prefix, part, counts[prefix]) for prefix, part in parts.items()]


def _prefixes(key: str) -> list[str]:
    """Return the modules that `key` may be below, the outermost first."""
    modules = key.split(".", WEIGHTS_DEPTH)[:-1]
    return ["".join(f"{module}." for module in modules[:depth]) for depth in range(len(modules) + 1)]


def _chosen(parts: list[_Part], source: str, num_bytes: int | None) -> _Part:
    """Return the part that is the network.

    Raises:
        UserError: Several parts may be the network.
    """
    most = max(part.num_wanted for part in parts)
    candidates: list[_Part] = []
    for part in parts:
        if part.num_wanted == most:
            check_network(part.state, source, num_bytes)
            if not any(part.equals(other) for other in candidates):
                candidates.append(part)
            if len(candidates) > WEIGHTS_NETWORKS:  # the time grows with their square
                break
    averaged = [part for part in candidates if part.is_averaged]
    others = [part for part in candidates if not part.is_averaged]
    if len(averaged) == len(others) == 1:
        average, whole = _shapes(averaged[0]), _shapes(others[0])
        # an average may hold the parameters only, without the buffers of the network
        if average.items() <= whole.items():
            return averaged[0] if len(average) == len(whole) else others[0]
    if len(candidates) > 1:
        names = few([brief(part.name) for part in candidates], between=" and ")
        raise UserError(
            f"{source!r} holds several networks, {names}; save the state_dict() of one of them in a file of its own"
        )
    return candidates[0]


def _shapes(part: _Part) -> dict[str, torch.Size]:
    """Return the shapes of `part` without counters, which an average need not have."""
    return {key: value.shape for key, value in part.state.items() if not key.endswith((_COUNTER, *_LEFTOVERS))}


def _around(content: Mapping[str, Any], where: tuple[str, ...]) -> dict[str, str]:
    """Describe what the file holds beside the tensors of the mapping at `where`."""
    around: dict[str, str] = {}
    for depth, name in enumerate((*where, None)):
        around |= {
            ".".join((*where[:depth], key if isinstance(key, str) else brief(key))): _in_words(value)
            for key, value in content.items()
            if key != name and not (name is None and isinstance(key, str) and isinstance(value, Tensor))
        }
        content = content[name] if name is not None else content
    return around


def _in_words(value: Any) -> str:
    """Describe a value that is no part of the network; short values as they are."""
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return brief(value)
    size = f" of {len(value)}" if isinstance(value, (Mapping, list, tuple, set)) else ""
    return f"a {type(value).__name__}{size}"


def _grouped(tensors: StateDict, prefix: str) -> dict[str, str]:
    """Describe tensors outside the module `prefix`, by module."""
    groups: dict[str, list[str]] = {}
    for key in tensors:
        shared = max((outer for outer in _prefixes(key) if prefix.startswith(outer)), key=len)
        groups.setdefault(shared + key[len(shared) :].partition(".")[0], []).append(key)
    alone = {keys[0]: brief(tensors[keys[0]]) for keys in groups.values() if len(keys) == 1}
    return alone | {f"{module}.*": f"{len(keys)} tensors" for module, keys in groups.items() if len(keys) > 1}


def _with_integer_counters(state: StateDict) -> tuple[StateDict, tuple[str, ...]]:
    """Return `state` with counters of batches as integers, without impossible ones, and notes on what was done."""
    floats = [
        key for key, value in state.items() if key.endswith(_COUNTER) and value.dim() == 0 and value.is_floating_point()
    ]
    if not floats:
        return state, ()
    lost = [key for key in floats if not float(state[key]).is_integer()]  # float16 ends at 65,504
    whole = {key: state[key].to(torch.int64) for key in floats if key not in lost}
    dtypes = ", ".join(sorted({str(state[key].dtype).removeprefix("torch.") for key in floats}))
    notes = [f"{len(floats)} counters of batches are {dtypes}; taken as integers"]
    if lost:
        notes.append(f"{len(lost)} of them are no whole number, or infinite; left out, no output depends on them")
    return {key: whole.get(key, value) for key, value in state.items() if key not in lost}, tuple(notes)


def state_dict_from_url(url: str) -> StateDict:
    """Read the state dict at `url`, from torch's cache or downloaded, without executing anything in it.

    Raises:
        UserError: The file cannot be downloaded or read.
    """
    return _fetched(url, lambda: torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True))


def torchvision_state_dict(backbone: str) -> StateDict:
    """Read torchvision's best published weights of `backbone`, from torch's cache or downloaded.

    Raises:
        UserError: torchvision publishes no weights, or they cannot be downloaded or read.
    """
    import torchvision

    try:
        published = torchvision.models.get_model_weights(backbone)
    except ValueError:
        raise UserError(f"torchvision publishes no weights for {backbone}; give a file, pretrained=PATH") from None
    best = published.DEFAULT
    return _fetched(
        f"torchvision's weights of {backbone} ({best.url})",
        lambda: best.get_state_dict(progress=True, check_hash=True, weights_only=True),
    )


def _fetched(what: str, fetch: Callable[[], Any]) -> StateDict:
    try:
        return dict(fetch())
    except (urllib.error.URLError, OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot get {what}: {reason}; download the file elsewhere and give it as pretrained=PATH"
        ) from error


def tensors_to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return named tensors, of any device and memory layout, as the content of a safetensors file."""
    from safetensors.torch import save

    # cloned, because safetensors refuses tensors that share memory
    plain = {name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}
    return save(plain, None if metadata is None else dict(metadata))
