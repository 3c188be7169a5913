import argparse
import pickle

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from whatwhere import ATTENTION, BAM, CBAM, create_model, list_models

BACKBONE = "resnext11_8x8d"


@pytest.fixture
def published():
    return create_model(BACKBONE, num_classes=10, seed=42)


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16)


@pytest.fixture
def file(published, tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(published.state_dict(), path)
    return path


def test_patterns_are_shell_style():
    assert list_models("cbam_resnext29_*") == [f"cbam_resnext29_{kind}" for kind in ("16x64d", "32x4d", "8x64d")]
    assert list_models("*article*") == [
        f"{prefix}article_resnext{depth}" for prefix in ("", "cbam_") for depth in (101, 152, 50)
    ]
    assert list_models("nothing*") == []
    assert list_models() == sorted(list_models())


@pytest.mark.parametrize(
    "name",
    ["resnext50", "cbam_resnet_50", "CBAM_ResNet50"],
)
def test_unknown_names_suggest_the_nearest(name, refused):
    with refused():
        create_model(name)


def test_unlike_any_name(refused):
    with refused():
        create_model("zzzzzzz")


def test_a_second_attention_is_refused(refused):
    with refused():
        create_model("cbam_resnet18", attention="se")


@pytest.mark.parametrize("attention", sorted(ATTENTION))
@pytest.mark.parametrize("training", [True, False])
def test_attention_behind_pretrained_weights_starts_as_the_identity(attention, training, published, file, images):
    model = create_model(f"{attention}_{BACKBONE}", num_classes=10, pretrained=file).train(training)
    assert torch.equal(model(images), published.train(training)(images))
    assert all(p == 0 for name, p in model.named_parameters() if name.endswith(".mix"))


def test_attention_of_ones_own_starts_as_the_identity_too(published, file, images):
    model = create_model(BACKBONE, num_classes=10, pretrained=file, attention=lambda c: nn.Conv2d(c, c, 1)).eval()
    assert torch.equal(model(images), published.eval()(images))


def test_random_start_behind_pretrained_weights_on_request(published, file, images):
    model = create_model(
        f"cbam_{BACKBONE}", num_classes=10, pretrained=file, attention_kwargs={"start": "paper"}
    ).eval()
    assert not torch.allclose(model(images), published.eval()(images))


@pytest.mark.parametrize("start", ["paper", "identity"])
def test_a_file_of_the_whole_network_comes_back_as_it_was(start, tmp_path, images):
    source = create_model(f"cbam_{BACKBONE}", num_classes=10, attention_kwargs={"start": start}).eval()
    for name, parameter in source.named_parameters():
        if name.endswith(".mix"):
            nn.init.constant_(parameter, 0.3)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in source.state_dict().items()}, "epoch": 3}, path)
    model = create_model(f"cbam_{BACKBONE}", num_classes=10, pretrained=str(path)).eval()
    assert torch.equal(model(images), source(images))


def test_another_number_of_classes_keeps_a_fresh_classifier(published, file, images):
    model = create_model(BACKBONE, num_classes=7, pretrained=file, seed=1).eval()
    assert torch.equal(model.fc.weight, create_model(BACKBONE, num_classes=7, seed=1).fc.weight)
    assert torch.equal(model.forward_features(images), published.eval().forward_features(images))
    assert create_model(BACKBONE, num_classes=0, pretrained=file)(images).shape == (3, 512)


def test_other_input_channels_keep_the_answer_to_grey_images(published, file, images):
    grey = images[:, :1]
    expected = published.eval()(grey.expand(-1, 3, -1, -1))
    single = create_model(BACKBONE, num_classes=10, pretrained=file, in_channels=1).eval()
    torch.testing.assert_close(single(grey), expected)
    six = create_model(BACKBONE, num_classes=10, pretrained=file, in_channels=6).eval()
    torch.testing.assert_close(six(grey.expand(-1, 6, -1, -1)), expected)


def test_torchvisions_weights_from_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = torchvision.models.resnet18()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs.state_dict(), tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    x = torch.randn(2, 3, 64, 64)
    for name in ("resnet18", "cbam_resnet18"):
        assert torch.equal(create_model(name, pretrained=True).eval()(x), theirs.eval()(x))


def test_a_damaged_file_in_torchvisions_cache_is_one_sentence(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cache.parent.mkdir(parents=True)
    for content in (b"", b"<html>please log in</html>"):
        cache.write_bytes(content)
        with refused(hiding=r"(?<=\.pth\): ).*(?=; download)"):
            create_model("resnet18", pretrained=True)


def test_no_network_is_one_sentence(tmp_path, monkeypatch, refused):
    import urllib.error

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    with refused():
        create_model("resnet18", pretrained=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnext101_32x4d", {}),
        ("article_resnext50", {}),
        ("resnet50", {"stride_in_1x1": True}),
    ],
)
def test_weights_that_do_not_exist(name, options, refused):
    with refused():
        create_model(name, pretrained=True, **options)


class Malicious:
    def __reduce__(self):
        return (open, ("/tmp/whatwhere-was-executed", "w"))


def hostile_files(folder, published):
    state = published.state_dict()
    sound = safetensors.torch.save(state)
    (folder / "truncated.safetensors").write_bytes(sound[: len(sound) // 2])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "garbage.pth").write_bytes(b"\x00\x01 not a checkpoint" * 50)
    (folder / "code.pth").write_bytes(pickle.dumps({"conv1.weight": Malicious()}))
    torch.save([1, 2, 3], folder / "list.pth")
    torch.save({"conv1.weight": 3}, folder / "number.pth")
    torch.save(dict(list(state.items())[: len(state) // 2]), folder / "half.pth")
    torch.save(create_model("resnet18").state_dict(), folder / "other.pth")
    torch.save({**state, "layer1.0.conv2.weight": torch.zeros(3)}, folder / "shape.pth")
    torch.save({**state, "conv1.weight": state["conv1.weight"] * float("nan")}, folder / "nan.pth")
    torch.save({**state, "conv1.weight": state["conv1.weight"].to_sparse()}, folder / "sparse.pth")
    torch.save({**state, "conv1.weight": state["conv1.weight"].to(torch.complex64)}, folder / "complex.pth")
    torch.save({**state, "fc.weight": torch.zeros(10, 7)}, folder / "features.pth")
    torch.save({**state, "fc.weight": torch.tensor(1.0)}, folder / "scalar.pth")
    torch.save({**state, "module.conv1.weight": torch.zeros_like(state["conv1.weight"])}, folder / "twice.pth")
    (folder / "folder.pth").mkdir()
    return [*sorted(path.name for path in folder.iterdir()), "missing.safetensors", "a" * 300]


def test_hostile_and_damaged_files_are_one_sentence_and_nothing_runs(tmp_path, published, refused):
    for name in hostile_files(tmp_path, published):
        with refused() as caught:
            create_model(BACKBONE, num_classes=10, pretrained=tmp_path / name)
        assert name[:80] in str(caught.value)
        assert len(str(caught.value)) < 500
        assert "weights_only" not in str(caught.value)
    import pathlib

    assert not pathlib.Path("/tmp/whatwhere-was-executed").exists()


def test_says_which_keys_do_not_fit(tmp_path, published, refused):
    state = published.state_dict()
    del state["layer1.0.conv2.weight"]
    torch.save({**state, "head.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with refused():
        create_model(BACKBONE, num_classes=10, pretrained=tmp_path / "w.pth")


class ConvBetweenStages(nn.Conv2d):
    place = "stage"

    def __init__(self, channels):
        super().__init__(channels, channels, 1)


class StartsAsIdentity(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x):
        return x + self.conv(x)


@pytest.mark.parametrize(
    "attention",
    [
        CBAM,
        BAM,
        lambda channels: CBAM(channels, start="identity"),
        StartsAsIdentity,
        lambda c: nn.Conv2d(c, c, 1),
        ConvBetweenStages,
    ],
    ids=[
        "gate",
        "between stages",
        "gate that starts as identity",
        "module that starts as identity",
        "module",
        "module between stages",
    ],
)
def test_attention_of_ones_own_behind_pretrained_weights_learns(attention, file, images):
    model = create_model(BACKBONE, num_classes=10, pretrained=file, attention=attention)
    plain = create_model(BACKBONE, num_classes=10, pretrained=file)
    assert torch.equal(model.eval()(images), plain.eval()(images))
    optimizer = torch.optim.SGD(model.train().parameters(), 0.05)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(3)).backward()
        optimizer.step()
    own = {name: p for name, p in model.named_parameters() if ".attention." in name}
    assert own
    assert [name for name, p in own.items() if p.grad.abs().sum() == 0] == []
    assert not any(".attention.attention.what" in name for name in own)


def test_identity_start_of_a_gate_that_was_given_comes_back(file, tmp_path, images):
    build = {"num_classes": 10, "attention": CBAM}
    source = create_model(BACKBONE, pretrained=file, **build)
    for name, parameter in source.named_parameters():
        if name.endswith(".mix"):
            nn.init.constant_(parameter, 0.3)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = create_model(BACKBONE, pretrained=tmp_path / "w.pth", **build)
    assert torch.equal(model.eval()(images), source.eval()(images))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "args": argparse.Namespace(model="resnet18", lr=0.1), "epoch": 3},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
        lambda state: {"state_dict": {key: value * 0 for key, value in state.items()}, "state_dict_ema": state},
        lambda state: {
            "model": {key: value * 0 for key, value in state.items()},
            "model_ema": {"n_averaged": torch.tensor(5)} | {f"module.{key}": value for key, value in state.items()},
        },
    ],
    ids=["timm's arguments", "torch.compile", "compiled in DDP", "timm's average", "torchvision's average"],
)
def test_reads_what_training_scripts_write(wrap, published, tmp_path, images):
    torch.save(wrap(published.state_dict()), tmp_path / "w.pth")
    model = create_model(BACKBONE, num_classes=10, pretrained=tmp_path / "w.pth").eval()
    assert torch.equal(model(images), published.eval()(images))


def test_a_file_without_a_classifier_keeps_a_fresh_one(published, tmp_path, images):
    state = {key: value for key, value in published.state_dict().items() if not key.startswith("fc.")}
    torch.save(state, tmp_path / "w.pth")
    model = create_model(BACKBONE, num_classes=10, pretrained=tmp_path / "w.pth", seed=1).eval()
    assert torch.equal(model.fc.weight, create_model(BACKBONE, num_classes=10, seed=1).fc.weight)
    assert torch.equal(model.forward_features(images), published.eval().forward_features(images))


@pytest.mark.parametrize("name", [[], 3, None])
def test_a_name_that_is_none(name, refused):
    with refused():
        create_model(name)


def test_a_pattern_that_is_none(refused):
    with refused():
        list_models(3)
