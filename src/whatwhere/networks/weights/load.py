"""Loading weights into a network, all of them or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ...base.errors import UserError
from .files import StateDict
from .fit import ATTENTION_KEY, compare

_IDENTITY_KEY = re.compile(r"(^|[._])attention\d*\.mix$")


def is_attention_key(key: str) -> bool:
    """Return whether `key` names a tensor of an attention module."""
    return bool(ATTENTION_KEY.search(key))


def has_attention(state: Iterable[str]) -> bool:
    """Return whether `state`, or its names, are of attention modules in part."""
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
    fit = compare(state, own, optional)
    if fit.groups:
        raise UserError(f"the weights from {source!r} are not of this network: {fit.sentence()}")
    model.load_state_dict({**own, **state})


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
