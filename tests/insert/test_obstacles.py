"""Networks, attention and arguments that stand in the way of attend: what is refused, what is left alone."""

import copy
import weakref

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from small_networks import SUMS, Block, Network, images, same
from whatwhere import UserError, create_model
from whatwhere.insert import attend, detach, plan


class Returning(Block):
    """A block that returns its branch as well."""

    def forward(self, x):
        branch = self.norm(self.conv(x))
        return branch + x, branch


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 1), Returning(None)

    def forward(self, x):
        return self.block(self.stem(x))


def test_a_branch_that_is_returned_takes_none(refused):
    with refused():
        attend(Pairs(), "cbam")


def test_a_network_of_ours_that_has_attention_gets_no_second(refused):
    with refused():
        attend(create_model("cbam_resnet18"), "cbam")


def test_one_module_for_several_places_is_refused(refused):
    one = nn.Conv2d(8, 8, 1)
    model = Network(Block(torch.add), Block(torch.add))
    with refused():
        attend(model, lambda channels: one)
    with refused():
        attend(model, lambda channels: model.blocks[0].conv)


class Counting(Block):
    """A block that counts its calls in a buffer and keeps its norm in training."""

    def __init__(self):
        super().__init__(torch.add)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls = self.calls + 1
        self.norm.train()
        return super().forward(x)


def test_buffers_are_left_alone_by_plan_attend_and_refusals():
    model = Network(Counting(), Counting())
    before = copy.deepcopy(model.state_dict())
    plan(model, "cbam")
    with pytest.raises(UserError):
        attend(model, "cbam", at="nowhere")
    attend(model, "cbam")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_hosts_of_like_names_have_attention_each():
    class Alike(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a_b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            self.a = nn.ModuleDict({"b": nn.Conv2d(8, 8, 1)})

        def forward(self, x):
            x = self.stem(x)
            x = x + self.a["b"](x)
            x = x + self.a_b(x)
            return x.mean((2, 3))

    model = Alike()
    original = copy.deepcopy(model)
    attend(model, "se")
    assert sum("mix" in key for key in model.state_dict()) == 2
    assert same(detach(model), original)


def fails(channels):
    raise ValueError("not today")


@pytest.mark.parametrize(
    ("attention", "options"),
    [
        ("cbam", {"at": 5}),
        ("cbam,eca", {}),
        ("none", {}),
        ("cbam", {"attention_kwargs": "abc"}),
        (fails, {}),
        (lambda channels: nn.Conv2d(8, 8, 1, device="meta"), {}),
        (lambda channels: nn.ReLU(inplace=True), {}),
    ],
)
def test_wrong_arguments_are_a_sentence(attention, options, refused):
    with refused():
        attend(Network(Block(torch.add), Block(SUMS["scaled"])), attention, **options)
    with refused():
        detach(None)


def test_outputs_that_cannot_be_compared_are_no_obstacle():
    class Growing(Network):
        kept = ()

        def forward(self, x):
            self.kept = (*self.kept, super().forward(x))
            return self.kept, torch.eye(2).to_sparse()

    model = attend(Growing(Block(torch.add)), "se")
    assert hasattr(model.blocks[0], "attention")


def test_what_is_built_upon_attention_comes_off_first(refused):
    model = attend(Network(Block(torch.add)), "cbam")
    expected = model.eval()(images())
    nn.utils.parametrizations.weight_norm(model.blocks[0].norm, dim=None)
    torch.testing.assert_close(model(images()), expected)
    with refused():
        detach(model)
    nn.utils.parametrize.remove_parametrizations(model.blocks[0].norm, "weight")
    assert type(detach(model).blocks[0].norm) is nn.BatchNorm2d


def test_features_are_not_kept_while_a_network_is_followed():
    alive, most = weakref.WeakSet(), 0

    class Watched(Block):
        def forward(self, x):
            nonlocal most
            x = super().forward(x)
            alive.add(x)
            most = max(most, len(alive))
            return x

    model = Network(*(Watched(torch.add) for _ in range(20)))
    assert len(plan(model, "se", example=images(8)).places) == 20
    assert most <= 2


def test_a_module_that_hands_on_what_others_computed_hosts_no_attention():
    """A feature pyramid's extra block returns all features of the pyramid beside its own."""
    pyramid = torchvision.ops.FeaturePyramidNetwork([3, 3], 8, extra_blocks=LastLevelMaxPool()).eval()
    features = {"fine": images(16), "coarse": images(8)}
    before = pyramid(features)
    attend(pyramid, "se", at="layer_blocks.?", start="paper", example=(features,), seed=0)
    after = pyramid(features)
    for number, level in enumerate(features):
        gated = pyramid.layer_blocks[number][0].attention(before[level])
        assert not torch.equal(gated, before[level])
        torch.testing.assert_close(after[level], gated)
