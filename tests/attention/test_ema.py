import pickle

import numpy as np
import pytest
import torch
from torch import nn

from numerics import sigmoid
from whatwhere import EfficientMultiScaleAttention


def randomized(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.double()


def softmax(values):
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def ema(module, x):
    """The paper's figure, group by group and image by image, in float64."""
    state, x = {key: value.numpy() for key, value in module.state_dict().items()}, x.numpy()
    size = x.shape[1] // module.groups
    height, width = x.shape[2:]
    y = np.empty_like(x)
    for image in range(len(x)):
        for first in range(0, x.shape[1], size):
            u = x[image, first : first + size]
            kernel, bias = state["conv1x1.weight"][:, :, 0, 0], state["conv1x1.bias"][:, None]
            rows, columns = (sigmoid(kernel @ u.mean(axis) + bias) for axis in (2, 1))
            p = u * rows[:, :, None] * columns[:, None, :]
            p = (p - p.mean((1, 2), keepdims=True)) / np.sqrt(p.var((1, 2), keepdims=True) + 1e-5)
            p = p * state["norm.weight"][:, None, None] + state["norm.bias"][:, None, None]
            padded = np.pad(u, ((0, 0), (1, 1), (1, 1)))
            q = np.zeros_like(u) + state["conv3x3.bias"][:, None, None]
            for i in range(3):
                for j in range(3):
                    window = padded[:, i : i + height, j : j + width]
                    q += np.einsum("oi,ihw->ohw", state["conv3x3.weight"][:, :, i, j], window)
            m = np.tensordot(softmax(p.mean((1, 2))), q, 1) + np.tensordot(softmax(q.mean((1, 2))), p, 1)
            y[image, first : first + size] = u * sigmoid(m)
    return y


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (64, 8), (20, 4), (12, 1), (6, 6)])
def test_computes_the_published_formula(channels, groups):
    module = randomized(EfficientMultiScaleAttention(channels, groups=groups))
    x = torch.randn(3, channels, 5, 7, dtype=torch.float64)
    np.testing.assert_allclose(module(x).detach().numpy(), ema(module, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("channels", [20, 64, 256, 300])
@pytest.mark.parametrize("groups", [8, 32])
def test_parameter_formula(channels, groups):
    module = EfficientMultiScaleAttention(channels, groups=groups)
    inside = channels // module.groups
    assert sum(p.numel() for p in module.parameters()) == 10 * inside**2 + 4 * inside


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 3), (20, 20), (64, 32), (100, 25), (2048, 32), (37, 1)])
def test_there_are_the_most_groups_that_fit(channels, groups):
    assert EfficientMultiScaleAttention(channels).groups == groups


def test_zero_logits_halve_the_input():
    module = EfficientMultiScaleAttention(64)
    for parameter in (module.norm.weight, module.conv3x3.weight, module.conv3x3.bias):
        nn.init.zeros_(parameter)
    x = torch.randn(2, 64, 5, 4)
    torch.testing.assert_close(module(x), x / 2)


def test_values_worked_by_hand():
    # one channel: both softmaxes are 1, so m = p + q; p is x / 4 normed, (-1, 1), and q is x + 1
    module = EfficientMultiScaleAttention(1)
    for parameter in (*module.conv1x1.parameters(), module.conv3x3.weight):
        nn.init.zeros_(parameter)
    nn.init.ones_(module.conv3x3.weight[0, 0, 1, 1])
    nn.init.ones_(module.conv3x3.bias)
    module.norm.eps = 0.0
    x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    expected = torch.tensor([1.0, 3]) * torch.tensor([2.0 - 1, 4 + 1]).sigmoid()
    torch.testing.assert_close(module(x).flatten(), expected)


def test_groups_are_computed_alike_and_apart():
    module = EfficientMultiScaleAttention(12, groups=3).double()
    x = torch.randn(2, 12, 5, 4, dtype=torch.float64)
    order = torch.tensor([2, 0, 1])
    exchanged = x.view(2, 3, 4, 5, 4)[:, order].flatten(1, 2)
    torch.testing.assert_close(module(exchanged), module(x).view(2, 3, 4, 5, 4)[:, order].flatten(1, 2))
    gates = module.gates(x).view(2, 3, 4, 5, 4)
    assert torch.equal(gates, gates[:, :, :1].expand_as(gates))


def test_the_first_softmax_sees_the_bias_of_the_norm_alone():
    module = randomized(EfficientMultiScaleAttention(16, groups=2))
    seen = []
    module.norm.register_forward_hook(lambda _module, _args, p: seen.append(p.mean((2, 3))))
    module(torch.randn(2, 16, 5, 4, dtype=torch.float64))
    torch.testing.assert_close(seen[0], module.norm.bias.repeat(2).expand(2, 16))


def test_the_norm_of_a_single_value_is_its_bias():
    module = randomized(EfficientMultiScaleAttention(4, groups=1))
    x = torch.randn(1, 4, 1, 1, dtype=torch.float64)
    np.testing.assert_allclose(module(x).detach().numpy(), ema(module, x), rtol=1e-10)


def test_the_layers_see_as_many_images_as_there_are():
    module, seen = EfficientMultiScaleAttention(16, groups=4), []
    for layer in module.children():
        layer.register_forward_hook(lambda _module, args, output: seen.append((args[0].shape[:2], output.shape[:2])))
    module(torch.randn(3, 16, 5, 4))
    assert seen == [((3, 16), (3, 16))] * 3


@pytest.mark.parametrize("groups", [0, -1, 2.0, "8"])
def test_refuses_impossible_groups(groups, refused):
    with refused():
        EfficientMultiScaleAttention(64, groups=groups)


def test_what_was_pickled_with_torchs_own_layers_computes_the_same():
    module = randomized(EfficientMultiScaleAttention(16, groups=4))
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64)
    expected = module(x)
    for layer in module.children():
        layer.__class__ = nn.GroupNorm if isinstance(layer, nn.GroupNorm) else nn.Conv2d
        del vars(layer)["num_uses"]
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)
