"""The networks of the CBAM authors' code, rewritten from their published structure, and weights as trained ones are."""

from collections import OrderedDict

import torch
from torch import nn


class _ChannelGate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        hidden = channels // 16
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x):
        logits = self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))
        return x * logits.sigmoid()[:, :, None, None]


class _ConvNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)

    def forward(self, x):
        return self.bn(self.conv(x))


class _SpatialGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.spatial = _ConvNorm()

    def forward(self, x):
        return x * self.spatial(torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)).sigmoid()


class _CBAM(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.ChannelGate = _ChannelGate(channels)
        self.SpatialGate = _SpatialGate()

    def forward(self, x):
        return self.SpatialGate(self.ChannelGate(x))


class _BAM(nn.Module):
    def __init__(self, channels, num_dilated=2):
        super().__init__()
        hidden = channels // 16
        self.channel_att, self.spatial_att = nn.Module(), nn.Module()
        self.channel_att.gate_c = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                gate_c_fc_0=nn.Linear(channels, hidden),
                gate_c_bn_1=nn.BatchNorm1d(hidden),
                gate_c_relu_1=nn.ReLU(),
                gate_c_fc_final=nn.Linear(hidden, channels),
            )
        )
        layers = OrderedDict(
            gate_s_conv_reduce0=nn.Conv2d(channels, hidden, 1),
            gate_s_bn_reduce0=nn.BatchNorm2d(hidden),
            gate_s_relu_reduce0=nn.ReLU(),
        )
        for index in range(num_dilated):
            layers[f"gate_s_conv_di_{index}"] = nn.Conv2d(hidden, hidden, 3, padding=4, dilation=4)
            layers[f"gate_s_bn_di_{index}"] = nn.BatchNorm2d(hidden)
            layers[f"gate_s_relu_di_{index}"] = nn.ReLU()
        layers["gate_s_conv_final"] = nn.Conv2d(hidden, 1, 1)
        self.spatial_att.gate_s = nn.Sequential(layers)

    def forward(self, x):
        channel = self.channel_att.gate_c(x.mean((2, 3), keepdim=True))[:, :, None, None]
        return x * (1 + (channel * self.spatial_att.gate_s(x)).sigmoid())


class FullCBAM(nn.Module):
    """The module that Ultralytics calls CBAM, by its formula and its tensor names; clients/ compares the class itself.

    y = u sigmoid(conv [mean u; max u]) for u = x sigmoid(W mean x + b), W (C, C).
    """

    def __init__(self, channels, kernel_size=7):
        super().__init__()
        conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.channel_attention = nn.ModuleDict({"fc": nn.Conv2d(channels, channels, 1)})
        self.spatial_attention = nn.ModuleDict({"cv1": conv})

    def forward(self, x):
        u = x * self.channel_attention["fc"](x.mean((2, 3), keepdim=True)).sigmoid()
        maps = torch.stack((u.mean(1), u.amax(1)), 1)
        return u * self.spatial_attention["cv1"](maps).sigmoid()


class CopiedChannelAttention(nn.Module):
    """The channel gate alone, as widely copied code has it: two 1x1 convolutions without bias, by two sets of names."""

    def __init__(self, channels, sequential):
        super().__init__()
        down, up = (
            nn.Conv2d(channels, channels // 16, 1, bias=False),
            nn.Conv2d(channels // 16, channels, 1, bias=False),
        )
        if sequential:
            self.fc = nn.Sequential(down, nn.ReLU(), up)
        else:
            self.fc1, self.fc2 = down, up

    def _mlp(self, pooled):
        return self.fc(pooled) if hasattr(self, "fc") else self.fc2(self.fc1(pooled).relu())

    def forward(self, x):
        pools = nn.functional.adaptive_avg_pool2d(x, 1), nn.functional.adaptive_max_pool2d(x, 1)
        return (self._mlp(pools[0]) + self._mlp(pools[1])).sigmoid()


class CopiedSpatialAttention(nn.Module):
    """The spatial gate alone, as widely copied code has it: mean before maximum, no norm, no bias."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        return self.conv1(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)).sigmoid()


class _Block(nn.Module):
    """A basic block, or with `expansion=4` a bottleneck that strides in its 3x3 convolution."""

    def __init__(self, before, planes, stride, expansion, cbam, copied=""):
        super().__init__()
        after = planes * expansion
        if expansion == 1:
            self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(before, planes, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(planes, after, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(after)
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
        self.cbam = _CBAM(after) if cbam else FullCBAM(after) if copied == "ultralytics" else None
        self.is_copied = copied in ("layers", "sequential")
        if self.is_copied:
            self.ca, self.sa = CopiedChannelAttention(after, copied == "sequential"), CopiedSpatialAttention()
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.expansion = expansion

    def forward(self, x):
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.expansion != 1:
            out = self.bn3(self.conv3(out.relu()))
        if self.cbam is not None:
            out = self.cbam(out)
        if self.is_copied:
            out = self.ca(out) * out
            out = self.sa(out) * out
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class OfficialResNet(nn.Module):
    """The authors' ResNet for ImageNet, with CBAM in every block, BAM between the stages, or without attention.

    With `copied`, "layers" or "sequential", with the modules of widely copied code in every block instead; with
    "ultralytics" with Ultralytics' CBAM.
    """

    def __init__(self, layers=(2, 2, 2, 2), expansion=1, num_classes=10, cbam=True, bam=False, copied=""):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        before = 64
        for stage, depth in enumerate(layers):
            blocks = []
            for position in range(depth):
                stride = 2 if stage and not position else 1
                blocks.append(_Block(before, 64 << stage, stride, expansion, cbam and not copied, copied))
                before = (64 << stage) * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            if stage < 3:
                setattr(self, f"bam{stage + 1}", _BAM(before) if bam else nn.Identity())
        self.fc = nn.Linear(before, num_classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            if stage < 4:
                x = getattr(self, f"bam{stage}")(x)
        return self.fc(x.mean((2, 3)))


@torch.no_grad()
def trained(model):
    """Return `model` with values everywhere as training leaves them, none at its start, in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(1234)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.normal_(0, 0.2)
    return model.eval()
