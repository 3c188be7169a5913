import numpy as np
import pytest
import torch
from torch import nn

from numerics import sigmoid
from whatwhere import BAM


def randomized(module):
    """Random values everywhere, running statistics and norm weights included."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5 if name.endswith("running_var") else torch.randn(value.shape) / 2)
    return module.double()


def batch_norm(x, state, name, training):
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if training:
        mean, variance = x.mean(axes), x.var(axes)
    normed = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + 1e-5)
    return normed * state[f"{name}.weight"].reshape(shape) + state[f"{name}.bias"].reshape(shape)


def conv(x, kernel, bias, dilation=1):
    """The convolution that keeps height and width, tap by tap."""
    size, height, width = kernel.shape[-1], *x.shape[2:]
    pad = dilation * (size // 2)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((x.shape[0], kernel.shape[0], height, width)) + bias.reshape(1, -1, 1, 1)
    for i in range(size):
        for j in range(size):
            window = padded[:, :, i * dilation : i * dilation + height, j * dilation : j * dilation + width]
            out += np.einsum("oi,nihw->nohw", kernel[:, :, i, j], window)
    return out


def bam(module, x):
    """BAM as the paper and the authors' code have it, in float64, from the module's parameters."""
    state, x = {key: value.numpy() for key, value in module.state_dict().items()}, x.numpy()
    hidden = x.mean((2, 3)) @ state["channel.fc1.weight"].T + state["channel.fc1.bias"]
    hidden = np.maximum(batch_norm(hidden, state, "channel.norm", module.training), 0)
    channel = (hidden @ state["channel.fc2.weight"].T + state["channel.fc2.bias"])[:, :, None, None]
    spatial = x
    for name, layer in module.spatial.named_children():
        if name == "project":
            spatial = conv(spatial, state["spatial.project.weight"], state["spatial.project.bias"])
            continue
        dilation = layer.conv.dilation[0]
        spatial = conv(spatial, state[f"spatial.{name}.conv.weight"], state[f"spatial.{name}.conv.bias"], dilation)
        spatial = np.maximum(batch_norm(spatial, state, f"spatial.{name}.norm", module.training), 0)
    gate = sigmoid(channel + spatial if module.combine == "add" else channel * spatial)
    return x + x * gate


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("combine", ["add", "multiply"])
@pytest.mark.parametrize("options", [{}, {"reduction": 4, "dilation": 2, "num_convs": 3}])
def test_computes_the_published_formula(options, combine, training):
    module = randomized(BAM(32, combine=combine, **options)).train(training)
    x = torch.randn(3, 32, 7, 11, dtype=torch.float64)
    np.testing.assert_allclose(module(x).detach().numpy(), bam(module, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("channels", [8, 64, 100, 256])
@pytest.mark.parametrize("options", [{}, {"reduction": 8, "num_convs": 1}])
def test_parameter_formula(channels, options):
    hidden, convs = max(1, channels // options.get("reduction", 16)), options.get("num_convs", 2)
    count = sum(p.numel() for p in BAM(channels, **options).parameters())
    assert count == 3 * channels * hidden + 7 * hidden + channels + 1 + convs * (9 * hidden**2 + 3 * hidden)


def test_default_has_the_authors_layers():
    shapes = [tuple(p.shape) for name, p in BAM(64).named_parameters() if name.endswith("weight") and p.dim() > 1]
    assert shapes == [(4, 64), (64, 4), (4, 64, 1, 1), (4, 4, 3, 3), (4, 4, 3, 3), (1, 4, 1, 1)]
    dilated = [m for m in BAM(64).modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [(m.dilation, m.padding) for m in dilated] == [((4, 4), (4, 4))] * 2
    norms = [m for m in BAM(64).modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert [(m.eps, m.momentum, m.num_features) for m in norms] == [(1e-5, 0.1, 4)] * 4


@pytest.mark.parametrize("combine", ["add", "multiply"])
def test_zero_logits_scale_by_one_and_a_half(combine):
    module = BAM(16, combine=combine)
    for last in (module.channel.fc2, module.spatial.project):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    x = torch.randn(2, 16, 5, 4)
    torch.testing.assert_close(module(x), 1.5 * x)


def test_values_worked_by_hand():
    # the branches give their last biases, ln 3 and ln 2: sigmoid(ln 6) = 6/7, sigmoid(ln 3 ln 2) for the product
    x = torch.randn(2, 16, 5, 4)
    for combine, logit in (("add", np.log(6)), ("multiply", np.log(3) * np.log(2))):
        module = BAM(16, combine=combine)
        for last, value in ((module.channel.fc2, 3.0), (module.spatial.project, 2.0)):
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, np.log(value))
        torch.testing.assert_close(module(x), x * (1 + sigmoid(logit)))
    assert 1 + sigmoid(np.log(6)) == pytest.approx(13 / 7)


def test_only_biases_that_a_norm_takes_away_do_not_learn():
    module = BAM(64).double()
    module(torch.randn(4, 64, 9, 9, dtype=torch.float64)).square().sum().backward()
    still = {name for name, parameter in module.named_parameters() if parameter.grad.abs().max() < 1e-9}
    assert still == {
        "channel.fc1.bias",
        *(f"spatial.{name}.conv.bias" for name in ("reduce", "dilated1", "dilated2")),
    }


def test_one_image_alone_trains_no_batch_norm():
    module, x = BAM(16), torch.randn(1, 16, 8, 8)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        module(x)
    assert module.eval()(x).shape == x.shape


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": 0},
        {"dilation": 0},
        {"num_convs": 1.5},
        {"combine": "sum"},
        {"start": "zero"},
    ],
)
def test_impossible_options_are_one_sentence(options, refused):
    with refused():
        BAM(16, **options)
