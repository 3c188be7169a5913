"""Networks without residual blocks: attend says why it finds few places or none, and names patterns that work."""

import copy
import itertools
import re
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from small_networks import Block, Network
from whatwhere import UserError
from whatwhere.insert import attend, plan


def layer(before, after, size=3, stride=1):
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, size // 2), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


class Functional(nn.Module):
    """Norms are modules, activations and pools are functions."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv3, self.bn3 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(F.relu(self.bn3(self.conv3(x))).mean((2, 3)))


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(256, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc1, self.enc2, self.middle = layer(3, 8), layer(8, 16), layer(16, 32)
        self.up2, self.dec2 = nn.ConvTranspose2d(32, 16, 2, 2), layer(32, 16)
        self.up1, self.dec1 = nn.ConvTranspose2d(16, 8, 2, 2), layer(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        first = self.enc1(x)
        second = self.enc2(F.max_pool2d(first, 2))
        x = self.middle(F.max_pool2d(second, 2))
        x = self.dec2(torch.cat([self.up2(x), second], 1))
        return self.out(self.dec1(torch.cat([self.up1(x), first], 1)))


class DarkNet(nn.Module):
    """Its classifier is a 1x1 convolution, whose output is averaged."""

    def __init__(self):
        super().__init__()
        channels = (3, 8, 16, 32)
        self.layers = nn.ModuleList(layer(*pair) for pair in itertools.pairwise(channels))
        self.head = nn.Conv2d(32, 10, 1)

    def forward(self, x):
        for part in self.layers:
            x = F.max_pool2d(part(x), 2)
        return self.head(x).mean((2, 3))


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = F.relu(self.conv(x))
        return self.fc(x.mean((2, 3)))


def encoder_decoder():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU()),
        *(nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Sigmoid()),
    )


def generator():
    return nn.Sequential(
        *(nn.ConvTranspose2d(20, 16, 4, 1, 0), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()),
    )


def classifier(channels):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)


def three_layers():
    pool = nn.MaxPool2d(2)
    return nn.Sequential(*layer(3, 8), pool, *layer(8, 16), pool, *layer(16, 32), *classifier(32))


def vgg():
    return nn.Sequential(torchvision.models.vgg11(num_classes=1).features, *classifier(512))


def alexnet():
    return nn.Sequential(torchvision.models.alexnet(num_classes=1).features, *classifier(256))


def of_1x1():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))


# the network, the patterns that are suggested, how many places "stages" has
PLAIN = {
    "three layers": (three_layers, "1,5,9", 1),
    "functional": (Functional, "bn*", 1),
    "vgg": (vgg, "0.1,0.4,0.9,0.14,0.19", 4),
    "alexnet": (alexnet, "0.1,0.4,0.11", 2),
    "lenet": (LeNet, "conv*", 0),
    "unet": (UNet, "enc1.1,enc2.1,middle.1,dec2.1,dec1.1", 0),
    "darknet": (DarkNet, "layers.*.1", 2),
    "encoder and decoder": (encoder_decoder, "1,3,5", 0),
    "generator": (generator, "1,4", 0),
    "1x1": (of_1x1, "1,3", 0),
    "one convolution": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), "1", 0),
    "strided": (lambda: nn.Sequential(layer(3, 8), layer(8, 16, stride=2), layer(16, 32, stride=2)), "*.1", 1),
    "repeated": (Repeated, "stem", 0),
}


def suggested(message):
    """Where a message says that attention can be put: the number of places by the value of `at`."""
    return {at: int(count) for at, count in re.findall(r"at '([^']+)' \((\d+) places?\)", message)}


@pytest.mark.parametrize("name", PLAIN)
def test_the_refusal_of_a_plain_network_names_what_works(name, refused):
    build, pattern, num_stages = PLAIN[name]
    with refused() as caught:
        attend(build(), "cbam")
    found = suggested(str(caught.value))
    assert found.pop("stages", 0) == num_stages
    assert list(found) == [pattern]
    model = build().eval()
    planned = plan(model, "cbam", at=pattern)
    assert len(planned.places) == found[pattern]
    example = torch.randn(2, *_image(model).shape[1:], generator=torch.Generator().manual_seed(1))
    expected = model(example)
    attended = attend(copy.deepcopy(model), "cbam", at=pattern)
    assert torch.equal(attended(example), expected)
    assert sum(key.endswith(".mix") for key in attended.state_dict()) == found[pattern]


def test_the_guide_shows_the_refusal():
    guide = (Path(__file__).parents[2] / "docs" / "inserting-attention.md").read_text(encoding="utf-8")
    with pytest.raises(UserError) as caught:
        attend(three_layers(), "cbam")
    assert str(caught.value) in guide.replace(";\n", "; ")


def _image(model):
    from whatwhere.insert.flow import record_example

    return record_example(model).arguments[0]


@pytest.mark.parametrize("name", [name for name, (_, _, num_stages) in PLAIN.items() if not num_stages])
def test_no_stages_say_why(name, refused):
    with refused():
        plan(PLAIN[name][0](), "bam")


@pytest.mark.parametrize("name", [name for name, (_, _, num_stages) in PLAIN.items() if num_stages])
def test_few_stages_say_why_and_where_there_are_more(name):
    build, pattern, num_stages = PLAIN[name]
    planned = plan(build(), "bam")
    assert len(planned.places) == num_stages
    count = len(plan(build(), "bam", at=pattern).places)
    left_out = "the stem, the last stage and what a skip connection passes by"
    assert planned.note == f"'stages' leaves out {left_out}; at {pattern!r} there are {count} places"
    assert planned.note in repr(planned)
    assert planned.to_dict()["note"] == planned.note


def test_a_network_of_blocks_has_no_such_note():
    assert plan(torchvision.models.resnet18(), "bam").note == ""
    assert plan(torchvision.models.resnet18(), "cbam").note == ""


def test_few_stages_of_a_network_with_blocks_name_the_blocks():
    model = nn.Sequential(
        layer(3, 8), layer(8, 8, stride=2), *(Block(torch.add) for _ in range(3)), nn.MaxPool2d(2), layer(8, 8)
    )
    planned = plan(model, "bam")
    assert [place.label for place in planned.places] == ["4"]
    assert planned.note.endswith("; at 'blocks' there are 3 places")


def test_few_residual_blocks_among_other_layers():
    model = nn.Sequential(
        *layer(3, 8), Block(torch.add), layer(8, 16, stride=2), layer(16, 32, stride=2), *classifier(32)
    )
    planned = plan(model, "cbam")
    assert [place.label for place in planned.places] == ["3"]
    assert planned.note == ("'blocks' leaves out the layers outside residual blocks; at '3,4.1,5.1' there are 3 places")


def test_no_layer_can_take_attention(refused):
    with refused():
        plan(nn.Conv2d(3, 8, 3), "cbam")


def test_a_wrong_pattern_is_told_what_works(refused):
    with refused():
        plan(three_layers(), "cbam", at="features.*")
    with refused():
        plan(Network(Block(torch.add)), "cbam", at="bn*")
    with refused():
        plan(Repeated(), "cbam", at="conv")


def test_long_and_strange_names_are_not_suggested():
    named = nn.Sequential()
    for index in range(6):
        named.add_module(f"{'x' * 150}{index}[a,b]", nn.Conv2d(3, 3, 3, padding=1))
    with pytest.raises(UserError) as caught:
        attend(named, "cbam")
    assert suggested(str(caught.value)) == {}


def test_attention_that_is_there_already_is_no_place():
    model = attend(three_layers(), "cbam", at="1,9")
    with pytest.raises(UserError) as caught:
        attend(model, "cbam")
    assert suggested(str(caught.value)) == {"stages": 1}
    attend(model, "se", at="5")
    with pytest.raises(UserError) as caught:
        attend(model, "bam", at="1")
    assert "1 has attention already" in str(caught.value)
    assert len(plan(model, "bam").places) == 1


@st.composite
def plain_networks(draw):
    """Convolutions with and without norm, activation and pool, in Sequentials or not."""
    layers, channels = [], 3
    for _ in range(draw(st.integers(1, 5))):
        after = draw(st.sampled_from([4, 8]))
        part = [nn.Conv2d(channels, after, draw(st.sampled_from([1, 3])), draw(st.integers(1, 2)), padding=1)]
        part += [nn.BatchNorm2d(after)] if draw(st.booleans()) else []
        part += [nn.ReLU(inplace=draw(st.booleans()))] if draw(st.booleans()) else []
        part += [nn.MaxPool2d(2)] if draw(st.booleans()) else []
        layers += [nn.Sequential(*part)] if draw(st.booleans()) else part
        channels = after
    return nn.Sequential(*layers)


@settings(max_examples=40)
@given(plain_networks())
def test_whatever_is_suggested_works(model):
    for attention in ("se", "bam"):
        try:
            note = plan(model, attention).note
        except UserError as error:
            note = str(error)
        if isinstance(note, str):
            for at, count in suggested(note).items():
                attended = attend(copy.deepcopy(model), attention, at=at)
                assert sum(key.endswith("mix") for key in attended.state_dict()) == count
