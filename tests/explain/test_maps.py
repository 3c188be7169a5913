import copy
import math

import pytest
import torch
from torch import nn

from whatwhere import CBAM, CoordinateAttention, SqueezeExcitation, attend, create_model
from whatwhere.attention import ATTENTION, Gate, IdentityStart, attention_builder
from whatwhere.explain import maps

SIZE = (3, 16, 5, 7)


def gates_of(module, x):
    (layer,) = maps(module, x)[1]
    return layer.gates


def spread(groups, channels):
    return groups.repeat_interleave(channels // groups.shape[1], 1)


# how the parts of a gate make up what x is multiplied by, where that is not their product
COMBINED = {
    "triplet": lambda gates: sum(gates.values()) / 3,
    "scse": lambda gates: sum(gates.values()),
    "ema": lambda gates: spread(gates["groups"], SIZE[1]),
}
SHAPES = {
    "cbam": {"channel": (3, 16, 1, 1), "spatial": (3, 1, 5, 7)},
    "coord": {"rows": (3, 16, 5, 1), "columns": (3, 16, 1, 7)},
    "triplet": {"rows": (3, 16, 5, 1), "columns": (3, 16, 1, 7), "spatial": (3, 1, 5, 7)},
    "ema": {"groups": (3, 16, 5, 7)},
    "simam": {"gates": (3, 16, 5, 7)},
}


@pytest.mark.parametrize("name", sorted(set(ATTENTION) - {"gc"}))
def test_the_gates_are_what_scales_the_features(name):
    module, x = attention_builder(name)(SIZE[1]).double().eval(), torch.randn(SIZE, dtype=torch.float64)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    gates = gates_of(module, x)
    if name in SHAPES:
        assert {part: tuple(gate.shape) for part, gate in gates.items()} == SHAPES[name]
    combined = COMBINED.get(name, lambda gates: math.prod(gates.values()))(gates)
    torch.testing.assert_close(module(x), x * combined, rtol=1e-5, atol=1e-6)


def test_gates_that_are_known():
    module = CBAM(4, reduction=2).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        # through both pools: sigmoid of twice the bias
        module.what.fc2.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 10.0]))
        module.where.norm.bias.fill_(0.25)
    gates = gates_of(module, torch.randn(2, 4, 3, 3))
    torch.testing.assert_close(
        gates["channel"][:, :, 0, 0], torch.tensor([0.0, 2.0, -2.0, 20.0]).sigmoid().repeat(2, 1)
    )
    torch.testing.assert_close(gates["spatial"], torch.full((2, 1, 3, 3), 0.25).sigmoid())


def test_in_a_block_whose_norm_and_sum_are_fused_with_it():
    model = create_model("cbam_resnext11_8x8d", num_classes=10, in_channels=1).eval()
    images, seen = torch.randn(2, 1, 16, 16), {}
    plain = copy.deepcopy(model)
    block = plain.layer2[0]
    # the attention alone, on what the norm before it gives
    block.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    plain(images)
    x = seen["x"]
    for layer in (block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2, nn.ReLU(), block.conv3, block.bn3):
        x = layer(x)
    _, found = maps(model, images)
    assert [layer.layer for layer in found] == [f"layer{stage}.0.attention" for stage in (1, 2, 3)]
    for name, gate in gates_of(block.attention, x).items():
        torch.testing.assert_close(found[1].gates[name], gate)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_network_is_left_as_it_was(compiled, fresh_compiler):
    model = create_model("cbam_resnext11_8x8d", num_classes=10, in_channels=1, attention_kwargs={"start": "identity"})
    model.layer1.eval()
    images = torch.randn(2, 1, 16, 16)
    model(images).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    ran = torch.compile(model, backend="eager") if compiled else model
    if compiled:
        with torch.no_grad():
            ran.eval()(images)
        model.train().layer1.eval()
    output, found = maps(ran, images)
    assert len(found) == 3
    assert all(layer.mix == 0 for layer in found)
    assert model.training
    assert not model.layer1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(map(torch.equal, gradients, [parameter.grad for parameter in model.parameters()]))
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(gate.requires_grad for layer in found for gate in layer.gates.values())
    with torch.no_grad():
        torch.testing.assert_close(output, model.eval()(images))


def test_a_module_that_is_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = CBAM(8)
            self.other = SqueezeExcitation(8)

        def forward(self, x):
            return self.attention(self.other(self.attention(x)))

    model, x = Twice(), torch.randn(2, 8, 5, 5)
    _, found = maps(model, x)
    assert [layer.layer for layer in found] == ["attention", "other", "attention (2)"]
    assert all(list(layer.gates) == ["channel", "spatial"] for layer in found[::2])
    for name, gate in gates_of(model.attention, x).items():
        torch.testing.assert_close(found[0].gates[name], gate)


def test_in_a_network_of_others():
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=5)
    attend(model, "cbam", start="identity")
    output, found = maps(model, torch.randn(2, 3, 64, 64))
    assert output.shape == (2, 5)
    assert [tuple(layer.gates["spatial"].shape[2:]) for layer in found] == [(16, 16), (8, 8), (4, 4), (2, 2)]


def test_of_what_is_not_ours_only_the_mixing_is_known():
    module = IdentityStart(nn.Conv2d(4, 4, 1))
    (layer,) = maps(module, torch.randn(1, 4, 3, 3))[1]
    assert (layer.kind, layer.gates, layer.mix) == ("Conv2d", {}, 0.0)
    (layer,) = maps(attention_builder("gc")(4), torch.randn(1, 4, 3, 3))[1]
    assert (layer.kind, layer.gates, layer.mix) == ("GlobalContext", {}, None)


def test_a_placebo_is_told():
    placebo = attention_builder("static:cbam")(8)
    (layer,) = maps(placebo, torch.randn(2, 8, 4, 4))[1]
    assert layer.is_placebo
    (layer,) = maps(CBAM(8), torch.randn(2, 8, 4, 4))[1]
    assert not layer.is_placebo


def test_a_network_without_attention_is_said(refused):
    with refused():
        maps(create_model("resnext11_8x8d"), torch.randn(2, 3, 16, 16))


def test_gates_that_two_modules_share_are_refused(refused):
    model = nn.Sequential(CBAM(8), CBAM(8))
    model[1].what = model[0].what
    with refused():
        maps(model, torch.randn(2, 8, 4, 4))
    assert not any(module._forward_hooks for module in model.modules())
    # one module in two places is two calls
    _, found = maps(nn.Sequential(model[0], model[0]), torch.randn(2, 8, 4, 4))
    assert [layer.layer for layer in found] == ["0", "0 (2)"]


def test_wrappers_are_refused(refused):
    with refused():
        maps(nn.DataParallel(CBAM(8)), torch.randn(2, 8, 4, 4))


def test_inside_an_identity_start_there_is_its_mixing():
    module = IdentityStart(nn.Sequential(CBAM(8), nn.ReLU()))
    (layer,) = maps(module, torch.randn(2, 8, 4, 4))[1]
    assert (layer.layer, layer.kind, layer.mix) == ("attention.0", "CBAM", 0.0)
    assert list(layer.gates) == ["channel", "spatial"]


def test_a_call_by_name_and_gates_of_a_user():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = CoordinateAttention(8)

        def forward(self, x):
            return self.attention(x=x)

    class Own(CoordinateAttention):
        def gates(self, x):
            return torch.full_like(x[:, :, :1, :1], 0.25)

    (layer,) = maps(Named(), torch.randn(2, 8, 4, 4))[1]
    assert list(layer.gates) == ["rows", "columns"]
    (layer,) = maps(Own(8), torch.randn(2, 8, 4, 4))[1]
    assert {name: gate.unique().tolist() for name, gate in layer.gates.items()} == {"gates": [0.25]}


def test_a_gate_that_is_one_for_all_images():
    class Same(nn.Module):
        pools = ("avg",)

        def forward(self, pooled):
            return torch.sigmoid(pooled.mean(0, keepdim=True))

    (layer,) = maps(Gate(8, Same()), torch.randn(3, 8, 4, 4))[1]
    assert layer.gates["channel"].shape == (3, 8, 1, 1)


def test_no_hook_stays_behind_a_network_that_fails():
    model = nn.Sequential(CBAM(8), nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        maps(model, torch.randn(2, 8, 4, 4))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arrangement", ["channel_first", "spatial_first", "parallel"])
def test_any_dtype_and_arrangement(dtype, arrangement):
    module, x = CBAM(8, arrangement=arrangement).to(dtype), torch.randn(2, 8, 4, 4, dtype=dtype)
    y, (layer,) = maps(module, x)
    assert {gate.dtype for gate in layer.gates.values()} == {torch.float32}
    torch.testing.assert_close(y.float(), x.float() * math.prod(layer.gates.values()), rtol=0.02, atol=0.02)
