"""`whatwhere attend yolo11n.yaml`: networks of Ultralytics by name and by file, on the command line."""

import json
import pickle

import pytest

from client import wanted


@pytest.fixture(autouse=True)
def _installed():
    wanted("ultralytics")


# parameters of Ultralytics' networks, as its own `info()` gives them
@pytest.mark.parametrize(
    "name", ["yolov5n.yaml", "yolov8n.yaml", "yolo11n-seg.yaml", "yolo12n-obb.yaml", "yolo26n-pose.yaml"]
)
def test_a_yolo_by_name(name, whatwhere):
    from ultralytics import YOLO

    status, out, _ = whatwhere("attend", name, "--plan", "--json")
    assert status == 0
    content = json.loads(out)["plan"]
    model = YOLO(name).model
    assert content["num_params"] == sum(parameter.numel() for parameter in model.parameters())
    names = dict(model.named_modules())
    assert len(content["places"]) >= 6
    assert all(place["host"] in names for place in content["places"])
    # 640 pixels, in stages of 160 and less
    assert content["places"][0]["size"] in ([160, 160], [80, 80])


def test_the_cost_of_a_yolo(whatwhere):
    status, out, err = whatwhere("attend", "yolo11n.yaml", "--classes", "3", "--input", "3x64x64", "--batch", "3")
    assert status == 0
    assert "Traceback" not in err
    assert out.startswith("cbam in 13 places")
    assert "input 3x3x64x64" in out
    # measured in training mode: it needs no targets for its raw outputs
    assert "evaluation mode" not in out
    status, out, _ = whatwhere("summary", "yolo11n.yaml", "--classes", "3", "--input", "3x64x64", "--json")
    three = json.loads(out)["models"][0]["num_params"]
    status, out, _ = whatwhere("summary", "yolo11n.yaml", "--input", "3x64x64", "--json")
    assert json.loads(out)["models"][0]["num_params"] > three


def test_a_classifier_has_smaller_images(whatwhere):
    status, out, _ = whatwhere("summary", "yolov8n-cls.yaml", "--depth", "1")
    assert (status, "input 1x3x224x224" in out) == (0, True)


def test_an_rtdetr(whatwhere):
    status, out, _ = whatwhere("attend", "rtdetr-resnet50.yaml", "--plan", "--input", "3x320x320", "--classes", "2")
    assert (status, out.startswith("cbam in ")) == (0, True)


YAML = """
nc: 3
{activation}
backbone: [[-1, 1, Conv, [16, 3, 2]], [-1, 1, C2f, [16, True]], [-1, 1, Conv, [32, 3, 2]]]
head: [[[2], 1, Detect, [nc]]]
"""


@pytest.mark.parametrize(
    "activation", ["", "activation: nn.ReLU()", "activation: torch.nn.LeakyReLU(0.1, inplace=True)"]
)
def test_a_file_of_the_user(activation, whatwhere_here, tmp_path):
    (tmp_path / "own.yaml").write_text(YAML.format(activation=activation))
    for name in ("own.yaml", tmp_path / "own.yaml"):
        status, out, _ = whatwhere_here("attend", name, "--plan", "--input", "3x64x64", "--classes", "7")
        assert (status, out.startswith("cbam in 1 place")) == (0, True)


@pytest.mark.parametrize(
    "activation",
    [
        'activation: __import__("pathlib").Path("touched").touch()',
        'activation: nn.ReLU(__import__("pathlib").Path("touched").touch())',
        "activation: torch.hub.load('a', 'b')",
        "activation: nn.functional",
        "activation: nn.init.torch()",
        "activation: 3",
        "activation: [",
    ],
)
def test_nothing_in_a_file_is_run(activation, refused_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(YAML.format(activation=activation))
    refused_command("attend", "own.yaml", hiding=r"(?<=syntax error in).*")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "row",
    [
        "[-1, 1, torch_safe_load, [evil.pt]]",  # unpickles a file
        "[-1, 1, check_requirements, [nobody]]",  # installs a package
        "[-1, 1, DetectionModel, [evil.yaml]]",  # runs the activation of another file
        "[-1, 1, torch.hub.load, [a, b]]",
        "[-1, 1, torchvision.ops.nms, []]",
        "[-1, 1, my_package.Layer, [16]]",
    ],
)
def test_only_layers_are_built_from_a_file(row, refused_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch = 'activation: __import__("pathlib").Path("touched").touch()'
    (tmp_path / "evil.yaml").write_text(YAML.format(activation=touch))
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Touch()))
    (tmp_path / "own.yaml").write_text(YAML.format(activation="").replace("[-1, 1, C2f, [16, True]]", row))
    refused_command("attend", "own.yaml")
    assert not (tmp_path / "touched").exists()


class Touch:
    def __reduce__(self):
        return (open, ("touched", "w"))


ALIASES = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGES = "b0: &b0 {k: 1}\n" + "".join(f"b{i}: &b{i} {{<<: [*b{i - 1}, *b{i - 1}]}}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("before", "row"),
    [
        ("", "[-1, 100000, C2f, [16, True]]"),
        ("", "[-1, 1000000000, nn.Identity, []]"),
        ("depth_multiple: 1000000", "[-1, 2, C2f, [16, True]]"),
        ("", "[-1, 1, Conv, [8000, 3, 1]], [-1, 1, Conv, [8000, 3, 1]]"),
        (ALIASES + "activation: *a39", "[-1, 1, C2f, [16, True]]"),
        (MERGES, "[-1, 1, C2f, [16, True]]"),
        ("activation: nn.BatchNorm2d(20000000000, affine=False)", "[-1, 1, C2f, [16, True]]"),
        ("activation: nn.BatchNorm2d(30000000, affine=False)", "[-1, 1, C2f, [16, True]]"),
    ],
)
def test_a_network_without_end(before, row, refused_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = YAML.format(activation=before).replace("[-1, 1, C2f, [16, True]]", row)
    (tmp_path / "own.yaml").write_text(text)
    refused_command("attend", "own.yaml", hiding="is \\[.*\\];")


@pytest.mark.parametrize("content", [None, "", "[1, 2]", "nc: 3", YAML.replace("C2f", "C99").format(activation="")])
def test_files_that_are_no_networks(content, refused_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "own.yaml").write_text(content)
    refused_command("attend", "own.yaml", hiding=r"(?<='own.yaml': \w).*")


CODE = """
from ultralytics import YOLO
def build(): return YOLO("yolo11n.yaml")
def network(): return YOLO("yolo11n.yaml").model
"""


def test_a_function_that_returns_a_yolo(whatwhere_here, tmp_path):
    (tmp_path / "own_yolo.py").write_text(CODE)
    plans = [
        whatwhere_here("attend", name, "--plan")[:2] for name in ("yolo11n.yaml", "own_yolo:build", "own_yolo:network")
    ]
    assert plans[0][0] == 0
    assert plans[0] == plans[1] == plans[2]


def test_in_python_the_network_inside_is_named(refused):
    from ultralytics import YOLO

    from whatwhere import attend, cost

    model = YOLO("yolo11n.yaml")
    with refused():
        attend(model, "cbam")
    with refused():
        cost(model, (3, 64, 64))
