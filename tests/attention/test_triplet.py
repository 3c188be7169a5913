import numpy as np
import pytest
import torch
from torch import nn

from numerics import spatial_gate
from whatwhere import TripletAttention
from whatwhere.attention import SpatialAttention


def randomized(module):
    """Random values everywhere, running statistics and norm weights included."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5 if name.endswith("running_var") else torch.randn(value.shape))
    return module.double()


def branch(module, name, x, axis):
    """x times its gate over the two other axes, pooled over `axis` of (N, C, H, W)."""
    state = {key.removeprefix(f"{name}."): v.numpy() for key, v in module.state_dict().items() if key.startswith(name)}
    turned = x.swapaxes(1, axis)
    gate = spatial_gate(turned, state, ("max", "mean"), module.training)
    return (turned * gate[:, None]).swapaxes(1, axis)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("spatial", [True, False])
def test_computes_the_published_formula(kernel_size, spatial, training):
    module = randomized(TripletAttention(9, kernel_size=kernel_size, spatial=spatial)).train(training)
    x = np.random.default_rng(0).normal(size=(3, 9, 5, 6))
    branches = [branch(module, "cw", x, 2), branch(module, "hc", x, 3)]
    if spatial:
        branches.append(branch(module, "hw", x, 1))
    found = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, sum(branches) / len(branches), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 64, 100])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_parameter_formula(channels, kernel_size):
    for spatial, branches in ((True, 3), (False, 2)):
        module = TripletAttention(channels, kernel_size=kernel_size, spatial=spatial)
        assert sum(p.numel() for p in module.parameters()) == branches * (2 * kernel_size**2 + 2)
    assert sum(p.numel() for p in TripletAttention(channels).parameters()) == 300


def test_default_has_the_authors_layers():
    module = TripletAttention(8)
    assert [tuple(p.shape) for p in module.parameters()] == 3 * [(1, 2, 7, 7), (1,), (1,)]
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [(m.eps, m.momentum, m.affine) for m in norms] == 3 * [(1e-5, 0.01, True)]


def test_zero_logits_halve_the_input():
    module = TripletAttention(8)
    for name, parameter in module.named_parameters():
        if "norm" in name:
            nn.init.zeros_(parameter)
    x = torch.randn(2, 8, 5, 4)
    torch.testing.assert_close(module(x), x / 2)


def test_values_worked_by_hand():
    # k = 1, kernels that take the maximum, norms that leave it: each value is scaled by the mean of three sigmoids, of
    # the largest in its row of pixels (over W), in its column (over H), and among the channels
    module = TripletAttention(2, kernel_size=1).eval()
    for gate in (module.cw, module.hc, module.hw):
        gate.norm.eps = 1e-30  # torch 2.10 wants one above 0
        with torch.no_grad():
            gate.conv.weight.copy_(torch.tensor([1.0, 0]).view(1, 2, 1, 1))
    x = torch.tensor([[[1.0, 2], [3, 4]], [[8, 7], [6, 5]]])[None]
    over_h = torch.tensor([[[3.0, 4]], [[8, 7]]])
    over_w = torch.tensor([[[2.0], [4]], [[8], [6]]])
    over_c = torch.tensor([[[8.0, 7], [6, 5]]])
    expected = x[0] * (over_h.sigmoid() + over_w.sigmoid() + over_c.sigmoid()) / 3
    torch.testing.assert_close(module(x)[0], expected)


def test_the_third_branch_is_cbams_spatial_attention():
    module, cbams = TripletAttention(8), SpatialAttention(8)
    cbams.where.load_state_dict(module.hw.state_dict())
    for gate in (module.cw, module.hc):
        nn.init.zeros_(gate.norm.weight)
    x = torch.randn(2, 8, 5, 4)
    torch.testing.assert_close(3 * module(x), cbams(x) + x)  # the other two halve x


def test_turned_images_and_exchanged_branches_give_the_turned_output():
    # the kernels of w1 and w2 run over (C, W) and (H, C), so they are transposed too
    module, turned = TripletAttention(8).double(), TripletAttention(8).double()
    state = module.state_dict()
    exchange = {"cw": "hc", "hc": "cw", "hw": "hw"}
    turned.load_state_dict(
        {f"{exchange[key[:2]]}{key[2:]}": value.mT if value.dim() == 4 else value for key, value in state.items()}
    )
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(turned(x.mT).mT, module(x))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 4},
        {"kernel_size": 0},
        {"start": "zero"},
    ],
)
def test_impossible_options_are_one_sentence(options, refused):
    with refused():
        TripletAttention(16, **options)
