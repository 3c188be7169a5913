import copy
import math

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from whatwhere import CBAM, SimAM, create_model
from whatwhere.explain import check
from whatwhere.explain.randomization import GRAD_CAM, _measure, _randomize

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
    assert learned.layers == (("fc",), ("mix",), ("",))
    assert learned.likeness["attention gates"][0] == pytest.approx(1)
    assert learned.likeness["attention gates"][-1] < 0.3
    # it is of no image in particular
    assert learned.of_others["attention gates"] > 0.9
    assert "much the same for different images" in learned.remarks()["attention gates"]

    class OfImage(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.fc = SimAM(3), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.attention(x).mean((2, 3)))

    image = check(OfImage(), photos())
    assert image.likeness["attention gates"] == (pytest.approx(1),)
    assert image.of_others["attention gates"] < 0.3
    assert "much the same with random weights (1.00)" in image.remarks()["attention gates"]


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
    # every module with parameters or statistics, norms and gates that are fused with others too
    owners = {
        name
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False)) or getattr(module, "running_mean", None) is not None
    }
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
    class Scaled(nn.Module):
        def __init__(self, affine):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, affine=affine)
            self.attention, self.fc = CBAM(8), nn.Linear(8, 2)

        def forward(self, x):
            seen.append(self.norm(self.conv(x)).detach())
            return self.fc(self.attention(seen[-1]).mean((2, 3)))

    for affine in (True, False):
        seen, model = [], Scaled(affine).eval()
        nn.init.constant_(model.norm.running_var, 1e-12)
        check(model, photos(4), steps=1, draws=1)
        # what the random network sees behind its norm, at the end: normalised over these images
        torch.testing.assert_close(seen[-1].mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
        torch.testing.assert_close(seen[-1].var((0, 2, 3)), torch.ones(8), atol=1e-2, rtol=0)


def test_nothing_that_was_learned_is_left():
    """Not the mean of a kernel either, which makes a blur of it, nor a scalar."""

    class Blur(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.fc = CBAM(4), nn.Linear(4, 2)
            nn.init.constant_(self.attention.where.conv.weight, 1.0)

        def forward(self, x):
            x = torch.cat([x, x[:, :1]], 1)
            return self.fc(self.attention(x).mean((2, 3)))

    images = torch.nn.functional.interpolate(photos(8, 6), (24, 24), mode="bilinear")
    found = check(Blur(), images, steps=1, draws=8)
    assert found.likeness["attention spatial"][0] < 0.5


def test_drawn_anew_with_the_size_of_before():
    module, generator = nn.Conv2d(64, 64, 3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        module.weight.normal_(3, 0.1)
        module.bias.zero_()
    _randomize(module, generator)
    assert abs(float(module.weight.detach().mean())) < 0.1
    assert float(module.weight.detach().std()) == pytest.approx(3, rel=0.02)
    assert not module.bias.any()
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    _randomize(norm, generator)
    assert (norm.weight.tolist(), norm.bias.tolist()) == ([1.0] * 4, [0.0] * 4)


def test_maps_of_few_places_say_nothing():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), CBAM(8))
    found = check(model, photos(4, 8), draws=1)
    assert all(math.isnan(value) for value in (*found.likeness["1 spatial"], found.of_others["1 spatial"]))
    assert found.remarks() == {}


def test_parameters_that_others_use_are_random_too():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.attention, self.tokens = nn.Conv2d(3, 8, 3), CBAM(8), nn.MultiheadAttention(8, 2)
            self.scales = nn.ParameterList([nn.Parameter(torch.ones(8))])

        def forward(self, x):
            x = self.attention(self.conv(x)).flatten(2).permute(2, 0, 1)
            return self.tokens(x, x, x)[0].mean(0) * self.scales[0]

    names = [name for step in check(Attending(), photos(3), draws=1).layers for name in step]
    assert {"tokens", "tokens.out_proj", "scales", "conv"} <= set(names)


def test_the_class_of_grad_cam_is_the_one_that_is_asked_for():
    model = create_model("cbam_resnext11_8x8d", num_classes=5, seed=0)
    first, second = (check(model, photos(4, 32), target, steps=2, draws=1) for target in (0, 3))
    assert first.likeness["layer1.0.attention spatial"] == second.likeness["layer1.0.attention spatial"]
    assert first.likeness[GRAD_CAM] != second.likeness[GRAD_CAM]
    assert check(torch.compile(model, backend="eager"), photos(4, 32), 0, steps=2, draws=1) == first


def test_a_network_that_fails_keeps_no_hook(refused):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.attention, self.calls = nn.Conv2d(3, 8, 3), CBAM(8), 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("once more")
            return self.attention(self.conv(x))

    model = Fails()
    with pytest.raises(RuntimeError, match="once more"):
        check(model, photos(4))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with refused():
        check(nn.Sequential(SimAM(3)), photos(4))


def test_a_layer_that_normalises_its_weights_is_no_norm():
    class NormedLinear(nn.Linear):
        pass

    layer, norm = NormedLinear(4, 3), nn.LayerNorm([2, 3])
    _randomize(layer, torch.Generator().manual_seed(0))
    assert layer.weight.unique().numel() == 12
    with torch.no_grad():
        norm.weight.fill_(3)
    _randomize(norm, torch.Generator().manual_seed(0))
    assert torch.equal(norm.weight, torch.ones(2, 3))


@pytest.mark.parametrize(
    "norm",
    [
        nn.GroupNorm(2, 8),
        nn.LayerNorm(8),
        nn.BatchNorm2d(8),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        FrozenBatchNorm2d(8),
    ],
)
def test_norms_are_reset_and_those_with_statistics_measured(norm):
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-3, 3, 8))
        norm.bias.copy_(torch.linspace(1, 2, 8))
    _randomize(norm, torch.Generator().manual_seed(0))
    assert torch.equal(norm.weight, torch.ones(8))
    assert torch.equal(norm.bias, torch.zeros(8))
    if getattr(norm, "running_mean", None) is None:
        return
    images = 5 + 3 * torch.randn(16, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    norm.running_mean.fill_(100)
    _measure(nn.Sequential(norm), [norm], images)
    found = norm(images)
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std((0, 2, 3), correction=0), torch.ones(8), atol=1e-3, rtol=0)
    assert not norm._forward_pre_hooks
