from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..base.errors import UserError, check_integer
from ..base.words import brief
from ..ops import Arrangement
from ..ops.forms import Convolution, Layers, convolution, known, layers
from ..ops.reference import MAPS, POOLS
from .gate import Device, Dtype, Gate, Start, channels_into, check_choice, check_names, check_odd, hidden_width
from .squeeze_excitation import Excitation

Form = Literal["official", "timm", "ultralytics"]
Norm = Callable[[int], nn.Module] | Literal["form", "batch"] | None


@dataclass(frozen=True)
class Convention:
    """The rules of a published implementation: what it has where an option of `CBAM` is not given."""

    pools: tuple[str, ...] = ("avg", "max")
    has_hidden_layer: bool = True
    round_hidden: bool = False
    mlp_bias: bool = True
    maps: tuple[str, ...] = ("mean", "max")
    norm: Literal["batch"] | None = "batch"
    norm_momentum: float = 0.1
    spatial_bias: bool | None = None  # None: where there is no norm


CONVENTIONS: dict[Form, Convention] = {
    "official": Convention(maps=("max", "mean"), norm_momentum=0.01),
    "timm": Convention(mlp_bias=False, round_hidden=True),
    "ultralytics": Convention(pools=("avg",), has_hidden_layer=False, norm=None, spatial_bias=False),
}


@known
class SharedMLP(Excitation):
    """Channel gate sigmoid(MLP(avg) + MLP(max)), the paper's eq. 2: one MLP for all `pools`, with one term for each.

    Shape:
        One (N, C) per pool -> (N, C).
    """

    def forward(self, *pooled: Tensor) -> Tensor:
        # pool by pool, not stacked: tools that read a network's layers take the first size of a Linear's input for the
        # number of images
        return torch.sigmoid(functools.reduce(torch.add, map(self.mlp, pooled)))

    def form(self) -> Layers | None:
        return layers(self.fc1, self.fc2)


@known
class SharedLinear(nn.Module):
    """Channel gate sigmoid(W avg + b), as in Ultralytics: one full layer where `SharedMLP` has two narrow ones.

    With several `pools` W p + b is summed over them, as in `SharedMLP`.

    Shape:
        One (N, C) per pool -> (N, C).
    """

    def __init__(self, channels: int, pools: tuple[str, ...] = ("avg",), bias: bool = True) -> None:
        super().__init__()
        check_names("pools", pools, tuple(POOLS))
        self.pools = tuple(pools)
        self.fc = nn.Linear(channels, channels, bias=bias)

    @property
    def channels(self) -> int | None:
        return channels_into(self.fc)

    def forward(self, *pooled: Tensor) -> Tensor:
        return torch.sigmoid(functools.reduce(torch.add, map(self.fc, pooled)))

    def form(self) -> Layers | None:
        return layers(self.fc)

    def extra_repr(self) -> str:
        return f"pools={self.pools}"


@known
class SpatialConv(nn.Module):
    """Spatial gate sigmoid(norm(k x k convolution of [max; mean])), the paper's eq. 3 plus a norm.

    The arguments are those of `CBAM`. With `zero_init_norm` the norm's weight and bias start at zero: the gate is 0.5
    everywhere, and the convolution gets no gradient in the first step.

    Shape:
        (N, number of maps, H, W) -> (N, 1, H, W).
    """

    def __init__(
        self,
        kernel_size: int = 7,
        maps: tuple[str, ...] = ("max", "mean"),
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        zero_init_norm: bool = False,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        check_odd("kernel_size", kernel_size)
        check_names("maps", maps, tuple(MAPS))
        self.maps = tuple(maps)
        bias = norm is None if bias is None else bias
        self.conv = nn.Conv2d(len(maps), 1, kernel_size, padding=kernel_size // 2, bias=bias)
        self.norm = nn.Identity() if norm is None else norm(1)
        if zero_init_norm:
            parameters = [p for p in self.norm.parameters() if p.numel()]
            if not parameters:
                raise UserError("zero_init_norm needs a norm with a weight and a bias, and this one has none")
            for parameter in parameters:
                nn.init.zeros_(parameter)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.sigmoid(self.norm(self.conv(maps)))

    def form(self) -> Convolution | None:
        return convolution(self.conv, self.norm)

    def extra_repr(self) -> str:
        return f"maps={self.maps}"


class ChannelAttention(Gate):
    """The channel half of CBAM, arXiv 1807.06521, eq. 2: y = M_c(x) * x.

    With C = `channels`, r = `reduction` and p over `pools`::

        M_c = sigmoid(sum over p of W1 relu(W0 p(x)))     W0 (C/r, C), W1 (C, C/r), shared by all pools
        M_c = sigmoid(W avg(x) + b)                       form="ultralytics", W (C, C)

    The arguments are those of `CBAM`.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: float | None = None,
        pools: tuple[str, ...] | None = None,
        mlp_bias: bool | None = None,
        form: Form = "official",
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        # y = x * what(avg, max)
        what = _channel_gate(channels, reduction, pools, mlp_bias, form)
        super().__init__(channels, what, start=start, device=device, dtype=dtype)


class SpatialAttention(Gate):
    """The spatial half of CBAM, arXiv 1807.06521, eq. 3: y = M_s(x) * x.

    With k = `kernel_size`::

        M_s = sigmoid(norm(conv k x k of [max over C of x; mean over C of x]))

    The arguments are those of `CBAM`; no parameter depends on `channels`.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        maps: tuple[str, ...] | None = None,
        norm: Norm = "form",
        zero_init_norm: bool = False,
        spatial_bias: bool | None = None,
        form: Form = "official",
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        # y = x * where([max; mean])
        where = _spatial_gate(kernel_size, maps, norm, zero_init_norm, spatial_bias, form)
        super().__init__(channels, where=where, start=start, device=device, dtype=dtype)


class CBAM(Gate):
    """Convolutional block attention module, arXiv 1807.06521, eq. 1: first *what*, then *where* to look.

    With F = x, M_c the gate of `ChannelAttention` (eq. 2) and M_s that of `SpatialAttention` (eq. 3)::

        F'  = M_c(F)  * F
        F'' = M_s(F') * F'                  the output y

    `Attention` explains `channels`, `start`, `device`, `dtype`, shapes and errors.

    Args:
        reduction: r; the hidden width of the shared MLP is C / r, at least 1, rounded by the rule of `form`. None for
            16. The form "ultralytics" has no hidden layer and takes none.
        pools: Channel pools, any non-empty subset of "avg", "max", "lp" (the l2 norm) and "lse" (log-sum-exp), those of
            the authors' code, and of the other names that `ops.gate` lists; None for those of `form`.
        mlp_bias: Whether the layers of the channel gate have biases; None for the rule of `form`.
        kernel_size: Odd width of the spatial convolution.
        spatial: Whether there is a spatial gate at all.
        arrangement: "channel_first", "spatial_first" or "parallel" (both gates computed from x), the paper's Table 3.
        maps: Order of the spatial gate's input, a non-empty subset of "max" and "mean"; None for that of `form`.
        norm: Norm of the spatial logits: "form" for that of `form`, "batch", a callable that builds a norm of one
            channel, or None for none.
        zero_init_norm: Start that norm at zero, as the authors' networks (not their module) do.
        spatial_bias: Whether the spatial convolution has a bias; None for the rule of `form`: where there is no norm,
            and never in the form "ultralytics".
        form: The rules for options above that are not given: "official" (the authors' code), "timm" or "ultralytics".

    Raises:
        UserError: An impossible option, or a `reduction` in the form "ultralytics".
        ValueError: From torch, in training, if the BatchNorm sees one value alone: a batch of one on a 1x1 map.

    Note:
        The paper, the authors' code, timm's `CbamModule` and Ultralytics' `CBAM` differ. The default is the authors'
        module, parameter for parameter; `form="timm"` is timm's and `form="ultralytics"` Ultralytics'::

                                     paper         authors' code            timm                     Ultralytics
            channel gate             MLP           MLP                      MLP                      one layer, C to C
            its biases               not said      yes                      no                       yes
            hidden width             C / r         rounded down             rounded to the nearest   no hidden layer
            channel pools            avg, max      avg, max, lp, lse        avg + max                avg
            order of pooled maps     avg, max      max, mean                mean, max                mean, max
            spatial BatchNorm        none          yes, momentum 0.01       yes, momentum 0.1        none
            its start in networks    -             zero: a gate of 0.5      default                  -
            bias of the convolution  not said      no                       no                       no
            gradient of tied maxima  -             to one index             spread evenly            to one index
            parameters, C = 1024     -             132,260                  131,172                  1,049,698

        Ultralytics' class is another module under the same name: its channel gate is the one that ECA's authors (arXiv
        1910.03151) call SE-Var3. Its cost grows with C * C.

        Widely copied code with the names `ca` and `sa` for the two halves has the paper's spatial gate and no bias:
        `mlp_bias=False, maps=("mean", "max"), norm=None, spatial_bias=False`.

        Here the first of several equal maxima, in row-major order, takes the gradient, in every form. The hidden
        width is at least 1; the authors' code would build an empty layer. The paper does not say how its parallel
        arrangement joins the two gates; here they are multiplied, as in the other two.
        With hidden width h and k = `kernel_size`: 2 * C * h + h + C parameters of the MLP (2 * C * h without biases)
        and 2 * k * k + 2 of the spatial gate (2 * k * k with neither norm nor bias). In the form "ultralytics"
        C * C + C + 2 * k * k.

    Example:
        >>> import torch
        >>> from whatwhere import CBAM
        >>> CBAM(256)(torch.randn(2, 256, 14, 14)).shape
        torch.Size([2, 256, 14, 14])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: float | None = None,
        pools: tuple[str, ...] | None = None,
        mlp_bias: bool | None = None,
        kernel_size: int = 7,
        spatial: bool = True,
        arrangement: Arrangement = "channel_first",
        maps: tuple[str, ...] | None = None,
        norm: Norm = "form",
        zero_init_norm: bool = False,
        spatial_bias: bool | None = None,
        form: Form = "official",
        start: Start = "paper",
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        # F' = F * what(avg F, max F), then F'' = F' * where([max F'; mean F'])
        what = _channel_gate(channels, reduction, pools, mlp_bias, form)
        where = _spatial_gate(kernel_size, maps, norm, zero_init_norm, spatial_bias, form) if spatial else None
        super().__init__(channels, what, where, arrangement=arrangement, start=start, device=device, dtype=dtype)


def _channel_gate(
    channels: int, reduction: float | None, pools: tuple[str, ...] | None, mlp_bias: bool | None, form: Form
) -> SharedMLP | SharedLinear:
    check_choice("form", form, get_args(Form))
    convention = CONVENTIONS[form]
    pools = convention.pools if pools is None else pools
    bias = convention.mlp_bias if mlp_bias is None else mlp_bias
    if not convention.has_hidden_layer:
        check_integer("channels", channels)
        if reduction is not None:
            raise UserError(
                f"form {form!r} has no hidden layer, so no reduction; leave out reduction={brief(reduction)}"
            )
        return SharedLinear(channels, pools, bias)
    reduction = 16 if reduction is None else reduction
    hidden = hidden_width(channels, reduction)
    if convention.round_hidden:
        hidden = max(1, int(channels / reduction + 0.5))
    return SharedMLP(channels, hidden, pools, bias)


def _spatial_gate(
    kernel_size: int, maps: tuple[str, ...] | None, norm: Norm, zero_init_norm: bool, bias: bool | None, form: Form
) -> SpatialConv:
    check_choice("form", form, get_args(Form))
    convention = CONVENTIONS[form]
    norm = convention.norm if norm == "form" else norm
    if norm == "batch":
        norm = functools.partial(nn.BatchNorm2d, momentum=convention.norm_momentum)
    elif norm is not None and not callable(norm):
        raise UserError(
            f'norm must be "form", "batch", a callable that builds a norm of one channel, or None; got {brief(norm)}'
        )
    maps = convention.maps if maps is None else maps
    return SpatialConv(kernel_size, maps, norm, zero_init_norm, convention.spatial_bias if bias is None else bias)
