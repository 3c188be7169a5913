import pytest
import torch

from numerics import gradient_check, num_params, with_random_values
from whatwhere.attention import SpatialChannelSE


def by_the_formula(module, x):
    c = module.channel
    hidden = (x.mean((2, 3)) @ c.fc1.weight.T + c.fc1.bias).clamp_min(0)
    s = 1 / (1 + torch.exp(-(hidden @ c.fc2.weight.T + c.fc2.bias)))
    logits = (x * module.spatial.weight.view(1, -1, 1, 1)).sum(1) + module.spatial.bias
    q = 1 / (1 + torch.exp(-logits))
    by_channel, by_pixel = x * s[:, :, None, None], x * q[:, None]
    return by_channel + by_pixel if module.combine == "add" else torch.max(by_channel, by_pixel)


@pytest.mark.parametrize("combine", ["add", "max"])
@pytest.mark.parametrize("channels", [1, 3, 20, 64])
def test_computes_the_published_formula_forward_and_every_gradient(channels, combine):
    module = with_random_values(SpatialChannelSE(channels, combine=combine))
    x = torch.randn(3, channels, 4, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for compute in (module, lambda x: by_the_formula(module, x)):
        y = compute(x)
        results.append((y, *torch.autograd.grad(y.pow(3).sum(), (x, *module.parameters()))))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("combine", ["add", "max"])
def test_gradients(combine):
    module = with_random_values(SpatialChannelSE(6, combine=combine))
    assert gradient_check(module, torch.randn(2, 6, 3, 2, dtype=torch.float64))


@pytest.mark.parametrize("channels", [1, 20, 64, 101])
@pytest.mark.parametrize("reduction", [2, 16])
def test_parameter_formula(channels, reduction):
    hidden = max(1, channels // reduction)
    expected = 2 * channels * hidden + hidden + channels + channels + 1
    assert num_params(SpatialChannelSE(channels, reduction=reduction)) == expected
    assert num_params(SpatialChannelSE(64)) == 2 * 64 * 32 + 32 + 64 + 64 + 1


@pytest.mark.parametrize(("combine", "factor"), [("add", 1.0), ("max", 0.5)])
def test_zero_logits_halve_the_input_of_each_half(combine, factor):
    module = SpatialChannelSE(20, combine=combine)
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 20, 3, 4)
    assert torch.equal(module(x), factor * x)


def test_the_maximum_is_of_the_products_not_of_the_gates():
    module = SpatialChannelSE(1, combine="max")
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(module.spatial.bias, 20.0)  # q = 1, s = 0.5
    x = torch.tensor([2.0, -2.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(module(x), torch.tensor([2.0, -1.0]).view(1, 1, 1, 2))


def test_commutes_with_any_permutation_of_pixels():
    module, order = with_random_values(SpatialChannelSE(16)), torch.randperm(20)
    x = torch.randn(2, 16, 20, 1, dtype=torch.float64)
    torch.testing.assert_close(module(x[:, :, order]), module(x)[:, :, order])


@pytest.mark.parametrize(
    "options",
    [
        {"combine": "multiply"},
        {"reduction": -2},
        {"start": "zero"},
    ],
)
def test_impossible_options_are_one_sentence(options, refused):
    with refused():
        SpatialChannelSE(64, **options)
