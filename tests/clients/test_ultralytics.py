"""YOLO networks with attention: fused, copied, saved and loaded."""

import copy

import pytest
import safetensors.torch
import torch

import whatwhere
from client import wanted
from published import OfficialResNet, trained
from whatwhere import ATTENTION, create_model
from whatwhere.explain import explain, maps
from whatwhere.insert import attend, detach, plan
from whatwhere.networks import convert_weights
from whatwhere.report.explanation import explanation_page


def build(name):
    wanted("ultralytics")
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    return DetectionModel(f"{name}.yaml", nc=4, verbose=False).eval()


def classes():
    wanted("ultralytics")
    from ultralytics.nn.modules import CBAM, ChannelAttention, SpatialAttention

    return {
        "cbam": (CBAM, whatwhere.CBAM),
        "channel": (ChannelAttention, whatwhere.ChannelAttention),
        "spatial": (SpatialAttention, whatwhere.SpatialAttention),
    }


# the names of the class's tensors, alone and as the halves of its CBAM, by ours
NAMES = {
    "what.fc.weight": ("channel_attention.fc.weight", "fc.weight"),
    "what.fc.bias": ("channel_attention.fc.bias", "fc.bias"),
    "where.conv.weight": ("spatial_attention.cv1.weight", "cv1.weight"),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("channels", [1, 20, 64])
@pytest.mark.parametrize("kind", ["cbam", "channel", "spatial"])
@pytest.mark.parametrize("backend", ["reference", "lean"])
def test_the_form_ultralytics_is_their_class_forward_and_every_gradient(backend, kind, channels, kernel_size, training):
    build_theirs, build_ours = classes()[kind]
    torch.manual_seed(0)
    theirs = {"cbam": lambda: build_theirs(channels, kernel_size), "channel": lambda: build_theirs(channels)}.get(
        kind, lambda: build_theirs(kernel_size)
    )()
    options = {} if kind == "channel" else {"kernel_size": kernel_size}
    ours = build_ours(channels, form="ultralytics", **options).double().train(training)
    ours.backend = backend
    theirs = theirs.double().train(training)
    parameters = dict(theirs.named_parameters())
    own = dict(ours.named_parameters())
    names = {name: next(key for key in NAMES[name] if key in parameters) for name in own}
    assert sorted(names.values()) == sorted(parameters)
    with torch.no_grad():
        for name, key in names.items():
            own[name].copy_(parameters[key].normal_().view_as(own[name]))
    x, direction = torch.randn(2, 3, channels, 9, 7, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = theirs(inputs[0]), ours(inputs[1])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-12)
    for output in outputs:
        output.backward(direction)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-9, atol=1e-11)
    for name, key in names.items():
        torch.testing.assert_close(own[name].grad, parameters[key].grad.view_as(own[name]), rtol=1e-9, atol=1e-11)


def test_weights_of_networks_with_their_class_in_every_block(tmp_path):
    build_theirs, _ = classes()["cbam"]
    theirs = OfficialResNet(copied="ultralytics")
    rewritten = trained(theirs).state_dict()
    for module in list(theirs.modules()):
        if hasattr(module, "cbam"):
            module.cbam = build_theirs(module.cbam.channel_attention["fc"].in_channels)
    theirs.load_state_dict(rewritten, strict=True)
    torch.save({"model": theirs.state_dict()}, tmp_path / "theirs.pth")
    ours = create_model("cbam_resnet18", num_classes=10, pretrained=tmp_path / "theirs.pth")
    x = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.double().eval()(x)
        torch.testing.assert_close(ours.double().eval()(x), expected, rtol=1e-9, atol=1e-9)
    torch.save(ours.float().state_dict(), tmp_path / "ours.pth")
    convert_weights(tmp_path / "ours.pth", tmp_path / "back.safetensors", to="ultralytics")
    back = safetensors.torch.load_file(tmp_path / "back.safetensors")
    assert back.keys() == rewritten.keys()
    theirs.load_state_dict(back, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(theirs.double()(x), expected, rtol=1e-9, atol=1e-9)


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


@pytest.mark.parametrize("attention", ["cbam", "coord", "ema"])
def test_what_a_detector_looks_at(attention):
    model = attend(build("yolo11n"), attention)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)
    output, layers = maps(model, images)
    torch.testing.assert_close(output, expected)
    assert [layer.mix for layer in layers] == [0.0] * len(layers)
    for layer in layers:
        module = model.get_submodule(layer.layer)
        assert layer.kind == type(module).__name__
        # strides of the places where attention stands
        height, width = (max(gate.shape[n] for gate in layer.gates.values()) for n in (2, 3))
        assert (64 // height, 96 // width) in {(stride, stride) for stride in (2, 4, 8, 16, 32)}
    # a gate is that of the module alone on what it is given
    seen = {}
    first = model.get_submodule(layers[0].layer)
    handle = first.register_forward_pre_hook(lambda module, args: seen.setdefault("x", args[0].clone()))
    with torch.no_grad():
        model(images)
    handle.remove()
    for name, gate in maps(first, seen["x"])[1][0].gates.items():
        torch.testing.assert_close(layers[0].gates[name], gate)
    found = explain(model, [torch.rand(8, 3, 64, 96)], network="yolo11n with attention", sampled=2)
    assert (found.predictions, found.cam, len(found.layers)) == ([], None, len(layers))
    assert {finding.fault for finding in found.findings} == {"off"}
    assert "yolo11n with attention" in explanation_page([found])
