"""The reference backend on values worked by hand."""

from math import exp, log, sqrt
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from whatwhere import ops
from whatwhere.ops import gate
from whatwhere.ops.reference import MAPS, POOLS

X = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, -2.0]]]], dtype=torch.float64)

POOLED = {
    "avg": [2.5, -0.5],
    "max": [4, 0],
    "min": [1, -2],
    "l2": [sqrt(30), 2],
    "lp": [sqrt(30), 2],
    "lse": [log(exp(1) + exp(2) + exp(3) + exp(4)), log(3 + exp(-2))],
    "std": [sqrt(5 / 3 + 1e-5), sqrt(1 + 1e-5)],
    # one component: 7 times the mean, because the pixels are repeated to 7 x 7 cells
    "dct1": [17.5, -3.5],
}
MAPPED = {"max": [[1, 2], [3, 4]], "mean": [[0.5, 1], [1.5, 1]]}


@pytest.mark.parametrize("name", sorted(POOLED))
def test_pools(name):
    torch.testing.assert_close(POOLS[name](X), X.new_tensor([POOLED[name]]))


@pytest.mark.parametrize("name", sorted(MAPPED))
def test_maps(name):
    torch.testing.assert_close(MAPS[name](X), X.new_tensor([[MAPPED[name]]]))


def test_every_pool_and_map_has_a_value_here():
    # tests/attention/test_fca.py has those of several components
    assert {name for name in POOLS if not name.startswith("dct")} == POOLED.keys() - {"dct1"}
    assert MAPS.keys() == MAPPED.keys()


@pytest.mark.parametrize("name", ["max", "min"])
def test_of_several_equal_values_the_first_gets_the_gradient(name):
    x = torch.zeros(1, 2, 2, 2, requires_grad=True)
    POOLS[name](x).sum().backward()
    assert x.grad.flatten(2).tolist() == [[[1, 0, 0, 0], [1, 0, 0, 0]]]
    x.grad = None
    MAPS["max"](x).sum().backward()
    assert x.grad.flatten(2).tolist() == [[[1, 1, 1, 1], [0, 0, 0, 0]]]


class What(nn.Module):
    pools = ("avg",)

    def forward(self, pooled):
        return pooled


class Where(nn.Module):
    maps = ("mean",)

    def forward(self, maps):
        return maps


# s = avg, m = mean over C, each of what the arrangement says; X * s is 2.5, 5, 7.5, 10 and 0, 0, 0, 1
GATED = {
    "channel_first": ([[3.125, 12.5], [28.125, 55.0]], [[0, 0], [0, 5.5]]),
    # X * m is 0.5, 2, 4.5, 4 and 0, 0, 0, -2
    "spatial_first": ([[1.375, 5.5], [12.375, 11.0]], [[0, 0], [0, 1.0]]),
    "parallel": ([[1.25, 5.0], [11.25, 10.0]], [[0, 0], [0, 1.0]]),
}


@pytest.mark.parametrize("arrangement", sorted(GATED))
def test_arrangements(arrangement):
    found = gate(X, What(), Where(), arrangement=arrangement, backend="reference")
    torch.testing.assert_close(found, X.new_tensor([GATED[arrangement]]))


def test_norm_mixing_factor_and_shortcut():
    # z = 2 * X, s = 5 and -1: z * (1 - a + a * s) is 2 * X * 3 and 2 * X * 0 at a = 0.5
    norm = nn.BatchNorm2d(2, eps=0, dtype=torch.float64).eval()
    nn.init.constant_(norm.weight, 2)
    options = {"norm": norm, "mix": X.new_tensor(0.5), "factor": X.new_tensor([0.5]), "backend": "reference"}
    expected = torch.stack([3 * X[:, 0], 0 * X[:, 1]], 1)
    torch.testing.assert_close(gate(X, What(), **options), expected)
    torch.testing.assert_close(gate(X, What(), shortcut=-5 + 0 * X, **options), (expected - 5).relu())


class Seeing(nn.Module):
    """A channel gate of ones that keeps the features it was given."""

    pools = ("avg",)

    def __init__(self, in_float32):
        super().__init__()
        self.in_float32 = in_float32
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, pooled):
        self.seen = pooled
        return torch.ones_like(pooled)


@pytest.mark.parametrize("backend", ["reference", "lean"])
def test_features_asked_for_in_float32_are_not_rounded_before(backend):
    x = (30_000 + 16 * torch.arange(36.0).view(1, 1, 6, 6)).half()
    exact = x.double().mean((2, 3))
    what = Seeing(in_float32=True)
    gate(x, what, backend=backend)
    assert what.seen.dtype == torch.float32
    torch.testing.assert_close(what.seen.double(), exact, rtol=1e-6, atol=0)
    what = Seeing(in_float32=False)
    gate(x, what, backend=backend)
    assert torch.equal(what.seen, exact.half())


def test_auto_takes_the_first_fused_backend_whose_rule_fits(monkeypatch):
    def run(call, x, *rest):
        return x * 0

    def rule(call, *rest):
        return "" if call.arrangement == "parallel" else "only in parallel"

    monkeypatch.setattr(ops, "FUSED", {"mine": SimpleNamespace(run=run, why_unfit=rule), **ops.FUSED})
    x, what = torch.randn(1, 2, 3, 3), Seeing(in_float32=False)
    assert torch.equal(gate(x, what, arrangement="parallel"), x * 0)
    torch.testing.assert_close(gate(x, what), x)
