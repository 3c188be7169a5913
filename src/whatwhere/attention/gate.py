"""What the attention modules share: arguments, start, shapes and checks (`Attention`), and the two kinds of modules.

A `Gate` is two small functions, `what` and `where`. A `ScalingAttention` multiplies x by gates of any other form.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.fx
from torch import Tensor, nn

from ..base.errors import UserError, check_factor, check_integer
from ..base.modules import NotScriptable, modes_kept
from ..base.words import brief
from ..ops import Arrangement, Backend, ChannelGate, SpatialGate, gate

Start = Literal["paper", "identity"]
Place = Literal["block", "stage"]
Device = torch.device | str | int | None
Dtype = torch.dtype | None


class Attention(NotScriptable, nn.Module):
    """Base of all attention modules. What stands here holds for each of them.

    Args:
        channels: Channels C of the input.
        start: "paper" for the module as published. "identity" for y = x at the start, bit for bit, so that a trained
            network keeps what it computes: y = x * (1 - a + a * gates), where the scalar a (the parameter `mix`) starts
            at 0 and is learned.
        device, dtype: Of the parameters; None for torch's current defaults.

    Attributes:
        channels: Channels C that the weights are for, read from the layers; None where the weights fit any C.
        identity_at_start: Whether the module as published computes y = x. It then has no `mix` under either start: a
            scalar at 0 before gates at 1 gets no gradient and gives none.
        place: Where a network puts it: "block" (the end of each residual branch) or "stage" (the end of each stage but
            the last). A module that does not derive from this class may have this attribute too.
        sized_by: Name of the layer that takes the C channels; "" where the weights fit any C.
        shown: Names of the options that stand in the module's repr.
        bounds: Between what its gates lie: those of a sigmoid, where a class does not say otherwise.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any H and W of at least 1.

    Dtype:
        Any floating dtype. The result has the dtype of x. Sums over pixels are taken in float32 at least where a
        docstring says so, and for each pool and map of a `Gate`.

    Raises:
        UserError: An impossible option, or an x of another rank, dtype or channel count.
    """

    mix: Tensor | None
    place: Place = "block"
    identity_at_start: ClassVar[bool] = False
    sized_by: ClassVar[str] = ""
    shown: ClassVar[tuple[str, ...]] = ()
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, channels: int, *, start: Start = "paper") -> None:
        super().__init__()
        check_integer("channels", channels)
        check_choice("start", start, get_args(Start))
        is_mixed = start == "identity" and not self.identity_at_start
        self.register_parameter("mix", nn.Parameter(torch.zeros(())) if is_mixed else None)

    @property
    def channels(self) -> int | None:
        return channels_into(self.get_submodule(self.sized_by)) if self.sized_by else None

    def check(self, x: Tensor) -> None:
        """Raise UserError unless x is floating-point and (N, C, H, W)."""
        check_features(type(self).__name__, x, self.channels)

    def seen(self, x: Tensor) -> Tensor:
        """Return what is computed from in place of x: means over images in a placebo (see `Static`), else x."""
        means = getattr(self, "means", None)
        return x if means is None else means(x)[0]

    def extra_repr(self) -> str:
        size = [] if self.channels is None else [str(self.channels)]
        options = [f"{name}={getattr(self, name)!r}" for name in self.shown]
        # a GlobalContext in an old pickle has no `mix`
        start = [] if getattr(self, "mix", None) is None else ["start='identity'"]
        return ", ".join([*size, *options, *start])


class Gate(Attention):
    """Attention made of a channel gate `what` and a spatial gate `where`; either may be absent.

    By default, with s = what(pools of x) and m = where(maps of x * s)::

        y = x * s * m

    `whatwhere.ops.gate` computes it, and has the other arrangements.

    Args:
        what: Maps one pooled (N, C) for each name in `what.pools` to the channel gate s (N, C).
        where: Maps the pooled (N, k, H, W), k names in `where.maps`, to the spatial gate m (N, 1, H, W).
        arrangement: "channel_first", "spatial_first" (m from x, s from x * m) or "parallel" (both from x).

    Attributes:
        backend: "auto", "reference", "lean" or "cpp" (see `whatwhere.ops`).
    """

    what: ChannelGate | None
    where: SpatialGate | None
    backend: Backend = "auto"
    shown = ("arrangement",)

    def __init__(
        self,
        channels: int,
        what: nn.Module | None = None,
        where: nn.Module | None = None,
        *,
        arrangement: Arrangement = "channel_first",
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(channels, start=start)
        check_choice("arrangement", arrangement, get_args(Arrangement))
        self.arrangement = arrangement
        # not register_module, which makes a child of None: some tools take every child for a module
        for name, function in (("what", what), ("where", where)):
            setattr(self, name, function)
        self.to(device=device, dtype=dtype)

    @property
    def channels(self) -> int | None:
        return getattr(self.what, "channels", None)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return gate(x, **self.arguments(x))

    def arguments(self, x: Tensor) -> dict[str, Any]:
        """Return the arguments of `whatwhere.ops.gate` for this module; a caller may add a norm and a shortcut.

        A caller passes them on by itself: `cost` counts what `gate` saves for backward at the module that calls it.
        """
        # Where the module as published starts as y = x, a = 1: with a scalar, a fused norm is computed bit for bit as
        # without attention. Made for each x: a stored 1 is lost when a module is built on the meta device and loaded.
        mix = x.new_ones(()) if self.mix is None and self.identity_at_start else self.mix
        return {
            "what": self.what,
            "where": self.where,
            "arrangement": self.arrangement,
            "mix": mix,
            "backend": self.backend,
        }


class ScalingAttention(Attention):
    """Attention of another form than `what` and `where`: y = x * gates(x). Each subclass has its own `gates`."""

    def gates(self, x: Tensor) -> Tensor:
        """Return what x is multiplied by, broadcastable to (N, C, H, W)."""
        raise NotImplementedError

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        """Return what `gates` is made of, by name; (N, C or 1, H or 1, W or 1) each, or a map for each of G groups."""
        return {"gates": self.gates(x)}

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        gates = self.gates(self.seen(x)).to(x.dtype)  # autocast may have chosen another
        return x * gates if self.mix is None else x * (1 - self.mix + self.mix * gates)


class IdentityStart(NotScriptable, nn.Module):
    """y = x + a * (A(x) - x) for any module A that keeps its input's shape. The scalar a starts at 0 and is learned.

    The modules of this package have this start built in (`start="identity"`), without reading x a second time.

    Note:
        If A(x) = x at the start, neither a nor A ever gets a gradient; `starting_as_identity` does not wrap such a
        module. At a = 0, -0.0 becomes 0.0, and where A(x) or x is infinite the result is NaN.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.place: Place = place_of(attention)
        self.mix = _zero_scalar(attention)

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.attention(x)
        check_shape_kept(type(self.attention).__name__, x, attended)
        return x + self.mix * (attended - x)


def starting_as_identity(attention: nn.Module, channels: int) -> nn.Module:
    """Return `attention` so that it starts as y = x and learns from there.

    A module of this package gets the scalar `mix` if it has none. A module that computes y = x stays as it is. Any
    other is put into an `IdentityStart`.
    """
    if getattr(attention, "identity_at_start", False):
        return attention
    if isinstance(attention, (Gate, ScalingAttention)):
        if attention.mix is None:
            attention.mix = _zero_scalar(attention)
        return attention
    return attention if _is_identity(attention, channels) else IdentityStart(attention)


def largest_mix(model: nn.Module) -> float | None:
    """Return the largest magnitude of the mixing factors in a network, the `mix` of its attention; None without any.

    At 0 the network computes what it computes without attention; below 0.05 the attention changes its features by
    less than 5 % of what it would change them at 1.
    """
    attentions = (module for module in model.modules() if isinstance(module, (Attention, IdentityStart)))
    mixes = (getattr(module, "mix", None) for module in attentions)
    return max((float(mix.detach().abs().max()) for mix in mixes if mix is not None), default=None)


def place_of(*builders_or_modules: object) -> Place:
    """Return "stage" if one of these, behind any `functools.partial`, has the attribute `place = "stage"`, or "block".

    A class, a module, or a function that builds one may have it. What a function without it builds is only known once
    it is built: give the module too.
    """
    places = [getattr(unwrapped(value), "place", "block") for value in builders_or_modules]
    return "stage" if "stage" in places else "block"


def unwrapped(value: object) -> object:
    """Return the class or function behind any `functools.partial`."""
    while isinstance(value, functools.partial):
        value = value.func
    return value


def _zero_scalar(attention: nn.Module) -> nn.Parameter:
    """Return a scalar at 0, of the dtype and device of the parameters of `attention`."""
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
        # a user's module may need another size or dtype
        except Exception:
            return False


def channels_into(layer: nn.Module) -> int | None:
    """Return how many channels a layer takes; None where it does not say.

    Read from the layer each time: tools that prune channels change the layer's weights and its size.
    """
    return getattr(layer, "in_channels", getattr(layer, "in_features", None))


def leave_a_mark(module: nn.Module) -> None:
    """Give a module without parameters an empty buffer, so that a state dict shows that the module is there."""
    module.register_buffer("mark", torch.zeros(0))


def hidden_width(channels: int, reduction: float, least: int = 1) -> int:
    """Return max(least, channels // reduction); raise UserError if either is not a positive number."""
    check_integer("channels", channels)
    check_factor("reduction", reduction)
    return max(least, int(channels // reduction))


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` that is at most `most`."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


def check_odd(name: str, value: int) -> None:
    """Raise UserError unless `value` is a positive odd integer: padding of value // 2 then keeps the size."""
    check_integer(name, value)
    if value % 2 == 0:
        raise UserError(f"{name} must be odd, so that padding keeps the size, got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}; got {brief(value)}")


def check_names(name: str, values: tuple[str, ...], choices: tuple[str, ...]) -> None:
    """Raise UserError unless `values` lists at least one of `choices`, and none twice."""
    is_listed = isinstance(values, (tuple, list)) and values and all(value in choices for value in values)
    if not is_listed or len(set(values)) != len(values):
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
    """Return `out`; raise UserError unless the attention `name` gave it the shape of `x`. It must not broadcast."""
    if not isinstance(out, Tensor) or out.shape != x.shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise UserError(f"attention must keep its input's shape; {name} made {got} of {tuple(x.shape)}")
    return out


def __getattr__(name: str) -> object:
    # networks pickled by earlier versions look for it here
    if name == "SharedMLP":
        return import_module("whatwhere.attention.cbam").SharedMLP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
