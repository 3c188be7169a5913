import math

import pytest
import timm.layers
import torch

from numerics import gradient_check, num_params, with_random_values
from whatwhere.attention import EfficientChannelAttention


def by_the_formula(module, x):
    """Each channel's gate, one by one."""
    kernel, averages = module.what.conv.weight[0, 0], x.mean((2, 3))
    reach, num_channels = len(kernel) // 2, x.shape[1]
    y = torch.empty_like(x)
    for channel in range(num_channels):
        logit = torch.zeros(len(x), dtype=x.dtype)
        for offset in range(-reach, reach + 1):
            if 0 <= channel + offset < num_channels:
                logit += kernel[offset + reach] * averages[:, channel + offset]
        y[:, channel] = x[:, channel] / (1 + torch.exp(-logit))[:, None, None]
    return y


@pytest.mark.parametrize("kernel_size", [None, 1, 3, 9])
@pytest.mark.parametrize("channels", [1, 3, 20, 64])
def test_computes_the_published_formula(channels, kernel_size):
    module = with_random_values(EfficientChannelAttention(channels, kernel_size=kernel_size))
    x = torch.randn(3, channels, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(module(x), by_the_formula(module, x), rtol=1e-12, atol=1e-14)


def test_gradients():
    module = with_random_values(EfficientChannelAttention(7, kernel_size=3))
    assert gradient_check(module, torch.randn(2, 7, 3, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("channels", "kernel_size"),
    [(1, 1), (4, 1), (8, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7), (2**15, 9)],
)
def test_kernel_size_follows_the_number_of_channels(channels, kernel_size):
    exact = abs(math.log2(channels) / 2 + 1 / 2)
    assert abs(kernel_size - exact) <= 1
    assert num_params(EfficientChannelAttention(channels)) == kernel_size


def test_other_constants_of_the_formula():
    assert num_params(EfficientChannelAttention(256, gamma=1, b=1)) == 9
    assert num_params(EfficientChannelAttention(256, gamma=2, b=-8)) == 1


@pytest.mark.parametrize("channels", [8, 24, 64, 100, 256, 512, 2048])
def test_is_timms_module_with_its_weights(channels):
    ours, theirs = EfficientChannelAttention(channels).double(), timm.layers.EcaModule(channels).double()
    ours.what.load_state_dict(theirs.state_dict())
    inputs = [torch.randn(2, channels, 5, 4, dtype=torch.float64, requires_grad=True)]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    outputs = [module(x) for module, x in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-14)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.what.conv.weight.grad, theirs.conv.weight.grad, rtol=1e-12, atol=1e-12)


def test_values_worked_by_hand():
    module = EfficientChannelAttention(3, kernel_size=3)
    with torch.no_grad():
        module.what.conv.weight.copy_(torch.tensor([[[1.0, 2.0, -1.0]]]))
    x = torch.tensor([[[[1.0, 3.0]], [[1.0, 1.0]], [[-1.0, -3.0]]]])  # averages 2, 1, -2
    logits = torch.tensor([0 + 4 - 1, 2 + 2 + 2, 1 - 4 - 0.0])
    torch.testing.assert_close(module(x), x * torch.sigmoid(logits)[None, :, None, None])


def test_zero_logits_halve_the_input():
    module = EfficientChannelAttention(20)
    torch.nn.init.zeros_(module.what.conv.weight)
    x = torch.randn(2, 20, 3, 4)
    assert torch.equal(module(x), x / 2)


def test_commutes_with_any_permutation_of_pixels():
    module, order = EfficientChannelAttention(16).double(), torch.randperm(20)
    x = torch.randn(2, 16, 20, 1, dtype=torch.float64)
    torch.testing.assert_close(module(x[:, :, order]), module(x)[:, :, order])


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 4},
        {"kernel_size": 0},
        {"kernel_size": 3.0},
        {"gamma": 0},
        {"gamma": "2"},
        {"b": float("nan")},
        {"start": "zero"},
    ],
)
def test_impossible_options_are_one_sentence(options, refused):
    with refused():
        EfficientChannelAttention(64, **options)
