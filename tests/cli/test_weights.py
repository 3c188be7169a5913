import argparse
import json

import pytest
import safetensors.torch
import torch

from published import OfficialResNet, trained
from whatwhere import create_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file as the CBAM authors' script writes it."""
    path = tmp_path_factory.mktemp("weights") / "authors.pth"
    theirs = {f"module.{key}": value for key, value in trained(OfficialResNet()).state_dict().items()}
    around = {"epoch": 90, "arch": "resnet18", "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}}
    torch.save({**around, "best_prec1": 70.7, "state_dict": theirs}, path)
    return path


def test_show(checkpoint, whatwhere):
    status, out, err = whatwhere("weights", "show", checkpoint)
    assert (status, err) == (0, "")
    for words in ("official", "create_model('cbam_resnet18', num_classes=10)", "2-2-2-2 basic blocks", "state_dict"):
        assert words in out
    for words in ("module.", "left out: epoch", "'resnet18'", "a Namespace", "a dict of 1", "70.7"):
        assert words in out
    assert "202 of the network's 202 tensors" in out
    assert "does not fit" not in out


def test_show_as_json(checkpoint, whatwhere):
    status, out, _ = whatwhere("weights", "show", checkpoint, "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["layout"], found["network"]) == ("official", {"model": "cbam_resnet18", "num_classes": 10})
    assert (found["wrapper"], found["prefix"], found["num_tensors"]) == ("state_dict", "module.", 202)
    assert found["around"].keys() == {"epoch", "arch", "args", "optimizer", "best_prec1"}
    assert found["fit"] == {"num_fitting": 202, "num_expected": 202, "groups": [], "cause": ""}
    assert (found["non_finite"], found["unknown"], found["dtypes"]) == ({}, {}, ["float32", "int64"])


def test_show_lists_what_is_wrong(tmp_path, whatwhere):
    state = create_model("se_resnext11_8x8d", num_classes=4).state_dict()
    state["fc.weight"][0, :3] = float("nan")
    del state["bn1.weight"]
    torch.save({**state, "head\n.weight": torch.zeros(1)}, tmp_path / "a.pth")
    status, out, _ = whatwhere("weights", "show", tmp_path / "a.pth")
    assert status == 0
    for words in ("3 NaN or infinite", "fc.weight", "missing", "bn1.weight", "unexpected", "head\\n.weight"):
        assert words in out
    status, out, _ = whatwhere("weights", "show", tmp_path / "a.pth", "--model", "resnet50")
    assert "bottlenecks" in out or "blocks in its stages" in out
    status, out, _ = whatwhere("weights", "show", tmp_path / "a.pth", "--json")
    assert json.loads(out)["non_finite"] == {"fc.weight": 3}


def test_show_what_nobody_knows(tmp_path, whatwhere):
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3)}, tmp_path / "a.pth")
    status, out, _ = whatwhere("weights", "show", tmp_path / "a.pth")
    assert status == 0
    for words in ("unknown", "no network of whatwhere", "unknown name", "blocks.0.attn.qkv.weight"):
        assert words in out


def test_show_says_whose_names_they_are(tmp_path, whatwhere):
    torch.save({"net._blocks.0._depthwise_conv.weight": torch.zeros(3)}, tmp_path / "a.pth")
    status, out, _ = whatwhere("weights", "show", tmp_path / "a.pth")
    assert (status, "package efficientnet_pytorch: timm's tf_efficientnet_lite0" in " ".join(out.split())) == (0, True)


def test_convert(checkpoint, tmp_path, whatwhere):
    status, out, err = whatwhere("weights", "convert", checkpoint, tmp_path / "a.safetensors")
    assert (status, err) == (0, "")
    assert "202 tensors in the layout whatwhere, from official" in out
    assert "create_model('cbam_resnet18', num_classes=10)" in out
    assert "left out: optimizer, a dict of 1" in out
    create_model("cbam_resnet18", num_classes=10).load_state_dict(
        safetensors.torch.load_file(tmp_path / "a.safetensors"), strict=True
    )
    options = ("--to", "timm", "--json")
    status, out, _ = whatwhere("weights", "convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", *options)
    done = json.loads(out)
    assert status == 0
    assert (done["layout"], done["to"]) == ("whatwhere", "timm")
    assert done["create_model"] == "create_model('cbam_resnet18', num_classes=10)"
    assert "mlp_bias=True" in done["notes"][0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "nowhere.pth"),
        ("show", "nowhere.pth", "--model", "resnet"),
        ("convert", "nowhere.pth", "b.safetensors"),
        ("convert", "nowhere.pth"),
        ("convert", "nowhere.pth", "b.safetensors", "--to", "keras"),
        (),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments, tmp_path, monkeypatch, refused_command):
    monkeypatch.chdir(tmp_path)
    refused_command("weights", *arguments)
    assert not list(tmp_path.iterdir())
