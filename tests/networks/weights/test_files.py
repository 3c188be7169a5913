"""Files that are damaged, hostile or of another network: one sentence, nothing run, nothing half-written."""

import json
import os
import pathlib
import pickle

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from whatwhere import create_model
from whatwhere.networks import convert_weights, describe_weights
from whatwhere.networks.weights.layouts import LAYOUTS
from whatwhere.networks.weights.translate import from_ours

NAME = "cbam_resnext11_8x8d"
MARK = "/tmp/whatwhere-weights-were-executed"


class Malicious:
    def __reduce__(self):
        return (os.system, (f"touch {MARK}",))


@pytest.fixture(scope="module")
def state():
    return create_model(NAME, num_classes=4, seed=0).state_dict()


def truncated(state, path):
    content = safetensors.torch.save(state)
    path.write_bytes(content[: len(content) // 2])


def truncated_checkpoint(state, path):
    torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def with_code(state, path):
    torch.save({"state_dict": state, "hook": Malicious()}, path)


def pickled_code(state, path):
    path.write_bytes(pickle.dumps({"conv1.weight": Malicious()}))


def half(state, path):
    torch.save(dict(list(state.items())[: len(state) // 2]), path)


def every_second(state, path):
    torch.save(dict(list(state.items())[::2]), path)


def with_value(value):
    def write(state, path):
        weight = state["layer2.0.conv2.weight"].clone()
        weight[0, 0, 0, 0] = value
        safetensors.torch.save_file({**state, "layer2.0.conv2.weight": weight}, path)

    return write


def with_text(text):
    return lambda state, path: path.write_text(text)


def of_another_width(state, path):
    torch.save(create_model("cbam_resnext11_8x8d", num_classes=4, width_factor=2).state_dict(), path)


def of_a_transformer(state, path):
    torch.save({f"blocks.{i}.attn.qkv.weight": torch.zeros(3, 3) for i in range(9)}, path)


def twice(state, path):
    torch.save({**state, "layer1.0.se.channel.fc1.weight": torch.zeros(2, 2, 1, 1)}, path)


def line_breaks(state, path):
    torch.save({f"evil\n{key}\x1b[31m": value for key, value in state.items()}, path)


def long_names(state, path):
    torch.save({"a" * 100_000: torch.zeros(2)}, path)


HOSTILE = {
    "truncated.safetensors": truncated,
    "truncated.pth": truncated_checkpoint,
    "code.pth": with_code,
    "pickle.pth": pickled_code,
    "code.safetensors": with_code,
    "half.pth": half,
    "second.pth": every_second,
    "nan.safetensors": with_value(float("nan")),
    "inf.safetensors": with_value(float("-inf")),
    "wide.pth": of_another_width,
    "vit.pth": of_a_transformer,
    "twice.pth": twice,
    "lines.pth": line_breaks,
    "pointer.safetensors": with_text("version https://git-lfs.github.com/spec/v1\noid a\n"),
    "page.pth": with_text("\n<!DOCTYPE html>\n<html>"),
    "long.pth": long_names,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_damaged_file_is_one_sentence(name, state, tmp_path, whatwhere, refused):
    HOSTILE[name](state, tmp_path / name)
    with refused():
        convert_weights(tmp_path / name, tmp_path / "out.safetensors")
    status, out, err = whatwhere("weights", "convert", tmp_path / name, tmp_path / "out.safetensors")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.isascii()
    assert "\x1b" not in err
    assert len(err) < 1000
    with refused():
        create_model(NAME, num_classes=4, pretrained=tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not pathlib.Path(MARK).exists()


@pytest.mark.parametrize("name", ["half.pth", "second.pth", "wide.pth"])
def test_with_the_network_named_it_says_what_is_wrong(name, state, tmp_path, refused):
    HOSTILE[name](state, tmp_path / name)
    with refused():
        convert_weights(tmp_path / name, tmp_path / "out.safetensors", model=NAME)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("resnet18", "resnet34"),
        ("resnet34", "resnet18"),
        ("resnet50", "resnet34"),
        ("resnet50", "resnext50_32x4d"),
        ("wide_resnet18_2", "resnet18"),
        ("cbam_resnet18", "resnet18"),
        ("resnet18", "cbam_resnet18"),
        ("cbam_resnet18", "se_resnet18"),
    ],
)
def test_the_likely_cause(theirs, ours, tmp_path, refused):
    torch.save(create_model(theirs, num_classes=4, seed=0).state_dict(), tmp_path / "a.pth")
    with refused():
        convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors", model=ours)


def test_se_of_another_layout_is_not_taken_for_cbam_without_its_spatial_gate(tmp_path, refused):
    state = create_model("se_resnext11_8x8d", num_classes=4).state_dict()
    theirs = from_ours(state, LAYOUTS["timm"], "se", {"form": "timm"})
    torch.save(theirs, tmp_path / "a.pth")
    assert describe_weights(tmp_path / "a.pth").networks == ["se_resnext11_8x8d"]
    with refused():
        convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors", model=NAME)


def test_every_key_is_accounted_for(state, tmp_path):
    broken = {key: value for key, value in state.items() if not key.endswith("bn1.weight")}
    broken["layer1.0.conv2.weight"] = torch.zeros(3)
    broken["head.weight"] = broken["layer3.0.head.bias"] = broken["layer2.0.head.bias"] = torch.zeros(1)
    torch.save(broken, tmp_path / "a.pth")
    fit = describe_weights(tmp_path / "a.pth", NAME).fit
    groups = {(group.kind, group.pattern): set(group.keys) for group in fit.groups}
    assert groups == {
        ("missing", "bn1.weight"): {"bn1.weight"},
        ("missing", "layer*.*.bn1.weight"): {f"layer{stage}.0.bn1.weight" for stage in (1, 2, 3)},
        ("unexpected", "head.weight"): {"head.weight"},
        ("unexpected", "layer*.*.head.bias"): {"layer2.0.head.bias", "layer3.0.head.bias"},
        ("of another shape or kind", "layer1.0.conv2.weight"): {"layer1.0.conv2.weight"},
    }
    assert fit.num_fitting == len(state) - 4 - 1
    assert fit.num_expected == len(state)
    (detail,) = [group.detail for group in fit.groups if group.detail]
    assert detail == "3 float32 instead of 32x4x3x3 float32"


def test_the_file_to_read_is_never_written(state, tmp_path, refused):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(state, path)
    (tmp_path / "link.safetensors").symlink_to(path)
    content = path.read_bytes()
    for target in ("a.safetensors", "link.safetensors"):
        with refused():
            convert_weights(path, tmp_path / target, force=True)
    assert path.read_bytes() == content


def test_an_existing_file_is_overwritten_on_request(state, tmp_path, whatwhere):
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_text("mine")
    status, _, err = whatwhere("weights", "convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert status == 2
    assert "exists; give --force to overwrite it" in err
    assert (tmp_path / "b.safetensors").read_text() == "mine"
    assert whatwhere("weights", "convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--force")[0] == 0
    assert safetensors.torch.load_file(tmp_path / "b.safetensors").keys() == state.keys()


@pytest.mark.parametrize(
    "target",
    [
        "b.pth",
        "folder.safetensors",
        "nowhere/b.safetensors",
        "a" * 300 + ".safetensors",
    ],
)
def test_targets_that_cannot_be(target, state, tmp_path, refused):
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with refused():
        convert_weights(tmp_path / "a.safetensors", tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "folder.safetensors"]


def test_where_the_weights_cannot_go_is_found_before_they_are_read(tmp_path, refused):
    (tmp_path / "a.safetensors").write_text("no weights")
    for target in (tmp_path / "nowhere" / "b.safetensors", "/proc/self/b.safetensors"):
        with refused():
            convert_weights(tmp_path / "a.safetensors", target)


def test_a_crash_while_writing_leaves_nothing(state, tmp_path, monkeypatch, refused):
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with refused():
        convert_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    "description",
    [
        "no JSON",
        "[1]",
        "[" * 100_000,
        '{"attention_kwargs": 3}',
        '{"attention": "cbam", "attention_kwargs": {"norm": "os.system"}}',
        '{"attention": "cbam", "attention_kwargs": {"kernel_size": 99999}}',
        '{"attention": "cbam", "attention_kwargs": {"reduction": 1e-300}}',
        '{"attention": "se", "attention_kwargs": {"pools": [[]]}}',
        '{"attention": "bam", "attention_kwargs": {"num_convs": 2000000000}}',
        '{"attention": ["cbam"], "model_kwargs": {"widths": [99999999]}}',
        '{"model": "article_resnext50", "model_kwargs": {"ceil_pool": "yes"}}',
    ],
)
def test_a_description_from_anywhere_says_nothing(description, state, tmp_path):
    safetensors.torch.save_file(state, tmp_path / "a.safetensors", {"whatwhere": description})
    assert describe_weights(tmp_path / "a.safetensors").network.name == NAME
    loaded = create_model(NAME, num_classes=4, pretrained=tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_a_network_has_several_forms_or_no_standard_names(state, tmp_path, refused):
    torch.save(state, tmp_path / "a.pth")
    with refused():
        convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors", model="cbam_resnet_50")
    with refused():
        convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors", model="cbam_article_resnext50")


def test_what_the_network_is_built_with_stands_in_the_file(tmp_path):
    kwargs = {"reduction": 8, "form": "timm"}
    source = create_model("cbam_resnext11_8x8d", num_classes=4, attention_kwargs=kwargs)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    done = convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert done.network.call() == f"create_model('cbam_resnext11_8x8d', num_classes=4, attention_kwargs={kwargs})"
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["whatwhere"]) == {
            "network": {"name": "cbam_resnext11_8x8d", "num_classes": 4, "attention_kwargs": kwargs},
            "layout": "whatwhere",
        }
    model = create_model("cbam_resnext11_8x8d", num_classes=4, pretrained=tmp_path / "b.safetensors")
    assert model.layer1[0].attention.what.fc1.bias is None
    assert model.layer1[0].attention.where.maps == ("mean", "max")


def test_what_shapes_do_not_show_can_be_said(tmp_path, whatwhere):
    options = {"maps": ["mean", "max"], "pools": ["avg"]}
    torch.save(create_model(NAME, num_classes=4, attention_kwargs=options).state_dict(), tmp_path / "a.pth")
    command = ("weights", "convert", tmp_path / "a.pth", tmp_path / "b.safetensors", "--force", "--attention-kwargs")
    status, out, _ = whatwhere(*command, json.dumps(options))
    assert (status, "note:" in out) == (0, False)
    model = create_model(NAME, num_classes=4, pretrained=tmp_path / "b.safetensors")
    assert model.layer1[0].attention.what.pools == ("avg",)
    assert model.layer1[0].attention.where.maps == ("mean", "max")
    for text, sentence in (
        ("{", "cannot be read"),
        ("[]", "must be keyword arguments such as"),
        ('{"pool": "avg"}', "cannot be built"),
        ('{"reduction": 8}', "of another shape"),
    ):
        status, _, err = whatwhere(*command, text)
        assert status == 2
        assert sentence in err
    status, _, err = whatwhere(*command, json.dumps(options), "--to", "official")
    assert "its attention has no pools=['avg']" in err
    status, _, err = whatwhere(*command, '{"maps": ["mean", "max"]}', "--to", "official")
    assert status == 0
    weight = safetensors.torch.load_file(tmp_path / "b.safetensors")
    source = torch.load(tmp_path / "a.pth", weights_only=True)["layer1.0.attention.where.conv.weight"]
    assert torch.equal(weight["layer1.0.cbam.SpatialGate.spatial.conv.weight"], source.flip(1))
