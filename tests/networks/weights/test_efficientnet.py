"""Weights under the names of the package efficientnet_pytorch, in timm's networks for them."""

import itertools

import pytest
import timm
import torch
from torch.nn import functional

from named_networks import create_network
from published import trained
from whatwhere import create_model
from whatwhere.training.config import Config
from whatwhere.training.setup import build_model


def in_their_names(model):
    """The state dict of a network of timm as efficientnet_pytorch has it: its blocks counted through."""
    names = {
        model.conv_stem: "_conv_stem", model.bn1: "_bn0", model.conv_head: "_conv_head", model.bn2: "_bn1",
        model.classifier: "_fc",
    }  # fmt: skip
    for number, block in enumerate(itertools.chain.from_iterable(model.blocks)):
        expands = hasattr(block, "conv_pwl")
        layers = {
            "_depthwise_conv": block.conv_dw,
            "_bn1": block.bn2 if expands else block.bn1,
            **({} if lacks_se(block) else {"_se_reduce": block.se.conv_reduce, "_se_expand": block.se.conv_expand}),
            "_project_conv": block.conv_pwl if expands else block.conv_pw,
            "_bn2": block.bn3 if expands else block.bn2,
            **({"_expand_conv": block.conv_pw, "_bn0": block.bn1} if expands else {}),
        }
        names |= {layer: f"_blocks.{number}.{name}" for name, layer in layers.items()}
    state = {f"{name}.{key}": value for layer, name in names.items() for key, value in layer.state_dict().items()}
    assert len(state) == len(model.state_dict())
    return state


def lacks_se(block):
    return isinstance(block.se, torch.nn.Identity)


def logits(state, strides, x):
    """What their code computes, in evaluation: TensorFlow's padding, norms with an eps of 0.001, SiLU or ReLU6."""
    is_lite = "_blocks.0._se_reduce.weight" not in state
    activation = functional.relu6 if is_lite else functional.silu

    def convolved(x, name, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        sizes = x.shape[2:]
        lacking = [max(0, (-(-size // stride) - 1) * stride + weight.shape[-1] - size) for size in sizes]
        around = [part for size in reversed(lacking) for part in (size // 2, size - size // 2)]
        return functional.conv2d(
            functional.pad(x, around), weight, state.get(f"{name}.bias"), stride=stride, groups=groups
        )

    def normed(x, name):
        values = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *values, eps=1e-3)

    x = activation(normed(convolved(x, "_conv_stem", 2), "_bn0"))
    for number, stride in enumerate(strides):
        block, before = f"_blocks.{number}", x
        if f"{block}._expand_conv.weight" in state:
            x = activation(normed(convolved(x, f"{block}._expand_conv"), f"{block}._bn0"))
        x = activation(normed(convolved(x, f"{block}._depthwise_conv", stride, x.shape[1]), f"{block}._bn1"))
        if not is_lite:
            squeezed = activation(convolved(x.mean((2, 3), keepdim=True), f"{block}._se_reduce"))
            x = x * convolved(squeezed, f"{block}._se_expand").sigmoid()
        x = normed(convolved(x, f"{block}._project_conv"), f"{block}._bn2")
        if stride == 1 and x.shape == before.shape:
            x = x + before
    x = activation(normed(convolved(x, "_conv_head"), "_bn1")).mean((2, 3))
    return functional.linear(x, state["_fc.weight"], state["_fc.bias"])


STRIDES = {
    "tf_efficientnet_b0": (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1),
    "tf_efficientnet_b1": (1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1),
    "tf_efficientnet_lite0": (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1),
}


@pytest.mark.parametrize("prefix", ["", "module.", "model.net."])
@pytest.mark.parametrize("name", STRIDES)
def test_outputs_are_theirs(name, prefix, tmp_path):
    theirs = trained(timm.create_model(name, num_classes=7))
    state = in_their_names(theirs)
    torch.save({"state_dict": {f"{prefix}{key}": value for key, value in state.items()}}, tmp_path / "a.pth")
    model = create_network(f"timm:{name}", num_classes=7, pretrained=str(tmp_path / "a.pth"), seed=0).eval()
    loaded = model.state_dict()
    assert loaded.keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, loaded[key]) for key, value in theirs.state_dict().items())
    x = torch.randn(2, 3, 65, 50, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(model(x.float()), theirs(x.float()))
        doubles = {key: value.double() for key, value in state.items()}
        torch.testing.assert_close(model.double()(x), logits(doubles, STRIDES[name], x), rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "a.pth"
    torch.save(in_their_names(timm.create_model("tf_efficientnet_b0", num_classes=7)), path)
    return path


def test_a_run_starts_from_them_with_attention_and_classes_of_its_own(checkpoint):
    config = Config(
        data="images", model="timm:tf_efficientnet_b0", attention="cbam", pretrained=str(checkpoint), seed=0
    )
    model = build_model(config, num_classes=3)[0].eval()
    plain = create_network("timm:tf_efficientnet_b0", num_classes=7, pretrained=str(checkpoint)).eval()
    plain.classifier = model.classifier
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize(
    "name",
    [
        # the same shapes, with other padding and another eps
        "timm:efficientnet_b0",
        "torchvision:efficientnet_b0",
        "timm:tf_efficientnet_b1",
        # the same shapes, without SE
        "timm:tf_efficientnet_lite0",
    ],
)  # fmt: skip
def test_other_networks_refuse_them(name, checkpoint, refused):
    with refused():
        create_network(name, num_classes=7, pretrained=str(checkpoint))


def test_ours_refuse_them_too(checkpoint, refused):
    with refused():
        create_model("resnet18", pretrained=checkpoint)
