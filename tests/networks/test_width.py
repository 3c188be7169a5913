import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whatwhere import create_model, list_models
from whatwhere.models.resnet import RESNETS
from whatwhere.networks.width import width_factor_for


def num_params(name, **options):
    with torch.device("meta"):
        model = create_model(name, seed=0, **options)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "factor", "widths"),
    [
        ("resnet18", 1.5, (96, 192, 384, 768)),
        ("resnet18", 1.05, (67, 134, 269, 538)),  # 67.2, 134.4, 268.8, 537.6
        ("resnet50", 0.5, (32, 64, 128, 256)),
        ("wide_resnet18_2", 0.5, (64, 128, 256, 512)),
        ("cbam_resnext11_8x8d", 2, (64, 128, 256)),
        ("resnet18", 1e-9, (1, 1, 1, 1)),
    ],
)
def test_the_stages_are_so_many_times_as_wide_and_the_stem_as_it_was(name, factor, widths):
    with torch.device("meta"):
        model, usual = (create_model(name, num_classes=3, seed=0, width_factor=f) for f in (factor, 1))
    expansion = RESNETS[name.removeprefix("cbam_")]["block"].expansion
    assert model.stage_channels == tuple(planes * expansion for planes in widths)
    assert model.conv1.weight.shape == usual.conv1.weight.shape


def test_one_and_a_half_times_resnet18_is_the_widened_one_of_the_paper():
    one = create_model("resnet18", num_classes=3, seed=0, width_factor=1.5).state_dict()
    other = create_model("wide_resnet18_1_5", num_classes=3, seed=0).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("name", ["resnet18", "cbam_article_resnext50"])
def test_once_is_the_network_itself(name):
    assert num_params(name, num_classes=3, width_factor=1.0) == num_params(name, num_classes=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"width_factor": 0}),
        ("resnet18", {"width_factor": float("nan")}),
        ("resnet18", {"width_factor": float("inf")}),
        ("resnet18", {"width_factor": 16.1}),
        ("resnet18", {"width_factor": True}),
        ("resnet18", {"width_factor": "2"}),
        ("resnet18", {"width_factor": 2, "widths": (8, 8, 8, 8)}),
        ("resnet18", {"width_factor": 2, "pretrained": True}),
        ("resnet18", {"width_factor": 2, "pretrained": "w.pth"}),
        ("article_resnext50", {"width_factor": 2}),
        ("article_resnext50", {"attention": "se"}),
        ("cbam_article_resnext50", {"attention": "se"}),
        ("resnext50_32x4d", {"width_factor": 0.2}),
    ],
)
def test_an_impossible_width_is_one_sentence(name, options, refused):
    with refused():
        create_model(name, **options)


# Half of what the smallest step of the width adds at the least: 32 channels more in the groups of resnext50's last
# stage are 1.8 % of its parameters with 10 classes, so that no width may come nearer than 0.9 %; the others grow more
# finely. Rounding to 4 decimals costs less than these steps.
@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnet18", "resnext11_8x8d"])
@pytest.mark.parametrize("attention", ["cbam", "se"])
@pytest.mark.parametrize("num_classes", [10, 1000])
def test_a_plain_network_gets_as_many_parameters_as_one_with_attention(name, attention, num_classes):
    wanted = num_params(f"{attention}_{name}", num_classes=num_classes)
    factor = width_factor_for(name, wanted, num_classes=num_classes)
    assert factor == round(factor, 4)
    distance = abs(num_params(name, num_classes=num_classes, width_factor=factor) - wanted)
    assert distance < 0.01 * wanted
    for other in (factor - 1e-4, factor + 1e-4):
        assert distance <= abs(num_params(name, num_classes=num_classes, width_factor=other) - wanted)


@pytest.mark.parametrize("name", [name for name in list_models("res*") if name != "resnet152"])
def test_more_width_is_never_fewer_parameters(name):
    """What the search relies on, over steps finer than any stage's."""
    counts = [num_params(name, num_classes=10, width_factor=1 + step / 100) for step in range(21)]
    assert counts == sorted(counts)


@settings(deadline=None, max_examples=15)
@given(st.integers(10_100, 40_000))
def test_the_factor_comes_back(step):
    wanted = num_params("resnext11_8x8d", num_classes=10, width_factor=step / 10_000)
    found = width_factor_for("resnext11_8x8d", wanted, num_classes=10)
    assert num_params("resnext11_8x8d", num_classes=10, width_factor=found) == wanted
    assert found <= step / 10_000


def test_its_own_number_of_parameters_is_once_its_width():
    assert width_factor_for("resnet18", num_params("resnet18")) == 1.0


def test_of_two_equally_near_the_smaller():
    usual, wider = 330_666, num_params("resnext11_8x8d", num_classes=10, width_factor=1.0)
    assert usual == wider
    # the next width has one plane more in the last stage
    step = next(step for step in range(1, 1000) if _count(step) > usual)
    assert (_count(step) - usual) % 2 == 0
    middle = (_count(step) + usual) // 2
    assert width_factor_for("resnext11_8x8d", middle, num_classes=10) == 1 + (step - 1) / 10_000
    assert width_factor_for("resnext11_8x8d", middle + 1, num_classes=10) == 1 + step / 10_000


def _count(step):
    return num_params("resnext11_8x8d", num_classes=10, width_factor=1 + step / 10_000)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("resnet18", 11_689_511),
        ("resnext11_8x8d", 2**30),
        ("resnet18", 0),
        ("resnet18", 12e6),
        ("resnet_18", 12_000_000),
        ("article_resnext50", 50_000_000),
    ],
)
def test_what_no_width_reaches_is_one_sentence(name, wanted, refused):
    with refused():
        width_factor_for(name, wanted)
