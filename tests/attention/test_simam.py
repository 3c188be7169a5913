import numpy as np
import pytest
import torch

from numerics import sigmoid
from whatwhere import SimAM


@pytest.mark.parametrize("e_lambda", [1e-4, 0.1])
def test_is_the_inverse_of_the_papers_least_energy(e_lambda):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7))
    mean, variance = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True, ddof=1)
    energy = 4 * (variance + e_lambda) / ((x - mean) ** 2 + 2 * variance + 2 * e_lambda)
    found = SimAM(3, e_lambda=e_lambda)(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), x * sigmoid(1 / energy), rtol=1e-12)


def test_that_energy_is_the_least_of_eq_2():
    """The energy of a linear unit w x + b that shall give 1 at the value and -1 at all others of its channel."""
    others, value, weight_decay = np.array([0.3, -1.2, 0.8, 0.5]), 2.0, 0.1

    def energy(weight, bias):
        return np.mean((-1 - weight * others - bias) ** 2) + (1 - weight * value - bias) ** 2 + weight_decay * weight**2

    # the minimum, from the normal equations
    mean, square = others.mean(), np.mean(others**2)
    matrix = np.array([[square + value**2 + weight_decay, mean + value], [mean + value, 2.0]])
    weight, bias = np.linalg.solve(matrix, [value - mean, 0.0])
    closed_form = 4 * (others.var() + weight_decay) / ((value - mean) ** 2 + 2 * others.var() + 2 * weight_decay)
    assert energy(weight, bias) == pytest.approx(closed_form)


def test_values_worked_by_hand():
    # mean 2, deviations -1, 0, 0, 1: v = 2 / 3, so 1 / e* = 1 / (4 (2/3 + 1/3)) + 1/2 = 3/4 at the ends, 1/2 inside
    x = torch.tensor([[1.0, 2], [2, 3]])[None, None]
    gates = torch.tensor([[0.75, 0.5], [0.5, 0.75]]).sigmoid()
    torch.testing.assert_close(SimAM(1, e_lambda=1 / 3)(x)[0, 0], x[0, 0] * gates)


@pytest.mark.parametrize("x", [torch.full((2, 3, 4, 4), 7.0), torch.randn(2, 3, 1, 1)], ids=["equal", "one pixel"])
def test_without_any_deviation_the_gate_is_that_of_one_half(x):
    torch.testing.assert_close(SimAM(3)(x), x * torch.tensor(0.5).sigmoid())


def test_ignores_the_arrangement_of_pixels_and_what_is_added():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(SimAM(3)(x.flip(3)), SimAM(3)(x).flip(3))
    torch.testing.assert_close(SimAM(3).gates(x + 5), SimAM(3).gates(x))


def test_the_default_is_the_papers():
    assert SimAM(3).e_lambda == 1e-4


@pytest.mark.parametrize("channels", [1, 64, 100])
def test_has_no_parameters(channels):
    # the mark, without a value, says in a file that it is there
    assert {key: value.numel() for key, value in SimAM(channels).state_dict().items()} == {"mark": 0}
    assert set(SimAM(channels, start="identity").state_dict()) == {"mark", "mix"}


def test_large_maps_do_not_overflow_in_float16():
    x = 20 * torch.randn(1, 2, 56, 56)
    torch.testing.assert_close(SimAM(2)(x.half()).float(), SimAM(2)(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("e_lambda", [0, -1e-4, "1e-4", True, float("nan"), float("inf")])
def test_refuses_impossible_lambda(e_lambda, refused):
    with refused():
        SimAM(64, e_lambda=e_lambda)
