"""The networks to compare with: torchvision's, timm's, and timm's with the CBAM authors' module."""

from __future__ import annotations

import timm
import torch
import torchvision
from timm.layers.cbam import CbamModule
from torch import Tensor, nn
from torch.nn import functional as F

from whatwhere import create_model


class AuthorsCBAM(nn.Module):
    """CBAM with the operators of the authors' code, in their order; written anew for this comparison.

    Average and max pooling over the whole plane, the MLP on each, the gate expanded to x; then maximum and mean over
    channels, a 7x7 convolution and a BatchNorm.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 16
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        window = x.shape[2:]
        logits = self.mlp(F.avg_pool2d(x, window, window)) + self.mlp(F.max_pool2d(x, window, window))
        x = x * torch.sigmoid(logits)[:, :, None, None].expand_as(x)
        maps = torch.cat((x.max(1)[0][:, None], x.mean(1)[:, None]), 1)
        return x * torch.sigmoid(self.norm(self.conv(maps)))


def authors_network() -> nn.Module:
    """Build timm's ResNeXt-50 with the authors' module instead of timm's."""
    model = timm_cbam()
    for name, module in list(model.named_modules()):
        if isinstance(module, CbamModule):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, AuthorsCBAM(module.channel.fc1.in_channels))
    return model


def timm_cbam() -> nn.Module:
    return timm.create_model("resnext50_32x4d", block_args={"attn_layer": "cbam"})


NETWORKS = {
    "torchvision plain": torchvision.models.resnext50_32x4d,
    "timm plain": lambda: timm.create_model("resnext50_32x4d"),
    "whatwhere plain": lambda: create_model("resnext50_32x4d"),
    "whatwhere SE": lambda: create_model("se_resnext50_32x4d"),
    "timm SE": lambda: timm.create_model("seresnext50_32x4d"),
    "whatwhere CBAM": lambda: create_model("cbam_resnext50_32x4d"),
    "timm CBAM": timm_cbam,
    "authors' CBAM": authors_network,
}
