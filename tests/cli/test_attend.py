import json
import re
import sys
from pathlib import Path

import pytest

PLAN = """cbam in 6 places

 module                  where                                       channels   features   parameters
"""


def test_a_plan_is_printed_and_nothing_else(whatwhere):
    status, out, err = whatwhere("attend", "mobilenet_v3_small", "--plan")
    assert (status, err) == (0, "")
    assert out.startswith(PLAN)
    assert (
        " features.3.attention    behind features.3.block.2.1, in one pass          24      28x28         +174" in out
    )
    assert "2,542,856 parameters and +3,930 (+0.15%); start: identity" in out
    assert "saved for backward" not in out


def test_what_it_costs_stands_below(whatwhere):
    status, out, _ = whatwhere("attend", "timm:resnet10t", "--attention", "eca", "--input", "3x64x64", "--json")
    assert status == 0
    content = json.loads(out)
    assert [place["added_params"] for place in content["plan"]["places"]] == [4, 6, 6, 6]
    difference = content["comparison"]["total"]["num_params"]["difference"]
    assert difference == 22


@pytest.mark.parametrize(
    "arguments",
    [
        ("nobody",),
        ("mobilenet_v3_small", "--attention", "cbma"),
        ("mobilenet_v3_small", "--attention", "no_such:Gate"),
        ("densenet121", "--input", "3x64x64"),
        ("mobilenet_v3_small", "--at", "nowhere"),
        ("mobilenet_v3_small", "--start", "zero"),
        ("mobilenet_v3_small", "--replace", "x"),
        ("mobilenet_v3_small", "--input", "224"),
        ("mobilenet_v3_small", "--input", "4x64x64"),
        ("yolo11n.pt",),
        ("yolo11n",),
        ("https://example.org/yolo11n.yaml",),
        ("mobilenet_v3_small", "--plan", "--layers"),
    ],
)
def test_bad_input_is_one_sentence(arguments, refused_command):
    refused_command("attend", *arguments)


def test_summary_beside_itself_without(whatwhere):
    status, out, _ = whatwhere("summary", "--backbone", "mobilenet_v3_small", "--attention", "se", "--input", "3x64x64")
    assert status == 0
    assert "mobilenet_v3_small with se" in out
    assert "added: 6 x SqueezeExcitation, themselves 3,324 parameters" in out
    assert whatwhere("summary", "timm:resnet10t", "--input", "3x64x64")[0] == 0
    for arguments, message in (
        ((), "give one network"),
        (("resnet18", "--backbone", "resnet18"), "give one network"),
        (("resnet18", "--attention", "se", "--against", "resnet50"), "leave out --against"),
        (("resnet18", "--at", "blocks"), "give --attention too"),
    ):
        status, _, err = whatwhere("summary", *arguments)
        assert (status, message in err, err.count("\n")) == (2, True, 1)


def test_the_guide_gives_the_cost_that_is_printed(cpp, whatwhere):
    guide = (Path(__file__).parents[2] / "docs" / "inserting-attention.md").read_text(encoding="utf-8")
    status, out, _ = whatwhere("attend", "mobilenet_v3_small")
    assert status == 0
    before, after, ratio = re.search(r"saved for backward +(\S+) MiB +(\S+) MiB .* (x\S+)\n", out).groups()
    assert f"({before} MiB become {after}, {ratio}, for two images)" in guide


CODE = """
import contextlib
import torch
import torchvision
from torch import nn
from torch.nn import functional as F


class LeNet(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Linear(256, num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return {"logits": self.fc(F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)), "one more": (x, 3)}


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = torchvision.models.resnet18(num_classes=4)

    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError("targets are needed in training mode")
        return self.backbone(x), x.mean()


def build():
    print("words of the user")
    import beside
    return Detector().train()


def build_channels(channels): ...
def fail(): raise RuntimeError("two\\nlines")
def leave(): raise SystemExit(3)
class Odd(BaseException): ...
def odd(): raise Odd("odd")
class Leaves(LeNet):
    def forward(self, x): raise SystemExit
class Talks(LeNet):
    def forward(self, x):
        print("words of the user")
        return super().forward(x)
class LeavingGate(nn.Module):
    def __init__(self, channels): raise SystemExit(0)
def nothing(): ...
def many(**options): return LeNet(**options)
built = LeNet()
linear = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
number = 3
"""


@pytest.fixture
def own_networks(tmp_path, monkeypatch):
    """A folder with networks of the user, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_networks.py").write_text(CODE)
    (tmp_path / "beside.py").touch()
    yield tmp_path
    for name in ("own_networks", "beside"):
        sys.modules.pop(name, None)


def test_code_of_the_user_is_a_network(whatwhere, own_networks):
    status, out, err = whatwhere("attend", "own_networks:LeNet", "--at", "conv*", "--json", "--attention", "se")
    assert (status, err) == (0, "")
    content = json.loads(out)
    # the size was found: no other usual size fits
    assert [place["size"] for place in content["plan"]["places"]] == [[24, 24], [8, 8]]
    assert content["plan"]["num_params"] == 156 + 2416 + 2570
    assert content["comparison"]["total"]["num_params"]["difference"] == content["plan"]["added_params"] > 0
    status, out, _ = whatwhere("attend", "own_networks:LeNet", "--at", "conv2", "--classes", "3", "--plan")
    assert status == 0
    assert f"{156 + 2416 + 257 * 3:,} parameters" in out
    assert whatwhere("attend", "own_networks:many", "--at", "conv2", "--classes", "3", "--plan")[:2] == (0, out)
    assert whatwhere("attend", "own_networks:built", "--at", "conv2", "--plan")[0] == 0


def test_a_detector_of_the_user_is_measured_in_evaluation_mode(whatwhere, own_networks):
    status, out, err = whatwhere("attend", "own_networks:build", "--input", "3x64x64")
    assert (status, err) == (0, "words of the user\n")
    assert out.startswith("cbam in 8 places")
    assert "saved for backward, and the training step: measured in evaluation mode" in out
    assert "by layer" not in out
    status, by_layer, _ = whatwhere("attend", "own_networks:build", "--input", "3x64x64", "--layers")
    assert (status, by_layer.startswith(out)) == (0, True)
    # one part in all: its layers are shown
    assert re.search(r"^   layer4 +", by_layer, re.MULTILINE)
    status, out, _ = whatwhere("attend", "own_networks:build", "--input", "3x64x64", "--json")
    assert (status, json.loads(out)["plan"]["added_params"]) == (0, 89_888)


def test_summary_takes_the_same_networks(whatwhere, own_networks):
    status, out, _ = whatwhere("summary", "own_networks:LeNet")
    assert (status, out.startswith("own_networks:LeNet, input 1x1x28x28")) == (0, True)
    status, out, _ = whatwhere("summary", "own_networks:linear")
    assert (status, out.startswith("own_networks:linear, input 1x3x224x224")) == (0, True)
    arguments = (
        "own_networks:build",
        "--attention",
        "se",
        "--at",
        "blocks",
        "--input",
        "3x64x64",
        "--latency",
        "--json",
    )
    status, out, err = whatwhere("summary", *arguments)
    assert (status, err) == (0, "words of the user\n" * 2)
    names = [model["name"] for model in json.loads(out)["models"]]
    assert names == ["own_networks:build with se at blocks", "own_networks:build"]
    assert json.loads(out)["models"][0]["training"] is False


@pytest.mark.parametrize(
    "arguments",
    [
        ("own_networks:absent",),
        ("absent:build",),
        ("own_networks:",),
        ("own_networks:build_channels",),
        ("own_networks:build", "--classes", "3"),
        ("own_networks:built", "--classes", "3"),
        ("own_networks:fail",),
        ("own_networks:leave",),
        ("own_networks:odd",),
        ("own_networks:Leaves", "--input", "1x28x28"),
        ("own_networks:LeNet", "--input", "1x28x28", "--at", "conv2", "--attention", "own_networks:LeavingGate"),
        ("own_networks:nothing",),
        ("own_networks:number",),
        ("builtins:dict",),
        ("builtins:range",),
        ("own_networks:linear",),
        ("own_networks:LeNet",),
        ("own_networks:LeNet", "--input", "1x64x64"),
        ("own_networks:Detector", "--input", "3x64x64", "--attention-kwargs", "{r: 1}"),
    ],
)
def test_wrong_code_of_the_user_is_one_sentence(arguments, own_networks, refused_command):
    refused_command("attend", *arguments, hiding=r"(?<=does not run: ).*(?=; give)|(?<=r': 1\}: ).*")


def test_summary_is_not_ended_by_code_of_the_user(own_networks, refused_command):
    refused_command("summary", "own_networks:Leaves", "--input", "1x28x28")


def test_what_code_of_the_user_prints_is_no_part_of_the_result(whatwhere, own_networks):
    (own_networks / "own_printing.py").write_text("print('words of the user')\nfrom own_networks import Talks\n")
    arguments = ("own_printing:Talks", "--input", "1x28x28", "--json")
    for command in (("attend", *arguments, "--at", "conv2"), ("summary", *arguments)):
        sys.modules.pop("own_printing", None)
        status, out, err = whatwhere(*command)
        assert (status, set(err.splitlines())) == (0, {"words of the user"})
        json.loads(out)
    sys.modules.pop("own_printing", None)


def test_a_network_without_a_usual_size_asks_for_the_input(whatwhere, own_networks):
    odd = (
        "class Odd(LeNet):\n    def forward(self, x):\n        assert x.shape[-1] == 29\n        return self.conv1(x)\n"
    )
    (own_networks / "own_networks.py").write_text(CODE + odd)
    status, _, err = whatwhere("attend", "own_networks:Odd")
    assert (status, err.count("\n")) == (2, 1)
    assert err.endswith("give --input CxHxW, or call attend(model, ..., example=...) in Python\n")
    assert whatwhere("attend", "own_networks:Odd", "--input", "1x29x29", "--at", "conv1", "--plan")[0] == 0


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "torchvision:ssdlite320_mobilenet_v3_large"])
def test_networks_of_other_tasks_of_torchvision(name, whatwhere):
    status, out, _ = whatwhere("attend", name, "--plan", "--classes", "5", "--input", "3x320x320")
    assert (status, out.startswith("cbam in 10 places")) == (0, True)


def test_a_detector_s_usual_size_is_larger(whatwhere):
    status, out, _ = whatwhere("summary", "ssdlite320_mobilenet_v3_large", "--batch", "2", "--depth", "1")
    assert status == 0
    assert "input 2x3x640x640" in out
    assert "measured in evaluation mode" in " ".join(out.split())


@pytest.mark.parametrize("name", ["yolo11n.yaml", "yolo11n.pt", "ssd300_vgg16", "own_networks:LeNet"])
def test_what_only_attend_and_summary_take_is_not_trained(name, refused_command, patterns, own_networks):
    refused_command("train", patterns, "--backbone", name, "--out", own_networks / "run")
    assert not (own_networks / "run").exists()


def test_where_ultralytics_is_not_installed(refused_command, monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    refused_command("attend", "yolo11n.yaml")


def test_progress_is_shown_on_a_terminal_alone(whatwhere, monkeypatch):
    shown = []
    monkeypatch.setattr("whatwhere.cli.attend.TerminalScreen.progress", lambda screen, *step: shown.append(step))
    status, _, err = whatwhere("attend", "timm:resnet10t", "--input", "3x32x32", "--attention", "eca")
    assert (status, err) == (0, "")
    assert [(done, total) for _, done, total in shown] == [(step, 5) for step in range(5)]
    assert shown[-1][0] == "cost of timm:resnet10t with eca"
    shown.clear()
    assert whatwhere("attend", "timm:resnet10t", "--input", "3x32x32", "--plan")[0] == 0
    assert [(done, total) for _, done, total in shown] == [(0, 2), (1, 2)]
