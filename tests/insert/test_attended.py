"""What an attended network is good for: copies, files, compilers, several processes, memory, detection."""

import copy
import io
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import BasicBlock

from small_networks import SUMS, Block, Network, images, same
from strangers import build
from whatwhere import CBAM, cost
from whatwhere.insert import attend, detach, plan


def test_a_copy_is_independent_and_can_be_detached_alone():
    model = attend(Network(Block(torch.add), Block(SUMS["scaled"])), "cbam")
    copied = copy.deepcopy(model)
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
    again = pickle.loads(pickle.dumps(model))
    assert same(again, model, images(64))
    detach(again)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert same(torch.load(file, weights_only=False), model, images(64))


def test_detach_restores_hooks_and_classes_of_the_user(refused):
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
    with refused():
        detach(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "build",
    [
        lambda: torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10),
        lambda: timm.create_model("convnext_atto", num_classes=10, depths=(1, 1, 1, 1)),
    ],
    ids=["resnet", "convnext"],
)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_exports_and_traces(build):
    model = attend(build(), "cbam").eval()
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
    assert same(model, original)
    assert type(detach(model).blocks[0].norm) is nn.SyncBatchNorm


def test_a_plan_says_in_one_pass_only_of_what_is_fused():
    class Doubled(CBAM):
        def forward(self, x):
            return super().forward(x) * 2

    model = torchvision.models.resnet18()
    assert all(plan(model, CBAM).in_norm)
    assert not any(plan(model, Doubled).in_norm)


NETWORKS = ("torchvision:resnet50", "torchvision:mobilenet_v3_large", "torchvision:efficientnet_b0",
            "torchvision:regnet_y_400mf", "timm:resnest14d", "timm:res2net50_26w_4s")  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_training_keeps_hardly_more_than_without(name):
    model = build(name)
    before = cost(model, (3, 224, 224), batch_size=2).total.saved_bytes
    assert all(plan(model, "cbam").in_norm)
    assert not any(plan(model, "ema").in_norm)
    assert not any(plan(model, "cbam", attention_kwargs={"arrangement": "parallel"}).in_norm)
    attend(model, "cbam")
    assert cost(model, (3, 224, 224), batch_size=2).total.saved_bytes <= 1.05 * before


def test_frozen_norms():
    model = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    before = cost(model, (3, 64, 64)).total.saved_bytes
    original = copy.deepcopy(model)
    attend(model, "cbam")
    assert same(model, original, images(64))
    assert cost(model, (3, 64, 64)).total.saved_bytes <= 1.35 * before


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


@pytest.mark.parametrize("attention", ["cbam", "bam", "coord", "simam"])
def test_traces_symbolically(attention):
    model = attend(torchvision.models.resnet18(), attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("attention.mix"):
                parameter.fill_(0.5)
    x = images(64)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))
    features = create_feature_extractor(model, ["layer2"])(x)
    assert features["layer2"].shape == (2, 128, 8, 8)


def test_another_attention_in_its_place_is_used():
    model = attend(Network(Block(torch.add), Block(SUMS["scaled"])), "cbam")
    before = model.eval()(images())
    for block in model.blocks:
        block.attention = nn.Identity() if block is model.blocks[0] else Zero()
    plain = detach(copy.deepcopy(model))
    assert not torch.equal(model(images()), before)
    plain.blocks[1].add = lambda branch, shortcut: shortcut
    assert torch.equal(model(images()), plain.eval()(images()))


class Zero(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def test_replicas_of_data_parallel_are_refused(refused):
    model = attend(Network(Block(torch.add)), "se")
    replica = model.blocks[0].norm._replicate_for_data_parallel()
    with refused():
        replica(torch.randn(1, 8, 4, 4))


def test_in_inference_mode():
    model = Network(Block(torch.add))
    with torch.inference_mode():
        attend(model, "se")
    model(images()).sum().backward()
    assert model.blocks[0].attention.mix.grad is not None


def test_a_call_that_fails_and_is_caught_is_no_obstacle():
    class Trying(nn.Module):
        def __init__(self):
            super().__init__()
            self.picky, self.inner = nn.Conv2d(5, 5, 1), Network(Block(torch.add))

        def forward(self, x):
            try:
                return self.picky(x)
            except RuntimeError:
                return self.inner(x)

    model = Trying()
    assert [place.owner for place in plan(model, "se", example=images()).places] == ["inner.blocks.0"]


def test_a_model_without_parameters():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(x)

    model = attend(Bare(), "se", at="relu", example=images())
    assert model(images()).shape == images().shape


def test_what_was_replaced_follows_the_network_behind_attention_without_parameters():
    model = attend(build("timm:seresnet50"), "simam", replace="se", start="paper").double()
    detach(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
