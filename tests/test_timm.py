import pytest
import timm
import torch
import torchvision

import whatwhere
import whatwhere.timm as registration
from whatwhere.models.resnet import RESNETS


def test_registers_what_timm_lacks_and_overwrites_nothing():
    assert {"cbam_resnext50_32x4d", "se_resnet50", "resnext29_32x4d", "resnext152_32x4d"} <= set(
        registration.REGISTERED
    )
    assert "resnet50" not in registration.REGISTERED
    assert not isinstance(timm.create_model("resnet18"), whatwhere.ResNet)
    assert set(registration.REGISTERED) <= set(timm.list_models())


def test_same_weights_as_create_model():
    theirs = timm.create_model("cbam_resnext11_8x8d", num_classes=10, seed=3).state_dict()
    ours = whatwhere.create_model("cbam_resnext11_8x8d", num_classes=10, seed=3).state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_timms_usual_arguments():
    model = timm.create_model(
        "cbam_resnet18", num_classes=7, in_chans=1, drop_rate=0.1, drop_path_rate=0.2, global_pool="max"
    )
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    assert (model.num_classes, model.num_features, model.default_cfg["input_size"]) == (7, 512, (3, 224, 224))
    assert model.get_classifier() is model.fc


def test_scriptable_is_refused_in_one_sentence(refused):
    with refused():
        timm.create_model("cbam_resnet50", scriptable=True)
    assert isinstance(timm.create_model("resnet10t", scriptable=True), timm.models.ResNet)


def test_features_and_classifier():
    model = timm.create_model("se_resnet18", num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    assert features.shape == (2, 512, 2, 2)
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, 512)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 512, 2, 2)
    assert timm.create_model("se_resnet18", num_classes=0)(x).shape == (2, 512)


@pytest.mark.parametrize(
    ("name", "channels", "reductions"),
    [
        ("cbam_resnext50_32x4d", [64, 256, 512, 1024, 2048], [2, 4, 8, 16, 32]),
        ("cbam_resnext29_32x4d", [64, 256, 512, 1024], [1, 1, 2, 4]),
        ("wide_resnet18_1_5", [64, 96, 192, 384, 768], [2, 4, 8, 16, 32]),
    ],
)
def test_features_only(name, channels, reductions):
    model = timm.create_model(name, features_only=True)
    assert model.feature_info.channels() == channels
    assert model.feature_info.reduction() == reductions
    outputs = model(torch.randn(1, 3, 64, 64).repeat(2, 1, 1, 1))
    assert [tuple(out.shape[1:]) for out in outputs] == [
        (c, 64 // r, 64 // r) for c, r in zip(channels, reductions, strict=True)
    ]


def test_out_indices():
    model = timm.create_model("cbam_resnet18", features_only=True, out_indices=(1, 3))
    assert [out.shape[1] for out in model(torch.randn(2, 3, 64, 64))] == [64, 256]


def test_pretrained_means_torchvisions_weights_and_an_identity_start(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = torchvision.models.resnet18().eval()
    cache = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cache.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), cache)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(timm.create_model("cbam_resnet18", pretrained=True).eval()(x), theirs(x))
    from_file = timm.create_model("cbam_resnet18", pretrained=True, pretrained_cfg_overlay={"file": str(cache)})
    assert torch.equal(from_file.eval()(x), theirs(x))
    by_path = timm.create_model("cbam_resnet18", pretrained=str(cache))
    assert torch.equal(by_path.eval()(x), theirs(x))
    assert from_file.default_cfg.get("state_dict") is None
    adapted = timm.create_model("cbam_resnet18", pretrained=True, num_classes=5, in_chans=1).eval()
    assert adapted(x[:, :1]).shape == (2, 5)


def test_a_file_with_trained_attention_comes_back_as_it_was(tmp_path):
    source = timm.create_model("cbam_resnext11_8x8d").eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    x = torch.randn(2, 3, 32, 32)
    overlay = {"file": str(tmp_path / "w.pth")}
    model = timm.create_model("cbam_resnext11_8x8d", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert torch.equal(model(x), source(x))
    by_path = timm.create_model("cbam_resnext11_8x8d", checkpoint_path=str(tmp_path / "w.pth")).eval()
    assert torch.equal(by_path(x), source(x))


def test_a_trained_classifier_is_kept(tmp_path):
    source = timm.create_model("cbam_resnext11_8x8d", num_classes=10)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    path = str(tmp_path / "w.pth")
    model = timm.create_model("cbam_resnext11_8x8d", num_classes=10, pretrained=path)
    assert torch.equal(model.fc.weight, source.fc.weight)
    other = timm.create_model("cbam_resnext11_8x8d", num_classes=7, pretrained=path)
    assert other.fc.weight.shape == (7, 512)


def test_a_new_classifier_leaves_the_dtype_of_the_rest_alone():
    model = timm.create_model("resnext11_8x8d").bfloat16()
    model.bn1.float()
    model.reset_classifier(3)
    assert (model.bn1.weight.dtype, model.fc.weight.dtype) == (torch.float32, torch.bfloat16)


def test_attention_by_argument():
    model = timm.create_model("resnext11_8x8d", attention="cbam")
    assert "layer1.0.attention.what.fc1.weight" in model.state_dict()


def test_gradient_checkpointing_changes_no_gradient():
    x = torch.randn(2, 3, 32, 32)
    gradients = []
    for enable in (False, True):
        model = timm.create_model("cbam_resnext11_8x8d", seed=0)
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append(model.conv1.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("attention", ["cbam", "bam"])
def test_layer_groups_cover_every_parameter_in_order(attention):
    from timm.models import group_parameters

    model = timm.create_model(f"{attention}_resnext11_8x8d")
    for coarse in (True, False):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert {name for names in groups.values() for name in names} == {name for name, _ in model.named_parameters()}
        layers = [{name.split(".")[0] for name in names} for names in groups.values()]
        assert layers == [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"fc"}]  # one block a stage


def test_attention_between_stages_is_checkpointed_and_seen_in_features():
    model = timm.create_model("bam_resnext11_8x8d", num_classes=3, seed=0)
    model.set_grad_checkpointing()
    x = torch.randn(2, 3, 16, 16)
    model(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.set_grad_checkpointing(False)
    model.zero_grad()
    model(x).sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    features = timm.create_model("bam_resnext11_8x8d", features_only=True, seed=0).eval()(x)
    plain = whatwhere.create_model("bam_resnext11_8x8d", seed=0).eval()
    torch.testing.assert_close(features[1], plain.layer1(plain.forward_stem(x)))


def test_a_foreign_file_is_refused_whatever_its_number_of_classes(tmp_path, refused):
    torch.save({"backbone.conv.weight": torch.zeros(3), "fc.weight": torch.zeros(7, 512)}, tmp_path / "w.pth")
    with refused():
        timm.create_model("cbam_resnext11_8x8d", pretrained=str(tmp_path / "w.pth"), num_classes=3)


@pytest.mark.parametrize("start", ["paper", "identity"])
def test_weights_from_a_url_keep_the_start_they_were_saved_with(start, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = timm.create_model("cbam_resnext11_8x8d", attention_kwargs={"start": start}).eval()
    cache = tmp_path / "hub" / "checkpoints" / "w.pth"
    cache.parent.mkdir(parents=True)
    torch.save(source.state_dict(), cache)
    overlay = {"url": "https://example.org/w.pth"}
    model = timm.create_model("cbam_resnext11_8x8d", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), source(x))


def test_weights_from_a_hub(monkeypatch):
    source = timm.create_model("cbam_resnext11_8x8d", seed=1).eval()
    asked = []

    def fetch(*location, weights_only):
        asked.append((location, weights_only))
        return source.state_dict()

    monkeypatch.setattr(timm.models, "load_state_dict_from_hf", fetch)
    overlay = {"hf_hub_id": "someone/network", "hf_hub_filename": "w.safetensors"}
    model = timm.create_model("cbam_resnext11_8x8d", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), source(x))
    assert asked == [(("someone/network", "w.safetensors"), True)]


def test_pretrained_features(tmp_path):
    source = timm.create_model("cbam_resnext11_8x8d").eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    x = torch.randn(2, 3, 32, 32)
    for feature_cls in ("list", "getter", "fx", "hook"):
        model = timm.create_model(
            "cbam_resnext11_8x8d", features_only=True, pretrained=str(tmp_path / "w.pth"), feature_cls=feature_cls
        )
        torch.testing.assert_close(model.eval()(x)[-1], source.forward_features(x), msg=feature_cls)


def test_intermediates():
    model = timm.create_model("cbam_resnet18").eval()
    x = torch.randn(2, 3, 64, 64)
    last, features = model.forward_intermediates(x)
    assert [feature.shape[1] for feature in features] == [64, 64, 128, 256, 512]
    assert torch.equal(last, features[-1])
    early = model.forward_intermediates(x, indices=[1, 2], stop_early=True, intermediates_only=True)
    assert torch.equal(early[1], features[2])
    assert model.prune_intermediate_layers([1, 2]) == [1, 2]
    assert len(model.layer3) == 0
    assert model(x).shape == (2, 128, 8, 8)


@pytest.mark.parametrize(("name", "crop_pct"), [("cbam_resnet50", 0.965), ("se_resnet18", 0.875)])
def test_crop_is_that_of_torchvisions_weights(name, crop_pct):
    cfg = timm.create_model(name).default_cfg
    preset = torchvision.models.get_model_weights(name.split("_")[1]).DEFAULT.transforms()
    assert cfg["crop_pct"] == crop_pct
    assert int(cfg["input_size"][1] / crop_pct) == preset.resize_size[0]


def test_timms_words_for_norms():
    model = timm.create_model("cbam_resnext11_8x8d", norm_layer="groupnorm", zero_init_last=True)
    assert isinstance(model.layer1[0].bn3, torch.nn.GroupNorm)
    assert model.layer1[0].bn3.weight.abs().sum() == 0


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_dilated_networks_compute_what_timms_do(name, output_stride):
    # timm has the plain networks by these names itself
    ours = registration.TimmResNet(
        **RESNETS[name], replace_stride_with_dilation=[stride > output_stride for stride in (8, 16, 32)], seed=0
    ).eval()
    theirs = timm.create_model(name, output_stride=output_stride).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 65, 97)
    torch.testing.assert_close(ours(x), theirs(x))
    assert [info["reduction"] for info in ours.feature_info] == [info["reduction"] for info in theirs.feature_info]


@pytest.mark.parametrize(
    ("name", "output_stride", "reductions"),
    [
        ("cbam_resnet18", 4, [2, 4, 4, 4, 4]),
        ("cbam_resnext50_32x4d", 8, [2, 4, 8, 8, 8]),
        ("bam_resnet50", 16, [2, 4, 8, 16, 16]),
        ("resnext152_32x4d", 32, [2, 4, 8, 16, 32]),
        ("se_resnext11_8x8d", 2, [1, 1, 2, 2]),
    ],
)
def test_output_stride_is_that_of_the_features(name, output_stride, reductions):
    model = timm.create_model(name, output_stride=output_stride, features_only=True, seed=0).eval()
    assert model.feature_info.reduction() == reductions
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 64, 64))
    assert [64 // out.shape[-1] for out in outputs] == reductions
    assert model.state_dict().keys() == timm.create_model(name, features_only=True).state_dict().keys()


def test_a_dilated_network_takes_the_weights_of_the_plain_one(tmp_path):
    source = timm.create_model("cbam_resnet50", seed=1)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = timm.create_model("cbam_resnet50", pretrained=str(tmp_path / "w.pth"), output_stride=8).eval()
    for index, stage in enumerate(("layer3", "layer4")):
        dilations = [block.conv2.dilation for block in model.get_submodule(stage)]
        assert dilations == [(2**index,) * 2, *[(2 ** (index + 1),) * 2] * (len(dilations) - 1)]
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in source.state_dict().items())


def test_gradients_of_a_dilated_network_are_those_of_its_blocks_taken_apart():
    # a hook makes every block run module by module
    gradients = []
    for hooked in (False, True):
        model = timm.create_model("cbam_resnet18", output_stride=8, num_classes=3, seed=0)
        if hooked:
            for module in list(model.modules()):
                module.register_forward_hook(lambda *_: None)
        model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for fused, apart in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, apart, rtol=1e-3, atol=1e-4 * float(apart.abs().max()) + 1e-6)


def test_timms_words_for_groups():
    model = timm.create_model("cbam_resnext11_8x8d", cardinality=4, base_width=16)
    assert (model.layer1[0].conv2.groups, model.layer1[0].conv2.in_channels) == (4, 32)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("act_layer", "silu"),
        ("aa_layer", "blurpool"),
        ("bn_momentum", 0.1),
        ("bn_eps", 1e-3),
        ("drop_block_rate", 0.1),
        ("drop_connect_rate", 0.1),
        ("block_args", {"attn_layer": "se"}),
        ("stem_type", "deep"),
        ("replace_stem_pool", True),
        ("avg_down", True),
        ("in_channels", 1),
        ("attention", "se"),  # the name says cbam
        ("feature_cfg", {}),
        ("pretrained_strict", False),
        ("device", "cpu"),
    ],
)
def test_what_is_not_taken_is_refused_in_a_sentence_that_names_what_is(argument, value, refused):
    with refused() as error:
        timm.create_model("cbam_resnext11_8x8d", **{argument: value})
    assert len(str(error.value)) < 260


@pytest.mark.parametrize(
    "arguments",
    [
        {"output_stride": 12},
        {"output_stride": [4]},
        {"output_stride": 2, "replace_stride_with_dilation": (False, True)},
        {"cardinality": 2, "groups": 2},
        {"norm_layer": "grupnorm"},
        {"global_pool": "mean"},
        {"replace_stride_with_dilation": (True,)},
        {"replace_stride_with_dilation": (1, 0)},
    ],
)
def test_impossible_values_are_refused(arguments, refused):
    with refused():
        timm.create_model("cbam_resnext11_8x8d", **arguments)


def test_what_timms_train_script_passes_by_default():
    model = timm.create_model(
        "cbam_resnext11_8x8d",
        pretrained=False,
        in_chans=3,
        num_classes=7,
        drop_rate=0.0,
        drop_path_rate=None,
        drop_block_rate=None,
        global_pool=None,
        bn_momentum=None,
        bn_eps=None,
        scriptable=False,
        checkpoint_path="",
    )
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("source", [{}, {"url": "https://example.org/w.pth"}])
def test_a_cache_that_would_not_be_used_is_refused(source, refused):
    with refused():
        timm.create_model("cbam_resnet18", pretrained=True, cache_dir="cache", pretrained_cfg_overlay=source)


def test_weights_of_another_stride_are_refused(refused):
    with refused():
        timm.create_model("cbam_resnet50", pretrained=True, stride_in_1x1=True)


def test_pretrained_weights_bring_their_options_to_an_attention_by_argument(tmp_path):
    source = timm.create_model("resnext11_8x8d", attention="cbam", attention_kwargs={"start": "identity"}).eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = timm.create_model("resnext11_8x8d", attention="cbam", pretrained=str(tmp_path / "w.pth")).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), source(x))


def test_building_draws_one_seed_of_torchs_generator():
    torch.manual_seed(5)
    first = timm.create_model("resnext11_8x8d").state_dict()
    after = torch.rand(())
    torch.manual_seed(5)
    second = whatwhere.create_model("resnext11_8x8d").state_dict()
    assert all(torch.equal(value, first[key]) for key, value in second.items())
    assert torch.rand(()) == after
