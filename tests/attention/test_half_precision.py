"""Statistics of large features in float16 and bfloat16: finite, and as near to the truth as the dtype allows."""

import copy

import pytest
import torch

from numerics import relative_error
from whatwhere import ATTENTION, CBAM
from whatwhere.ops.layout import narrowed
from whatwhere.ops.reference import MAPS, POOLS

DTYPES = [torch.float16, torch.bfloat16]
FEATURES = {
    "deviation 300": lambda shape: 300 * torch.randn(shape),
    "up to 30,000": lambda shape: 6e4 * torch.rand(shape) - 3e4,
    "about 30,000": lambda shape: 3e4 + 300 * torch.randn(shape),
}


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(POOLS))
def test_pools_are_exact_to_the_last_digit_or_the_largest_number(name, dtype, features):
    x = FEATURES[features]((2, 8, 32, 24)).to(dtype)
    most = torch.finfo(dtype).max
    exact = POOLS[name](x.double())
    found = narrowed(POOLS[name](x), x)
    assert found.dtype == dtype
    allowed = torch.finfo(dtype).eps * exact.clamp(-most, most).abs()
    if name.startswith("dct"):
        # terms as large as x cancel, in float32
        allowed = allowed + 1e-6 * x.double().abs().sum((2, 3)) / (32 * 24) ** 0.5
    assert ((found.double() - exact.clamp(-most, most)).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(MAPS))
def test_maps_are_exact_to_the_last_digit(name, dtype):
    x = FEATURES["about 30,000"]((2, 64, 5, 4)).to(dtype)
    torch.testing.assert_close(MAPS[name](x).double(), MAPS[name](x.double()), rtol=torch.finfo(dtype).eps, atol=0)


def test_the_log_of_a_sum_of_65536_equal_exponentials():
    # which float16 does not hold
    x = torch.full((1, 1, 256, 256), 2.0, dtype=torch.float16)
    assert POOLS["lse"](x).item() == pytest.approx(2 + 16 * 0.6931472)


@pytest.mark.parametrize("backend", ["reference", "lean"])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("autocast", [False, True], ids=["all in it", "autocast"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_large_features_are_attended_as_in_float64(name, dtype, autocast, features, backend):
    module = ATTENTION[name](16).eval()
    if hasattr(module, "backend"):
        module.backend = backend
    elif backend == "lean":
        pytest.skip("has one path")
    with torch.no_grad():
        for value in module.parameters():
            if not value.count_nonzero():
                value.copy_(torch.randn(value.shape) / 4)
    if not autocast:
        module.to(dtype)
    exact_module = copy.deepcopy(module).double()
    x = FEATURES[features]((2, 16, 24, 20)).to(dtype).requires_grad_()
    # as small as those of a loss that is a mean, so that their own products with x fit
    gradient = (1e-4 * torch.randn(x.shape)).to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        y = module(x)
    y.backward(gradient)
    assert y.dtype == dtype
    assert all(value.isfinite().all() for value in (y, x.grad, *(p.grad for p in module.parameters())))
    # the layers in between round a few times each
    assert relative_error(y, exact_module(x.detach().double())) <= 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("backend", ["reference", "lean"])
def test_trains_on_large_features_in_float16(backend):
    # behind CBAM's 7x7 convolution a BatchNorm takes the variance of values as large
    module = CBAM(16).half()
    module.backend = backend
    x = (6e4 * torch.rand(4, 16, 32, 32) - 3e4).half().requires_grad_()
    module(x).backward((3e-4 * torch.randn(x.shape)).half())
    assert all(value.isfinite().all() for value in (x.grad, *(p.grad for p in module.parameters())))
