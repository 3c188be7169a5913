"""Opacus finds the gradients of each image, as training with differential privacy needs them."""

import pytest
import torch

from client import wanted
from whatwhere import ATTENTION

opacus = wanted("opacus")

# without batch norm, which no such training allows, and with something to learn
OPTIONS = {name: {} for name in ("eca", "ela", "fca", "gc", "gct", "scse", "se")}
OPTIONS |= {"cbam": {"norm": None}, "ema": {"groups": 4}}


@pytest.mark.parametrize("start", ["paper", "identity"])
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_gradients_of_each_sample_are_those_of_each_image_alone(name, start):
    module = ATTENTION[name](8, start=start, **OPTIONS[name]).double().train()
    images = torch.randn(3, 8, 5, 7, dtype=torch.float64)
    parameters = list(module.parameters())
    expected = [torch.autograd.grad(module(image[None]).square().sum(), parameters) for image in images]
    opacus.GradSampleModule(module, loss_reduction="sum")(images).square().sum().backward()
    for parameter, *gradients in zip(parameters, *expected, strict=True):
        torch.testing.assert_close(parameter.grad_sample, torch.stack(gradients))
