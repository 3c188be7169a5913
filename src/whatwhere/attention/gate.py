"""What the attention modules share: a gate is its two small functions, and others scale x by gates of their own."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.fx
from torch import Tensor, nn

from ..base.errors import UserError, check_factor, check_integer
from ..base.modules import NotScriptable, modes_kept
from ..base.words import brief
from ..ops import Arrangement, Backend, ChannelGate, SpatialGate, gate
from ..ops.reference import POOLS

Form = Literal["official", "timm"]
Start = Literal["paper", "identity"]
Place = Literal["block", "stage"]
Device = torch.device | str | int | None


class Gate(NotScriptable, nn.Module):
    """Attention made of a channel function `what` and a spatial function `where`, either of which may be absent.

    y = x * what(x) * where(x * what(x)) in the default arrangement; `whatwhere.ops.gate` has the others. With
    `start="identity"` the module begins as y = x exactly: y = x * (1 - a + a * gates), the learned scalar a (the
    parameter `mix`) starting at 0, so that it can be put into a trained network without disturbing it.

    Args:
        channels: Channels C of the input.
        what: Pooled features to channel gate, or None.
        where: Pooled maps to spatial gate, or None.
        arrangement: "channel_first", "spatial_first" or "parallel".
        start: "paper" for the module as published, "identity" for y = x at the start.
        device, dtype: Of the parameters; None for the current defaults.

    Attributes:
        channels: Channels C that `what` is for, as its `channels` says; None where it does not say.
        backend: Who computes it (see `whatwhere.ops`), "auto" unless set otherwise.
        identity_at_start: Whether it computes y = x as published, so that either start is the same, without a scalar:
            a scalar at 0 before gates at 1 would get no gradient and give none.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any H and W.

    Raises:
        UserError: An impossible option, or an input of another rank or channel count.
    """

    what: ChannelGate | None
    where: SpatialGate | None
    mix: Tensor | None
    backend: Backend = "auto"
    identity_at_start: ClassVar[bool] = False

    def __init__(
        self,
        channels: int,
        what: nn.Module | None = None,
        where: nn.Module | None = None,
        *,
        arrangement: Arrangement = "channel_first",
        start: Start = "paper",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_integer("channels", channels)
        check_choice("arrangement", arrangement, get_args(Arrangement))
        check_choice("start", start, get_args(Start))
        self.arrangement = arrangement
        # as attributes: register_module would make a child of None, and some tools take every child for a module
        for name, function in (("what", what), ("where", where)):
            setattr(self, name, function)
        mixed = start == "identity" and not self.identity_at_start
        self.register_parameter("mix", nn.Parameter(torch.zeros(())) if mixed else None)
        self.to(device=device, dtype=dtype)

    @property
    def channels(self) -> int | None:
        return getattr(self.what, "channels", None)

    def mixing(self, x: Tensor) -> Tensor | None:
        """Return the scalar a of the mixing: `mix`, or 1 where the module itself starts as y = x.

        Behind a mixing a fused norm is computed as by itself, bit for bit, which that start is to keep. The 1 is made
        anew for each x: a stored one would be lost where a module is built without memory and its state dict loaded.
        """
        return x.new_ones(()) if self.mix is None and self.identity_at_start else self.mix

    def forward(self, x: Tensor) -> Tensor:
        check_features(type(self).__name__, x, self.channels)
        return gate(x, **self.arguments(x))

    def arguments(self, x: Tensor) -> dict[str, Any]:
        """Return the arguments of `whatwhere.ops.gate` for this module; a caller may add a norm and a shortcut.

        A caller passes them on by itself: `cost` counts what `gate` saves for backward at the module that calls it.
        """
        return {
            "what": self.what,
            "where": self.where,
            "arrangement": self.arrangement,
            "mix": self.mixing(x),
            "backend": self.backend,
        }

    def extra_repr(self) -> str:
        return described(self.channels, self.mix, f"arrangement={self.arrangement!r}")


class ScalingAttention(NotScriptable, nn.Module):
    """Attention of another form than `what` and `where`: y = x * gates(x), `gates` being the subclass's.

    With `start="identity"`, y = x * (1 - a + a * gates(x)), the learned scalar a (the parameter `mix`) starting at 0.

    Args:
        channels: Channels C of the input.
        start: "paper" for the module as published, "identity" for y = x at the start.

    Attributes:
        channels: Channels C that the weights are for, asked of the layers that have them; None where they suit any C.
        place: Where a network built with it puts it: "block", at the end of each residual branch, or "stage", between
            the stages. Any module may have this attribute; without it, it stands in the blocks.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any H and W.

    Raises:
        UserError: An impossible option, or an input of another rank or channel count.
    """

    mix: Tensor | None
    place: Place = "block"

    def __init__(self, channels: int, *, start: Start = "paper") -> None:
        super().__init__()
        check_integer("channels", channels)
        check_choice("start", start, get_args(Start))
        self.register_parameter("mix", nn.Parameter(torch.zeros(())) if start == "identity" else None)

    @property
    def channels(self) -> int | None:
        return None

    def gates(self, x: Tensor) -> Tensor:
        """Return what x is multiplied by, broadcastable to (N, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        check_features(type(self).__name__, x, self.channels)
        gates = self.gates(x).to(x.dtype)  # autocast may have chosen another
        return x * gates if self.mix is None else x * (1 - self.mix + self.mix * gates)

    def extra_repr(self) -> str:
        return described(self.channels, self.mix)


class IdentityStart(NotScriptable, nn.Module):
    """y = x + a * (A(x) - x) for any module A that keeps its input's shape, the learned scalar a starting at 0.

    Gates of this package have the same start built in (`start="identity"`), without a second read of x.

    Note:
        With A(x) = x at the start neither a nor A would ever get a gradient; `starting_as_identity` leaves such a
        module alone. At a = 0, -0.0 becomes 0.0, and where A(x) or x is infinite the result is NaN.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.place: Place = getattr(attention, "place", "block")
        self.mix = _mixing_nothing(attention)

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.attention(x)
        check_shape_kept(type(self.attention).__name__, x, attended)
        return x + self.mix * (attended - x)


def starting_as_identity(attention: nn.Module, channels: int) -> nn.Module:
    """Return `attention` so that it starts as y = x and learns from there.

    A module of this package gets its scalar `mix` if it has none, a module that computes y = x already is left alone,
    and any other is put into an `IdentityStart`.
    """
    if getattr(attention, "identity_at_start", False):
        return attention
    if isinstance(attention, (Gate, ScalingAttention)):
        if attention.mix is None:
            attention.mix = _mixing_nothing(attention)
        return attention
    return attention if _is_identity(attention, channels) else IdentityStart(attention)


def _mixing_nothing(attention: nn.Module) -> nn.Parameter:
    """Return a scalar at 0 beside the parameters of `attention`."""
    like = next(filter(Tensor.is_floating_point, attention.parameters()), torch.zeros(()))
    return nn.Parameter(like.detach().new_zeros(()))


@torch.no_grad()
def _is_identity(module: nn.Module, channels: int) -> bool:
    x = torch.linspace(-2, 2, channels * 14 * 14).view(1, channels, 14, 14)
    if x.is_meta:
        return False
    with modes_kept(module):
        module.eval()
        try:
            return torch.equal(module(x), x)
        # a stranger's module may want another size or dtype than this probe's
        except Exception:
            return False


class SharedMLP(nn.Module):
    """Channel gate sigmoid(sum over pools p of W2 relu(W1 p + b1) + b2): one MLP for all pooled features.

    Args:
        channels: Channels C.
        hidden_channels: Width of the hidden layer.
        pools: Names of the pooled features, any non-empty subset of those that `whatwhere.ops.gate` knows.
        bias: Whether both layers have a bias.

    Shape:
        One (N, C) per pool -> (N, C).
    """

    def __init__(self, channels: int, hidden_channels: int, pools: tuple[str, ...] = ("avg",), bias: bool = True):
        super().__init__()
        check_names("pools", pools, tuple(POOLS))
        self.pools = tuple(pools)
        self.fc1 = nn.Linear(channels, hidden_channels, bias=bias)
        self.fc2 = nn.Linear(hidden_channels, channels, bias=bias)

    @property
    def channels(self) -> int | None:
        return channels_into(self.fc1)

    def forward(self, *pooled: Tensor) -> Tensor:
        # a product for each pool: tools that look into layers take (N, C) from a Linear, and N for the number of images
        logits = [self.fc2(torch.relu(self.fc1(features))) for features in pooled]
        return torch.sigmoid(functools.reduce(torch.add, logits))

    def extra_repr(self) -> str:
        return f"pools={self.pools}"


def channels_into(layer: nn.Module) -> int | None:
    """Return how many channels a layer takes, as the layer says; None where it does not say.

    Asked of the layer each time: tools that prune channels change its weights and its own size with them.
    """
    return getattr(layer, "in_channels", getattr(layer, "in_features", None))


def described(channels: int | None, mix: Tensor | None, *options: str) -> str:
    """Return what stands between the brackets when a module is printed."""
    size = () if channels is None else (str(channels),)
    return ", ".join((*size, *options, *(() if mix is None else ("start='identity'",))))


def leave_a_mark(module: nn.Module) -> None:
    """Give a module without parameters a tensor, without which a network's weights would not say that it is there."""
    module.register_buffer("mark", torch.zeros(0))


def check_reduction(reduction: float) -> None:
    """Raise UserError unless `reduction` is a positive number."""
    check_factor("reduction", reduction)


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` that is at most `most`."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}; got {brief(value)}")


def check_names(name: str, values: tuple[str, ...], choices: tuple[str, ...]) -> None:
    """Raise UserError unless `values` is a sequence of at least one of `choices`, none of them twice."""
    sound = isinstance(values, (tuple, list)) and values and all(value in choices for value in values)
    if not sound or len(set(values)) != len(values):
        raise UserError(f"{name} must list one or more of {', '.join(choices)}, each once; got {brief(values)}")


@torch.fx.wrap
def check_features(name: str, x: Tensor, channels: int | None) -> None:
    """Raise UserError unless `x` is floating-point and (N, C, H, W) with at least one pixel.

    C is `channels`, or any positive number where that is None.
    """
    called, size = (name, "C") if channels is None else (f"{name}({channels})", channels)
    if x.dim() != 4 or 0 in x.shape[1:] or channels not in (None, x.shape[1]):
        raise UserError(f"{called} takes an input of shape (N, {size}, H, W), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise UserError(f"{called} takes a floating-point input, got {x.dtype}")


@torch.fx.wrap
def check_shape_kept(name: str, x: Tensor, out: Tensor) -> Tensor:
    """Return `out`; raise UserError unless the attention `name` gave it the shape of `x`, which must not broadcast."""
    if not isinstance(out, Tensor) or out.shape != x.shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise UserError(f"attention must keep its input's shape; {name} made {got} of {tuple(x.shape)}")
    return out
