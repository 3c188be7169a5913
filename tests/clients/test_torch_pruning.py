"""Networks with attention, pruned by Torch-Pruning, which takes channels out of layers."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock
from torchvision.models.resnet import ResNet as TorchvisionResNet

from client import wanted
from whatwhere import ATTENTION
from whatwhere.insert import attend
from whatwhere.models import BasicBlock, ResNet

# EMA has G times as many channels as its layers, which serve G groups: Torch-Pruning follows that without an end
PRUNABLE = sorted(set(ATTENTION) - {"ema"})
# a map of one channel scales all, or a sequence over the channels does: Torch-Pruning takes the one for a width that
# it must not prune, with timm's modules too; what is inside the attention and the branch it prunes
ONE_CHANNEL = {"bam", "cbam", "eca", "gc", "scse", "triplet"}


class Flattening(nn.Module):
    """A network whose classifier takes every pixel of every channel."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(4)),
        )
        self.fc = nn.Linear(64 * 16, 10)

    def forward(self, x):
        return self.fc(torch.flatten(self.features(x), 1))


def built_with(name):
    return ResNet(BasicBlock, (1, 1), widths=(32, 64), num_classes=10, attention=ATTENTION[name])


def attended(name):
    return attend(TorchvisionResNet(TorchvisionBlock, [1, 1, 1, 1], num_classes=10), name, start="paper", seed=0)


def pruned(model, unwrapped=()):
    """Return a network with half of its channels, as Torch-Pruning's users have it."""
    tp = wanted("torch_pruning")
    pruner = tp.pruner.MagnitudePruner(
        model,
        torch.randn(2, 3, 32, 32),
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[model.fc],
        # of parameters that belong to no layer of torch's it would prune the last axis
        unwrapped_parameters=[(parameter, 0) for parameter in unwrapped] or None,
    )
    pruner.step()
    return model


def widths(model):
    """How many outputs each layer has, and how many channels each attention is for."""
    layers = {key: len(module.weight) for key, module in model.named_modules() if hasattr(module, "weight")}
    attentions = {key: module.channels for key, module in model.named_modules() if type(module) in ATTENTION.values()}
    return layers, attentions


@pytest.mark.parametrize("name", PRUNABLE)
@pytest.mark.parametrize("build", [built_with, attended])
def test_attention_follows(build, name):
    torch.manual_seed(0)
    model = build(name)
    layers, attentions = widths(model)
    style = [parameter for key, parameter in model.named_parameters() if name == "srm" and key.endswith("what.weight")]
    pruned(model, style)
    narrower, narrower_attentions = widths(model)
    assert narrower["layer2.0.conv1"] == layers["layer2.0.conv1"] // 2
    assert attentions
    for key, channels in attentions.items():
        norm = f"{key.split('.')[0]}.0.bn2"
        kept = layers[norm] if name in ONE_CHANNEL else layers[norm] // 2
        assert narrower[norm] == kept
        assert narrower_attentions[key] == (None if channels is None else kept)
    inside = [key for key in layers if ".fc1" in key]
    assert all(narrower[key] == layers[key] // 2 for key in inside)
    x = torch.randn(2, 3, 48, 48)
    assert model.eval()(x).isfinite().all()
    model.train()(x).square().sum().backward()
    assert all(
        parameter.grad.shape == parameter.shape for parameter in model.parameters() if parameter.grad is not None
    )
    assert all(parameter.grad is not None for key, parameter in model.named_parameters() if "conv" in key)


@pytest.mark.parametrize("name", ["cbam", "se"])
def test_a_flattening_classifier_follows(name):
    model = pruned(attend(Flattening(), name, at="features.1", start="paper", seed=0))
    # at a norm of an nn.Sequential, which has the attention itself: Torch-Pruning takes it for a part of the norm
    attention = model.features[1].attention
    assert (model.features[0].out_channels, attention.channels) == ((32, 32) if name == "cbam" else (16, 16))
    assert (model.features[4].out_channels, model.fc.in_features) == (32, 32 * 16)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
