import pytest
import safetensors.torch
import timm.layers
import torch
import torch.nn.functional as F

from numerics import gradient_check, num_params, with_random_values
from whatwhere import ResNet, create_model
from whatwhere.attention import GatherExcite, LocalGatherExcite
from whatwhere.models import BasicBlock

SIZES = [(1, 1), (3, 5), (7, 7), (16, 9)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 20])
def test_is_timms_module_without_parameters(channels, size):
    theirs = timm.layers.GatherExcite(channels, use_mlp=False)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    torch.testing.assert_close(GatherExcite(channels)(x), theirs(x), rtol=1e-12, atol=1e-14)
    whole = LocalGatherExcite(channels, variant="theta-minus", extent=None)
    torch.testing.assert_close(whole(x), theirs(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("extent", [2, 4, 8])
def test_local_averages_are_timms(extent, size):
    theirs = timm.layers.GatherExcite(6, use_mlp=False, extent=extent)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    ours = LocalGatherExcite(6, variant="theta-minus", extent=extent)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-14)


def norm(values, module, training):
    mean, variance = module.running_mean, module.running_var
    if training:
        mean = values.mean((0, 2, 3))
        variance = ((values - mean[None, :, None, None]) ** 2).mean((0, 2, 3))
    shape = (1, -1, 1, 1)
    normed = (values - mean.view(shape)) / (variance.view(shape) + 1e-5) ** 0.5
    return normed * module.weight.view(shape) + module.bias.view(shape)


def strided(x, kernel, stride):
    """A depthwise convolution of 3x3 pixels, pixel by pixel."""
    padded = F.pad(x, (1, 1, 1, 1))
    height, width = (-(-length // stride) for length in x.shape[2:])
    out = torch.zeros(*x.shape[:2], height, width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            window = padded[:, :, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, :, i, j] = (window * kernel[:, 0]).sum((2, 3))
    return out


def by_the_formula(module, x):
    layers = [layer for layer in module.gather if not isinstance(layer, torch.nn.ReLU)]
    g = x
    for index in range(0, len(layers), 2):
        g = g if index == 0 else g.clamp_min(0)
        kernel = layers[index].weight
        whole = module.size is not None
        g = (g * kernel[:, 0]).sum((2, 3), keepdim=True) if whole else strided(g, kernel, 2)
        g = norm(g, layers[index + 1], module.training)
    if module.variant == "theta-plus":
        down, up = module.excite[1], module.excite[3]
        hidden = torch.einsum("nchw,kc->nkhw", g.clamp_min(0), down.weight[:, :, 0, 0]) + down.bias[:, None, None]
        g = torch.einsum("nkhw,ck->nchw", hidden.clamp_min(0), up.weight[:, :, 0, 0]) + up.bias[:, None, None]
    height, width = x.shape[2:]
    rows, columns = torch.arange(height) * g.shape[2] // height, torch.arange(width) * g.shape[3] // width
    return x / (1 + torch.exp(-g[:, :, rows][:, :, :, columns]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{"extent": 2}, {"extent": 4}, {"extent": 8}, {"extent": None, "size": (9, 6)}])
@pytest.mark.parametrize("variant", ["theta", "theta-plus"])
def test_computes_the_published_formula(variant, options, training):
    module = with_random_values(LocalGatherExcite(8, variant=variant, reduction=4, **options)).train(training)
    x = torch.randn(3, 8, 9, 6, dtype=torch.float64)
    expected = by_the_formula(module, x)
    torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variant", ["theta-minus", "theta", "theta-plus"])
def test_gradients(variant):
    module = with_random_values(LocalGatherExcite(4, variant=variant, extent=2, reduction=2))
    assert gradient_check(module, torch.randn(2, 4, 5, 3, dtype=torch.float64))


@pytest.mark.parametrize("channels", [1, 20, 64])
def test_parameter_formula(channels):
    hidden = max(1, channels // 16)
    bottleneck = 2 * channels * hidden + hidden + channels
    assert num_params(GatherExcite(channels)) == 0
    assert num_params(GatherExcite(channels, start="identity")) == 1
    assert num_params(LocalGatherExcite(channels, variant="theta-minus")) == 0
    for extent, num in ((2, 1), (4, 2), (8, 3)):
        assert num_params(LocalGatherExcite(channels, variant="theta", extent=extent)) == 11 * channels * num
        assert num_params(LocalGatherExcite(channels, extent=extent)) == 11 * channels * num + bottleneck
    whole = LocalGatherExcite(channels, variant="theta-plus", extent=None, size=(7, 5))
    assert num_params(whole) == 35 * channels + 2 * channels + bottleneck


def test_values_worked_by_hand():
    x = torch.tensor([[[[1.0, 3.0]], [[-1.0, 1.0]]]])
    gates = torch.sigmoid(torch.tensor([2.0, 0.0]))[None, :, None, None]
    torch.testing.assert_close(GatherExcite(2)(x), x * gates)


def test_commutes_with_any_permutation_of_pixels():
    module, order = GatherExcite(16), torch.randperm(20)
    x = torch.randn(2, 16, 20, 1, dtype=torch.float64)
    torch.testing.assert_close(module(x[:, :, order]), module(x)[:, :, order])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", ["theta-minus", "theta", "theta-plus"])
def test_identity_start_of_the_local_forms(variant, size):
    module = LocalGatherExcite(20, variant=variant, start="identity")
    x = torch.randn(2, 20, *size)
    assert torch.equal(module(x), x)
    module(x).square().sum().backward()
    assert module.mix.grad != 0


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_say_that_it_is_there(suffix, tmp_path, refused):
    x, path = torch.randn(2, 3, 32, 32), tmp_path / f"weights{suffix}"
    trained = create_model("ge_resnext11_8x8d", num_classes=3, seed=0).eval()
    if suffix == ".pth":
        torch.save(trained.state_dict(), path)
    else:
        safetensors.torch.save_file(trained.state_dict(), path)
    torch.testing.assert_close(create_model("ge_resnext11_8x8d", num_classes=3, pretrained=path).eval()(x), trained(x))
    with refused():
        create_model("resnext11_8x8d", num_classes=3, pretrained=path)

    plain = create_model("resnext11_8x8d", num_classes=3, seed=0).eval()
    torch.save(plain.state_dict(), path.with_suffix(".pth"))
    started = create_model("ge_resnext11_8x8d", num_classes=3, pretrained=path.with_suffix(".pth")).eval()
    assert torch.equal(started(x), plain(x))


def test_a_network_takes_the_local_form_as_a_builder():
    model = ResNet(BasicBlock, (1, 1), widths=(8, 16), num_classes=3, stem="cifar", stem_channels=8,
                   attention=LocalGatherExcite, attention_kwargs={"extent": 4}, seed=0)  # fmt: skip
    torch.nn.functional.cross_entropy(model(torch.randn(3, 3, 15, 12)), torch.arange(3)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("options", [{"extent": 4}, {"extent": None, "size": (5, 7)}])
@pytest.mark.usefixtures("fresh_compiler")
def test_the_local_forms_trace(options):
    module = LocalGatherExcite(20, **options).eval()
    x = torch.randn(2, 20, 5, 7)
    assert torch.equal(torch.fx.symbolic_trace(module)(x), module(x))
    torch.testing.assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(x), module(x))
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


def test_refuses_a_map_of_another_size_than_it_was_built_for(refused):
    module = LocalGatherExcite(8, extent=None, size=(7, 7))
    with refused():
        module(torch.randn(2, 8, 8, 7))


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "plus"},
        {"extent": 1},
        {"extent": 6},
        {"extent": "8"},
        {"extent": None},
        {"extent": None, "variant": "theta-minus", "size": (7, 7)},
        {"size": (7, 7)},
        {"extent": None, "size": 7},
        {"extent": None, "size": (7, 0)},
        {"reduction": 0},
    ],
)
def test_impossible_options_are_one_sentence(options, refused):
    with refused():
        LocalGatherExcite(8, **options)
