"""Modules and networks that are built without memory get every value from the state dict."""

import pytest
import torch
from torch import nn

from whatwhere import ATTENTION, create_model


def empty(build, how):
    with torch.device("meta"):
        built = build()
    return built if how == "assign" else built.to_empty(device="cpu")


@pytest.mark.parametrize("how", ["to_empty", "assign"])
@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_a_module_has_no_value_that_the_state_dict_lacks(name, how):
    source = ATTENTION[name](16).eval()
    target = empty(lambda: ATTENTION[name](16), how)
    target.load_state_dict(source.state_dict(), assign=how == "assign")
    x = torch.randn(2, 16, 5, 7)
    assert torch.equal(target.eval()(x), source(x))


@pytest.mark.parametrize("how", ["to_empty", "assign"])
@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_a_network_has_no_value_that_the_state_dict_lacks(name, how):
    source = create_model(f"{name}_resnet18", num_classes=3).eval()
    target = empty(lambda: create_model(f"{name}_resnet18", num_classes=3), how)
    target.load_state_dict(source.state_dict(), assign=how == "assign")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(target.eval()(x), source(x))


@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_a_network_whose_parameters_alone_are_on_meta_gets_them_from_the_state_dict(name, monkeypatch):
    # as programs do that place a large network's weights themselves: the buffers are real from the beginning
    source = create_model(f"{name}_resnet18", num_classes=3).eval()
    register = nn.Module.register_parameter

    def without_memory(module, key, parameter):
        on_meta = None if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, key, on_meta)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "register_parameter", without_memory)
        target = create_model(f"{name}_resnet18", num_classes=3)
    assert all(parameter.is_meta for parameter in target.parameters())
    target.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(target.eval()(x), source(x))
