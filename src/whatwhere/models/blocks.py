"""The residual blocks of ResNet and ResNeXt, with attention on the branch, before the sum."""

from __future__ import annotations

from collections.abc import Callable

import torch.fx
from torch import Tensor, nn

from ..attention import Gate
from ..attention.gate import check_shape_kept
from ..base.errors import UserError
from ..base.modules import NotScriptable
from ..ops import gate, has_hooks, why_apart

# symbolic tracing patches a function under the name by which it is called
torch.fx.wrap("check_shape_kept")

Norm = Callable[[int], nn.Module]


class StochasticDepth(nn.Module):
    """Drop the residual branch of random samples in training, and scale up the others, arXiv 1603.09382."""

    def __init__(self, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        factor = self.factor(x)
        return x if factor is None else x * factor[:, None, None, None]

    def factor(self, x: Tensor) -> Tensor | None:
        """Return the number by which each sample of x is multiplied, (N,): 0 or 1 / keep rate; None if all are 1."""
        if not self.training or self.drop_rate == 0:
            return None
        keep_rate = 1 - self.drop_rate
        return x.new_empty((x.shape[0],)).bernoulli_(keep_rate).div_(keep_rate)

    def extra_repr(self) -> str:
        return f"drop_rate={self.drop_rate:.3f}"


def _tail(block: BasicBlock | Bottleneck, x: Tensor, conv: nn.Module, norm: nn.Module, shortcut: Tensor) -> Tensor:
    """Return the end of a residual block, relu(drop_path(attention(norm(conv(x)))) + shortcut).

    One `gate` computes it, unless `why_apart` says why the modules must be called one by one.
    """
    attention, drop_path, relu = block.attention, block.drop_path, block.relu
    x = conv(x)
    parts = (attention, (Gate, nn.Identity)), (drop_path, (StochasticDepth, nn.Identity)), (relu, (nn.ReLU,))
    if isinstance(x, Tensor) and not why_apart(*parts):
        arguments = attention.arguments(x) if isinstance(attention, Gate) else {}
        factor = drop_path.factor(x) if isinstance(drop_path, StochasticDepth) else None
        # the output of a convolution is a new tensor, which nothing else uses unless a hook has passed it on
        overwrite = type(conv) is nn.Conv2d and not has_hooks(conv)
        return gate(x, **arguments, norm=norm, shortcut=shortcut, factor=factor, overwrite=overwrite)
    x = norm(x)
    attended = attention(x)
    check_shape_kept(type(attention).__name__, x, attended)
    # out of place: an attention module may keep its output for backward
    out: Tensor = relu(drop_path(attended) + shortcut)
    return out


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, groups, bias=False)


class BasicBlock(NotScriptable, nn.Module):
    """Two 3x3 convolutions, attention before the sum, arXiv 1512.03385, figure 5 left."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int,
        downsample: nn.Module | None,
        width: int,
        groups: int,
        first_dilation: int,
        dilation: int,
        stride_in_1x1: bool,
        norm_layer: Norm,
        attention: nn.Module,
        drop_path: nn.Module,
    ) -> None:
        super().__init__()
        if groups != 1 or width != planes:
            raise UserError("BasicBlock has no grouped or widened convolution: groups=1 and width_per_group=64 only")
        if stride_in_1x1:
            raise UserError("stride_in_1x1 needs a block with 1x1 convolutions, a Bottleneck; this one is a BasicBlock")
        self.conv1 = _conv3x3(in_channels, planes, stride, dilation=first_dilation)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(planes, planes, dilation=dilation)
        self.bn2 = norm_layer(planes)
        self.attention = attention
        self.drop_path = drop_path
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return _tail(self, x, self.conv2, self.bn2, shortcut)


class Bottleneck(NotScriptable, nn.Module):
    """1x1, (grouped) 3x3 and 1x1 convolutions, attention before the sum, arXiv 1512.03385 and 1611.05431.

    The stride is in the 3x3 convolution, as in torchvision ("ResNet v1.5"); `stride_in_1x1` puts it into the first 1x1,
    as in the papers.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int,
        downsample: nn.Module | None,
        width: int,
        groups: int,
        first_dilation: int,
        dilation: int,
        stride_in_1x1: bool,
        norm_layer: Norm,
        attention: nn.Module,
        drop_path: nn.Module,
    ) -> None:
        super().__init__()
        out_channels = planes * self.expansion
        first_stride, middle_stride = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, first_stride, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = _conv3x3(width, width, middle_stride, groups, first_dilation)
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.attention = attention
        self.drop_path = drop_path
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return _tail(self, x, self.conv3, self.bn3, shortcut)
