"""Training on a GPU: the paths that a CPU does not take."""

import pytest
import torch

from pictures import make_folder
from whatwhere.base.screen import Silent
from whatwhere.data.augment import Augmentation, draws
from whatwhere.data.preprocess import preprocessing_for
from whatwhere.training.bundle import load_bundle
from whatwhere.training.predict import evaluate_bundle
from whatwhere.training.train import run_training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OPTIONS = {"model": "cbam_resnext11_8x8d", "image_size": 32, "epochs": 3, "batch_size": 12, "device": "cuda"}


def train(data, out, resume=False, **options):
    return run_training(
        str(data), {**OPTIONS, **options}, out=out, resume=resume, dry_run=False, command="", screen=Silent()
    )


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_augmentation_on_the_device_is_that_of_the_cpu(crop):
    augment = Augmentation(preprocessing_for(32), crop, 0.35, 0.5, 9, 0.5)
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    rows = draws(0, 0, 64)
    on_cpu, on_gpu = augment(pixels, rows), augment(pixels.cuda(), rows).cpu()
    # rotations round a pixel's place differently here and there
    assert (on_cpu - on_gpu).abs().gt(0.1).float().mean() < 0.01


@pytest.mark.parametrize(
    "options",
    [
        {"cache": "device"},
        {"cache": "none", "workers": 2, "crop": "resized"},
        {"amp": "fp16", "clip_grad": 1.0, "accumulate": 2},
        {"amp": "bf16", "compile": True},
    ],
)
def test_every_path_trains_and_the_bundle_is_what_was_evaluated(tmp_path, options):
    data = make_folder(tmp_path / "data", splits={"train": 16, "val": 5, "test": 5})
    result = train(data, tmp_path / "run", **options)
    assert result["status"] == "finished"
    bundle = load_bundle(tmp_path / "run", "cuda")
    again = evaluate_bundle(bundle, str(data), split="test", amp=options.get("amp", "bf16"))["images"]
    assert again["accuracy"] == result["test"]["accuracy"]
    assert again["loss"] == pytest.approx(result["test"]["loss"], rel=1e-3)


def test_the_same_run_twice_is_the_same_if_deterministic(tmp_path):
    data = make_folder(tmp_path / "data")
    for name in ("one", "two"):
        train(data, tmp_path / name, deterministic=True, cache="device")
    one, two = (load_bundle(tmp_path / name).model.state_dict() for name in ("one", "two"))
    assert all(torch.equal(value, two[key]) for key, value in one.items())
