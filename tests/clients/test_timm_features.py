"""timm's feature extraction, surgery and checkpoints on the networks that we register with it."""

import argparse

import pytest
import timm
import torch
from timm.models._features import FeatureHookNet
from timm.models._features_fx import GraphExtractNet
from timm.utils import CheckpointSaver, ModelEmaV3, freeze, unfreeze

import whatwhere.timm  # noqa: F401  registers the networks
from whatwhere import ATTENTION

CHANNELS, REDUCTIONS = [64, 64, 128, 256, 512], [2, 4, 8, 16, 32]
CLASSES = ("list", "dict", "hook", "fx", "getter")
# as every network of the class here, over all attentions
network = pytest.mark.parametrize("name", [f"{attention}_resnet18" for attention in ATTENTION])


def build(name, **options):
    return timm.create_model(name, seed=0, num_classes=5, **options).eval()


def images(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def by_hand(model, x):
    features = [model.forward_stem(x)]
    x = model.maxpool(features[0].clone())
    for name in model.stage_names:
        x = model.get_submodule(name)(x)
        features.append(x)
    return features


@network
@torch.no_grad()
def test_every_way_to_features_gives_the_same(name):
    expected = by_hand(build(name), images())
    for feature_cls in CLASSES:
        model = build(name, features_only=True, feature_cls=feature_cls)
        assert model.feature_info.channels() == CHANNELS
        assert model.feature_info.reduction() == REDUCTIONS
        features = model(images())
        features = list(features.values()) if isinstance(features, dict) else features
        assert [images().shape[-1] // feature.shape[-1] for feature in features] == REDUCTIONS
        for feature, wanted in zip(features, expected, strict=True):
            torch.testing.assert_close(feature, wanted, msg=feature_cls)


@network
@pytest.mark.parametrize("output_stride", [8, 16])
@torch.no_grad()
def test_features_under_dilation(name, output_stride):
    model = build(name, features_only=True, output_stride=output_stride, out_indices=(2, 4))
    expected = by_hand(build(name, output_stride=output_stride), images())
    assert model.feature_info.reduction() == [8, output_stride]
    for feature, wanted in zip(model(images()), (expected[2], expected[4]), strict=True):
        torch.testing.assert_close(feature, wanted)


@network
@torch.no_grad()
def test_hooks_graphs_and_intermediates(name):
    plain = build(name)
    expected = by_hand(plain, images())
    logits = plain(images())
    hooked = FeatureHookNet(build(name), out_indices=(1, 3))
    for feature, wanted in zip(hooked(images()), (expected[1], expected[3]), strict=True):
        torch.testing.assert_close(feature, wanted)
    traced = GraphExtractNet(build(name), return_nodes=["layer2", "fc"])
    for got, wanted in zip(traced(images()), (expected[2], logits), strict=True):
        torch.testing.assert_close(got, wanted)
    last, features = plain.forward_intermediates(images(), indices=[0, 2])
    for got, wanted in zip((last, *features), (expected[4], expected[0], expected[2]), strict=True):
        torch.testing.assert_close(got, wanted)


@network
def test_gradient_checkpointing_in_features_changes_no_gradient(name):
    gradients = []
    for enable in (False, True):
        # evaluation mode: one pass of the norms' statistics or two would differ
        model = build(name, features_only=True)
        model.set_grad_checkpointing(enable)
        sum(feature.square().mean() for feature in model(images().requires_grad_())).backward()
        gradients.append({key: value.grad for key, value in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key])


@network
def test_a_new_classifier_keeps_the_rest(name):
    model = build(name)
    with torch.no_grad():
        features = model.forward_features(images())
        model.reset_classifier(7, "avg")
        assert model(images()).shape == (2, 7)
        assert torch.equal(model.forward_features(images()), features)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()(images()).sum().backward()
    optimizer.step()


@network
@torch.no_grad()
def test_freezing_and_thawing_keep_the_function(name):
    model = build(name)
    before = model(images())
    keys = model.state_dict().keys()
    freeze(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(images()), before)
    unfreeze(model)
    model.eval()  # timm's new norms are in training mode
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(images()), before)
    assert model.state_dict().keys() == keys


@network
def test_averages_and_checkpoints_come_back(name, tmp_path):
    model = build(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = ModelEmaV3(model, decay=0.5)
    model.train()(images()).square().mean().backward()
    optimizer.step()
    average.update(model)
    arguments = argparse.Namespace(model=name)
    folders = {"checkpoint_dir": str(tmp_path), "recovery_dir": str(tmp_path)}
    saver = CheckpointSaver(model, optimizer, arguments, average, **folders)
    saver.save_checkpoint(0, metric=1.0)
    path = str(tmp_path / "last.pth.tar")
    with torch.no_grad():
        expected = model.eval()(images())
        averaged = average.module.eval()(images())
        loaded = build(name)
        timm.models.load_checkpoint(loaded, path, use_ema=False)
        assert torch.equal(loaded(images()), expected)
        timm.models.load_checkpoint(loaded, path, use_ema=True)
        assert torch.equal(loaded(images()), averaged)
        by_path = timm.create_model(name, num_classes=5, checkpoint_path=path).eval()
        assert torch.equal(by_path(images()), averaged)
    assert not torch.equal(expected, averaged)
