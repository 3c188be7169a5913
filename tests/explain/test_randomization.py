import copy
import math

import pytest
import torch
from torch import nn

from whatwhere import CBAM, SimAM, create_model
from whatwhere.explain import check, maps
from whatwhere.explain.randomization import GRAD_CAM

pytest.importorskip("captum")


class Pattern(nn.Module):
    """A gate that follows a pattern that its weights hold; scores of classes by it."""

    def __init__(self, size=12):
        super().__init__()
        self.pattern = nn.Parameter(torch.linspace(-3, 3, size * size).view(1, 1, size, size))
        self.mix = nn.Conv2d(3, 4, 1)
        self.attention = SimAM(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.attention(self.mix(x * 0.01 + self.pattern)).mean((2, 3)))


def photos(num=6, size=12):
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_a_map_of_weights_falls_apart_and_one_of_the_image_stays():
    learned = check(Pattern(), photos(), steps=10)
    # the last layers first: the map does not see them
    assert [names[0] for names in learned.layers] == ["fc", "mix", ""]
    assert learned.likeness["attention gates"][0] == pytest.approx(1)
    assert learned.likeness["attention gates"][-1] < 0.3
    # it is of no image in particular
    assert learned.of_others["attention gates"] > 0.9
    assert "maps of different images are alike" in learned.remarks()["attention gates"]

    class OfImage(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.fc = SimAM(3), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.attention(x).mean((2, 3)))

    image = check(OfImage(), photos())
    assert image.likeness["attention gates"] == (pytest.approx(1),)
    assert image.of_others["attention gates"] < 0.3
    assert "with random weights it stays alike (1.00)" in image.remarks()["attention gates"]


def test_the_network_is_left_as_it_was():
    model = create_model("cbam_resnext11_8x8d", num_classes=5, seed=0)
    before = copy.deepcopy(model.state_dict())
    found = check(model, photos(4, 32), steps=4, draws=1)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    names = [name for step in found.layers for name in step]
    assert names[0] == "fc"
    assert names[-1] == "conv1"
    # every module with parameters, norms and gates that are fused with others too
    owners = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    assert set(names) == owners
    assert [len(step) for step in found.layers] == sorted((len(step) for step in found.layers), reverse=True)
    assert set(found.likeness) == {GRAD_CAM, *(f"layer{stage}.0.attention spatial" for stage in (1, 2, 3))}
    assert all(len(values) == 4 for values in found.likeness.values())
    assert all(0 <= value <= 1 for values in found.likeness.values() for value in values)
    # the first gate sees nothing of the layers that lose their weights first
    assert found.likeness["layer1.0.attention spatial"][0] == pytest.approx(1)
    assert found == check(model, photos(4, 32), steps=4, draws=1)


def test_networks_without_attention_and_without_classes(refused):
    plain = create_model("resnext11_8x8d", num_classes=5, seed=0)
    assert set(check(plain, photos(3, 32), steps=2, draws=1).likeness) == {GRAD_CAM}
    features = nn.Sequential(nn.Conv2d(3, 8, 3), CBAM(8))
    assert set(check(features, photos(3), draws=1).likeness) == {"1 spatial"}
    with refused():
        check(nn.Sequential(nn.Conv2d(3, 8, 3)), photos())
    with refused():
        check(plain, photos(1, 32))


def test_a_map_that_is_the_same_everywhere_has_no_likeness():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), CBAM(8))
    nn.init.zeros_(model[1].where.norm.weight)
    found = check(model, photos(3), draws=1)
    assert all(math.isnan(value) for value in found.likeness["1 spatial"])
    assert found.remarks() == {}


def test_norms_are_measured_again():
    """A network whose norms know other features would compute infinities, or nothing."""
    model = create_model("cbam_resnext11_8x8d", num_classes=5, seed=0).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.logspace(-6, 6, len(buffer)))
    found = check(model, photos(4, 32), steps=3, draws=2)
    # the maps of the network itself may be anything; those of the random ones are none that are constant
    assert all(values[-1] > 0 for values in found.likeness.values())
    assert all(gate.isfinite().all() for layer in maps(model, photos(4, 32))[1] for gate in layer.gates.values())
