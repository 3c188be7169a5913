import pytest
import torch
from torch import nn

from whatwhere import CBAM, CoordinateAttention, SqueezeExcitation, create_model
from whatwhere.attention import attention_builder
from whatwhere.explain import Health, maps
from whatwhere.explain.gates import LayerGates
from whatwhere.explain.health import health_of as health_of_network


def health_of(model, *batches):
    health = Health()
    for batch in batches:
        health.add(maps(model, batch)[1])
    return health


def faults(model, *batches):
    return [(finding.layer, finding.gate, finding.fault) for finding in health_of(model, *batches).findings()]


def images(num=12, channels=16, seed=0):
    """Images that differ from each other in more than noise."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.rand(num, channels, 1, 1, generator=generator) * 4
    return torch.randn(num, channels, 6, 6, generator=generator) * strength + strength


def sound(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("build", [CBAM, SqueezeExcitation, CoordinateAttention])
def test_a_sound_gate_has_no_finding(build):
    assert faults(sound(build(16, reduction=2)), images()) == []


def test_each_planted_fault_is_found():
    saturated, constant, same = (sound(CBAM(16, reduction=2)) for _ in range(3))
    with torch.no_grad():
        saturated.what.fc2.bias.fill_(20)
        constant.where.norm.weight.zero_()
        constant.where.norm.bias.zero_()
        same.what.fc1.weight.zero_()
    found = health_of(saturated, images()).findings()
    assert [(one.gate, one.fault, one.figure) for one in found] == [("channel", "saturated", 1.0)]
    found = health_of(constant, images()).findings()
    assert [(one.gate, one.fault, one.figure) for one in found] == [("spatial", "constant", 0.5)]
    assert ("", "channel", "nearly the same for all images") in faults(same, images())


def test_a_mixing_that_never_left_0_is_all_that_is_said():
    model = create_model("cbam_resnext11_8x8d", num_classes=10, in_channels=1, attention_kwargs={"start": "identity"})
    batch = torch.randn(8, 1, 16, 16)
    assert faults(model, batch) == [(f"layer{stage}.0.attention", "", "off") for stage in (1, 2, 3)]
    with torch.no_grad():
        model.layer2[0].attention.mix.fill_(-0.5)
    assert ("layer2.0.attention", "", "off") not in faults(model, batch)


def test_a_placebo_is_the_same_for_all_images_by_design():
    placebo = sound(attention_builder("static:se")(16))
    placebo.train()(images())
    assert faults(placebo, images()) == []


def test_values_that_are_not_finite():
    module = sound(SqueezeExcitation(16))
    nn.init.constant_(module.what.fc2.bias, float("nan"))
    assert faults(module, images()) == [("", "channel", "not finite")]


def test_batches_of_any_size_come_to_the_same():
    module, batch = sound(CBAM(16, reduction=2)), images(24)
    whole, parts = health_of(module, batch), health_of(module, *batch.split((1, 10, 13)))
    for key, sums in whole._sums.items():
        other = parts._sums[key]
        gates = torch.cat([layer.gates[key[1]] for layer in maps(module, batch)[1]]).double()
        torch.testing.assert_close(sums.mean, gates.mean(0))
        torch.testing.assert_close(sums.squares / 24, gates.var(0, correction=0))
        torch.testing.assert_close(other.mean, sums.mean)
        torch.testing.assert_close(other.squares, sums.squares)
        assert (other.num_low, other.num_high, other.num_images) == (sums.num_low, sums.num_high, 24)


def test_the_share_of_the_variance_that_is_from_images():
    # values 0.2 and 0.4 for the images, plus 0 and 0.1 for the channels: variances 0.01 and 0.0025
    gate = torch.tensor([[0.2, 0.3], [0.4, 0.5]]).repeat(4, 1)[:, :, None, None]
    health = Health()
    health.add([LayerGates("a", "SE", {"channel": gate})])
    assert health._sums["a", "channel"].share_from_images() == pytest.approx(0.8)


def test_images_of_another_size():
    module = sound(CBAM(16, reduction=2))
    assert faults(module, images(), images()[:, :, :3, :4]) == []


def test_too_few_images_are_refused(refused):
    with refused():
        health_of(sound(CBAM(16, reduction=2)), images(7)).findings()


def test_the_sentences(as_in_snapshot):
    module = sound(CBAM(16, reduction=2))
    with torch.no_grad():
        module.what.fc2.bias.fill_(20)
        module.where.norm.weight.zero_()
    for finding in health_of(module, images()).findings():
        as_in_snapshot(finding.sentence)
    off = sound(CBAM(16, reduction=2, start="identity"))
    nn.init.zeros_(off.mix)
    (finding,) = health_of(off, images()).findings()
    as_in_snapshot(finding.sentence)


def test_what_is_off_may_be_broken_too():
    module = sound(CBAM(16, reduction=2, start="identity"))
    nn.init.zeros_(module.mix)
    nn.init.constant_(module.what.fc2.bias, float("nan"))
    # the maps of NaN are NaN
    assert faults(module, images()) == [("", "", "off"), ("", "channel", "not finite"), ("", "spatial", "not finite")]
    nn.init.constant_(module.mix, float("nan"))
    assert faults(module, images())[0] == ("", "", "not finite")


def test_nothing_is_no_sound_network(refused):
    with refused():
        Health().findings()


def test_an_empty_batch_adds_nothing():
    module = sound(CBAM(16, reduction=2))
    assert faults(module, images(), images(0)) == []


def test_of_a_network_over_its_first_images():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), sound(CBAM(16, reduction=2, start="identity")))
    nn.init.zeros_(model[1].mix)
    seen = []

    def batches():
        for seed in range(9):
            seen.append(seed)
            yield images(5, 3, seed)

    assert [(one.layer, one.fault) for one in health_of_network(model, batches(), 12)] == [("1", "off")]
    assert seen == [0, 1, 2]
    assert model.training
    assert health_of_network(model, [images(5, 3)], 12) is None
    assert health_of_network(model[:1], batches(), 12) is None


def test_a_gate_that_saw_few_images_has_no_finding():
    health = Health()
    gate = torch.full((8, 3, 1, 1), 0.5)
    health.add([LayerGates("a", "SE", {"channel": gate}), LayerGates("b", "SE", {"channel": gate[:4]})])
    assert [finding.layer for finding in health.findings()] == ["a"]
    # gates that nothing is known of are no fault
    health = Health()
    health.add([LayerGates("a", "GlobalContext")])
    assert health.findings() == []


def test_the_placebo_to_compare_with_is_named():
    model = sound(SqueezeExcitation(16, reduction=2))
    with torch.no_grad():  # a gate of its biases alone
        for name, parameter in model.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(1e-2)
            else:
                parameter.copy_(torch.linspace(-2, 2, len(parameter)))
    (finding,) = health_of(model, images()).findings()
    assert finding.fault == "nearly the same for all images"
    assert finding.sentence.endswith("compare it with its placebo, attention static:se")


def test_no_more_images_are_looked_at_than_asked():
    model, seen = sound(CBAM(16, reduction=2)), []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    health_of_network(model, images(40).split(16), 20)
    assert seen == [16, 4]
