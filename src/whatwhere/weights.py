"""Reading weights safely and loading them into a network. Nothing loaded from a file is executed."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import urllib.error
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError

StateDict = dict[str, Tensor]

# averaged weights, where a file has both, are what was evaluated: first timm's and torchvision's names of them
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_ATTENTION_KEY = re.compile(r"(^|\.)attention\.")
_IDENTITY_KEY = re.compile(r"(^|\.)attention\.mix$")


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Read the tensors of a .safetensors file or of a PyTorch checkpoint.

    A checkpoint is read with `weights_only=True`. Tensors inside "state_dict", "model" or "model_state_dict" are found,
    averaged ones ("state_dict_ema", "model_ema") before them, and the prefixes "module." of DataParallel and
    "_orig_mod." of torch.compile taken off.

    Raises:
        UserError: No such file, or not a sound file of tensors.
    """
    file = Path(path)
    try:
        found = file.is_file()
    except OSError:  # a name that no file can have
        found = False
    if not found:
        raise UserError(f"no weights file {os.fspath(path)!r}; give a .safetensors or .pth file")
    return _state_dict_in(_content(file), os.fspath(path))


def _content(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        # training scripts keep their arguments beside the weights: a plain holder of values, harmless to build
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickles: what is wrong with them is said below
            return torch.load(file, map_location="cpu", weights_only=True)
    # a damaged or hostile file can make the readers raise nearly anything
    except Exception as error:
        raise UserError(
            f"cannot read weights from {str(file)!r}: it is damaged or holds more than tensors, and nothing in "
            "it is executed; save model.state_dict() with safetensors or torch.save"
        ) from error


def _state_dict_in(content: Any, path: str) -> StateDict:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if isinstance(content, Mapping) and "n_averaged" in content:  # the counter of torch's AveragedModel
        content = {key: value for key, value in content.items() if key != "n_averaged"}
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path!r} holds no state dict (names to tensors)")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path!r} holds no state dict: its entry {key!r} is a {type(value).__name__}")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"{path!r} holds a sparse, quantized or empty tensor: {key!r}")
        if value.is_floating_point() and not value.float().isfinite().all():
            raise UserError(f"{path!r} holds weights that are NaN or infinite: {key!r}")
    return _without_prefixes(dict(content))


def _without_prefixes(state: StateDict) -> StateDict:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
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


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return named tensors, of any device and layout in memory, as the content of a safetensors file."""
    from safetensors.torch import save

    # a clone, because safetensors refuses tensors that share memory
    return save({name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()})


def is_attention_key(key: str) -> bool:
    """Return whether `key` names a tensor of an attention module."""
    return bool(_ATTENTION_KEY.search(key))


def has_attention(state: StateDict) -> bool:
    """Return whether `state` holds tensors of attention modules."""
    return any(map(is_attention_key, state))


def starts_as_identity(state: StateDict) -> bool:
    """Return whether a network for `state` needs attention that starts as the identity.

    It does where `state` has no attention, which is then new, and where it was saved from such a network.
    """
    return not has_attention(state) or any(map(_IDENTITY_KEY.search, state))


def load_pretrained(model: nn.Module, state: StateDict, source: str) -> None:
    """Load `state` into `model`, all of it or nothing.

    The classifier is skipped if its number of classes differs, and the first convolution adapted if its number of
    input channels does. The classifier and the attention may be missing altogether.

    Raises:
        UserError: Any other key missing, unexpected or of another shape; the model is left as it was.
    """
    own = model.state_dict()
    state = dict(state)
    if "conv1.weight" in own and "conv1.weight" in state:
        state["conv1.weight"] = _adapt_input(state["conv1.weight"], own["conv1.weight"].shape)
    classifier = {"fc.weight", "fc.bias"}
    if _is_other_classifier(state, own):
        state = {key: value for key, value in state.items() if key not in classifier}
    optional = set() if classifier & state.keys() else classifier
    if not has_attention(state):
        optional |= set(filter(is_attention_key, own))
    optional |= {key for key in own if key.endswith("num_batches_tracked")}

    missing = sorted(own.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - own.keys())
    mismatched = sorted(key for key in own.keys() & state.keys() if not _fits(state[key], own[key]))
    faults = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape or kind", mismatched))
        if keys
    ]
    if faults:
        raise UserError(f"the weights from {source!r} are not of this network: {'; '.join(faults)}")
    model.load_state_dict({**own, **state})


def _fits(value: Tensor, target: Tensor) -> bool:
    return value.shape == target.shape and value.is_floating_point() == target.is_floating_point()


def _is_other_classifier(state: StateDict, own: StateDict) -> bool:
    """Return whether `state` has a classifier on the same features as `own`'s, for another number of classes."""
    theirs, ours = state.get("fc.weight"), own.get("fc.weight")
    if theirs is None or theirs.dim() != 2:
        return False
    return ours is None or (theirs.shape[0] != ours.shape[0] and theirs.shape[1] == ours.shape[1])


def _adapt_input(weight: Tensor, shape: torch.Size) -> Tensor:
    """Fit an RGB convolution to another number of input channels: summed for one, else repeated and scaled (timm)."""
    in_channels = shape[1]
    if weight.dim() != 4 or weight.shape[1] != 3 or in_channels == 3:
        return weight
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-in_channels // 3)
    return weight.repeat(1, repeats, 1, 1)[:, :in_channels] * (3 / in_channels)
