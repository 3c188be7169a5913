"""examples/: each program from a process of its own, and its parts."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from client import wanted
from whatwhere import CBAM, attend, no_weight_decay

FOLDER = Path(__file__).parents[2] / "examples"
GUIDE = Path(__file__).parents[2] / "docs" / "detectors.md"
CPU = torch.device("cpu")
COUNTS = {"train": 8, "val": 0, "test": 8, "size": 64}


def example(name):
    """Import an example as Python does that runs it: its folder is on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def detection():
    wanted("pycocotools")
    return example("faster_rcnn_cbam")


@pytest.fixture(scope="module")
def segmentation():
    wanted("segmentation_models_pytorch")
    return example("segmentation_smp")


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return example("shapes").write_coco(tmp_path_factory.mktemp("coco"), **COUNTS)


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    return example("shapes").write_masks(tmp_path_factory.mktemp("masks"), **COUNTS)


def detector(detection, arm, seed=0):
    return detection.build(arm, seed, 6, 64, "resnet18", None)


def unet(segmentation, arm, seed=0):
    return segmentation.build(arm, seed, 6, "resnet18", None, torch.zeros(1, 3, 64, 64))


class Knowing(nn.Module):
    """Answers, call by call, with what it was given."""

    def __init__(self, answers):
        super().__init__()
        self.answers = iter(answers)

    def forward(self, _):
        return next(self.answers)


# Faster R-CNN


def of_the_truth(images, width=1.0):
    """Return the annotated boxes as detections, narrowed to a share of their width: that is their IoU."""
    found = []
    for item in images.coco.anns.values():
        x, y, w, h = item["bbox"]
        found.append(
            {key: item[key] for key in ("image_id", "category_id")} | {"bbox": [x, y, w * width, h], "score": 1}
        )
    return found


def test_map_of_what_is_known(detection, coco):
    images = detection.Images(coco, "test", detection.READ)
    assert detection.mean_average_precision(images.coco, of_the_truth(images)) == pytest.approx({"mAP": 1, "mAP50": 1})
    # an IoU of 0.72 counts at 0.5, 0.55, 0.6, 0.65 and 0.7 of the ten thresholds
    narrowed = detection.mean_average_precision(images.coco, of_the_truth(images, 0.72))
    assert narrowed == pytest.approx({"mAP": 0.5, "mAP50": 1})
    assert detection.mean_average_precision(images.coco, of_the_truth(images, 0.4)) == {"mAP": 0, "mAP50": 0}
    assert detection.mean_average_precision(images.coco, []) == {"mAP": 0, "mAP50": 0}


def test_a_detector_that_knows_the_boxes_has_map_1(detection, coco):
    images = detection.Images(coco, "test", detection.READ)
    answers = [[images[index][1] | {"scores": torch.ones(len(images[index][1]["labels"]))}] for index in range(8)]
    found = detection.detect(Knowing(answers), images, CPU)
    assert detection.mean_average_precision(images.coco, found)["mAP"] == pytest.approx(1)


def test_detectors_of_a_pair_start_with_equal_outputs(detection, coco):
    images = detection.Images(coco, "train", detection.READ)
    batch = [images[index] for index in range(2)]
    results = []
    for arm, seed in (("none", 0), ("cbam", 0), ("none", 1)):
        network = detector(detection, arm, seed)
        torch.manual_seed(0)  # proposals are sampled
        losses = network([image for image, _ in batch], [target for _, target in batch])
        network.eval()
        with torch.no_grad():
            results.append(
                [*losses.values(), *(value for output in network([batch[0][0]]) for value in output.values())]
            )
    plain, attentive, other = results
    assert all(map(torch.equal, plain, attentive))
    assert not torch.equal(plain[0], other[0])


def test_the_other_place_that_the_guide_names(detection):
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    scope = {"attend": attend, "detector": detector(detection, "none"), "images": torch.zeros(1, 3, 64, 64)}
    exec(compile(code, "detectors.md", "exec"), scope)
    names = [name for name, module in scope["detector"].named_modules() if isinstance(module, CBAM)]
    assert len(names) == 4
    assert all(".fpn.layer_blocks." in name for name in names)


# U-Net


def test_dice_of_what_is_known(segmentation):
    mask = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]])
    assert segmentation.dice(mask, mask, 2) == 1
    half = torch.tensor([[[0, 0, 1, 0], [0, 0, 1, 0]]])
    assert segmentation.dice(half, mask, 2) == pytest.approx(2 * 2 / (2 * 2 + 0 + 2))
    # two classes: 2/3 as above, and 2 x 1 / (2 x 1 + 1 + 0)
    assert segmentation.dice(
        torch.tensor([[[2, 2, 1, 0], [0, 0, 1, 0]]]), torch.tensor([[[2, 0, 1, 1], [0, 0, 1, 1]]]), 3
    ) == pytest.approx(2 / 3)


def test_a_network_that_knows_the_masks_has_dice_1(segmentation, masks):
    images = segmentation.Images(masks, "test", segmentation.READ)
    truth = torch.stack([images[index][1] for index in range(8)])
    assert set(truth.unique().tolist()) > {0}
    logits = nn.functional.one_hot(truth, 6).movedim(-1, 1).float()
    assert segmentation.test(Knowing([logits]), images, 6, CPU) == 1
    assert segmentation.test(Knowing([logits.roll(1, 1)]), images, 6, CPU) < 0.1


def test_unets_of_a_pair_start_with_equal_outputs(segmentation, masks):
    images = segmentation.Images(masks, "train", segmentation.READ)
    batch = torch.stack([images[index][0] for index in range(2)])
    outputs = [unet(segmentation, arm, seed)(batch) for arm, seed in (("none", 0), ("cbam", 0), ("none", 1))]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_masks_of_other_names_are_refused(segmentation, masks, tmp_path, refused):
    for kind, name in (("images", "a.png"), ("masks", "b.png")):
        (tmp_path / kind / "test").mkdir(parents=True)
        (tmp_path / kind / "test" / name).touch()
    with refused():
        segmentation.Images(tmp_path, "test", segmentation.READ)


# both


@pytest.fixture(params=["detection", "segmentation"])
def task(request):
    """An example, its training images, and a network with CBAM and the function that trains it."""
    module = request.getfixturevalue(request.param)
    folder = request.getfixturevalue({"detection": "coco", "segmentation": "masks"}[request.param])
    images = module.Images(folder, "train", module.AUGMENT)
    if request.param == "detection":
        return module, images, lambda: detector(module, "cbam"), lambda *given: module.train(*given, 1, CPU)
    return module, images, lambda: unet(module, "cbam"), lambda *given: module.train(*given, 6, 1, CPU)


def test_batches_follow_from_the_seed_alone(task):
    module, images, *_ = task

    def drawn(seed, before):
        torch.manual_seed(before)  # what a network draws while it is built and trained
        batches = []
        for _ in range(2):  # epochs
            for batch in module.training_batches(images, seed):
                batches.append([leaf.clone() for leaf in torch.utils._pytree.tree_leaves(batch)])
                torch.rand(before)
        return [leaf for batch in batches for leaf in batch]

    first, again, other = drawn(0, 1), drawn(0, 2), drawn(1, 1)
    assert all(map(torch.equal, first, again))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.shape == b.shape)


def test_a_training_can_be_repeated_and_exempts_what_must_not_decay(task, monkeypatch):
    module, images, build, train = task
    groups = []

    class Told(torch.optim.AdamW):
        def __init__(self, params, **given):
            super().__init__(params, **given)
            groups.append(self.param_groups)

    monkeypatch.setattr(torch.optim, "AdamW", Told)
    trained = []
    for _ in range(2):
        network = build()
        start = {name: value.clone() for name, value in network.state_dict().items()}
        train(network, module.training_batches(images, 0))
        trained.append(network.state_dict())
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        decayed, exempt = ([names[id(parameter)] for parameter in group["params"]] for group in groups.pop())
        assert (
            set(exempt)
            == no_weight_decay(network)
            >= {name for name in names.values() if name.endswith(".mix")}
            > set()
        )
        assert sorted([*decayed, *exempt]) == sorted(names.values())
    first, second = trained
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], start[name]) for name in exempt)


@pytest.mark.parametrize(
    ("name", "data"), [("faster_rcnn_cbam", "coco"), ("segmentation_smp", "masks")], ids=["detection", "segmentation"]
)
def test_the_program(name, data, request, tmp_path):
    for needed in ("pycocotools", "segmentation_models_pytorch"):
        wanted(needed)
    folder = request.getfixturevalue(data)

    def run(*options, status=0):
        command = [sys.executable, "-W", "ignore", FOLDER / f"{name}.py", *options]
        ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=tmp_path)
        assert ended.returncode == status, ended.stderr
        return ended

    assert "--data" in run("--help").stdout
    options = ("--data", folder, "--out", "here", "--seeds", "2", "--epochs")
    told = run(*options, "1").stdout
    assert told.count("seed 0") == told.count("seed 1") == 2
    assert "Cannot tell about cbam yet: train at least 4 more seeds" in told
    table = (tmp_path / "here" / "results.csv").read_text()
    assert len(table.splitlines()) == 5
    assert (tmp_path / "here" / "report.html").is_file()
    # finished runs are not repeated, and runs with other settings do not get among them
    assert "seed 0:" not in run(*options, "1").stdout
    assert "holds runs with other settings" in run(*options, "2", status=2).stderr
    assert "invalid choice: 'cbma'" in run(*options, "1", "--arms", "none", "cbma", status=2).stderr
    assert (tmp_path / "here" / "results.csv").read_text() == table
