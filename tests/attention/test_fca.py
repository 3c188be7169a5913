import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from numerics import gradient_check, num_params, with_random_values
from whatwhere.attention import FrequencyChannelAttention
from whatwhere.ops.reference import POOLS
from whatwhere.ops.spectral import spectral_pool

# the authors' "top16", down and across
DOWN = [0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2]
ACROSS = [0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2]


def wave(frequency, position, length):
    """One value of the orthonormal cosine transform (type II) of `length` values."""
    scale = math.sqrt((1 if frequency == 0 else 2) / length)
    return scale * math.cos(math.pi * frequency * (position + 0.5) / length)


def components(x, num=16):
    """The formula, pixel by pixel: averaged to a multiple of 7, frequencies scaled as for a map of 7 times as many."""
    num_channels = x.shape[1]
    size = [7 * max(1, length // 7) for length in x.shape[2:]]
    x = F.adaptive_avg_pool2d(x, size)
    pooled = torch.zeros(x.shape[:2], dtype=x.dtype)
    num = min(num, num_channels)
    for channel in range(num_channels):
        part = channel * num // num_channels
        down, across = DOWN[part] * (size[0] // 7), ACROSS[part] * (size[1] // 7)
        for i in range(size[0]):
            for j in range(size[1]):
                pooled[:, channel] += x[:, channel, i, j] * wave(down, i, size[0]) * wave(across, j, size[1])
    return pooled


@pytest.mark.parametrize("size", [(7, 7), (14, 7), (21, 14), (1, 1), (3, 5), (8, 8), (16, 13), (30, 6)])
@pytest.mark.parametrize("channels", [1, 3, 16, 20, 64])
def test_pools_are_the_components_of_the_transform(channels, size):
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    torch.testing.assert_close(POOLS["dct16"](x), components(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num", [1, 4, 16])
def test_computes_the_published_formula(num):
    module = with_random_values(FrequencyChannelAttention(32, reduction=4, num_frequencies=num))
    x = torch.randn(2, 32, 14, 7, dtype=torch.float64)
    pooled, what = components(x, num), module.what
    gates = 1 / (1 + torch.exp(-(pooled @ what.fc1.weight.T).clamp_min(0) @ what.fc2.weight.T))
    torch.testing.assert_close(module(x), x * gates[:, :, None, None], rtol=1e-10, atol=1e-12)


def test_gradients():
    module = with_random_values(FrequencyChannelAttention(20, reduction=4))
    assert gradient_check(module, torch.randn(2, 20, 5, 4, dtype=torch.float64))


def test_the_49_components_of_a_map_of_7_x_7_are_orthonormal():
    # by Parseval: of 32 the sum of squares is at most that of the map, and each of them alone keeps its own wave
    x = torch.randn(1, 1, 7, 7, dtype=torch.float64).expand(1, 32, 7, 7)
    assert 0 < spectral_pool(x, 32).square().sum() < x[:, 0].square().sum()
    for part in range(16):
        values = [[wave(DOWN[part], i, 7) * wave(ACROSS[part], j, 7) for j in range(7)] for i in range(7)]
        map_of_it = torch.tensor(values, dtype=torch.float64).expand(1, 16, 7, 7)
        expected = torch.zeros(1, 16, dtype=torch.float64)
        expected[0, part] = 1
        torch.testing.assert_close(spectral_pool(map_of_it, 16), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (8, 13), (50, 56)])
def test_of_a_constant_map_only_the_average_is_left(size):
    pooled = spectral_pool(torch.full((1, 16, *size), 2.0, dtype=torch.float64), 16)
    cells = math.prod(7 * max(1, length // 7) for length in size)
    np.testing.assert_allclose(pooled[0, 0], 2 * math.sqrt(cells), rtol=1e-12)
    np.testing.assert_allclose(pooled[0, 1:], 0, atol=1e-10)


def test_one_frequency_is_squeeze_and_excitation_of_the_scaled_average():
    x = torch.randn(2, 8, 14, 7, dtype=torch.float64)
    torch.testing.assert_close(POOLS["dct1"](x), x.mean((2, 3)) * math.sqrt(14 * 7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_summed_in_float32(dtype):
    x = torch.randn(2, 16, 56, 56).to(dtype)
    exact = spectral_pool(x.double(), 16)
    assert (spectral_pool(x, 16).double() - exact).norm() <= torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("channels", [4, 64, 100])
def test_parameter_formula(channels):
    assert num_params(FrequencyChannelAttention(channels)) == 2 * channels * max(1, channels // 16)


def test_the_state_dict_holds_the_two_layers_alone():
    assert list(FrequencyChannelAttention(64).state_dict()) == ["what.fc1.weight", "what.fc2.weight"]


def test_zero_logits_halve_the_input():
    module = FrequencyChannelAttention(20)
    torch.nn.init.zeros_(module.what.fc2.weight)
    x = torch.randn(2, 20, 3, 4)
    assert torch.equal(module(x), x / 2)


def test_sees_where_things_are():
    module = with_random_values(FrequencyChannelAttention(32))
    x = torch.randn(2, 32, 7, 7, dtype=torch.float64)
    assert not torch.allclose(module(x.flip(3)), module(x).flip(3))


@pytest.mark.parametrize(
    "options",
    [
        {"num_frequencies": 3},
        {"num_frequencies": "top16"},
        {"reduction": 0},
    ],
)
def test_impossible_options_are_one_sentence(options, refused):
    with refused():
        FrequencyChannelAttention(64, **options)
