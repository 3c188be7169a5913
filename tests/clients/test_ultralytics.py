"""YOLO networks with attention: fused, copied, saved and loaded."""

import copy

import pytest
import torch

from client import wanted
from whatwhere import ATTENTION
from whatwhere.insert import attend, detach, plan


def build(name):
    wanted("ultralytics")
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    return DetectionModel(f"{name}.yaml", nc=4, verbose=False).eval()


def awake(model):
    """Let each gate do something, and give the norms the statistics of a batch, without which no signal passes."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "attention" in key and not parameter.any():
                parameter.fill_(0.7)
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        model.train()(torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(1)))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model.eval()


def predicted(model):
    with torch.no_grad():
        output = model(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", ["yolo11n", "yolov8n"])
@pytest.mark.parametrize("start", ["identity", "paper"])
def test_the_function_is_kept_by_fuse(name, start):
    model = awake(attend(build(name), "cbam", start=start, seed=0))
    expected = predicted(model)
    keys = {key for key in model.state_dict() if "attention" in key}
    effect = (predicted(detach(copy.deepcopy(model))) - expected).norm()
    for fused in (copy.deepcopy(model).fuse(verbose=False), copy.deepcopy(model.fuse(verbose=False))):
        assert (predicted(fused) - expected).norm() < 1e-3 * effect
        assert {key for key in fused.state_dict() if "attention" in key} == keys


@pytest.mark.parametrize("attention", ATTENTION)
def test_every_attention_survives_fuse(attention):
    model = attend(build("yolo11n"), attention, at="blocks", start="identity", seed=0)
    expected = predicted(awake(model))
    effect = (predicted(detach(copy.deepcopy(model))) - expected).norm()
    assert (predicted(model.fuse(verbose=False)) - expected).norm() < 1e-3 * effect


@pytest.mark.parametrize("name", ["yolo11n", "yolov8n"])
def test_saved_and_loaded_as_its_trainer_does(name, tmp_path):
    model = awake(attend(build(name), "cbam", seed=0))
    expected = predicted(model)
    path = tmp_path / "last.pt"
    torch.save({"model": copy.deepcopy(model)}, path)
    loaded = torch.load(path, weights_only=False)["model"].float()
    torch.testing.assert_close(predicted(loaded), expected)
    torch.testing.assert_close(predicted(loaded.fuse(verbose=False)), expected, rtol=1e-3, atol=1e-3)
    again = attend(build(name), "cbam", seed=1)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(predicted(again), expected)


def test_detached_after_fuse():
    model = awake(attend(build("yolo11n"), "cbam", seed=0))
    plain = detach(copy.deepcopy(model)).fuse(verbose=False)
    torch.testing.assert_close(predicted(detach(model.fuse(verbose=False))), predicted(plain))


def test_a_step_of_training():
    model = attend(build("yolo11n"), "cbam", seed=0).train()
    outputs = model(torch.rand(2, 3, 64, 64))
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    sum(leaf.float().square().mean() for leaf in leaves).backward()
    mixes = [parameter for key, parameter in model.named_parameters() if key.endswith("attention.mix")]
    assert len(mixes) == len(plan(build("yolo11n"), "cbam").places)
    assert all(mix.grad is not None for mix in mixes)
