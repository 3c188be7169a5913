"""pytorch-grad-cam's maps of our networks, target layers before, at and behind the attention, against maps by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock as TorchvisionBlock
from torchvision.models.resnet import ResNet as TorchvisionResNet

from client import wanted
from whatwhere import ATTENTION, BAM
from whatwhere.explain import grad_cam
from whatwhere.insert import attend, detach
from whatwhere.insert.norm import AttendedBatchNorm2d
from whatwhere.models import BasicBlock, ResNet

cams = wanted("pytorch_grad_cam")
images = wanted("pytorch_grad_cam.utils.image")
targets = wanted("pytorch_grad_cam.utils.model_targets")

CLASSES = [1, 3]


def ours(attention=None):
    return ResNet(BasicBlock, (1, 1), widths=(8, 16), stem_channels=8, num_classes=5, attention=attention, seed=0)


def ours_attended(name):
    # behind the norms, as in others' networks; in ours its own place is the slot that the blocks have
    return attend(ours(), name, at=None if name == "bam" else "layer*.bn2", start="paper", seed=0)


def torchvisions():
    return TorchvisionResNet(TorchvisionBlock, [1, 1, 1, 1], num_classes=5)


def torchvisions_attended(name):
    return attend(torchvisions(), name, start="paper", seed=0)


def awake(model):
    """Return the network with an attention whose every weight counts; some start with the same gate everywhere."""
    with torch.no_grad():
        for module in filter(is_attention, model.modules()):
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return model.double().eval()


def photos():
    return torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def is_attention(module):
    return type(module) in ATTENTION.values()


def attention_in(block):
    return next(filter(is_attention, block.children()), nn.Identity())


def stages(model):
    return [stage for name, stage in model.named_children() if name.startswith("layer")]


def layers_of(model):
    """Return the layers around the last attention, in the order of the forward pass."""
    around = [module for module in model.modules() if is_attention(attention_in(module))][-1]
    block = around if hasattr(around, "conv2") else around[0]
    return list(dict.fromkeys([block.conv2, block.bn2, attention_in(around), block, stages(model)[-1][-1]]))


def logits(model, x, see):
    """Compute them without a hook; `see` takes a layer and what it gives, and returns what goes on."""
    x = model.maxpool(F.relu(model.bn1(model.conv1(x))))
    for stage in stages(model):
        for layer in stage:
            x = see(layer, residual(layer, x, see) if hasattr(layer, "conv2") else layer(x))
    return model.fc(x.mean((2, 3)))


def residual(block, x, see):
    norm, attention = block.bn2, attention_in(block)
    shortcut = x if block.downsample is None else block.downsample(x)
    x = see(block.conv2, block.conv2(F.relu(block.bn1(block.conv1(x)))))
    x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    if type(norm) is AttendedBatchNorm2d:
        # attention behind a norm is a part of what the norm gives
        x = see(norm, see(attention, attention(x)))
    else:
        x = see(norm, x)
        x = x if isinstance(attention, BAM) else see(attention, attention(x))
    x = see(block.relu, F.relu(x + shortcut))
    return see(attention, attention(x)) if isinstance(attention, BAM) else x


def scores(model, x, see):
    return logits(model, x, see)[[0, 1], CLASSES]


def seen(model, x):
    """Return what each layer gives, and the gradient of the two scores with respect to it."""
    found = {}

    def see(layer, output):
        found[layer] = output
        return output

    gradients = torch.autograd.grad(scores(model, x, see).sum(), list(found.values()))
    activations = {layer: output.detach() for layer, output in found.items()}
    for block in model.modules() if type(model) is not ResNet else ():
        if hasattr(block, "conv2"):
            # torchvision's block adds the shortcut and rectifies in place: a hook that keeps the tensor has this
            over = [block.bn2] if isinstance(attention_in(block), BAM) else [block.bn2, attention_in(block)]
            activations.update(dict.fromkeys(over, activations[block.relu]))
    return activations, dict(zip(found, gradients, strict=True))


def picture(*maps):
    """Return the mean of maps (N, H, W), each rectified, scaled to [0, 1] and resized, scaled again."""
    scaled = [images.scale_cam_image(np.maximum(each.numpy(), 0), (96, 64)) for each in maps]
    return images.scale_cam_image(np.mean(scaled, axis=0))


def shown(method, model, *layers, **options):
    with method(model, list(layers), **options) as cam:
        return cam(photos(), [targets.ClassifierOutputTarget(index) for index in CLASSES])


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {name: [dict(vars(module)[kind]) for kind in kinds] for name, module in model.named_modules()}


def weighted(activation, gradient):
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1)


def elementwise(activation, gradient):
    return (gradient * activation).sum(1)


class Zeros(cams.AblationLayer):
    """Stands in a layer's place, and gives what the layer gave with one channel at zero for each image."""

    def __call__(self, x):
        output = self.activations
        output[range(len(output)), self.indices[: len(output)]] = 0
        return output


@torch.no_grad()
def drops(model, x, target, num_channels):
    """Return by how much of itself each score falls, (N, C), without each channel of a layer."""

    def without(channel):
        def see(layer, output):
            return output.index_fill(1, torch.tensor(channel), 0) if layer is target else output

        return see

    whole = scores(model, x, lambda layer, output: output)
    return torch.stack([1 - scores(model, x, without(channel)) / whole for channel in range(num_channels)], dim=1)


BY_GRADIENTS = {cams.GradCAM: weighted, cams.HiResCAM: elementwise}
every = pytest.mark.parametrize("name", ATTENTION)
small = pytest.mark.parametrize("build", [ours, ours_attended])
network = pytest.mark.parametrize("build", [ours, ours_attended, torchvisions_attended])


@every
@network
def test_maps_by_gradients_are_those_by_hand(build, name):
    model = awake(build(name))
    layers = layers_of(model)
    activations, gradients = seen(model, photos())
    methods = {cams.GradCAM: weighted} if build is torchvisions_attended else BY_GRADIENTS
    for method, by_hand in methods.items():
        maps = [by_hand(activations[layer], gradients[layer]) for layer in layers]
        for layer, expected in zip(layers, map(picture, maps), strict=True):
            assert expected.max() > 0.99  # not rectified to nothing
            np.testing.assert_allclose(shown(method, model, layer), expected, atol=1e-5, err_msg=str(layer))
        np.testing.assert_allclose(shown(method, model, *layers), picture(*maps), atol=1e-5)


@every
@small
@torch.no_grad()
def test_principal_components_are_those_by_hand_where_layers_may_overwrite(build, name):
    model = awake(build(name))
    with torch.enable_grad():
        activations, _ = seen(model, photos())
    for layer in layers_of(model):
        pixels = activations[layer].flatten(2).mT
        pixels = pixels - pixels.mean(1, keepdim=True)
        first = torch.linalg.eigh(pixels.mT @ pixels).eigenvectors[:, :, -1:]
        projected = (pixels @ first).view(2, *activations[layer].shape[2:])
        # of either sign
        expected = zip(picture(projected), picture(-projected), strict=True)
        for got, signs in zip(shown(cams.EigenCAM, model, layer), expected, strict=True):
            assert min(np.abs(got - sign).max() for sign in signs) < 1e-4, layer


@every
@small
def test_maps_by_ablation_are_those_by_hand(build, name):
    model = awake(build(name))
    activations, _ = seen(model, photos())
    for layer in layers_of(model):
        weights = drops(model, photos(), layer, activations[layer].shape[1])
        expected = (weights[:, :, None, None] * activations[layer]).sum(1)
        got = shown(cams.AblationCAM, model, layer, ablation_layer=Zeros())
        np.testing.assert_allclose(got, picture(expected), atol=1e-4, err_msg=str(layer))


@every
@small
def test_the_network_is_afterwards_as_it_was(build, name):
    model = awake(build(name))
    state, hung = copy.deepcopy(model.state_dict()), hooks(model)
    with torch.no_grad():
        before = model(photos())
    shown(cams.EigenCAM, model, *layers_of(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    # this one leaves the gradients of the scores, as on any network
    shown(cams.GradCAM, model, *layers_of(model))
    assert hooks(model) == hung
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(photos()), before)


@every
@torch.no_grad()
def test_the_attention_comes_out_afterwards(name):
    plain, model = ours().double().eval(), awake(ours_attended(name))
    with torch.enable_grad():
        shown(cams.GradCAM, model, *layers_of(model))
    assert torch.equal(detach(model)(photos()), plain(photos()))
    assert hooks(model) == hooks(plain)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]


@every
@network
def test_our_maps_are_theirs(build, name):
    model = awake(build(name)).requires_grad_(True)
    # of a layer that torchvision's block overwrites in place, theirs are maps of what it was overwritten with
    for layer in layers_of(model)[-2 if build is not torchvisions_attended else -1 :]:
        called = next(named for named, module in model.named_modules() if module is layer)
        found = grad_cam(model, photos(), CLASSES, layer=called)
        np.testing.assert_allclose(picture(found[:, 0]), shown(cams.GradCAM, model, layer), atol=1e-5, err_msg=called)
