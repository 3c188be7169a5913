import pytest

from whatwhere import create_model
from whatwhere.comparison.arms import (
    Arm,
    build,
    describe,
    num_params,
    parse_arms,
    run_options,
    starting_as_identity,
    timed_as,
)
from whatwhere.networks.width import width_factor_for


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_arms_are_parsed():
    assert parse_arms("none, se,cbam") == (Arm("none", "none"), Arm("se", "se"), Arm("cbam", "cbam"))
    assert parse_arms("none,again=none,wide,wide:se,pkg.mod:MyGate,b=pkg.mod:MyGate") == (
        Arm("none", "none"),
        Arm("again", "none"),
        Arm("wide", "wide"),
        Arm("wide-se", "wide:se"),
        Arm("MyGate", "pkg.mod:MyGate"),
        Arm("b", "pkg.mod:MyGate"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none,,se",
        "none,a=",
        "none,NONE",
        "none,../x=se",
        "none,.hidden=se",
        "none," + "a" * 65 + "=se",
    ],
)
def test_impossible_arms_are_refused(text, refused):
    with refused():
        parse_arms(text)


def test_each_arm_is_a_network_of_the_backbone():
    options = run_options(parse_arms("none,se,x=cbam,mine=torch.nn:Identity"), "resnet18", 10)
    assert options == {
        "none": {"model": "resnet18"},
        "se": {"model": "se_resnet18"},
        "x": {"model": "cbam_resnet18"},
        "mine": {"model": "resnet18", "attention": "torch.nn:Identity"},
    }
    assert describe(options["mine"]) == "resnet18 with torch.nn:Identity"


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("cbam", "cbam-identity=cbam{start:identity}"),
        ("static:cbam", ""),
        ("small=cbam{reduction:8}", "small-identity=cbam{reduction:8,start:identity}"),
        ("cbam{start:paper}", ""),
        ("gct", ""),  # its gates are 1 at the start
        ("wide", ""),
        ("short", ""),
        ("torch.nn:Identity", ""),
    ],
)
def test_the_same_attention_that_starts_as_the_identity(text, other):
    _, arm = parse_arms(f"none,{text}")
    found = starting_as_identity(arm)
    assert (f"{found.name}={found.spec}" if found else "") == other
    if other:
        _, again = parse_arms(f"none,{other}")
        assert (again, again.attention, starting_as_identity(again)) == (found, arm.attention, None)
        assert again.attention_kwargs == {**arm.attention_kwargs, "start": "identity"}


@pytest.mark.parametrize("backbone", ["resnext11_8x8d", "resnet18", "resnext29_32x4d"])
def test_a_wide_arm_has_as_many_parameters_as_attention(backbone):
    options = run_options(parse_arms("none,se,cbam,wide,wide:se"), backbone, 10)
    for wide, other in (("wide", "cbam"), ("wide-se", "se")):
        target = count(create_model(f"{other}_{backbone}", num_classes=10, seed=0))
        assert num_params(options[wide], 10) == pytest.approx(target, rel=0.01)
        assert num_params(options[other], 10) == target
    assert "times as wide" in describe(options["wide"])


def test_a_short_arm_trains_the_backbone_for_fewer_epochs():
    arms = parse_arms("none,short,short:0.75,quick=short:0.01")
    options = run_options(arms, "resnet8", 10, epochs=30)
    assert options == {
        "none": {"model": "resnet8"},
        "short": {"model": "resnet8", "epochs": 15},
        "short-0.75": {"model": "resnet8", "epochs": 22},
        "quick": {"model": "resnet8", "epochs": 1},
    }
    assert describe(options["short"]) == "resnet8, 15 epochs"
    assert not any(arm.takes_arguments or arm.is_code or arm.is_wide for arm in arms)


def test_the_width_of_a_timed_arm_is_given_once_it_is_measured():
    arms = parse_arms("none,se,cbam,wide:time,wide:time:se,wide")
    options = run_options(arms, "resnet8", 10)
    assert list(options) == ["none", "se", "cbam", "wide"]
    options = run_options(arms[:5], "resnet8", 10, widths={"wide-time": 1.25}, at="stages")
    assert options["wide-time"] == {"model": "resnet8", "at": "", "width_factor": 1.25}
    assert "wide-time-se" not in options
    assert timed_as(arms[3], arms) == ["se", "cbam"]
    assert timed_as(arms[4], arms) == ["se"]


def test_a_placebo_starts_as_its_attention_does():
    options = run_options(parse_arms("none,cbam,static:cbam"), "resnet8", 10)
    assert options["static-cbam"] == {"model": "resnet8", "attention": "static:cbam"}
    attentive, placebo = (build(options[arm], 10, seed=3) for arm in ("cbam", "static-cbam"))
    theirs, own = dict(attentive.named_parameters()), dict(placebo.named_parameters())
    assert theirs.keys() == own.keys()
    assert all(theirs[name].equal(value) for name, value in own.items())


@pytest.mark.parametrize("at", ["stages", "layer2.*.bn2"])
def test_attention_at_another_place_is_counted(at):
    options = run_options(parse_arms("none,se{reduction:1},wide"), "resnext11_8x8d", 10, at=at)
    shared = {"at": at}  # of all runs; arms without attention leave it out
    target = count(build({**shared, **options["se"]}, 10, seed=0))
    assert num_params({**shared, **options["se"]}, 10) == target
    assert num_params({**shared, **options["none"]}, 10) == count(create_model("resnext11_8x8d", num_classes=10))
    assert options["wide"]["width_factor"] == width_factor_for("resnext11_8x8d", target, num_classes=10)


def test_a_wide_arm_of_as_many_channels_as_the_backbone_is_refused(refused):
    """SE between the stages adds 211 parameters; one channel more would add thousands."""
    with refused():
        run_options(parse_arms("none,se,wide"), "resnet8", 10, at="stages")


@pytest.mark.parametrize(
    ("arms", "backbone"),
    [
        ("none,se", "resnet_18"),
        ("none,se", "cbam_resnet18"),
        ("none,cabm", "resnet18"),
        ("none,wide:se", "resnet18"),
        ("wide", "resnet18"),
        ("none,wide:none", "resnet18"),
        ("none,se", "article_resnext50"),
        ("none,short:2", "resnet8"),
        ("none,short:half", "resnet8"),
        ("none,short:0.99", "resnet8"),
        ("none,static:wide", "resnet8"),
        ("none,wide:time", "resnet8"),
        ("none,se,wide:time:cbam", "resnet8"),
    ],
)
def test_what_cannot_be_compared_is_refused(arms, backbone, refused):
    with refused():
        run_options(parse_arms(arms), backbone, 10, epochs=30)


def test_shared_layers_of_arms_start_equal():
    options = run_options(parse_arms("none,cbam"), "resnext11_8x8d", 10)
    plain, attentive = (build(options[arm], 10, seed=3).state_dict() for arm in ("none", "cbam"))
    assert all(attentive[name].equal(value) for name, value in plain.items())
    assert len(attentive) > len(plain)
