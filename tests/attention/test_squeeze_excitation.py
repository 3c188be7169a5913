import numpy as np
import pytest
import torch
import torchvision

from numerics import gate as numpy_gate
from whatwhere import SqueezeExcitation


@pytest.mark.parametrize("bias", [True, False])
def test_computes_the_published_formula(bias):
    module = SqueezeExcitation(32, reduction=4, bias=bias).double()
    x = torch.randn(2, 32, 5, 3, dtype=torch.float64)
    np.testing.assert_allclose(module(x).detach().numpy(), numpy_gate(module, x), rtol=1e-12)


def test_computes_what_torchvisions_module_computes():
    ours, theirs = SqueezeExcitation(64).double(), torchvision.ops.SqueezeExcitation(64, 4).double()
    own = dict(ours.what.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(own[name].view_as(parameter))
    x = torch.randn(2, 64, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [4, 64, 100])
def test_parameter_formula(channels):
    hidden = max(1, channels // 16)
    count = sum(p.numel() for p in SqueezeExcitation(channels).parameters())
    assert count == 2 * channels * hidden + hidden + channels


def test_ignores_the_arrangement_of_pixels():
    module = SqueezeExcitation(16).double()
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(module(x.flip(3)), module(x).flip(3))


@pytest.mark.parametrize("reduction", [0, -16, "16", float("nan"), float("inf")])
def test_refuses_impossible_reduction(reduction, refused):
    with refused():
        SqueezeExcitation(64, reduction=reduction)


@pytest.mark.parametrize(("channels", "official", "timm"), [(24, 1, 8), (64, 4, 8), (192, 12, 16), (256, 16, 16)])
def test_the_hidden_width_of_either_form(channels, official, timm, refused):
    assert SqueezeExcitation(channels).what.fc1.out_features == official
    assert SqueezeExcitation(channels, form="timm").what.fc1.out_features == timm
    with refused():
        SqueezeExcitation(channels, form="paper")
