"""Plain numpy versions of what the modules compute, written from the papers' formulas, for comparison."""

import numpy as np
import torch
from scipy.special import expit as sigmoid
from scipy.special import logsumexp

POOLS = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.max((2, 3)),
    "lp": lambda x: np.sqrt((x**2).sum((2, 3))),
    "lse": lambda x: logsumexp(x, axis=(2, 3)),
}
MAPS = {"max": lambda x: x.max(1), "mean": lambda x: x.mean(1)}


def mlp_gate(x, parameters, pools):
    """Channel gate (N, C) of CBAM's equation 2, for any pools; with one layer in place of the MLP, Ultralytics'."""
    logits = 0
    for pool in pools:
        if "fc.weight" in parameters:
            logits = logits + POOLS[pool](x) @ parameters["fc.weight"].T + parameters.get("fc.bias", 0)
            continue
        hidden = POOLS[pool](x) @ parameters["fc1.weight"].T + parameters.get("fc1.bias", 0)
        logits = logits + np.maximum(hidden, 0) @ parameters["fc2.weight"].T + parameters.get("fc2.bias", 0)
    return sigmoid(logits)


def spatial_gate(x, parameters, maps, training):
    """Spatial gate (N, H, W) of CBAM's equation 3, batch norm included if the parameters have one."""
    kernel = parameters["conv.weight"][0]
    size = kernel.shape[-1]
    stacked = np.stack([MAPS[name](x) for name in maps], 1)
    padded = np.pad(stacked, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
    height, width = x.shape[2:]
    logits = np.zeros((x.shape[0], height, width)) + parameters.get("conv.bias", 0)
    for i in range(height):
        for j in range(width):
            logits[:, i, j] += (padded[:, :, i : i + size, j : j + size] * kernel).sum((1, 2, 3))
    if "norm.weight" in parameters:
        mean, variance = parameters["norm.running_mean"], parameters["norm.running_var"]
        if training:
            mean, variance = logits.mean(), logits.var()
        logits = (logits - mean) / np.sqrt(variance + 1e-5)
        logits = logits * parameters["norm.weight"] + parameters["norm.bias"]
    return sigmoid(logits)


def gate(module, x):
    """What a module of the family (CBAM, SE, their halves) computes, in float64."""
    x = x.double().numpy()
    state = {key: value.double().numpy() for key, value in module.state_dict().items()}
    parts = {
        side: {key.split(".", 1)[1]: value for key, value in state.items() if key.startswith(f"{side}.")}
        for side in ("what", "where")
    }

    def channel(features):
        if module.what is None:
            return 1.0
        return mlp_gate(features, parts["what"], module.what.pools)[:, :, None, None]

    def spatial(features):
        if module.where is None:
            return 1.0
        return spatial_gate(features, parts["where"], module.where.maps, module.training)[:, None]

    if module.arrangement == "channel_first":
        s = channel(x)
        m = spatial(x * s)
    elif module.arrangement == "spatial_first":
        m = spatial(x)
        s = channel(x * m)
    else:
        s, m = channel(x), spatial(x)
    a = state.get("mix", 1.0)
    return x * (1 - a + a * s * m)


def with_random_values(module):
    """The module in float64 with random parameters and running statistics, those that start at zero included."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5 if name.endswith("running_var") else torch.randn(value.shape))
    return module.double()


def gradient_check(module, x):
    """Whether the gradients of x and of all parameters of a float64 module are those of finite differences."""
    names = [name for name, _ in module.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    values = [value.detach().clone().requires_grad_() for value in module.parameters()]
    return torch.autograd.gradcheck(run, (x.clone().requires_grad_(), *values))


def num_params(module):
    return sum(parameter.numel() for parameter in module.parameters())


def relative_error(values, truth):
    """How far `values` are from the float64 `truth`, by the norm of all entries."""
    values, truth = values.detach().double(), truth.detach()
    return float((values - truth).norm() / truth.norm().clamp_min(1e-30))


def assert_as_exact_as(found, eager, truth, eps, condition=0):
    """Each of `found` as near to the float64 `truth` as plain eager PyTorch in the same dtype, and a little.

    `condition` is |mean| / deviation where a mean is subtracted: so many times larger is a rounding of the mean there.
    """
    assert found.keys() == truth.keys()
    for name, exact in truth.items():
        # a few numbers are sums over everything, which cancel, and eager may come near by chance
        allowed = 2 * relative_error(eager[name], exact) + (8 + condition if exact.numel() > 8 else 1000) * eps
        assert found[name].isfinite().all(), name
        error = relative_error(found[name], exact)
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


def assert_same(found, expected, **tolerance):
    """Assert that two tables of tensors have the same names, and equal tensors within the tolerance."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda m, n=name: f"{n}: {m}", **tolerance)
