"""Weights files that describe their network: each path back computes the same, or is refused or warned of."""

import json
import warnings

import msgspec
import pytest
import torch
from msgspec.structs import replace

from whatwhere import create_model
from whatwhere.data.preprocess import preprocessing_for
from whatwhere.networks import NetworkSpec, convert_weights, create, describe_weights
from whatwhere.networks.factory import read_pretrained, settled
from whatwhere.networks.weights.files import tensors_to_bytes
from whatwhere.networks.weights.translate import METADATA_KEY, described, is_affordable
from whatwhere.training.bundle import Bundle, load_bundle, save_bundle

OPTIONS = {"reduction": 8, "form": "timm"}


def described_file(tmp_path, spec, seed=0):
    """Return a network and the file of its weights that a training writes."""
    model = create(spec, seed=seed).eval()
    path = tmp_path / "a.safetensors"
    said = msgspec.json.encode({"network": spec}).decode()
    path.write_bytes(tensors_to_bytes(model.state_dict(), {METADATA_KEY: said}))
    return model, path


def outputs(model, size=64):
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 2 * 3 * size * size).reshape(2, 3, size, size))


@pytest.mark.parametrize(
    ("spec", "call"),
    [
        (
            NetworkSpec(name="resnet8", attention="cbam", attention_kwargs=OPTIONS),
            "create_model('resnet8', num_classes=1000, attention='cbam', "
            "attention_kwargs={'reduction': 8, 'form': 'timm'})",
        ),
        (
            NetworkSpec(name="resnet8", attention="bam", width_factor=2.0),
            "create_model('resnet8', num_classes=1000, attention='bam', width_factor=2.0)",
        ),
        (
            NetworkSpec(name="resnet8", attention="cbam", at="blocks", start="identity"),
            "create_model('cbam_resnet8', num_classes=1000, attention_kwargs={'start': 'identity'})",
        ),
    ],
)  # fmt: skip
def test_a_file_names_the_network_that_it_was_saved_from(spec, call, tmp_path):
    model, path = described_file(tmp_path, spec)
    found = describe_weights(path)
    assert (found.network.call(), found.fit.groups) == (call, [])
    again = eval(call, {"create_model": create_model})
    again.load_state_dict(model.state_dict())
    assert torch.equal(outputs(again), outputs(model))
    # and the same through a conversion
    convert_weights(path, tmp_path / "b.safetensors")
    assert describe_weights(tmp_path / "b.safetensors").network == found.network


@pytest.mark.parametrize("at", ["stages", "layer1.0.bn1"])
def test_attention_that_no_name_builds_is_not_given_a_name(at, tmp_path):
    _, path = described_file(tmp_path, NetworkSpec(name="resnet8", attention="cbam", at=at))
    assert (describe_weights(path).networks, describe_weights(path).network) == ([], None)


def test_attention_by_import_path_is_described_without_being_imported(tmp_path):
    _, path = described_file(tmp_path, NetworkSpec(name="cbam_resnet8"))
    state = create_model("cbam_resnet8", seed=0).state_dict()
    said = json.dumps({"network": {"name": "resnet8", "attention": "no_such_module:Gate"}})
    path.write_bytes(tensors_to_bytes(state, {METADATA_KEY: said}))
    assert describe_weights(path).network is None or describe_weights(path).network.attention != "no_such_module:Gate"


def test_settings_that_come_with_published_weights_stay_after_a_training(tmp_path):
    spec = NetworkSpec(name="torchvision:inception_v3", num_classes=2, as_published=True)
    model, path = described_file(tmp_path, spec)
    assert model.transform_input
    bare = replace(spec, as_published=False)
    assert settled(bare, read_pretrained(bare, path)) == spec
    assert torch.equal(outputs(create(bare, pretrained=path), 96), outputs(model, 96))


@pytest.mark.parametrize("start", ["", "identity"])
def test_attention_instead_of_squeeze_and_excitation_comes_back(start, tmp_path):
    spec = NetworkSpec(name="timm:seresnet18", attention="cbam", replace="se", start=start, num_classes=2)
    model, path = described_file(tmp_path, spec)
    bare = replace(spec, start="")
    assert settled(bare, read_pretrained(bare, path)) == spec
    assert torch.equal(outputs(create(bare, pretrained=path, seed=1)), outputs(model))


def test_dropout_of_a_training_is_not_taken_from_its_weights(tmp_path):
    kwargs = {"drop_rate": 0.2, "drop_path_rate": 0.1, "ceil_pool": True}
    _, path = described_file(tmp_path, NetworkSpec(name="resnet18", model_kwargs=kwargs))
    spec = NetworkSpec(name="resnet18")
    assert settled(spec, read_pretrained(spec, path)).model_kwargs == {"ceil_pool": True}


@pytest.mark.parametrize(("saved", "asked"), [("timm:resnetaa50", "resnet50"), ("timm:resnet50", "timm:resnetaa50")])
def test_weights_of_another_network_with_the_same_shapes_are_warned_of(saved, asked, tmp_path):
    _, path = described_file(tmp_path, NetworkSpec(name=saved, num_classes=2))
    with pytest.warns(UserWarning, match=f"were saved from {saved}, which may compute something else than {asked}"):
        read_pretrained(NetworkSpec(name=asked, num_classes=2), path)


@pytest.mark.parametrize("asked", ["resnet18", "cbam_resnet18", "timm:resnet18", "torchvision:resnet18"])
def test_the_same_network_of_another_library_is_not(asked, tmp_path):
    _, path = described_file(tmp_path, NetworkSpec(name="torchvision:resnet18", num_classes=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_pretrained(NetworkSpec(name=asked, num_classes=2), path)


def test_attention_that_64_channels_are_too_few_for_is_kept_and_used(tmp_path):
    spec = NetworkSpec(name="ela_resnet50", attention_kwargs={"group_channels": 128}, num_classes=2)
    model = create(spec, seed=0).eval()
    save_bundle(tmp_path, Bundle(model, spec, ("a", "b"), preprocessing_for(64), {}))
    assert torch.equal(outputs(load_bundle(tmp_path).model), outputs(model))
    (path,) = tmp_path.glob("*.safetensors")
    assert settled(replace(spec, attention_kwargs={}), read_pretrained(spec, path)) == spec
    assert not is_affordable(model.state_dict(), "ela", {"group_channels": 50_000})


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"num_classes": 3}, "names 2 classes, and its network has 3"),
        ({"in_channels": 1}, "takes images of 1 channel"),
    ],
)
def test_a_bundle_that_contradicts_itself_is_damaged(wrong, sentence, tmp_path, refused):
    spec = NetworkSpec(name="resnet8", num_classes=2)
    save_bundle(tmp_path, Bundle(create(spec, seed=0).eval(), spec, ("a", "b"), preprocessing_for(32), {}))
    content = json.loads((tmp_path / "bundle.json").read_text())
    content["network"] |= wrong
    (tmp_path / "bundle.json").write_text(json.dumps(content))
    with refused():
        load_bundle(tmp_path)


def test_an_option_that_is_false_is_not_dropped_for_networks_of_libraries():
    spec = NetworkSpec(name="timm:resnet18", num_classes=2)
    zero = create(replace(spec, model_kwargs={"zero_init_last": False}), seed=0)
    assert zero.layer1[0].bn2.weight.all()
    assert not create(spec, seed=0).layer1[0].bn2.weight.any()


@pytest.mark.parametrize(
    "description",
    [
        "[" * 100_000,
        '{"network": ' + '{"a": ' * 5_000,
        '{"network": {"name": "resnet18", "attention": "bam", "attention_kwargs": {"num_convs": 60000}}}',
        '{"network": {"name": "resnet18", "attention": "cbam", "attention_kwargs": {"kernel_size": 65535}}}',
        '{"network": {"name": "resnet18", "attention": "se", "attention_kwargs": {"reduction": 1e-4}}}',
        '{"network": {"name": "resnet18", "width_factor": 1e9}}',
        '{"model": 3}',
        "null",
        "3",
    ],
)
def test_a_description_that_cannot_be_true_is_ignored(description):
    assert described(create_model("cbam_resnet18", seed=0).state_dict(), description).name == ""
