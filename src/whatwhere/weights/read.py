"""Reading weights safely: nothing in a file is executed."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import urllib.error
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, brief

StateDict = dict[str, Tensor]

# averaged weights, where a file has both, are what was evaluated: first timm's and torchvision's names of them
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_CODE_IN_PICKLE = re.compile(r"GLOBAL ([A-Za-z_][\w.]{0,80})")


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds.

    Attributes:
        path: As it was given.
        state: The tensors, prefixes taken off; their values are unchecked.
        wrapper: The entry that they were in, such as "state_dict"; empty if they were the file.
        prefix: The prefix that all keys had, such as "module."; empty without one.
        around: What else the file holds, in a few words for each entry.
        metadata: The text that a safetensors file carries.
    """

    path: str
    state: StateDict
    wrapper: str
    prefix: str
    around: dict[str, str]
    metadata: dict[str, str]

    def non_finite(self) -> dict[str, int]:
        """Return how many values of each tensor are NaN or infinite, where any are."""
        counts = {key: _num_non_finite(value) for key, value in self.state.items()}
        return {key: count for key, count in counts.items() if count}


def read_file(path: str | os.PathLike[str]) -> WeightsFile:
    """Read the tensors of a .safetensors file or of a PyTorch checkpoint, and what is around them.

    A checkpoint is read with `weights_only=True`. Tensors inside "state_dict", "model" or "model_state_dict" are found,
    averaged ones ("state_dict_ema", "model_ema") before them, and the prefixes "module." of DataParallel and
    "_orig_mod." of torch.compile taken off.

    Raises:
        UserError: No such file, or not a sound file of tensors.
    """
    name, file = os.fspath(path), Path(path)
    try:
        found = file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        found = False
    if not found:
        raise UserError(f"no weights file {brief(name, 200)}; give a .safetensors or .pth file")
    content, metadata = _content(file)
    wrapper, around = "", {}
    if isinstance(content, Mapping):
        wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), "")
        if wrapper:
            around = {str(key): brief(value) for key, value in content.items() if key != wrapper}
            content = content[wrapper]
    state = _checked(content, name)
    bare = _without_prefixes(state)
    prefix = next(iter(state)).removesuffix(next(iter(bare)))
    return WeightsFile(name, bare, wrapper, prefix, around, metadata)


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Return the tensors that `read_file` finds, every one of them finite.

    Raises:
        UserError: As `read_file`, or a tensor holds NaN or infinite values.
    """
    file = read_file(path)
    check_finite(file)
    return file.state


def check_finite(file: WeightsFile) -> None:
    """Raise UserError if a tensor of `file` holds NaN or infinite values."""
    for key, value in file.state.items():
        if _num_non_finite(value):
            raise UserError(f"{file.path!r} holds weights that are NaN or infinite: {brief(key)}")


def _num_non_finite(value: Tensor) -> int:
    if not value.is_floating_point():
        return 0
    # not every small float has `isfinite`
    value = value if value.dtype == torch.float64 else value.float()
    return value.numel() - int(value.isfinite().sum())


def _content(file: Path) -> tuple[Any, dict[str, str]]:
    """Return what `file` holds, and its metadata."""
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as tensors:
                return {key: tensors.get_tensor(key) for key in tensors.keys()}, dict(tensors.metadata() or {})  # noqa: SIM118
        # training scripts keep their arguments beside the weights: a plain holder of values, harmless to build
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickles: what is wrong with them is said below
            return torch.load(file, map_location="cpu", weights_only=True), {}
    # a damaged or hostile file can make the readers raise nearly anything
    except Exception as error:
        raise UserError(
            f"cannot read weights from {str(file)!r}: {_what_is_wrong(file, error)}, and nothing in it is executed; "
            "save model.state_dict() with safetensors or torch.save"
        ) from error


def _what_is_wrong(file: Path, error: Exception) -> str:
    if file.suffix == ".safetensors":
        return "it is no sound safetensors file, but damaged or cut short"
    code = _CODE_IN_PICKLE.search(str(error))
    if code is not None:
        return f"beside tensors it holds code to be run, {code[1]}"
    return "it is damaged, cut short or holds more than tensors"


def _checked(content: Any, path: str) -> StateDict:
    """Return `content` if it is a sound state dict."""
    if isinstance(content, Mapping) and "n_averaged" in content:  # the counter of torch's AveragedModel
        content = {key: value for key, value in content.items() if key != "n_averaged"}
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path!r} holds no state dict (names to tensors)")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path!r} holds no state dict: its entry {brief(key)} is a {type(value).__name__}")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"{path!r} holds a sparse, quantized or empty tensor: {brief(key)}")
    return dict(content)


def _without_prefixes(state: StateDict) -> StateDict:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) and key != prefix for key in state):
            return _without_prefixes({key.removeprefix(prefix): value for key, value in state.items()})
    return state


def state_dict_from_url(url: str) -> StateDict:
    """Return the state dict at `url`, from torch's cache or downloaded, read without executing anything in it.

    Raises:
        UserError: It can be neither found nor downloaded.
    """
    return _fetched(url, lambda: torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True))


def torchvision_state_dict(backbone: str) -> StateDict:
    """Return torchvision's best published weights of `backbone`, from torch's cache or downloaded.

    Raises:
        UserError: torchvision has none, or they can be neither found nor downloaded.
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
    """Return named tensors, of any device and layout in memory, as the content of a safetensors file."""
    from safetensors.torch import save

    # a clone, because safetensors refuses tensors that share memory
    plain = {name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}
    return save(plain, None if metadata is None else dict(metadata))
