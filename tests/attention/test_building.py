"""Modules and networks that are built without memory get every value from the state dict."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

import whatwhere.timm  # noqa: F401  registers the networks
from whatwhere import ATTENTION, attend, create_model


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


@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_a_module_is_built_where_and_as_it_is_told(name):
    source = ATTENTION[name](16, dtype=torch.float64).eval()
    assert {value.dtype for value in source.state_dict().values() if value.is_floating_point()} == {torch.float64}
    skipped = nn.utils.skip_init(ATTENTION[name], 16, dtype=torch.float64)
    skipped.load_state_dict(source.state_dict())
    x = torch.randn(2, 16, 5, 7, dtype=torch.float64)
    assert torch.equal(skipped.eval()(x), source(x))
    on_meta = ATTENTION[name](16, start="identity", device="meta")
    assert all(value.is_meta for value in (*on_meta.parameters(), *on_meta.buffers()))


@pytest.mark.parametrize("how", ["to_empty", "assign"])
@pytest.mark.parametrize("start", ["paper", "identity"])
@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_attention_put_into_a_network_has_no_value_that_the_state_dict_lacks(name, start, how):
    def build():
        model = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)
        return attend(model, name, start=start, example=torch.randn(1, 3, 32, 32))

    source = build().eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    # attend runs a network, so it refuses one without values
    target = build().to("meta")
    target = target if how == "assign" else target.to_empty(device="cpu")
    target.load_state_dict(source.state_dict(), assign=how == "assign")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(target.eval()(x), source(x))


def registered(name):
    return timm.create_model(f"{name}_resnet18", num_classes=3)


def of_timms_own(name):
    return timm.create_model("resnet18", num_classes=3, block_args={"attn_layer": ATTENTION[name]})


@pytest.mark.parametrize("how", ["to_empty", "assign"])
@pytest.mark.parametrize("build", [registered, of_timms_own])
@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_a_network_of_timms_has_no_value_that_the_state_dict_lacks(name, build, how):
    source = build(name).eval()
    target = empty(lambda: build(name), how)
    target.load_state_dict(source.state_dict(), assign=how == "assign")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(target.eval()(x), source(x))
