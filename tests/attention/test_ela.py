import numpy as np
import pytest
import timm.layers.coord_attn
import torch
from torch import nn

from numerics import sigmoid
from whatwhere import EfficientLocalAttention

VERSIONS = {  # the paper's: kernel size, channels in a group of the convolution, groups of the norm
    "ELA-T": (5, 1, 32),
    "ELA-B": (7, 1, 16),
    "ELA-S": (5, 8, 16),
    "ELA-L": (7, 8, 16),
}


def version(name, channels, **options):
    kernel_size, group_channels, norm_groups = VERSIONS[name]
    return EfficientLocalAttention(
        channels, kernel_size=kernel_size, group_channels=group_channels, norm_groups=norm_groups, **options
    )


def randomized(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.double()


def axis_gate(strip, layers):
    """sigmoid(GN(F strip)) of a strip (N, C, L), tap by tap."""
    conv, norm = layers
    kernel = conv.weight.detach().numpy()
    channels, inside, size = kernel.shape
    padded = np.pad(strip, ((0, 0), (0, 0), (size // 2, size // 2)))
    out = np.zeros_like(strip)
    for channel in range(channels):
        first = channel // inside * inside
        for tap in range(size):
            window = padded[:, first : first + inside, tap : tap + strip.shape[2]]
            out[:, channel] += np.einsum("i,nil->nl", kernel[channel, :, tap], window)
    grouped = out.reshape(len(out), norm.num_groups, -1)
    normed = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + 1e-5)
    weight, bias = (p.detach().numpy()[:, None] for p in (norm.weight, norm.bias))
    return sigmoid(normed.reshape(out.shape) * weight + bias)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", VERSIONS)
def test_computes_the_published_formula(name, shared):
    module = randomized(version(name, 64, shared=shared))
    x = torch.randn(3, 64, 5, 9, dtype=torch.float64)
    rows = axis_gate(x.numpy().mean(3), module.along_h)
    columns = axis_gate(x.numpy().mean(2), module.along_h if shared else module.along_w)
    expected = x.numpy() * rows[:, :, :, None] * columns[:, :, None, :]
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_computes_what_timms_module_computes_forward_and_every_gradient():
    theirs = timm.layers.coord_attn.EfficientLocalAttn(24, act_layer=nn.Identity).double()
    ours = randomized(EfficientLocalAttention(24, norm_groups=1, shared=False))
    names = {"conv_h": "along_h.0", "norm_h": "along_h.1", "conv_w": "along_w.0", "norm_w": "along_w.1"}
    own = dict(ours.named_parameters())

    def counterpart(name):
        layer, kind = name.split(".")
        return own[f"{names[layer]}.{kind}"]

    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(counterpart(name).view_as(parameter))
    x = torch.randn(2, 24, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(x)
    for module in (ours, theirs):
        (module(x) * weight).sum().backward()
    for name, parameter in theirs.named_parameters():
        gradient = counterpart(name).grad
        torch.testing.assert_close(gradient, parameter.grad.view_as(gradient), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("channels", [32, 64, 200])
@pytest.mark.parametrize("name", VERSIONS)
def test_parameter_formula(name, channels):
    kernel_size, group_channels, _ = VERSIONS[name]
    for shared, times in ((True, 1), (False, 2)):
        count = sum(p.numel() for p in version(name, channels, shared=shared).parameters())
        assert count == times * (channels * group_channels * kernel_size + 2 * channels)


def test_default_is_the_base_version():
    (conv, norm), base = EfficientLocalAttention(64).along_h, version("ELA-B", 64).along_h
    assert repr((conv, norm)) == repr(tuple(base))
    assert (conv.kernel_size, conv.groups, conv.bias, norm.num_groups) == ((7,), 64, None, 16)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 3), (20, 10), (24, 12), (64, 16), (200, 10), (17, 1)])
def test_the_norm_has_the_most_groups_that_fit(channels, groups):
    assert EfficientLocalAttention(channels).along_h[1].num_groups == groups


def test_zero_logits_quarter_the_input():
    module = EfficientLocalAttention(16)
    nn.init.zeros_(module.along_h[1].weight)
    x = torch.randn(2, 16, 5, 4)
    torch.testing.assert_close(module(x), x / 4)


def test_values_worked_by_hand():
    # one channel, a kernel that copies: the strips are (1, 3) and (0, 2, 4), normed to (-1, 1) and to the root of 3/2
    # times (-1, 0, 1)
    module = EfficientLocalAttention(1, kernel_size=3)
    with torch.no_grad():
        module.along_h[0].weight.copy_(torch.tensor([0.0, 1, 0]).view(1, 1, 3))
    module.along_h[1].eps = 0.0
    x = torch.tensor([[-1.0, 1, 3], [1, 3, 5]])[None, None]
    rows = torch.tensor([-1.0, 1]).sigmoid()
    columns = (1.5**0.5 * torch.tensor([-1.0, 0, 1])).sigmoid()
    torch.testing.assert_close(module(x)[0, 0], x[0, 0] * rows[:, None] * columns)


def test_is_a_gate_over_rows_times_a_gate_over_columns():
    gates = EfficientLocalAttention(16).double().gates(torch.randn(2, 16, 5, 7, dtype=torch.float64))
    torch.testing.assert_close(gates * gates[:, :, :1, :1], gates[:, :, :, :1] * gates[:, :, :1, :])


def test_turned_images_give_the_turned_output():
    module = EfficientLocalAttention(16).double()
    x = torch.randn(2, 16, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(module(x.mT).mT, module(x))


def test_a_group_of_one_value_has_no_norm():
    module = EfficientLocalAttention(16)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        module(torch.randn(1, 16, 1, 5))
    assert module(torch.randn(2, 16, 1, 5)).isfinite().all()
    assert EfficientLocalAttention(32)(torch.randn(1, 32, 1, 5)).isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 4},
        {"kernel_size": 0},
        {"group_channels": 3},
        {"group_channels": 0},
        {"norm_groups": 0},
    ],
)
def test_impossible_options_are_one_sentence(options, refused):
    with refused():
        EfficientLocalAttention(16, **options)
