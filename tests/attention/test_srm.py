import pytest
import torch

from numerics import gradient_check, num_params, with_random_values
from whatwhere.attention import StyleRecalibration


def by_the_formula(module, x):
    what, norm = module.what, module.what.norm
    pixels = x.flatten(2)
    mean = pixels.sum(2) / pixels.shape[2]
    variance = ((pixels - mean[:, :, None]) ** 2).sum(2) / (pixels.shape[2] - 1)
    styles = torch.stack([mean, (variance + 1e-5) ** 0.5], 2)
    z = (what.weight[None] * styles).sum(2)
    centre, spread = norm.running_mean, norm.running_var
    if module.training:
        centre = z.mean(0)
        spread = ((z - centre) ** 2).mean(0)
    z = (z - centre) / (spread + 1e-5) ** 0.5 * norm.weight + norm.bias
    return x / (1 + torch.exp(-z))[:, :, None, None]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 20, 64])
def test_computes_the_published_formula(channels, training):
    module = with_random_values(StyleRecalibration(channels)).train(training)
    x = torch.randn(4, channels, 3, 5, dtype=torch.float64)
    expected = by_the_formula(module, x)
    torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_gradients(training):
    module = with_random_values(StyleRecalibration(5)).train(training)
    assert gradient_check(module, torch.randn(4, 5, 3, 2, dtype=torch.float64))


@pytest.mark.parametrize("channels", [1, 20, 64, 100])
def test_parameter_formula(channels):
    assert num_params(StyleRecalibration(channels)) == 4 * channels


def test_starts_as_the_authors_code():
    x = torch.randn(4, 20, 5, 3)
    assert torch.equal(StyleRecalibration(20)(x), x / 2)


def test_values_worked_by_hand():
    # deviation 1 (unbiased, of -1/sqrt(2) and 1/sqrt(2) about the mean 3), logit 2 * 3 - 1, a norm that does nothing
    module = StyleRecalibration(1).double().eval()
    module.what.norm.eps = 1e-30  # torch 2.10 wants one above 0
    with torch.no_grad():
        module.what.weight.copy_(torch.tensor([[2.0, -1.0]]))
    x = (torch.tensor([-1.0, 1.0], dtype=torch.float64) / 2**0.5 + 3).view(1, 1, 1, 2)
    torch.testing.assert_close(module(x), x * torch.sigmoid(torch.tensor(5.0)), rtol=1e-6, atol=0)


def test_commutes_with_any_permutation_of_pixels_and_of_images():
    module, order, images = with_random_values(StyleRecalibration(16)), torch.randperm(20), torch.randperm(3)
    x = torch.randn(3, 16, 20, 1, dtype=torch.float64)
    torch.testing.assert_close(module(x[images][:, :, order]), module(x)[images][:, :, order])


def test_a_constant_plane_has_finite_gradients():
    x = torch.ones(2, 8, 4, 4, requires_grad=True)
    with_random_values(StyleRecalibration(8)).float()(x).sum().backward()
    assert x.grad.isfinite().all()


def test_does_not_train_on_one_image():
    module, x = StyleRecalibration(8), torch.randn(1, 8, 4, 4)
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        module(x)
    assert module.eval()(x).shape == x.shape
