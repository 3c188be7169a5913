"""attend, plan, detach: what they promise beyond the sweep over networks."""

import copy
import functools

import pytest
import torch
import torchvision
from torch import nn

import whatwhere
from small_networks import SUMS, Block, Network, images, same
from strangers import build
from whatwhere import BAM, CBAM, create_model
from whatwhere.attention import attention_by_path
from whatwhere.insert import attend, detach, plan
from whatwhere.insert.host import AttendedBatchNorm2d


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_found_however_it_is_written(name):
    model = Network(Block(SUMS[name]), Block(SUMS[name]))
    original = copy.deepcopy(model)
    assert attend(model, "cbam") is model
    assert [type(block.attention) for block in model.blocks] == [CBAM, CBAM]
    assert same(model, original)
    with torch.no_grad():
        model.blocks[0].attention.mix.fill_(1.0)
    assert not same(model, original)
    # on the branch, not on the shortcut: nothing of the branch is left where its gates are 0
    branchless = copy.deepcopy(original)
    branchless.blocks[0].add = lambda branch, shortcut: SUMS[name](torch.zeros_like(branch), shortcut)
    model.blocks[0].attention.what.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    assert same(model, branchless)


class Several(nn.Module):
    """Sums that are no residual block's: of two branches alike, and of two inputs."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.one(x) + self.two(x)


def test_a_sum_of_two_branches_alike_is_no_residual_block(refused):
    with refused():
        attend(Network(Several()), "cbam")


def test_a_block_that_is_called_twice_takes_none_and_says_so():
    block = Block(torch.add)
    model = Network(block, block, Block(torch.add))
    planned = plan(model, "se")
    assert [place.label for place in planned.places] == ["blocks.2"]
    assert [(skipped.label, skipped.reason) for skipped in planned.skipped] == [
        ("blocks.0", "the block is called more than once")
    ]
    assert "blocks.0 takes none: the block is called more than once" in repr(planned)


def test_a_branch_that_is_used_elsewhere_too_takes_none(refused):
    class Leaking(Block):
        def forward(self, x):
            branch = self.norm(self.conv(x))
            return branch + x + 0 * branch.mean()

    with refused():
        attend(Network(Leaking(torch.add)), "se")


def test_keys_are_those_of_our_own_networks():
    theirs = attend(torchvision.models.resnet18(), "cbam")
    ours = create_model("cbam_resnet18", attention_kwargs={"start": "identity"})
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith("mix"):
                parameter.fill_(0.5)
    theirs.load_state_dict(ours.state_dict())
    x = images(64)
    torch.testing.assert_close(theirs.eval()(x), ours.eval()(x))


def test_our_own_networks_take_it_into_their_slot():
    model = attend(create_model("resnet18", seed=0), "cbam", seed=1)
    assert (
        model.state_dict().keys()
        == create_model("cbam_resnet18", attention_kwargs={"start": "identity"}).state_dict().keys()
    )
    assert same(model, create_model("resnet18", seed=0), images(64))
    assert type(detach(model).layer1[0].attention) is nn.Identity


def test_paper_start_is_the_module_as_published():
    model = attend(torchvision.models.resnet18(), "cbam", start="paper")
    assert "layer1.0.attention.mix" not in model.state_dict()
    ours = create_model("cbam_resnet18")
    ours.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(images(64)), ours.eval()(images(64)))


def test_what_is_planned_is_what_is_done():
    model = build("torchvision:mobilenet_v3_small")
    before = {name: type(module) for name, module in model.named_modules()}
    planned = plan(model, "cbam", attention_kwargs={"reduction": 8})
    assert {name: type(module) for name, module in model.named_modules()} == before
    num_params = sum(parameter.numel() for parameter in model.parameters())
    assert planned.num_params == num_params
    attend(model, "cbam", attention_kwargs={"reduction": 8})
    assert sum(parameter.numel() for parameter in model.parameters()) == num_params + sum(planned.added_params)
    for place, channels in zip(planned.places, (24, 40, 40, 48, 96, 96), strict=True):
        module = model.get_submodule(f"{place.owner}.{place.name}")
        assert (module.channels, place.channels) == (channels, channels)
    content = planned.to_dict()
    assert content["added_params"] == sum(planned.added_params)
    assert content["places"][0]["size"] == [28, 28]
    assert all(place["in_norm"] for place in content["places"])


def test_initial_values_follow_from_seed_and_name():
    models = [attend(build("timm:resnet26"), "se", seed=seed) for seed in (3, 3, 4)]
    weights = [model.layer3[1].attention.what.fc1.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    model, state = build("timm:resnet26"), torch.get_rng_state()
    attend(model, "se", seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = [attend(Network(Block(torch.add)), "se").blocks[0].attention.what.fc1.weight for _ in range(2)]
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("mode", ["float64", "bfloat16", "evaluation", "partly frozen"])
def test_dtype_and_mode_are_those_of_the_network(mode):
    model = Network(Block(torch.add), Block(torch.add))
    if mode in ("float64", "bfloat16"):
        model.to(getattr(torch, mode))
    elif mode == "evaluation":
        model.eval()
    else:
        model.blocks[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    attend(model, "cbam")
    assert {parameter.dtype for parameter in model.parameters()} == {model.fc.weight.dtype}
    assert {name: module.training for name, module in model.named_modules() if name in modes} == modes
    for block in model.blocks:
        assert {module.training for module in block.attention.modules()} == {block.training}


class OfOnes(nn.Module):
    """Attention that is none at 12 channels."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x):
        return (x * self.scale.sigmoid())[:, : 8 if self.channels == 8 else 5]


def test_a_refusal_leaves_the_network_as_it_was(refused):
    class Wider(Block):
        def __init__(self):
            super().__init__(torch.add, 12)

    model = Network(Block(torch.add), nn.Conv2d(8, 12, 1), Wider(), nn.Conv2d(12, 8, 1))
    before = {name: (type(module), set(vars(module))) for name, module in model.named_modules()}
    for attention, options in (
        (OfOnes, {"start": "paper"}),
        (OfOnes, {}),
        (lambda channels: nn.Conv2d(8, 8, 1), {"start": "paper"}),
        ("cbam", {"at": "nowhere"}),
        ("cbam", {"at": "blocks.0.norm,fc"}),
        ("cbam", {"at": ""}),
        ("cbam", {"replace": "se"}),
        ("cbam", {"replace": "eca"}),
        ("cbam", {"start": "zero"}),
        ("cbma", {}),
        ("cbam", {"attention_kwargs": {"r": 8}}),
        ("cbam", {"attention_kwargs": {"start": "paper"}}),
        ("cbam", {"example": torch.zeros(1, 4, 16, 16)}),
    ):
        with refused(hiding=r"(?<=does not run: ).*?(?=expected input|; )|(?<=\{'r': 8\}).*"):
            attend(model, attention, **options)
        assert {name: (type(module), set(vars(module))) for name, module in model.named_modules()} == before
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(3, 3),
        "resnet18",
        nn.DataParallel(nn.Conv2d(3, 8, 3)),
        nn.LazyConv2d(8, 3),
        nn.Conv2d(3, 8, 3, device="meta"),
    ],
)
def test_what_cannot_be_attended_says_why(model, refused):
    with refused():
        attend(model, "cbam")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_or_compiled_network_is_refused(refused):
    with refused():
        attend(torch.jit.trace(nn.Conv2d(3, 8, 3), images()), "cbam")
    with refused():
        attend(torch.compile(Network(Block(torch.add))), "cbam")


def test_images_are_tried_in_colour_where_the_first_convolution_takes_more_channels():
    """As behind a stem that folds pixels into channels (TResNet, YOLOv5)."""
    model = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 1), Block(torch.add))
    assert [place.label for place in plan(model, "se").places] == ["2"]


def test_twice_in_one_place_is_refused_and_two_places_are_not(refused):
    model = attend(Network(Block(torch.add), Block(SUMS["scaled"])), "cbam")
    with refused():
        attend(model, "se")
    attend(model, "se", at="stem")
    assert type(model.stem.attention).__name__ == "SqueezeExcitation"
    detach(model)
    assert not hasattr(model.stem, "attention")
    assert not hasattr(model.blocks[1], "attention")


def test_patterns_name_modules(refused):
    model = build("torchvision:resnet18")
    attend(model, "se", at="layer[34].*.bn2,maxpool")
    added = sorted(name for name, module in model.named_modules() if name.endswith("attention"))
    # behind a norm it is a child of the module around, because tools rebuild norms
    assert added == [
        *(f"layer{stage}.{index}.bn2_attention" for stage in (3, 4) for index in (0, 1)),
        "maxpool.attention",
    ]
    assert type(model.layer3[0].bn2) is AttendedBatchNorm2d
    with refused():
        attend(model, "se", at="layer1.0.relu")
    with refused():
        attend(model, "se", at="layer5")


def test_a_plain_sequence_of_layers_takes_it_in_a_layer():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    )
    original = copy.deepcopy(model)
    attend(model, "cbam", at="3")
    assert [name for name, module in model.named_modules() if isinstance(module, CBAM)] == ["3.attention"]
    assert same(model, original)


@pytest.mark.parametrize("name", ["timm:seresnet50", "torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_050"])
def test_squeeze_and_excitation_is_replaced_and_comes_back(name):
    model = build(name)
    original = copy.deepcopy(model)
    squeezes = {
        key for key, module in model.named_modules() if type(module).__name__.startswith(("Squeeze", "SEModule"))
    }
    assert {place.host for place in plan(model, "cbam", replace="se").places} == squeezes
    attend(model, "cbam", replace="se")
    assert {key for key, module in model.named_modules() if isinstance(module, CBAM)} == squeezes
    copy.deepcopy(model)(images(64)).sum().backward()
    moved = detach(copy.deepcopy(model).double().eval())
    assert {parameter.dtype for parameter in moved.parameters()} == {torch.float64}
    assert not any(module.training for module in moved.modules())
    detach(model)
    assert model.state_dict().keys() == original.state_dict().keys()
    assert same(model, original, images(64))


def test_attend_is_a_public_name():
    assert whatwhere.attend is attend
    assert whatwhere.detach is detach


class Functional(nn.Module):
    """Residual sums in the forward of the network itself."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        for conv in self.convs:
            x = torch.relu(x + conv(x))
        return x.mean((2, 3))


def test_a_network_without_modules_for_its_blocks():
    model = Functional()
    original = copy.deepcopy(model)
    assert [place.name for place in plan(model, "se").places] == [f"convs_{index}_attention" for index in range(4)]
    attend(model, "se")
    assert same(model, original)
    assert same(detach(model), original)


class UpAndDown(nn.Module):
    """An encoder, a decoder, and a sum of both: no residual block."""

    def __init__(self):
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.ConvTranspose2d(8, 8, 2, 2)

    def forward(self, x):
        x = self.stem(x)
        return (x + self.up(self.down(x))).mean((2, 3))


def test_the_skip_of_an_encoder_and_decoder_is_no_residual_block(refused):
    with refused():
        attend(UpAndDown(), "cbam")


class Quantizable(Block):
    """A block that sums by a module, as torchvision's quantizable networks do."""

    def __init__(self):
        super().__init__(None)
        self.skip_add = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x):
        return self.skip_add.add(self.norm(self.conv(x)), x)


def test_a_module_that_sums_belongs_to_its_block():
    model = Network(Quantizable(), Quantizable())
    assert [place.owner for place in plan(model, "se").places] == ["blocks.0", "blocks.1"]
    original = copy.deepcopy(model)
    assert same(attend(model, "se"), original)


def test_deep_networks_are_followed_to_their_end():
    model = Network(*(Block(SUMS["scaled"]) for _ in range(400)))
    assert len(plan(model, "eca", example=images(4)).places) == 400


class Skipping(nn.Module):
    """A decoder's sum with a projection of what the encoder had: no residual block."""

    def __init__(self):
        super().__init__()
        self.stem, self.skip, self.down = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x):
        x = self.stem(x)
        return (self.skip(x) + self.up(self.down(x))).mean((2, 3))


def test_a_skip_with_a_projection_is_none_either(refused):
    with refused():
        attend(Skipping(), "cbam")


def test_channels_that_are_last_are_not_taken_for_height(refused):
    with refused():
        attend(torchvision.models.swin_t(), "se")
    with refused():
        attend(torchvision.models.swin_t(), "se", at="features.1.0")
    planned = plan(torchvision.models.maxvit_t(num_classes=3), "se")
    assert {place.channels for place in planned.places} == {64, 128, 256, 512}
    assert {skipped.reason for skipped in planned.skipped} == {"its features have their channels last"}
    # between two permutations they are first again
    assert {place.channels for place in plan(build("timm:convnext_atto"), "se").places} == {40, 80, 160, 320}


@pytest.mark.parametrize(
    "name", ["torchvision:vgg11_bn", "torchvision:densenet121", "torchvision:efficientnet_b0", "timm:resnet26"]
)
def test_a_part_that_is_taken_out_takes_its_attention_along(name):
    model = attend(build(name), "bam")
    added = [key for key, module in model.named_modules() if type(module).__name__ == "BAM"]
    parts = {key.partition(".")[0] for key in added}
    assert len(added) >= 3
    assert parts <= {"features", "layer1", "layer2", "layer3"}
    # the network itself has no further child, so that slices of its children stay what they were
    assert [key for key, _ in model.named_children()] == [key for key, _ in build(name).named_children()]


class SaysSoItself(nn.Module):
    """Has its place as an attribute of the module, not of the class."""

    def __init__(self, channels):
        super().__init__()
        self.place = "stage"
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return x * self.scale


def bam_of(channels):
    return BAM(channels)


@pytest.mark.parametrize("start", ["identity", "paper"])
@pytest.mark.parametrize(
    "attention",
    [
        "bam",
        BAM,
        functools.partial(BAM, reduction=8),
        functools.partial(functools.partial(BAM, dilation=2), reduction=8),
        lambda channels: BAM(channels, reduction=8),
        bam_of,
        functools.partial(bam_of),
        SaysSoItself,
        attention_by_path("whatwhere.attention.bam:BAM"),
    ],
    ids=["name", "class", "partial", "partial of partial", "lambda", "function", "partial function", "module", "path"],
)
def test_an_attention_for_stages_stands_there_however_it_is_given(attention, start):
    built = create_model("resnext11_8x8d", attention=attention, seed=0)
    attended = attend(create_model("resnext11_8x8d", seed=0), attention, start=start, seed=0, example=images(32))
    for model in (built, attended):
        found = [name for name, module in model.named_modules() if isinstance(module, (BAM, SaysSoItself))]
        assert [name.split(".")[0] for name in found] == ["layer1", "layer2"]
        assert all(not isinstance(module, (BAM, SaysSoItself)) for module in model.layer3.modules())


@pytest.mark.parametrize(
    "attention", [functools.partial(CBAM, reduction=8), lambda channels: CBAM(channels, reduction=8)]
)
def test_an_attention_for_blocks_stands_there_however_it_is_given(attention):
    built = create_model("resnext11_8x8d", attention=attention, seed=0)
    attended = attend(create_model("resnext11_8x8d", seed=0), attention, seed=0)
    for model in (built, attended):
        found = [name for name, module in model.named_modules() if isinstance(module, CBAM)]
        assert found == ["layer1.0.attention", "layer2.0.attention", "layer3.0.attention"]
