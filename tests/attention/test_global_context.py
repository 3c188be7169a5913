import copy

import pytest
import timm.layers
import torch

from numerics import gradient_check, num_params, with_random_values
from whatwhere.attention import GlobalContext, starting_as_identity


def by_the_formula(module, x):
    y = torch.empty_like(x)
    for index, image in enumerate(x):
        pixels = image.flatten(1)
        weights = torch.exp(module.mask.weight.view(-1) @ pixels + module.mask.bias)
        context = (pixels * weights).sum(1) / weights.sum()
        hidden = module.fc1.weight @ context + module.fc1.bias
        variance = ((hidden - hidden.mean()) ** 2).mean()
        hidden = (hidden - hidden.mean()) / (variance + 1e-5) ** 0.5 * module.norm.weight + module.norm.bias
        added = module.fc2.weight @ hidden.clamp_min(0) + module.fc2.bias
        y[index] = image + added[:, None, None]
    return y


@pytest.mark.parametrize("channels", [1, 3, 20, 64])
def test_computes_the_published_formula(channels):
    module = with_random_values(GlobalContext(channels, reduction=4))
    x = torch.randn(3, channels, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(module(x), by_the_formula(module, x), rtol=1e-10, atol=1e-12)


def test_gradients():
    module = with_random_values(GlobalContext(8, reduction=2))
    assert gradient_check(module, torch.randn(2, 8, 3, 2, dtype=torch.float64))


@pytest.mark.parametrize(("channels", "reduction"), [(64, 8), (128, 16), (256, 16), (48, 4)])
def test_is_timms_module_that_adds_forward_and_every_gradient(channels, reduction):
    ours = with_random_values(GlobalContext(channels, reduction=reduction))
    theirs = timm.layers.GlobalContext(channels, fuse_add=True, fuse_scale=False, rd_ratio=1 / reduction).double()
    theirs.mlp_add.norm.eps = ours.norm.eps  # 1e-6 in timm, 1e-5 in the authors' code
    names = {"conv_attn": "mask", "mlp_add.fc1": "fc1", "mlp_add.norm": "norm", "mlp_add.fc2": "fc2"}
    own = dict(ours.named_parameters())
    pairs = [
        (own[f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}"], value)
        for name, value in theirs.named_parameters()
    ]
    assert len(pairs) == len(own)
    with torch.no_grad():
        for mine, value in pairs:
            value.copy_(mine.view_as(value))
    x = torch.randn(2, channels, 5, 4, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(value) for module, value in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)
    for output in outputs:
        output.pow(3).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-9, atol=1e-9)
    for mine, value in pairs:
        torch.testing.assert_close(mine.grad, value.grad.view_as(mine), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("channels", [1, 20, 64, 256])
@pytest.mark.parametrize("reduction", [4, 16])
def test_parameter_formula(channels, reduction):
    hidden = max(8, channels // reduction)
    expected = 2 * channels * hidden + 2 * channels + 3 * hidden + 1
    assert num_params(GlobalContext(channels, reduction=reduction)) == expected


@pytest.mark.parametrize("channels", [1, 16, 31])
def test_a_narrow_block_adds_what_depends_on_its_input(channels):
    module = with_random_values(GlobalContext(channels))
    x = torch.randn(2, channels, 5, 4, dtype=torch.float64)
    first, second = module(x) - x
    assert (first - second).abs().max() > 1e-3


def test_adds_the_same_to_every_pixel():
    module = with_random_values(GlobalContext(32))
    x = torch.randn(2, 32, 5, 4, dtype=torch.float64)
    added = module(x) - x
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added))
    assert added.abs().min() > 0


def test_the_bias_of_the_mask_does_not_matter():
    module = with_random_values(GlobalContext(32))
    x = torch.randn(2, 32, 5, 4, dtype=torch.float64)
    expected = module(x)
    torch.nn.init.constant_(module.mask.bias, 5.0)
    torch.testing.assert_close(module(x), expected)


def test_commutes_with_any_permutation_of_pixels():
    module, order = with_random_values(GlobalContext(32)), torch.randperm(20)
    x = torch.randn(2, 32, 20, 1, dtype=torch.float64)
    torch.testing.assert_close(module(x[:, :, order]), module(x)[:, :, order])


def test_is_the_identity_at_either_start_and_needs_no_scalar():
    x = torch.randn(2, 32, 5, 4)
    names = [name for name, _ in GlobalContext(32).named_parameters()]
    for module in (
        GlobalContext(32),
        GlobalContext(32, start="identity"),
        starting_as_identity(GlobalContext(32), 32),
    ):
        assert torch.equal(module(x), x)
        assert [name for name, _ in module.named_parameters()] == names


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": 0},
        {"start": "zero"},
    ],
)
def test_impossible_options_are_one_sentence(options, refused):
    with refused():
        GlobalContext(64, **options)


@pytest.mark.parametrize("autocast", [False, True])
def test_logits_that_float16_does_not_hold(autocast):
    module = GlobalContext(8)
    x = 1e4 * torch.randn(2, 8, 6, 5).clamp(-3, 3)
    with torch.no_grad():
        module.mask.weight.fill_(4)  # logits of about 100,000, which lie 1,000 apart or more
        torch.nn.init.normal_(module.fc2.weight)
    exact = copy.deepcopy(module).double()(x.half().double())
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        found = (module if autocast else module.half())(x.half())
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), exact, rtol=2e-3, atol=30)
