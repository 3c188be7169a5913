"""Networks of torchvision and timm by name: built, loaded, trained, kept, compared."""

import dataclasses
import json

import msgspec
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from named_networks import create_network
from whatwhere import CBAM, create_model
from whatwhere.insert.norm import AttendedBatchNorm2d
from whatwhere.networks import NetworkSpec
from whatwhere.networks.factory import checked
from whatwhere.networks.libraries import full_name, published
from whatwhere.networks.weights.layouts import LAYOUTS
from whatwhere.networks.weights.translate import from_ours
from whatwhere.training.bundle import load_bundle, save_bundle

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("resnet18", "resnet18"),
        ("cbam_resnet18", "cbam_resnet18"),
        ("mobilenet_v3_small", "torchvision:mobilenet_v3_small"),
        ("torchvision:resnet18", "torchvision:resnet18"),
        ("resnet10t", "timm:resnet10t"),
        ("timm:resnet18", "timm:resnet18"),
    ],
)
def test_ours_come_first_then_torchvisions_then_timms(name, full):
    assert full_name(name) == full
    assert checked(NetworkSpec(name=name)).name == full


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenet_v3_smal", {}),
        ("timm:mobilenet_v3_small", {}),
        ("keras:resnet50", {}),
        ("mobilenet_v3_small", {"attention": "cbma"}),
        (
            "mobilenet_v3_small",
            {"width_factor": 2.0},
        ),
        ("mobilenet_v3_small", {"at": "blocks"}),
        ("resnet18", {"at": "blocks"}),
        ("cbam_resnet18", {"attention": "se"}),
    ],
)
def test_what_cannot_be_is_said_before_building(name, options, refused):
    with refused():
        checked(NetworkSpec(name=name, **options))


def test_options_that_a_library_does_not_take(refused):
    with refused():
        create_network("mobilenet_v3_small", drop_rate=0.1)
    assert create_network("timm:resnet10t", num_classes=3, drop_rate=0.25, seed=0).drop_rate == 0.25
    with refused():
        create_network("timm:vit_tiny_patch16_224", attention="cbam", num_classes=3, seed=0)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "timm:resnet10t"])
def test_layers_that_are_shared_start_equal_and_follow_from_the_seed(name):
    plain, attended, other = (
        create_network(name, num_classes=5, attention=attention, seed=seed).state_dict()
        for attention, seed in ((None, 1), ("cbam", 1), ("cbam", 2))
    )
    assert all(torch.equal(value, attended[key]) for key, value in plain.items())
    assert any(not torch.equal(value, other[key]) for key, value in plain.items())
    own = [key for key in attended if key not in plain and key.endswith("fc1.weight")]
    assert own
    assert not any(torch.equal(attended[key], other[key]) for key in own)


def test_from_scratch_it_starts_as_published_and_behind_weights_as_the_identity(tmp_path):
    scratch = create_network("timm:resnet10t", num_classes=5, attention="cbam", seed=0)
    assert not any(key.endswith("mix") for key in scratch.state_dict())
    trained = timm.create_model("resnet10t", num_classes=5)
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    model = create_network(
        "timm:resnet10t", num_classes=5, attention="cbam", pretrained=str(tmp_path / "weights.safetensors")
    )
    assert torch.equal(model.eval()(IMAGES), trained.eval()(IMAGES))
    # saved with its attention, it is loaded with it
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("mix"):
                parameter.fill_(0.5)
    for network, name in ((model, "identity"), (scratch, "paper")):
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
        again = create_network(
            "timm:resnet10t", num_classes=5, attention="cbam", pretrained=str(tmp_path / f"{name}.safetensors")
        )
        assert torch.equal(again.eval()(IMAGES), network.eval()(IMAGES))


def test_weights_of_a_network_with_attention_of_its_own_start_one_with_ours(tmp_path):
    # whose names are those of ours: 8 of its tensors are below `attention`
    source = create_network("timm:cspnext_tiny", num_classes=3, seed=1)
    assert any("attention." in key for key in source.state_dict())
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    model = create_network(
        "timm:cspnext_tiny", num_classes=3, attention="se", pretrained=str(tmp_path / "a.safetensors")
    )
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(x), source.eval()(x))


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:resnet10t"])
def test_a_classifier_of_another_number_of_classes_stays_fresh(name, tmp_path):
    library, _, own = name.partition(":")
    theirs = timm.create_model(own) if library == "timm" else torchvision.models.get_model(own, weights=None)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    model = create_network(name, num_classes=5, pretrained=str(tmp_path / "weights.safetensors"), seed=0)
    fresh = create_network(name, num_classes=5, seed=0)
    for key, value in model.state_dict().items():
        is_classifier = value.shape != theirs.state_dict()[key].shape
        assert torch.equal(value, (fresh if is_classifier else theirs).state_dict()[key])


def test_weights_of_another_network_are_refused_whole(tmp_path, refused):
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "weights.safetensors")
    with refused():
        create_network("timm:resnet10t", pretrained=str(tmp_path / "weights.safetensors"))


def test_weights_that_cannot_be_had(monkeypatch, refused):
    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("timm.create_model", refuse)
    with refused():
        published("timm:resnet10t")


def test_our_own_networks_take_it_elsewhere_too():
    model = create_network("resnext11_8x8d", num_classes=3, attention="se", at="layer3.0.bn3", seed=0)
    assert type(model.layer3[0].bn3) is AttendedBatchNorm2d
    plain = create_network("resnext11_8x8d", num_classes=3, seed=0).state_dict()
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.items())


@pytest.mark.parametrize("kwargs", [{"stride_in_1x1": True}, {"ceil_pool": True}])
def test_our_own_networks_with_attention_elsewhere_are_built_as_their_file_says(kwargs, tmp_path):
    source = create_model("resnet50", num_classes=3, seed=0, **kwargs)
    save_file(source.state_dict(), tmp_path / "a.safetensors", {"whatwhere": json.dumps({"model_kwargs": kwargs})})
    options = {"num_classes": 3, "pretrained": str(tmp_path / "a.safetensors"), "attention": "se", "at": "layer3.*.bn3"}
    assert torch.equal(create_network("resnet50", **options).eval()(IMAGES), source.eval()(IMAGES))


@pytest.mark.parametrize("layout", ["whatwhere", "timm"])
def test_and_with_the_attention_that_their_file_has(layout, tmp_path):
    kwargs = {"form": "timm"}  # the same shapes, the maps in another order
    source = create_model("cbam_resnext11_8x8d", num_classes=3, seed=0, attention_kwargs=kwargs)
    state = from_ours(source.state_dict(), LAYOUTS[layout], "cbam", kwargs)
    said = {"whatwhere": json.dumps({"attention": "cbam", "attention_kwargs": kwargs})} if layout == "whatwhere" else {}
    save_file(state, tmp_path / "a.safetensors", said)
    options = {"num_classes": 3, "pretrained": str(tmp_path / "a.safetensors"), "attention": "cbam", "at": "blocks"}
    model = create_network("resnext11_8x8d", **options)
    torch.testing.assert_close(model.eval()(IMAGES), source.eval()(IMAGES), rtol=1e-4, atol=1e-5)


SMALL = ("--image-size", 32, "--epochs", 1, "--batch-size", 16, "--workers", 0, "--device", "cpu")


def test_a_strangers_network_is_trained_kept_and_used(patterns, tmp_path, whatwhere_here):
    status, _, err = whatwhere_here(
        "train", patterns, "--backbone", "mobilenet_v3_small", "--attention", "cbam", *SMALL, "--out", "run"
    )
    assert status == 0, err
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["model"], config["attention"]) == ("torchvision:mobilenet_v3_small", "cbam")
    status, out, err = whatwhere_here("evaluate", "run", patterns, "--json")
    assert status == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    evaluated = json.loads(out)
    assert evaluated["images"]["accuracy"] == result["test"]["accuracy"]
    bundle = load_bundle(tmp_path / "run")
    assert sum(isinstance(module, CBAM) for module in bundle.model.modules()) == 6
    # the same command continues, by the short name or the full one
    again = ("train", patterns, "--model", "torchvision:mobilenet_v3_small", "--attention", "cbam", *SMALL)
    status, _, err = whatwhere_here(*again, "--out", "run", "--resume")
    assert status == 0, err


def test_strangers_are_compared(patterns, whatwhere_here):
    command = ("compare", patterns, "--backbone", "test_resnet", *SMALL)
    status, out, err = whatwhere_here(
        *command, "--attention", "none,eca,bam", "--seeds", 2, "--out", "compared", "--json"
    )
    assert status == 0, err
    content = json.loads(out)
    assert content["arms"] == {
        "none": "timm:test_resnet", "eca": "timm:test_resnet with eca", "bam": "timm:test_resnet with bam"
    }  # fmt: skip
    counts = {row["arm"]: row["num_params"] for row in content["cost"]["rows"]}
    assert counts["none"] < counts["eca"] < counts["bam"]
    status, _, err = whatwhere_here(*command, "--attention", "none,wide,se", "--out", "other")
    assert (status, err.count("\n")) == (2, 1)
    assert "a wide arm needs a network of whatwhere (`whatwhere models`), not timm:test_resnet" in err


def test_a_hostile_bundle_asks_for_no_giant(patterns, tmp_path, refused, whatwhere_here):
    status, _, err = whatwhere_here("train", patterns, "--backbone", "test_resnet", *SMALL, "--out", "run")
    assert status == 0, err
    path = tmp_path / "run" / "best" / "bundle.json"
    bundle = load_bundle(tmp_path / "run")
    giant = msgspec.structs.replace(bundle.spec, name="timm:eva02_enormous_patch14_clip_224")
    save_bundle(path.parent, dataclasses.replace(bundle, spec=giant))  # its weights say the same
    with refused():
        load_bundle(tmp_path / "run")
