"""Attention in networks of others: unchanged at first, learning everything, and taken out without a trace."""

import copy

import pytest
import torch

from strangers import NAMES, build
from whatwhere import UserError
from whatwhere.insert import attend, detach

FEW = ("torchvision:mobilenet_v3_small", "timm:resnet26", "timm:convnext_atto", "torchvision:shufflenet_v2_x0_5")
WITHOUT_BLOCKS = {
    *(f"torchvision:{name}" for name in ("densenet121", "vgg11_bn", "vgg11", "squeezenet1_1", "googlenet")),
    *(f"torchvision:{name}" for name in ("shufflenet_v2_x0_5", "alexnet")),
    *(f"timm:{name}" for name in ("densenet121", "vgg11_bn", "rexnet_100", "inception_v3", "vovnet39a")),
    "timm:selecsls42b",
}  # fmt: skip


def names(few):
    return [pytest.param(name, marks=() if name in few else pytest.mark.sweep) for name in NAMES]


def output(model, images):
    """What a network returns under fixed random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return model(images)


def state(model):
    return copy.deepcopy(model.state_dict())  # with its metadata, which some networks want back


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", names(FEW))
@pytest.mark.parametrize("attention", ["cbam", "se", "eca", "coord"])
def test_attention_in_a_stranger(name, attention):
    torch.manual_seed(0)
    model = build(name)
    size = 96 if "inception" in name or "selecsls" in name or "googlenet" in name else 64
    images = torch.randn(2, 3, size, size)
    at = "stages" if name in WITHOUT_BLOCKS else "blocks"
    if at == "stages":
        with pytest.raises(
            UserError, match=r"no residual block \(.*\) that can take attention.*put it at 'stages' \(\d place"
        ):
            attend(model, attention)
    original = copy.deepcopy(model)
    before = state(model)
    attend(model, attention, at=at, seed=0)
    # parameters keep their names and values
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    own = [key for key in after if key not in before]
    parameters = [parameter for key, parameter in model.named_parameters() if key in own]
    assert parameters

    unchanged(model, original, images)
    everything_learns(model, images, parameters)
    trained = state(model)
    other = attend(build(name), attention, at=at, seed=1)
    other.load_state_dict(trained)
    assert_same(output(other.eval(), images), output(model.eval(), images))
    detach(model)
    assert {key: type(module) for key, module in model.named_modules()} == {
        key: type(module) for key, module in original.named_modules()
    }
    assert all(map(no_trace, model.modules()))
    model.load_state_dict(before)
    for training in (True, False):
        assert_same(output(model.train(training), images), output(original.train(training), images))


def no_trace(module):
    inside = {"_attended", "_attention"} & set(vars(module))
    return not inside and not module._forward_hooks and not module._forward_pre_hooks


def assert_same(one, other):
    """Equal bit for bit, not-a-numbers too: some networks, at these sizes, overflow before they are trained."""
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def unchanged(model, original, images):
    """The identity start computes what the network computes, bit for bit, and updates the same statistics."""
    for dtype in (torch.float32, torch.bfloat16):
        for training in (False, True):
            ours, theirs = (copy.deepcopy(m).to(dtype).train(training) for m in (model, original))
            assert_same(output(ours, images.to(dtype)), output(theirs, images.to(dtype)))
            after = ours.state_dict()
            assert [key for key, value in theirs.state_dict().items() if not torch.equal(after[key], value)] == []


def everything_learns(model, images, parameters):
    """Every parameter of the attention gets a gradient by the third step."""
    # small: a step that saturates a gate says nothing of its parameters
    optimizer = torch.optim.SGD(model.parameters(), 0.005)
    learned = set()
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(images), torch.tensor([0, 1])).backward()
        learned |= {index for index, p in enumerate(parameters) if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
    assert learned == set(range(len(parameters)))
