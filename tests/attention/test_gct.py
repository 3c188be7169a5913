import pytest
import torch

from numerics import gradient_check, num_params, with_random_values
from whatwhere.attention import GatedChannelTransform, IdentityStart, starting_as_identity


def by_the_formula(module, x, eps=1e-5):
    alpha, gamma, beta = (getattr(module.what, name)[None, :, None, None] for name in ("alpha", "gamma", "beta"))
    s = alpha * ((x**2).sum((2, 3), keepdim=True) + eps) ** 0.5
    n = s / ((s**2).sum(1, keepdim=True) / x.shape[1] + eps) ** 0.5
    return x * (1 + torch.tanh(gamma * n + beta))


@pytest.mark.parametrize("channels", [1, 3, 20, 64])
def test_computes_the_published_formula(channels):
    module = with_random_values(GatedChannelTransform(channels))
    x = torch.randn(2, channels, 3, 5, dtype=torch.float64)
    x[0] *= 1e-3  # where eps matters
    torch.testing.assert_close(module(x), by_the_formula(module, x), rtol=1e-12, atol=1e-14)


def test_gradients():
    module = with_random_values(GatedChannelTransform(5))
    assert gradient_check(module, torch.randn(2, 5, 3, 2, dtype=torch.float64))


@pytest.mark.parametrize("channels", [1, 20, 64, 100])
def test_parameter_formula(channels):
    for start in ("paper", "identity"):
        assert num_params(GatedChannelTransform(channels, start=start)) == 3 * channels


def test_values_worked_by_hand():
    # norms 5 and 5, so each is its share of 1; alpha -1 turns the second round
    module = GatedChannelTransform(2).double()
    with torch.no_grad():
        module.what.alpha.copy_(torch.tensor([1.0, -1.0]))
        module.what.gamma.fill_(0.5)
        module.what.beta.copy_(torch.tensor([0.25, 0.0]))
    x = torch.tensor([[[[3.0, 4.0]], [[0.0, -5.0]]]], dtype=torch.float64)
    gates = 1 + torch.tanh(torch.tensor([0.5 + 0.25, -0.5], dtype=torch.float64))
    torch.testing.assert_close(module(x), x * gates[None, :, None, None], rtol=1e-6, atol=0)


def test_does_not_depend_on_the_scale_of_the_image():
    module = with_random_values(GatedChannelTransform(16))
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64) * 1e3
    torch.testing.assert_close(module(7 * x), 7 * module(x), rtol=1e-6, atol=0)


def test_commutes_with_any_permutation_of_pixels():
    module, order = with_random_values(GatedChannelTransform(16)), torch.randperm(20)
    x = torch.randn(2, 16, 20, 1, dtype=torch.float64)
    torch.testing.assert_close(module(x[:, :, order]), module(x)[:, :, order])


def test_is_the_identity_at_either_start_and_needs_no_scalar():
    x = torch.randn(2, 8, 5, 4)
    for module in (
        GatedChannelTransform(8),
        GatedChannelTransform(8, start="identity"),
        starting_as_identity(GatedChannelTransform(8), 8),
    ):
        assert torch.equal(module(x), x)
        assert [name for name, _ in module.named_parameters()] == ["what.alpha", "what.gamma", "what.beta"]
        assert not isinstance(module, IdentityStart)


def test_large_values_in_half_precision():
    module = with_random_values(GatedChannelTransform(8))
    x = 30 * torch.randn(2, 8, 56, 56)  # a norm of about 1700, whose square float16 does not hold
    found = module.half()(x.half())
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), module.double()(x.half().double()), rtol=1e-2, atol=1e-2)


def test_an_empty_image_has_finite_gradients():
    x = torch.zeros(1, 4, 3, 3, requires_grad=True)
    module = with_random_values(GatedChannelTransform(4)).float()
    module(x).sum().backward()
    assert all(value.grad.isfinite().all() for value in (x, *module.parameters()))
