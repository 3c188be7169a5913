from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from starts import IDLE, STEPS
from whatwhere import ATTENTION, BAM, CBAM, ResNet, create_model, list_models
from whatwhere.models import Bottleneck
from whatwhere.models.resnet import RESNETS

NUM_PARAMS = {  # 1000 classes; timm, torchvision and the authors' code agree where they have the network
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x4d": 44_177_704,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "cbam_resnet18": 11_779_392,
    "cbam_resnet34": 21_960_468,
    "cbam_resnet50": 28_089_624,
    "cbam_resnet101": 49_330_172,
    "cbam_resnext50_32x4d": 27_561_496,
    "cbam_resnext101_32x4d": 48_958_716,
    "cbam_resnext101_32x8d": 93_572_348,
    "cbam_resnext101_64x4d": 88_236_284,
    "se_resnet50": 28_088_024,
    "se_resnext50_32x4d": 27_559_896,
    "se_resnext101_32x4d": 48_955_416,
    "se_resnext101_64x4d": 88_232_984,
    # k = 5, 5, 5, 7 in 3, 4, 6, 3 blocks: 86 more than the plain network
    "eca_resnet50": 25_557_118,
    # 2 C h + 2 C + 3 h + 1 a block, h = C / 16: 3 * 8,753 + 4 * 33,889 + 6 * 133,313 + 3 * 528,769 = 2,548,000 more
    "gc_resnet50": 28_105_032,
    # the sum of C over the blocks is 15,104: 4 C, 3 C, nothing
    "srm_resnet50": 25_557_032 + 4 * 15_104,
    "gct_resnet50": 25_557_032 + 3 * 15_104,
    "ge_resnet50": 25_557_032,
    # 2 C h, h = C / 16: SE without its biases (h + C)
    # C^2 + 5 C / 2 + 1, half the channels hidden; the sum of C^2 is 20,119,552
    "scse_resnet50": 25_557_032 + 20_119_552 + 5 * 15_104 // 2 + 16,
    "fca_resnet50": 28_088_024 - 15_104 - 15_104 // 16,
    "bam_resnet50": 25_915_099,
}
NUM_PARAMS_CIFAR = {
    "resnet8": (78_042, 83_892),
    "resnet20": (272_474, 278_324),  # 10 and 100 classes
    "resnext29_8x64d": (34_426_698, 34_518_948),
    "resnext29_16x64d": (68_155_210, 68_247_460),
    "resnext29_32x4d": (4_775_754, 4_868_004),
}
TORCHVISION = [name for name in RESNETS if name in torchvision.models.list_models()]
# the paper's Table 4, in millions: base, +SE, +CBAM
PAPER_MILLIONS = {
    "resnet18": (11.69, 11.78, 11.78),
    "resnet34": (21.80, 21.96, 21.96),
    "resnet50": (25.56, 28.09, 28.09),
    "resnet101": (44.55, 49.33, 49.33),
    "wide_resnet18_1_5": (25.88, 26.07, 26.08),
    "wide_resnet18_2": (45.62, 45.97, 45.97),
    "resnext50_32x4d": (25.03, 27.56, 27.56),
    "resnext101_32x4d": (44.18, 48.96, 48.96),
}


def num_params(name, **kwargs):
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name, **kwargs).parameters())


@pytest.mark.parametrize(("name", "expected"), NUM_PARAMS.items())
def test_parameter_counts(name, expected):
    assert num_params(name) == expected


@pytest.mark.parametrize(("name", "expected"), NUM_PARAMS_CIFAR.items())
def test_parameter_counts_of_the_cifar_forms(name, expected):
    assert tuple(num_params(name, num_classes=n) for n in (10, 100)) == expected


@pytest.mark.parametrize(("name", "expected"), PAPER_MILLIONS.items())
def test_parameter_counts_of_the_papers_table(name, expected):
    assert tuple(round(num_params(prefix + name) / 1e6, 2) for prefix in ("", "se_", "cbam_")) == expected


def test_every_backbone_stands_plain_and_with_every_attention():
    for name in RESNETS:
        assert {name, *(f"{attention}_{name}" for attention in ATTENTION)} <= set(list_models())


def test_parameter_counts_are_those_of_timms_networks_with_its_modules():
    adding = partial(timm.layers.GlobalContext, fuse_add=True, fuse_scale=False, rd_ratio=1 / 16)
    for name, module in {"eca": "eca", "gc": adding}.items():
        with torch.device("meta"):
            theirs = timm.create_model("resnet50", block_args={"attn_layer": module})
        assert num_params(f"{name}_resnet50") == sum(p.numel() for p in theirs.parameters())


def test_published_zeros_stay_and_maps_of_one_channel_start_at_the_scale_of_their_input():
    networks = [create_model("gc_resnet18", seed=seed) for seed in (0, 1)]
    plain = create_model("resnet18", seed=0)
    shared = networks[0].state_dict()
    assert all(torch.equal(value, shared[key]) for key, value in plain.state_dict().items())
    blocks = [network.layer4[1].attention for network in networks]
    assert all(value.abs().sum() == 0 for value in (*blocks[0].fc2.parameters(), blocks[0].mask.bias))
    assert not torch.equal(blocks[0].mask.weight, blocks[1].mask.weight)
    assert not torch.equal(blocks[0].fc1.weight, blocks[1].fc1.weight)
    # logits of unit variance inputs: sqrt(2)
    assert 1.2 < blocks[0].mask.weight.square().sum().sqrt() < 1.6
    torch.manual_seed(1)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(networks[0].eval()(x), plain.eval()(x))


def test_one_dimensional_convolutions_start_as_torchs():
    weights = [m.what.conv.weight for m in create_model("eca_resnet50", seed=0).modules() if hasattr(m, "what")]
    values = torch.cat([weight.flatten() * weight.shape[2] ** 0.5 for weight in weights])
    assert len(weights) == 16
    assert values.abs().max() <= 1
    assert 0.4 < values.abs().mean() < 0.6


@pytest.fixture(scope="module")
def on_meta():
    with torch.device("meta"):
        return {name: create_model(name) for name in RESNETS}


@pytest.mark.parametrize("attention", sorted(ATTENTION))
def test_attention_adds_what_its_modules_have_and_keeps_the_backbones_keys(attention, on_meta):
    at_stage = getattr(ATTENTION[attention], "place", "block") == "stage"
    for name, config in RESNETS.items():
        plain = on_meta[name]
        with torch.device("meta"):
            attentive = create_model(f"{attention}_{name}")
        keys = list(attentive.state_dict())
        assert [key for key in keys if ".attention." not in key] == list(plain.state_dict())
        # (stage, number of modules in it)
        depths = [(i, 1 if at_stage else depth) for i, depth in enumerate(config["layers"], start=1)]
        added = 0
        for stage, depth in depths[:-1] if at_stage else depths:
            channels = plain.stage_channels[stage - 1]
            with torch.device("meta"):
                added += depth * sum(p.numel() for p in ATTENTION[attention](channels).parameters())
        counts = [sum(p.numel() for p in model.parameters()) for model in (plain, attentive)]
        assert counts[1] - counts[0] == added


def test_bam_stands_at_the_end_of_every_stage_but_the_last():
    for name, num_stages in (("resnet18", 4), ("resnext50_32x4d", 4), ("resnext11_8x8d", 3)):
        model = create_model(f"bam_{name}", num_classes=3, seed=0)
        modules = [name for name, module in model.named_modules() if isinstance(module, BAM)]
        assert modules == [f"layer{stage}.attention" for stage in range(1, num_stages)]
        assert {key.split(".attention.")[0] for key in model.state_dict() if ".attention." in key} == {
            f"layer{stage}" for stage in range(1, num_stages)
        }


def test_attention_between_stages_takes_what_the_stage_gave_and_gives_what_the_next_one_takes():
    model = create_model("bam_resnext11_8x8d", num_classes=3, seed=0).eval()
    plain = create_model("resnext11_8x8d", num_classes=3, seed=0).eval()
    x = torch.randn(2, 3, 16, 16)
    found, expected = model.forward_stem(x), plain.forward_stem(x)
    for name in model.stage_names:
        expected = plain.forward_stage(name, expected)
        if name != "layer3":
            expected = model.get_submodule(name).attention(expected)
        found = model.forward_stage(name, found)
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model(x), plain.forward_head(expected))


class Halves(nn.Module):
    place = "stage"

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x):
        return x * self.scale


def halves(channels):
    return Halves(channels)


@pytest.mark.parametrize("attention", [Halves, halves], ids=["class", "function"])
def test_any_module_may_stand_between_stages(attention):
    model = create_model("resnext11_8x8d", num_classes=3, attention=attention)
    own = {name: p for name, p in model.named_parameters() if ".attention." in name}
    assert list(own) == ["layer1.attention.scale", "layer2.attention.scale"]
    assert all((parameter == 0.5).all() for parameter in own.values())
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in own.values())


def test_attention_between_stages_must_not_broadcast_and_needs_stages(refused):
    class Pool(nn.AdaptiveAvgPool2d):
        place = "stage"

    model = create_model("resnext11_8x8d", attention=lambda channels: Pool(1))
    with refused():
        model(torch.randn(2, 3, 16, 16))
    with refused():
        ResNet(Bottleneck, (1,), widths=(32,), attention="bam")


@pytest.mark.parametrize("name", TORCHVISION)
def test_keys_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
        ours = create_model(name).state_dict()
        attentive = create_model(f"cbam_{name}").state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert list(ours) == list(theirs)
    assert all(".attention." in key for key in attentive.keys() - theirs.keys())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("training", [False, True])
def test_output_and_gradients_are_torchvisions(name, training):
    theirs = torchvision.models.get_model(name).train(training)
    ours = create_model(name).train(training)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 97, 64)
    outputs = [model(x) for model in (theirs, ours)]
    torch.testing.assert_close(outputs[1], outputs[0])
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(ours.conv1.weight.grad, theirs.conv1.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cbam_resnet18", "se_resnext29_32x4d", "cbam_resnext11_8x8d", "bam_resnext11_8x8d"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 17)])
def test_takes_any_image_size(name, size):
    model = create_model(name, num_classes=7, in_channels=2)
    assert model(torch.randn(2, 2, *size)).shape == (2, 7)


def test_cifar_form_has_no_early_downsampling():
    model = create_model("resnext29_32x4d", num_classes=10)
    assert model.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, 1024, 8, 8)


@pytest.mark.parametrize(
    "name",
    [
        "cbam_resnet50",
        "se_resnet50",
        "cbam_resnext50_32x4d",
        "bam_resnet50",
        *(f"{attention}_resnext11_8x8d" for attention in sorted(ATTENTION)),
    ],
)
def test_every_parameter_learns_from_the_first_step_that_the_published_start_allows(name):
    attention = name.partition("_")[0]
    model, unmoved = create_model(name, num_classes=5, seed=0), set()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(STEPS.get(attention, 1)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
        unmoved = {key for key, parameter in model.named_parameters() if parameter.grad.abs().sum() == 0}
        optimizer.step()
    assert {key for key in unmoved if not key.endswith(tuple(IDLE.get(attention, ())))} == set()


def test_zeroed_spatial_norm_on_request():
    model = create_model("cbam_resnet18", attention_kwargs={"zero_init_norm": True})
    norms = [module.where.norm for module in model.modules() if isinstance(module, CBAM)]
    assert len(norms) == 8
    assert all(norm.weight == 0 and norm.bias == 0 for norm in norms)


def strides(model):
    return [(block.conv1.stride, block.conv2.stride) for block in model.modules() if isinstance(block, Bottleneck)]


def test_stride_in_1x1_moves_the_stride(refused):
    default, paper = (strides(create_model("resnet50", stride_in_1x1=flag)) for flag in (False, True))
    assert default[3] == ((1, 1), (2, 2))
    assert paper == [(second, first) for first, second in default]
    with refused():
        create_model("resnet18", stride_in_1x1=True)


def test_attention_stands_after_the_last_norm_before_the_sum():
    seen = {}

    class Probe(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.channels = channels

        def forward(self, x):
            seen.setdefault(self.channels, x)
            return torch.zeros_like(x)

    model = ResNet(Bottleneck, (1,), widths=(32,), num_classes=3, attention=Probe)
    outputs = {}
    model.layer1[0].bn3.register_forward_hook(lambda module, args, output: outputs.update(branch=output))
    model.layer1[0].downsample.register_forward_hook(lambda module, args, output: outputs.update(shortcut=output))
    features = model.forward_features(torch.randn(2, 3, 16, 16))
    assert torch.equal(seen[128], outputs["branch"])
    assert torch.equal(features, outputs["shortcut"].relu())


def test_initial_weights_are_a_function_of_seed_and_name():
    plain, attentive, other = (
        create_model(name, num_classes=10, seed=seed).state_dict()
        for name, seed in (("resnext11_8x8d", 3), ("cbam_resnext11_8x8d", 3), ("resnext11_8x8d", 4))
    )
    assert all(torch.equal(value, attentive[key]) for key, value in plain.items())
    assert not torch.equal(plain["conv1.weight"], other["conv1.weight"])
    without_bias = create_model("cbam_resnext11_8x8d", seed=3, attention_kwargs={"mlp_bias": False}).state_dict()
    key = "layer2.0.attention.what.fc2.weight"
    assert torch.equal(without_bias[key], attentive[key])


@pytest.mark.parametrize("attention", sorted(ATTENTION))
def test_initial_weights_of_every_attention_are_a_function_of_seed_and_name(attention):
    name, state = f"{attention}_resnext11_8x8d", torch.get_rng_state()
    plain, first, again, other = (
        create_model(each, num_classes=10, seed=seed).state_dict()
        for each, seed in (("resnext11_8x8d", 3), (name, 3), (name, 3), (name, 4))
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, first[key]) for key, value in plain.items())
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    for key in first.keys() - plain.keys():
        constant = first[key].unique().tolist() in ([], [0], [1])
        assert torch.equal(first[key], other[key]) == constant, key


def test_without_a_seed_torchs_generator_rules():
    torch.manual_seed(5)
    first = create_model("resnext11_8x8d").conv1.weight
    second = create_model("resnext11_8x8d").conv1.weight
    torch.manual_seed(5)
    assert torch.equal(create_model("resnext11_8x8d").conv1.weight, first)
    assert not torch.equal(first, second)


def test_drawing_initial_weights_leaves_torchs_generator_alone():
    state = torch.get_rng_state()
    create_model("cbam_resnext11_8x8d", seed=0, attention=None)
    create_model("resnext11_8x8d", seed=0, attention=lambda channels: nn.Conv2d(channels, channels, 1))
    assert torch.equal(torch.get_rng_state(), state)


def test_attention_of_ones_own_keeps_its_start_and_is_reproducible():
    class Own(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 1)
            nn.init.zeros_(self.conv.weight)
            self.free = nn.Parameter(torch.randn(channels))

        def forward(self, x):
            return x + self.conv(x)

    first, second = (create_model("resnext11_8x8d", seed=1, attention=Own) for _ in range(2))
    assert first.layer1[0].attention.conv.weight.abs().sum() == 0
    assert torch.equal(first.layer2[0].attention.free, second.layer2[0].attention.free)
    assert torch.equal(first.conv1.weight, create_model("resnext11_8x8d", seed=1).conv1.weight)


def test_an_attention_module_may_keep_its_own_output_for_backward():
    model = create_model("resnext11_8x8d", num_classes=3, attention=lambda channels: nn.Sigmoid())
    model(torch.randn(2, 3, 16, 16)).sum().backward()


def test_initial_scale_is_torchvisions():
    ours, theirs = create_model("resnet50", seed=0), torchvision.models.resnet50()
    for key, weight in theirs.state_dict().items():
        if weight.dim() == 4 and weight.numel() > 10_000:
            assert ours.state_dict()[key].std().item() == pytest.approx(weight.std().item(), rel=0.05), key


def test_stochastic_depth_drops_whole_samples_while_training():
    model = ResNet(Bottleneck, (1, 1), widths=(16, 32), num_classes=3, drop_path_rate=0.5)
    rates = [getattr(stage[0].drop_path, "drop_rate", 0.0) for stage in (model.layer1, model.layer2)]
    assert rates == [0.0, 0.5]
    drop_path = model.layer2[0].drop_path
    out = drop_path(torch.ones(1000, 2, 1, 1)).flatten(1)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(out[:, 0], out[:, 1])
    assert out.mean().item() == pytest.approx(1, abs=0.15)
    assert torch.equal(drop_path.eval()(torch.ones(4, 2, 1, 1)), torch.ones(4, 2, 1, 1))


def test_other_norms_and_zero_initialised_residuals():
    model = create_model("resnext11_8x8d", norm_layer=lambda c: nn.GroupNorm(8, c), zero_init_residual=True)
    assert isinstance(model.bn1, nn.GroupNorm)
    assert model.layer1[0].bn3.weight.abs().sum() == 0
    assert model.layer1[0].bn2.weight.abs().sum() != 0


def test_without_classes_the_pooled_features_come_out():
    model = create_model("resnext11_8x8d", num_classes=0)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 512)
    model.reset_classifier(4)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 4)


@pytest.mark.parametrize("shape", [(1, 224, 224), (2, 1, 32, 32), (2, 32, 32, 3)])
def test_names_the_layer_that_refuses_an_input(shape, refused):
    with refused():
        create_model("resnext11_8x8d")(torch.randn(shape))


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": -1},
        {"num_classes": "10"},
        {"num_classes": 10**20},
        {"norm_layer": 3},
        {"in_channels": 0},
        {"drop_rate": "half"},
        {"attention": "cbam", "attention_kwargs": 5},
        {"pretrained": 1},
        {"drop_rate": 1.0},
        {"drop_path_rate": -0.1},
        {"seed": 0.5},
        {"stem": "cifar10"},
        {"attention": "cbma"},
        {"attention": CBAM(64)},
        {"attention": lambda channels: channels},
        {"attention": "cbam", "attention_kwargs": {"ratio": 16}},
        {"attention_kwargs": {"reduction": 8}},
        {"num_clases": 3},
    ],
)
def test_impossible_options_are_one_sentence(options, refused):
    with refused():
        create_model("resnext11_8x8d", **options)


def test_backward_and_memory_format():
    model = create_model("cbam_resnext11_8x8d", num_classes=3, seed=0).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 0},
        {"width_per_group": "4"},
        {"width_per_group": 1},
        {"stem_channels": 0},
        {"widths": 5},
        {"widths": (1.5, 2, 3)},
        {"layers": (1, 0, 1)},
        {"norm_layer": lambda channels: nn.GroupNorm(7, channels)},
        {"norm_layer": lambda channels: None},
        {"norm_layer": nn.Identity, "zero_init_residual": True},
        {"attention": nn.Conv2d},
    ],
)
def test_impossible_sizes_and_parts_are_one_sentence(options, refused):
    sizes = {"layers": (1, 1, 1), "widths": (32, 64, 128), "groups": 8, "width_per_group": 8}
    with refused():
        ResNet(Bottleneck, **{**sizes, **options})


@pytest.mark.parametrize("build", [lambda c: nn.Conv2d(c, 1, 1), lambda c: nn.AdaptiveAvgPool2d(1)])
def test_attention_must_not_broadcast(build, refused):
    model = create_model("resnext11_8x8d", attention=build)
    with refused():
        model(torch.randn(2, 3, 16, 16))


@pytest.mark.filterwarnings("ignore:NOTE. The nodes obtained by tracing:UserWarning")
def test_features_by_torchvisions_extractor():
    from torchvision.models.feature_extraction import create_feature_extractor as extract

    for attention in ("cbam", "bam", "triplet"):
        model = create_model(f"{attention}_resnext11_8x8d", num_classes=3, drop_path_rate=0.2).eval()
        x = torch.randn(2, 3, 16, 16)
        features = extract(model, ["layer2", "layer3"])(x)
        torch.testing.assert_close(features["layer3"], model.forward_features(x))


def test_a_new_classifier_leaves_torchs_generator_alone():
    model = create_model("resnext11_8x8d", seed=0)
    state = torch.get_rng_state()
    model.reset_classifier(5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_blocks_with_other_parts_compute_what_their_parts_do():
    images = torch.randn(2, 3, 16, 16)
    for prefix in ("", "cbam_"):
        for name, part in (("relu", nn.SiLU()), ("drop_path", nn.Tanh()), ("attention", Doubled())):
            model = create_model(f"{prefix}resnext11_8x8d", num_classes=3, seed=0).eval()
            for module in model.modules():
                if isinstance(module, Bottleneck):
                    setattr(module, name, part)
            with torch.no_grad():
                found = model(images)
                for module in model.modules():  # whatever hangs a hook on sees, and gets, the modules one by one
                    module.register_forward_hook(lambda *_: None)
                torch.testing.assert_close(found, model(images), msg=f"{prefix}{name}")


class Doubled(nn.Identity):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("dilated", [(False, False, True), (False, True, True), (True, False, True)])
@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_dilated_networks_compute_what_torchvisions_do(name, dilated):
    ours = create_model(name, seed=0, replace_stride_with_dilation=dilated).eval()
    theirs = torchvision.models.get_model(name, replace_stride_with_dilation=dilated).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 65, 97)
    torch.testing.assert_close(ours.forward_features(x), torch_features(theirs, x))
    torch.testing.assert_close(ours(x), theirs(x))


def torch_features(model, x):
    return nn.Sequential(*list(model.children())[:-2])(x)
