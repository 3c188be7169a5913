"""The network of the 2021 article that put CBAM into ResNeXt, rebuilt in order to check its figures.

For training use `resnext50_32x4d` and `cbam_resnext50_32x4d`. Where the article's network departs from ResNeXt
(arXiv 1611.05431) and its CBAM from the authors' code, and what follows:

- the last stage repeats the third number of blocks: 6, 23 and 36 where 3 was meant, most of its 36.5 M parameters
  where ResNeXt-50 with ten classes has 23.0 M;
- all convolutions have a bias, which the BatchNorm behind each of them removes again;
- the stride is in the block's first 1x1 convolution (as in the first ResNet), which skips three of four positions;
- a ReLU follows the block's third convolution and none the sum, so a block can only add to its shortcut;
- the shared MLP of CBAM has no biases, its spatial convolution has one;
- a 7x7 average pool before the classifier: the network takes 224x224 images only;
- a softmax inside `forward`, which makes the cross-entropy loss train on twice-normalised figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..base.errors import UserError, check_integer
from ..base.modules import NotScriptable
from .initialization import initialize, resolve_seed

_CARDINALITY = 32
_REDUCTION = 16
_FEATURES = (256, 512, 1024, 2048)
_IMAGE_SIZE = 224


def _conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    padding = kernel_size // 2
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups),
        nn.BatchNorm2d(out_channels),
    ]


class ArticleChannelGate(nn.Module):
    """y = x * sigmoid(MLP(avg x) + MLP(max x)), the MLP's layers one by one as modules, as torchsummary sees them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden_channels = channels // _REDUCTION
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, hidden_channels, bias=False),
            nn.ReLU(),
            nn.Linear(hidden_channels, channels, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.mlp(x.mean((2, 3))) + self.mlp(x.flatten(2).max(2).values)
        return x * torch.sigmoid(logits)[:, :, None, None]


class ArticleChannelPool(nn.Module):
    """(N, C, H, W) to its maximum and mean over C, (N, 2, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x.max(1, keepdim=True).values, x.mean(1, keepdim=True)), 1)


class ArticleSpatialGate(nn.Module):
    """y = x * sigmoid(BN(7x7 convolution of the pooled maps))."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = ArticleChannelPool()
        self.conv = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3), nn.BatchNorm2d(1, momentum=0.01))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv(self.pool(x))
        return x * torch.sigmoid(logits)


class ArticleCBAM(nn.Module):
    """The article's CBAM: channel gate, then spatial gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel = ArticleChannelGate(channels)
        self.spatial = ArticleSpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.spatial(self.channel(x))
        return out


class ArticleBlock(nn.Module):
    """The article's residual block: three convolutions, each with BN and ReLU, attention, sum."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, project: bool, cbam: bool) -> None:
        super().__init__()
        width = out_channels // 2
        self.conv1 = nn.Sequential(*_conv_norm(in_channels, width, 1, stride), nn.ReLU())
        self.conv2 = nn.Sequential(*_conv_norm(width, width, 3, groups=_CARDINALITY), nn.ReLU())
        self.conv3 = nn.Sequential(*_conv_norm(width, out_channels, 1), nn.ReLU())
        self.attention = ArticleCBAM(out_channels) if cbam else None
        self.downsample = nn.Sequential(*_conv_norm(in_channels, out_channels, 1, stride)) if project else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv3(self.conv2(self.conv1(x)))
        if self.attention is not None:
            x = self.attention(x)
        return x + shortcut


class ArticleResNeXt(NotScriptable, nn.Module):
    """The article's ResNeXt, for 3x224x224 images, ending in class probabilities.

    Args:
        layers: Number of blocks in each stage.
        num_classes: Number of classes.
        cbam: Whether each block ends in CBAM.
        seed: As of `ResNet`.

    Shape:
        (N, 3, 224, 224) -> (N, num_classes), each row summing to 1.

    Raises:
        UserError: An impossible option, or an input of another shape.
    """

    def __init__(
        self, layers: Sequence[int], *, num_classes: int = 1000, cbam: bool = False, seed: int | None = None
    ) -> None:
        super().__init__()
        check_integer("num_classes", num_classes)
        self.stem = nn.Sequential(*_conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
        in_channels = 64
        stages = []
        for stage, (depth, out_channels) in enumerate(zip(layers, _FEATURES, strict=True)):
            blocks = []
            for position in range(depth):
                first = position == 0
                stride = 2 if first and stage > 0 else 1
                blocks.append(ArticleBlock(in_channels, out_channels, stride=stride, project=first, cbam=cbam))
                in_channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.avgpool = nn.AvgPool2d(7)
        self.fc = nn.Linear(in_channels, num_classes)
        initialize(self, resolve_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, _IMAGE_SIZE, _IMAGE_SIZE):
            raise UserError(
                f"the article's network takes images of shape (N, 3, {_IMAGE_SIZE}, {_IMAGE_SIZE}) only, because of "
                f"its 7x7 average pool; got {tuple(x.shape)}"
            )
        x = self.avgpool(self.stages(self.stem(x)))
        return torch.softmax(self.fc(torch.flatten(x, 1)), 1)


# The fourth entry repeats the third: the article's slip.
ARTICLE_NETWORKS = {
    "article_resnext50": (3, 4, 6, 6),
    "article_resnext101": (3, 4, 23, 23),
    "article_resnext152": (3, 8, 36, 36),
}
