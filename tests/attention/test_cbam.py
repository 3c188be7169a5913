import itertools

import numpy as np
import pytest
import timm.layers.cbam
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import whatwhere.timm  # noqa: F401  registers the networks
from numerics import gate as numpy_gate
from published import CopiedChannelAttention, CopiedSpatialAttention
from whatwhere import CBAM, ChannelAttention, SpatialAttention, attend, create_model
from whatwhere.attention.cbam import SharedLinear

ARRANGEMENTS = ("channel_first", "spatial_first", "parallel")
POOLS = ("avg", "max", "lp", "lse")
POOL_SUBSETS = [subset for size in (1, 2, 3, 4) for subset in itertools.combinations(POOLS, size)]


def randomized(module):
    """Random values everywhere, running statistics and norm weights included."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5 if name.endswith("running_var") else torch.randn(value.shape))
    return module.double()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("pools", POOL_SUBSETS, ids="+".join)
def test_computes_the_published_formula(pools, arrangement, training):
    module = randomized(CBAM(12, reduction=4, pools=pools, arrangement=arrangement)).train(training)
    x = torch.randn(3, 12, 5, 6, dtype=torch.float64)
    np.testing.assert_allclose(module(x).detach().numpy(), numpy_gate(module, x), rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 3), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6)),
    reduction=st.sampled_from([1, 2, 3.5, 16, 100]),
    pools=st.sampled_from(POOL_SUBSETS),
    maps=st.sampled_from([None, ("max", "mean"), ("mean", "max"), ("mean",), ("max",)]),
    kernel_size=st.sampled_from([1, 3, 7]),
    arrangement=st.sampled_from(ARRANGEMENTS),
    norm=st.sampled_from(["batch", None]),
    options=st.fixed_dictionaries(
        {
            "mlp_bias": st.sampled_from([None, True, False]),
            "spatial": st.booleans(),
            "form": st.sampled_from(["official", "timm", "ultralytics"]),
            "start": st.sampled_from(["paper", "identity"]),
        }
    ),
    training=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_computes_the_formula_for_any_options(
    shape, reduction, pools, maps, kernel_size, arrangement, norm, options, training, seed
):
    torch.manual_seed(seed)
    module = CBAM(
        shape[1],
        reduction=None if options["form"] == "ultralytics" else reduction,
        pools=pools,
        maps=maps,
        kernel_size=kernel_size,
        arrangement=arrangement,
        norm=norm,
        **options,
    )
    module = randomized(module).train(training)
    x = torch.randn(shape, dtype=torch.float64)
    np.testing.assert_allclose(module(x).detach().numpy(), numpy_gate(module, x), rtol=1e-9, atol=1e-10)


def test_the_form_ultralytics_by_hand():
    # two channels of one pixel: avg = x; W = [[1, 2], [0, -1]], b = [1, 0]: s = sigmoid([1 + 2 x2 + x1, -x2])
    module = CBAM(2, form="ultralytics", kernel_size=1).double()
    with torch.no_grad():
        module.what.fc.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        module.what.fc.bias.copy_(torch.tensor([1.0, 0.0]))
        module.where.conv.weight.copy_(torch.tensor([4.0, -1.0]).view(1, 2, 1, 1))
    x = torch.tensor([3.0, -2.0], dtype=torch.float64)
    scaled = x * torch.sigmoid(torch.tensor([0.0, 2.0], dtype=torch.float64))  # 1.5 and -1.7616
    expected = scaled * torch.sigmoid(4 * scaled.mean() - scaled.max())
    torch.testing.assert_close(module(x.view(1, 2, 1, 1)).flatten(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("channels", "kernel_size"), [(1, 3), (20, 7), (1024, 7)])
def test_parameter_formula_of_the_form_ultralytics(channels, kernel_size):
    module = CBAM(channels, form="ultralytics", kernel_size=kernel_size)
    counts = [sum(p.numel() for p in part.parameters()) for part in (module.what, module.where)]
    assert counts == [channels * channels + channels, 2 * kernel_size * kernel_size]
    assert channels != 1024 or counts[0] == 1_049_600
    assert [name for name, _ in module.named_parameters()] == ["what.fc.weight", "what.fc.bias", "where.conv.weight"]


def test_networks_of_the_form_ultralytics_by_every_way():
    options = {"attention_kwargs": {"form": "ultralytics"}, "seed": 0}
    # C * C + C + 98 in each of the 16 blocks of a ResNet-50
    added = sum(n * (c * c + c + 98) for n, c in ((3, 256), (4, 512), (6, 1024), (3, 2048)))
    assert added == 20_136_224
    models = [
        create_model("cbam_resnet50", **options),
        timm.create_model("cbam_resnet50", **options),
        attend(torchvision.models.resnet50(), "cbam", start="paper", **options),
    ]
    for model in models:
        assert sum(p.numel() for p in model.parameters()) == 25_557_032 + added
        assert sum(isinstance(module, SharedLinear) for module in model.modules()) == 16


def test_the_form_ultralytics_starts_as_the_identity_and_learns_at_once():
    model = torchvision.models.resnet18(num_classes=2)
    x = torch.randn(4, 3, 64, 64)
    before = model.eval()(x)
    attend(model, "cbam", attention_kwargs={"form": "ultralytics"}, seed=0)
    assert torch.equal(model(x), before)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    started = {name: value.detach().clone() for name, value in model.named_parameters() if "attention" in name}
    for step in range(2):
        optimizer.zero_grad()
        model.train()(x).square().sum().backward()
        optimizer.step()
        moved = {name for name, value in started.items() if not torch.equal(value, model.get_parameter(name))}
        assert moved == {name for name in started if step or name.endswith(".mix")}


def test_options_that_are_given_replace_those_of_the_form():
    module = CBAM(8, form="ultralytics", pools=("avg", "max"), mlp_bias=False, norm="batch", maps=("max",))
    assert (module.what.pools, module.what.fc.bias, module.where.maps) == (("avg", "max"), None, ("max",))
    assert isinstance(module.where.norm, nn.BatchNorm2d)
    assert CBAM(8, form="ultralytics", spatial_bias=True).where.conv.bias is not None
    halves = ChannelAttention(8, form="ultralytics"), SpatialAttention(8, form="ultralytics")
    shapes = [[tuple(p.shape) for p in half.parameters()] for half in halves]
    assert shapes == [[(8, 8), (8,)], [(1, 2, 7, 7)]]
    assert halves[1].where.maps == ("mean", "max")


@pytest.mark.parametrize("build", [CBAM, ChannelAttention])
@pytest.mark.parametrize("reduction", [16, 1])
def test_the_form_ultralytics_has_no_reduction(build, reduction, refused):
    with refused():
        build(16, form="ultralytics", reduction=reduction)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("pools", POOL_SUBSETS, ids="+".join)
def test_gradcheck(pools, arrangement, training):
    module = CBAM(4, reduction=2, pools=pools, arrangement=arrangement, kernel_size=3).double().train(training)
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    names, values = zip(*module.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *(value.detach().clone().requires_grad_() for value in values)))


def timm_pair(channels, **kwargs):
    theirs = timm.layers.cbam.CbamModule(channels).double()
    ours = CBAM(channels, form="timm", **kwargs).double()
    names = {
        "channel.fc1.weight": "what.fc1.weight",
        "channel.fc2.weight": "what.fc2.weight",
        "spatial.conv.conv.weight": "where.conv.weight",
        **{f"spatial.conv.bn.{part}": f"where.norm.{part}" for part in ("weight", "bias")},
    }
    own = dict(ours.named_parameters())
    with torch.no_grad():
        for their_name, parameter in theirs.named_parameters():
            parameter.normal_()
            own[names[their_name]].copy_(parameter.view_as(own[names[their_name]]))
    assert own.keys() == set(names.values())
    return theirs, ours, names


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [24, 40, 64, 72])
def test_timm_form_is_timms_module_forward_and_every_gradient(channels, training):
    theirs, ours, names = timm_pair(channels)
    theirs.train(training)
    ours.train(training)
    x = torch.randn(3, channels, 7, 6, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    weight = torch.randn_like(x)
    outputs = [module(value) for module, value in zip((theirs, ours), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-12)
    for output in outputs:
        (output * weight).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-9, atol=1e-10)
    own = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        gradient = own[names[name]].grad
        torch.testing.assert_close(gradient, parameter.grad.view_as(gradient), rtol=1e-9, atol=1e-10)
    for part in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours.where.norm, part), getattr(theirs.spatial.conv.bn, part))


@pytest.mark.parametrize(
    ("channels", "hidden"), [(24, (1, 2)), (40, (2, 3)), (72, (4, 5)), (8, (1, 1)), (256, (16, 16))]
)
def test_hidden_width_of_both_forms(channels, hidden):
    widths = tuple(CBAM(channels, form=form).what.fc1.out_features for form in ("official", "timm"))
    assert widths == hidden


def test_default_has_the_official_modules_parameters():
    shapes = [tuple(parameter.shape) for parameter in CBAM(64).parameters()]
    assert shapes == [(4, 64), (4,), (64, 4), (64,), (1, 2, 7, 7), (1,), (1,)]
    norm = CBAM(64).where.norm
    assert (norm.eps, norm.momentum, norm.affine) == (1e-5, 0.01, True)
    assert CBAM(64).where.maps == ("max", "mean")


@pytest.mark.parametrize("channels", [8, 64, 100])
@pytest.mark.parametrize("reduction", [2, 16])
def test_parameter_formula(channels, reduction):
    hidden = max(1, channels // reduction)
    count = sum(p.numel() for p in CBAM(channels, reduction=reduction, kernel_size=5).parameters())
    assert count == 2 * channels * hidden + hidden + channels + 2 * 5 * 5 + 2


def test_values_worked_by_hand():
    # one channel, hidden width 1, W0 = W1 = 1, no biases: s = sigmoid(relu(avg) + relu(max)) = sigmoid(2 + 3)
    module = CBAM(1, mlp_bias=False, norm=None, kernel_size=1)
    for layer in (module.what.fc1, module.what.fc2):
        nn.init.ones_(layer.weight)
    with torch.no_grad():
        module.where.conv.weight.copy_(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1))
        module.where.conv.bias.fill_(0.5)
    x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    scaled = x * torch.sigmoid(torch.tensor(5.0))
    # with one channel maximum and mean are the value itself: m = sigmoid(2 u - u + 0.5)
    expected = scaled * torch.sigmoid(scaled + 0.5)
    torch.testing.assert_close(module(x), expected)


def test_channel_attention_commutes_with_any_permutation_of_pixels():
    module = ChannelAttention(16, pools=POOLS).double()
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64)
    order = torch.randperm(20)

    def permuted(y):
        return y.flatten(2)[:, :, order].view_as(y)

    torch.testing.assert_close(module(permuted(x)), permuted(module(x)))


def test_spatial_attention_commutes_with_any_permutation_of_channels():
    module = SpatialAttention(16).double()
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64)
    order = torch.randperm(16)
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order])


@pytest.mark.parametrize(("build", "factor"), [(ChannelAttention, 0.5), (SpatialAttention, 0.5), (CBAM, 0.25)])
def test_zero_logits_halve_each_gates_input(build, factor):
    module = build(32)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 32, 5, 4)
    torch.testing.assert_close(module(x), x * factor, rtol=0, atol=0)


def test_cbam_is_its_halves_one_after_the_other():
    cbam, channel, spatial = CBAM(16).eval(), ChannelAttention(16), SpatialAttention(16).eval()
    channel.what, spatial.where = cbam.what, cbam.where
    x = torch.randn(2, 16, 5, 4)
    torch.testing.assert_close(cbam(x), spatial(channel(x)), rtol=0, atol=0)


def test_the_first_of_tied_maxima_takes_the_gradient():
    x = torch.ones(1, 2, 2, 2, requires_grad=True)
    module = ChannelAttention(2, pools=("max",), mlp_bias=False)
    for parameter in module.parameters():
        nn.init.ones_(parameter)
    gradient = torch.autograd.grad(module(x).sum(), x)[0]
    direct = torch.sigmoid(torch.tensor(2.0))
    torch.testing.assert_close(gradient[0, :, 0, 1:], direct.expand(2, 1))
    assert (gradient[0, :, 0, 0] > direct).all()
    torch.testing.assert_close(gradient[0, :, 1], direct.expand(2, 2))


def test_l2_pool_of_an_empty_plane_has_a_finite_gradient():
    x = torch.zeros(1, 4, 3, 3, requires_grad=True)
    ChannelAttention(4, pools=("lp",))(x).sum().backward()
    assert x.grad.isfinite().all()


def test_zeroed_norm_only_on_request():
    x = torch.randn(4, 16, 5, 4)
    module = CBAM(16, zero_init_norm=True)
    assert module.where.norm.weight == 0
    torch.testing.assert_close(module(x), 0.5 * ChannelAttention.forward(_halved(module), x))
    module(x).square().sum().backward()
    assert module.where.conv.weight.grad.abs().sum() == 0
    assert module.where.norm.weight.grad != 0
    assert CBAM(16).where.norm.weight == 1


def _halved(module):
    channel = ChannelAttention(16)
    channel.what = module.what
    return channel


def test_norm_may_be_any_module_or_none():
    assert isinstance(CBAM(8, norm=lambda c: nn.GroupNorm(1, c)).where.norm, nn.GroupNorm)
    without = CBAM(8, norm=None).where
    assert isinstance(without.norm, nn.Identity)
    assert without.conv.bias is not None
    assert CBAM(8, form="timm").where.norm.momentum == 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"pools": ()},
        {"pools": ("avg", "avg")},
        {"pools": ("avg", "median")},
        {"pools": "avg"},
        {"maps": ("min",)},
        {"kernel_size": 4},
        {"kernel_size": 0},
        {"kernel_size": 2**40 + 1},
        *[{"reduction": value} for value in (0, -16, "16", float("nan"))],
        {"arrangement": "both"},
        {"form": "paper"},
        {"start": "zero"},
        {"norm": "layer"},
        {"norm": None, "zero_init_norm": True},
        {"form": "ultralytics", "zero_init_norm": True},
        {"form": ["ultralytics"]},
        {"form": "ultralytics", "norm": True},
    ],
)
def test_impossible_options_are_one_sentence(options, refused):
    with refused():
        CBAM(16, **options)


@pytest.mark.parametrize("channels", [32, 40])
def test_the_module_of_copied_code_forward_and_every_gradient(channels):
    ca, sa = CopiedChannelAttention(channels, sequential=False).double(), CopiedSpatialAttention().double()
    ours = CBAM(channels, mlp_bias=False, maps=("mean", "max"), norm=None, spatial_bias=False).double()
    theirs = [ca.fc1.weight, ca.fc2.weight, sa.conv1.weight]
    with torch.no_grad():
        for parameter, value in zip(ours.parameters(), theirs, strict=True):
            parameter.copy_(value.view_as(parameter))
    assert sum(parameter.numel() for parameter in ours.parameters()) == 2 * channels * (channels // 16) + 2 * 49
    x, direction = torch.randn(2, 3, channels, 9, 7, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    gated = ca(inputs[0]) * inputs[0]
    outputs = sa(gated) * gated, ours(inputs[1])
    gradients = [
        torch.autograd.grad(output, [leaf, *parameters], direction)
        for output, leaf, parameters in zip(outputs, inputs, (theirs, [*ours.parameters()]), strict=True)
    ]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b.view_as(a), a, rtol=1e-9, atol=1e-9)


def test_a_bias_of_the_spatial_convolution_beside_a_norm_and_none_without():
    for module in (CBAM, SpatialAttention):
        keys = [
            [key for key, _ in module(16, norm=norm, spatial_bias=bias).named_parameters() if "where.conv.bias" in key]
            for norm, bias in (("batch", None), ("batch", True), (None, None), (None, False))
        ]
        assert keys == [[], ["where.conv.bias"], ["where.conv.bias"], []]
