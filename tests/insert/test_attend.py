"""attend, plan, detach: what they promise beyond the sweep over networks."""

import copy
import io
import pickle

import pytest
import torch
import torchvision
from torch import nn

import whatwhere
from strangers import build
from whatwhere import CBAM, UserError, cost, create_model
from whatwhere.insert import AttendedBatchNorm2d, attend, detach, plan


class Block(nn.Module):
    """A residual block; `add` sums its branch and its shortcut."""

    def __init__(self, add, channels=8):
        super().__init__()
        self.add = add
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.add(self.norm(self.conv(x)), x)


class Network(nn.Module):
    """A stem, blocks, a classifier."""

    def __init__(self, *blocks):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def in_place(branch, shortcut):
    branch += shortcut
    return branch.relu_()


SUMS = {
    "plus": lambda branch, shortcut: branch + shortcut,
    "the other way round": lambda branch, shortcut: shortcut + branch,
    "in place": in_place,
    "into the shortcut": lambda branch, shortcut: shortcut.clone().add_(branch),
    "torch.add": torch.add,
    "scaled": lambda branch, shortcut: 0.1 * branch + shortcut,
}


def images(size=16):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def same(model, other, x=None):
    x = images() if x is None else x
    return torch.equal(model.eval()(x), other.eval()(x))


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


def test_a_sum_of_two_branches_alike_is_no_residual_block():
    with pytest.raises(
        UserError, match=r"^the network has no residual block that can take attention; let it stand at 'stages'"
    ):
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


def test_a_branch_that_is_used_elsewhere_too_takes_none():
    class Leaking(Block):
        def forward(self, x):
            branch = self.norm(self.conv(x))
            return branch + x + 0 * branch.mean()

    with pytest.raises(UserError, match=r"blocks.0: what it adds comes from an operation \(batch_norm\), not from"):
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
    state = torch.get_rng_state()
    attend(build("timm:resnet26"), "se", seed=5)
    models[0].eval()
    torch.set_rng_state(state)
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


def test_a_copy_is_independent_and_can_be_detached_alone():
    model = attend(Network(Block(torch.add), Block(SUMS["scaled"])), "cbam")
    copies = [copy.deepcopy(model), attend(Network(Block(torch.add)), "cbam")]
    copied = copies[0]
    with torch.no_grad():
        for block in copied.blocks:
            block.attention.mix.fill_(1.0)
    assert not same(copied, model)
    with torch.no_grad():
        for block in copied.blocks:
            block.attention.mix.fill_(0.0)
    assert same(copied, model)
    detach(copied)
    assert [type(block.norm) for block in copied.blocks] == [nn.BatchNorm2d] * 2
    assert [hasattr(block, "attention") for block in model.blocks] == [True, True]
    assert same(copied, model)


def test_a_network_can_be_saved_whole():
    model = attend(build("timm:resnet26"), "cbam")
    for again in (pickle.loads(pickle.dumps(model)),):
        assert same(again, model, images(64))
        detach(again)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert same(torch.load(file, weights_only=False), model, images(64))


def test_detach_restores_hooks_and_classes_of_the_user():
    heard = []
    model = Network(Block(torch.add), Block(SUMS["scaled"]))
    model.blocks[0].norm.register_forward_hook(lambda module, args, output: heard.append(module))
    model.blocks[1].norm.register_forward_pre_hook(lambda module, args: heard.append(module))
    before = copy.deepcopy({name: set(vars(module)) for name, module in model.named_modules()})
    attend(model, "cbam")
    heard.clear()
    model(images())
    assert heard == [model.blocks[0].norm, model.blocks[1].norm]
    detach(model)
    heard.clear()
    model(images())
    assert heard == [model.blocks[0].norm, model.blocks[1].norm]
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    with pytest.raises(UserError, match=r"^there is no attention in the network that attend has put there$"):
        detach(model)


class OfOnes(nn.Module):
    """Attention that is none at 12 channels."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x):
        return (x * self.scale.sigmoid())[:, : 8 if self.channels == 8 else 5]


def test_a_refusal_leaves_the_network_as_it_was():
    class Wider(Block):
        def __init__(self):
            super().__init__(torch.add, 12)

    model = Network(Block(torch.add), nn.Conv2d(8, 12, 1), Wider(), nn.Conv2d(12, 8, 1))
    before = {name: (type(module), set(vars(module))) for name, module in model.named_modules()}
    for attention, options, message in (
        (OfOnes, {"start": "paper"}, r"attention must keep its input's shape; OfOnes made"),
        (OfOnes, {}, r"attention must keep its input's shape; OfOnes made"),
        (
            lambda channels: nn.Conv2d(8, 8, 1),
            {"start": "paper"},
            r"^with the attention the network does not run: .* expected input\[1, 12, .* to have 8 channels",
        ),
        ("cbam", {"at": "nowhere"}, r"^no module of the network is called 'nowhere'"),
        ("cbam", {"at": "blocks.0.norm,fc"}, r"^fc returns a tensor \(1, 3\); attention needs features of shape"),
        ("cbam", {"at": ""}, r"^at must be 'blocks', 'stages' or patterns"),
        ("cbam", {"replace": "se"}, r"^the network has no squeeze-and-excitation module to replace"),
        ("cbam", {"replace": "eca"}, r"^replace must be one of se; got 'eca'$"),
        ("cbam", {"start": "zero"}, r"^start must be one of paper, identity; got 'zero'$"),
        ("cbma", {}, r"^unknown attention 'cbma'; did you mean cbam"),
        ("cbam", {"attention_kwargs": {"r": 8}}, r"^the attention cannot be built from 8 channels and \{'r': 8\}"),
        ("cbam", {"attention_kwargs": {"start": "paper"}}, r"^give start to attend itself"),
        ("cbam", {"example": torch.zeros(1, 4, 16, 16)}, r"^the network does not run: .*; give another example$"),
    ):
        with pytest.raises(UserError, match=message):
            attend(model, attention, **options)
        assert {name: (type(module), set(vars(module))) for name, module in model.named_modules()} == before
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 3), "^the network has no 2-d convolution; attention is for convolutional networks$"),
        ("resnet18", "^attend takes a torch.nn.Module, got a str$"),
        (
            nn.DataParallel(nn.Conv2d(3, 8, 3)),
            "^attend the model before it is compiled or wrapped: module of this Data",
        ),
        (nn.LazyConv2d(8, 3), "^weight has no shape yet; run the network once before attend$"),
        (nn.Conv2d(3, 8, 3, device="meta"), "^weight is on the meta device; load the network first$"),
    ],
)
def test_what_cannot_be_attended_says_why(model, message):
    with pytest.raises(UserError, match=message):
        attend(model, "cbam")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_or_compiled_network_is_refused():
    with pytest.raises(UserError, match=r"^a TorchScript model cannot be changed"):
        attend(torch.jit.trace(nn.Conv2d(3, 8, 3), images()), "cbam")
    with pytest.raises(
        UserError, match=r"^attend the model before it is compiled or wrapped: _orig_mod of this Optimized"
    ):
        attend(torch.compile(Network(Block(torch.add))), "cbam")


def test_twice_in_one_place_is_refused_and_two_places_are_not():
    model = attend(Network(Block(torch.add), Block(SUMS["scaled"])), "cbam")
    with pytest.raises(UserError, match=r"blocks.0.* has attention already; detach the model first"):
        attend(model, "se")
    attend(model, "se", at="stem")
    assert type(model.stem_attention).__name__ == "SqueezeExcitation"
    detach(model)
    assert not hasattr(model, "stem_attention")
    assert not hasattr(model.blocks[1], "attention")


def test_patterns_name_modules():
    model = build("torchvision:resnet18")
    attend(model, "se", at="layer[34].*.bn2,maxpool")
    added = sorted(name for name, module in model.named_modules() if name.endswith("attention"))
    assert added == [
        *(f"layer{stage}.{index}.bn2_attention" for stage in (3, 4) for index in (0, 1)),
        "maxpool_attention",
    ]
    assert type(model.layer3[0].bn2) is AttendedBatchNorm2d
    with pytest.raises(UserError, match=r"^layer1.0.relu is called 2 times in a forward pass"):
        attend(model, "se", at="layer1.0.relu")
    with pytest.raises(UserError, match=r"^no module of the network is called 'layer5'; did you mean layer"):
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


NETWORKS = ("torchvision:resnet50", "torchvision:mobilenet_v3_large", "torchvision:efficientnet_b0",
            "torchvision:regnet_y_400mf", "timm:resnest14d", "timm:res2net50_26w_4s")  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_training_keeps_hardly_more_than_without(name):
    model = build(name)
    before = cost(model, (3, 224, 224), batch_size=2).total.saved_bytes
    assert all(plan(model, "cbam").in_norm)
    attend(model, "cbam")
    assert cost(model, (3, 224, 224), batch_size=2).total.saved_bytes <= 1.05 * before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:convnext_atto"])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_exports_and_traces(name):
    model = attend(build(name), "cbam").eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("attention.mix"):
                parameter.fill_(0.5)
    x = images(64)
    expected = model(x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), expected)
    assert any("attention" in key for key in exported.state_dict)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)


def test_gradients_are_those_of_the_plain_formulation():
    model = attend(Network(Block(torch.add), Block(SUMS["in place"])).double(), "cbam")
    with torch.no_grad():
        for block in model.blocks:
            block.attention.mix.fill_(0.7)
    plain = copy.deepcopy(model)
    for block in plain.blocks:
        block.attention.backend = "reference"
    for network in (model, plain):
        network(images().double()).square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for (name, one), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.filterwarnings("ignore")
def test_trains_in_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        model = attend(Network(Block(torch.add), Block(SUMS["scaled"])), "cbam")
        parallel = nn.parallel.DistributedDataParallel(model)
        parallel(images()).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        del parallel
    finally:
        torch.distributed.destroy_process_group()


def test_after_conversion_to_synchronised_norms_too():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Network(Block(torch.add)))
    original = copy.deepcopy(model)
    attend(model, "cbam")
    assert type(model.blocks[0].norm) is nn.SyncBatchNorm
    assert same(model, original)


DETECTORS = {
    "fasterrcnn": lambda: torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3
    ),
    "deeplab": lambda: torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DETECTORS)
def test_detection_and_segmentation_models(name):
    torch.manual_seed(0)
    model = DETECTORS[name]()
    original = copy.deepcopy(model)
    x = torch.rand(2, 3, 96, 96)
    attend(model, "cbam", seed=0)
    owners = [key for key, module in model.named_modules() if isinstance(module, CBAM)]
    assert len(owners) == 10
    assert all(key.startswith("backbone.") for key in owners)
    ours, theirs = (network.eval()(list(x) if name == "fasterrcnn" else x) for network in (model, original))
    if name == "deeplab":
        assert torch.equal(ours["out"], theirs["out"])
        model.train()(x)["out"].sum().backward()
    else:
        assert all(torch.equal(a[key], b[key]) for a, b in zip(ours, theirs, strict=True) for key in a)
        boxes = {"boxes": torch.tensor([[10.0, 10, 60, 60]]), "labels": torch.tensor([1])}
        sum(model.train()(list(x), [boxes, boxes]).values()).backward()
    assert all(
        parameter.grad is not None and parameter.grad != 0
        for key, parameter in model.named_parameters()
        if key.endswith("attention.mix")
    )
    detach(model)
    assert model.state_dict().keys() == original.state_dict().keys()


def test_frozen_norms(monkeypatch):
    model = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    before = cost(model, (3, 64, 64)).total.saved_bytes
    original = copy.deepcopy(model)
    attend(model, "cbam")
    assert same(model, original, images(64))
    assert cost(model, (3, 64, 64)).total.saved_bytes <= 1.35 * before


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


def test_the_skip_of_an_encoder_and_decoder_is_no_residual_block():
    with pytest.raises(UserError, match=r"^the network has no residual block that can take attention"):
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
