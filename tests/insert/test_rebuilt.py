"""Attention stays when tools rebuild the layers it stands behind, or the next forward pass says why it cannot."""

import copy
import io
import lzma
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import timm.layers
import torch
import torchvision
from torch import nn
from torch.ao.quantization import (
    MinMaxObserver,
    QConfig,
    default_per_channel_weight_observer,
    fuse_modules,
    get_default_qconfig_mapping,
    quantize_dynamic,
)
from torch.ao.quantization.quantize_fx import convert_fx, fuse_fx, prepare_fx
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval

from small_networks import Block, Network, images
from strangers import build
from whatwhere import CBAM
from whatwhere.attention import ATTENTION
from whatwhere.insert import attend, detach
from whatwhere.insert.host import AttendedBatchNorm2d, AttendedSyncBatchNorm
from whatwhere.training.state import load_optimizer_state, optimizer_state

OLD = Path(__file__).parent / "old"  # what version 0.1 has pickled


def awake(model):
    """Let each gate scale, and each norm do something that cannot be missed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("mix"):
                parameter.fill_(0.7)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.mul_(1 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def attended(start="identity", **options):
    torch.manual_seed(0)
    model = Network(Block(torch.add), Block(torch.add))
    return awake(attend(model, "cbam", start=start, seed=0, **options))


def without(model):
    return detach(copy.deepcopy(model))


def timm_frozen(model):
    return timm.layers.freeze_batch_norm_2d(model)


def folded(model):
    """Fold each norm into the convolution before it, an identity in its place."""
    for block in model.blocks:
        block.conv, block.norm = fuse_conv_bn_eval(block.conv, block.norm), nn.Identity()
    return model


def folded_away(model):
    """Fold each norm into the convolution before it and leave nothing in its place."""
    for block in model.blocks:
        block.conv = fuse_conv_bn_eval(block.conv, block.norm)
        del block.norm
        block.forward = Fused(block)
    return model


class Fused:
    """A forward without the norm, as a fused network has it."""

    def __init__(self, block):
        self.block = block

    def __call__(self, x):
        return self.block.add(self.block.conv(x), x)


class Wrapper(nn.Module):
    """What some tools put around each norm."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x)


def wrapped(model):
    for block in model.blocks:
        block.norm = Wrapper(block.norm)
    return model


TOOLS = {
    "torch's convert_sync_batchnorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "timm's convert_sync_batchnorm": timm.layers.convert_sync_batchnorm,
    "timm's freeze_batch_norm_2d": timm_frozen,
    "timm's freeze and unfreeze": lambda model: timm.layers.unfreeze_batch_norm_2d(timm_frozen(model)),
    "fuse_conv_bn_eval": folded,
    "fused and deleted": folded_away,
    "wrapped": wrapped,
}


def saved_whole(model):
    return pickle.loads(pickle.dumps(model))


def loaded(model):
    fresh = attend(Network(Block(torch.add), Block(torch.add)), "cbam", start=start_of(model))
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


def start_of(model):
    return "identity" if any(key.endswith("mix") for key in model.state_dict()) else "paper"


def in_parallel(model):
    return nn.parallel.DistributedDataParallel(model)


BETWEEN = {
    "nothing": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": saved_whole,
    "state dict": loaded,
}


@pytest.mark.parametrize("start", ["identity", "paper"])
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("tool", TOOLS)
def test_the_function_is_kept(tool, between, start):
    model = attended(start)
    expected, keys = model(images()), keys_of_attention(model)
    assert not torch.allclose(without(model)(images()), expected, atol=1e-3)
    rebuilt = TOOLS[tool](BETWEEN[between](model)).eval()
    torch.testing.assert_close(rebuilt(images()), expected, rtol=1e-5, atol=1e-5)
    # again, when nothing has to be put back, and in a copy of the result
    torch.testing.assert_close(rebuilt(images()), expected, rtol=1e-5, atol=1e-5)
    if tool != "fused and deleted":
        torch.testing.assert_close(copy.deepcopy(rebuilt)(images()), expected, rtol=1e-5, atol=1e-5)
    assert keys_of_attention(rebuilt) == keys


def keys_of_attention(model):
    # a frozen norm has no counter
    return {key for key in model.state_dict() if "attention" in key and not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("tool", TOOLS)
def test_what_was_rebuilt_still_learns_and_can_be_detached(tool):
    model = attended()
    plain = TOOLS[tool](without(model)).eval()
    rebuilt = TOOLS[tool](model).eval()
    rebuilt(images()).square().sum().backward()
    assert all(parameter.grad is not None for block in rebuilt.blocks for parameter in block.attention.parameters())
    detach(rebuilt)
    torch.testing.assert_close(rebuilt(images()), plain(images()))
    assert rebuilt.state_dict().keys() == plain.state_dict().keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in rebuilt.modules())


def test_detached_before_any_forward_pass():
    model = attended()
    plain = without(model)
    rebuilt = detach(timm_frozen(model)).eval()
    assert rebuilt.state_dict().keys() == timm_frozen(plain).state_dict().keys()
    torch.testing.assert_close(rebuilt(images()), plain(images()))


def test_a_norm_that_is_ours_again_shares_its_passes_again():
    model = attended()
    expected = model(images())
    rebuilt = TOOLS["timm's freeze and unfreeze"](model).eval()
    torch.testing.assert_close(rebuilt(images()), expected)
    assert type(rebuilt.blocks[0].norm) is AttendedBatchNorm2d
    rebuilt = nn.SyncBatchNorm.convert_sync_batchnorm(rebuilt).eval()
    torch.testing.assert_close(rebuilt(images()), expected)
    assert type(rebuilt.blocks[0].norm) is AttendedSyncBatchNorm
    assert type(detach(rebuilt).blocks[0].norm) is nn.SyncBatchNorm


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("tool", ["torch's convert_sync_batchnorm", "timm's freeze_batch_norm_2d", "fuse_conv_bn_eval"])
def test_compiled_exported_and_traced_after_it(tool):
    model = attended()
    expected = model(images())

    def rebuilt():
        return TOOLS[tool](copy.deepcopy(model)).eval()

    compiled = torch.compile(rebuilt(), backend="aot_eager")
    torch.testing.assert_close(compiled(images()), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled(images()), expected, rtol=1e-5, atol=1e-5)
    exported = torch.export.export(rebuilt(), (images(),))
    torch.testing.assert_close(exported.module()(images()), expected, rtol=1e-5, atol=1e-5)
    traced = torch.jit.trace(rebuilt(), images(), check_trace=False)  # a second trace has other scopes
    torch.testing.assert_close(traced(images()), expected, rtol=1e-5, atol=1e-5)
    symbolic = torch.fx.symbolic_trace(rebuilt())
    torch.testing.assert_close(symbolic(images()), expected, rtol=1e-5, atol=1e-5)
    names = {name for name, _ in rebuilt().named_parameters() if "attention" in name}
    assert names <= {name for name, _ in symbolic.named_parameters()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("fresh_compiler")
def test_one_whole_graph_of_what_was_rebuilt_is_refused_until_it_has_run_once():
    model = attended()
    expected = model(images())
    rebuilt = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    with pytest.raises(Exception, match="run the network once, then compile it"):
        torch.compile(rebuilt, backend="aot_eager", fullgraph=True)(images())
    rebuilt(images())
    torch.compiler.reset()
    compiled = torch.compile(rebuilt, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), expected)


@pytest.mark.filterwarnings("ignore")
def test_in_parallel_after_it(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        model = attended()
        expected = model(images())
        parallel = nn.parallel.DistributedDataParallel(timm_frozen(model)).eval()
        torch.testing.assert_close(parallel(images()), expected)
        parallel(images()).sum().backward()
        assert all(parameter.grad is not None for parameter in parallel.module.blocks[0].attention.parameters())
        del parallel
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("at", [None, "blocks.*.norm", "blocks.*.conv", "stem", "blocks.0"])
def test_a_symbolic_trace_has_all_parameters(at):
    model = attended(at=at)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(images()), model(images()))
    names = {name for name, _ in model.named_parameters() if "attention" in name}
    assert names
    assert names <= {name for name, _ in traced.named_parameters()}
    for optimized in (fuse(copy.deepcopy(model)), fuse_fx(copy.deepcopy(model))):
        torch.testing.assert_close(optimized(images()), model(images()), rtol=1e-5, atol=1e-5)


def test_the_attention_behind_a_norm_belongs_to_the_module_around_it():
    model = attended(at="blocks.*.norm")
    expected = model(images())
    names = [name for name, module in model.named_modules() if isinstance(module, CBAM)]
    assert names == ["blocks.0.norm_attention", "blocks.1.norm_attention"]
    frozen = timm_frozen(model)
    torch.testing.assert_close(frozen(images()), expected)


def test_a_norm_in_a_bare_sequence_has_it_itself_and_its_loss_is_told(refused):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    awake(attend(model, "cbam", at="1"))
    assert isinstance(model[1].attention, CBAM)
    frozen = timm_frozen(model)
    with refused():
        frozen(images())


def test_a_norm_folded_into_a_convolution_behind_which_attention_stands_is_told(refused):
    for rebuild in (folded, folded_away):
        model = rebuild(attended(at="blocks.*.conv"))
        with refused():
            model(images())


def test_a_place_that_is_gone_is_told(refused):
    model = attended()
    del model.blocks[1].norm, model.blocks[1].conv
    with refused():
        model(images())


def test_a_layer_replaced_with_its_attention_is_told(refused):
    model = attended(at="blocks.*.conv")
    model.blocks[0].conv = nn.Conv2d(8, 8, 3, padding=1)
    with refused():
        model(images())


def test_attention_deleted_by_hand_is_told(refused):
    model = attended()
    del model.blocks[0].attention
    with refused():
        model(images())
    detach(model)(images())


def test_modules_of_eager_quantisation_cannot_be_fused_past_it():
    model = attended()
    with pytest.raises((NotImplementedError, AssertionError), match=r"did not find fuser method|Cannot fuse modules"):
        fuse_modules(model, [["blocks.0.conv", "blocks.0.norm"]])


@pytest.fixture
def _nondeterministic():
    """Quantised tensors have no deterministic resize."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True)


# Activations from their least to their largest, as in tests/attention/test_quantization.py.
RANGE = MinMaxObserver.with_args(reduce_range=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("at", [None, "blocks.*.norm", "blocks.*.conv"])
@pytest.mark.usefixtures("_nondeterministic")
def test_quantised(at):
    model = attended(at=at)
    expected = model(images())
    torch.testing.assert_close(quantize_dynamic(model, {nn.Linear})(images()), expected, rtol=0.05, atol=0.05)
    how = get_default_qconfig_mapping().set_global(QConfig(RANGE, default_per_channel_weight_observer))
    prepared = prepare_fx(copy.deepcopy(model), how, (images(),))
    prepared(images())
    quantised = convert_fx(prepared)
    # far nearer to the network with attention than to that without
    error = (quantised(images()) - expected).norm()
    assert error < 0.5 * (without(model)(images()) - expected).norm()


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:resnet26", "timm:efficientnet_b0"])
@pytest.mark.parametrize("tool", ["timm's convert_sync_batchnorm", "timm's freeze_batch_norm_2d"])
def test_in_networks_of_others(name, tool):
    model = awake(attend(build(name), "cbam"))
    expected = model(images(64))
    rebuilt = TOOLS[tool](model).eval()
    torch.testing.assert_close(rebuilt(images(64)), expected, rtol=1e-4, atol=1e-4)


def test_fused_networks_of_torchvision():
    # conv, norm and activation in one sequence, folded as torch's own tool does it
    model = awake(attend(torchvision.models.resnet18(), "se"))
    expected = model(images(64))
    for block in (*model.layer1, *model.layer2, *model.layer3, *model.layer4):
        block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()
    torch.testing.assert_close(model(images(64)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["blocks", "norms"])
def test_networks_pickled_by_version_0_1(name):
    content = torch.load(OLD / f"{name}.pt", weights_only=False)
    model, expected = content["model"], content["output"]
    torch.testing.assert_close(model(images()), expected)
    torch.testing.assert_close(copy.deepcopy(model)(images()), expected)
    torch.testing.assert_close(saved_whole(model)(images()), expected)
    if name == "blocks":  # once it has run, or been copied by attend's own means, it is kept as any other
        rebuilt = timm_frozen(copy.deepcopy(model)).eval()
        torch.testing.assert_close(rebuilt(images()), expected)
    detach(model)
    assert not any("attention" in key for key in model.state_dict())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


BY_NAME = sorted(path.name for path in (OLD / "by_name").glob("*.pt.xz"))


def unpacked(name):
    """Return a network that was pickled whole once attention was kept by name, and what it computed."""
    content = torch.load(io.BytesIO(lzma.decompress((OLD / "by_name" / name).read_bytes())), weights_only=False)
    return content["model"], content["output"], content.get("input", images())


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "attentions.pt.xz"])
def test_networks_pickled_before(name, refused):
    model, expected, x = unpacked(name)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    torch.testing.assert_close(saved_whole(model)(x), expected)
    model.load_state_dict(saved_whole(model).state_dict())
    with refused():
        torch.jit.script(model)
    if name in ("bottlenecks.pt.xz", "basic_blocks.pt.xz"):
        return
    if name in ("norms.pt.xz", "operations.pt.xz"):
        torch.testing.assert_close(timm_frozen(copy.deepcopy(model)).eval()(x), expected)
    detach(model)
    assert not any("attention" in key for key in model.state_dict())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not torch.allclose(model(x), expected)


def test_attentions_pickled_before():
    modules, expected, x = unpacked("attentions.pt.xz")
    assert modules.keys() >= ATTENTION.keys()
    for name, module in modules.items():
        torch.testing.assert_close(module(x), expected[name])
        torch.testing.assert_close(saved_whole(module)(x), expected[name])
        assert repr(module)


def test_state_dicts_of_version_0_1_load():
    content = torch.load(OLD / "norms.pt", weights_only=False)
    assert "blocks.0.norm.attention.mix" in content["state"]
    model = attend(Network(Block(torch.add), Block(torch.add)), "se", at="blocks.*.norm").eval()
    state = dict(content["state"])
    model.load_state_dict(state)
    torch.testing.assert_close(model(images()), content["output"])
    assert state.keys() == content["state"].keys()
    wrapped = nn.ModuleDict({"inner": copy.deepcopy(model)})
    wrapped.load_state_dict({f"inner.{key}": value for key, value in state.items()})
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    model.load_state_dict(torch.load(file, weights_only=True))


def test_momenta_of_parameters_in_another_order_are_refused(refused):
    def trained(order):
        parameters = [nn.Parameter(torch.ones(size)) for size in order]
        optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9)
        sum(parameter.sum() for parameter in parameters).backward()
        optimizer.step()
        return optimizer

    state = optimizer_state(trained((3, 5)))
    load_optimizer_state(trained((3, 5)), state)
    with refused():
        load_optimizer_state(trained((5, 3)), state)


def test_a_part_that_is_called_by_itself_looks_too(refused):
    model = attend(build("torchvision:vgg11_bn"), "cbam", at="features.1", start="paper", seed=0).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = model.features(x)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(copied.features(x), expected)
    frozen = timm.layers.freeze_batch_norm_2d(copied)
    for part in (frozen.features, frozen):
        with refused():
            part(x)
    assert not any(module._forward_pre_hooks for module in detach(model).modules())


def test_attention_behind_a_layer_in_torchs_wrapper():
    # in float64: in float32 the rounding of the passes, which differ, is seen
    model = attend(build("torchvision:vgg11_bn"), "cbam", at="features.1", start="paper", seed=0).double()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = model.features(x)
    apply_activation_checkpointing(model, check_fn=lambda layer: isinstance(layer, nn.BatchNorm2d))
    torch.testing.assert_close(model.features(x), expected)


@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_symbolic_trace_refuses_what_it_cannot_look_into(by_keyword, refused):
    host = attend(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)), "se", at="1", example=torch.randn(1, 3, 8, 8)
    )

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = host

        def forward(self, x):
            return self.inside(input=x) if by_keyword else self.inside(x)

    for model in (host, Around()):
        with refused():
            torch.fx.symbolic_trace(model)


def test_attention_follows_its_norm_to_another_name():
    model = awake(attend(torchvision.models.mobilenet_v2(num_classes=3), "se", start="paper", seed=0))
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    model.features[3].conv.insert(1, nn.Dropout2d(0.1).eval())
    for network in (model, copy.deepcopy(model)):
        calls = []
        network.features[3].attention.register_forward_hook(lambda *_args, calls=calls: calls.append(0))
        for _ in range(2):
            torch.testing.assert_close(network(x), expected)
        assert len(calls) == 2
    plain = detach(model)
    assert not any("attention" in key for key in plain.state_dict())


@pytest.mark.parametrize("at", ["b.body.1", "b.body.4"])
def test_a_part_built_anew_with_other_layers_under_the_names_is_refused(at, refused):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            layers = (
                nn.Conv2d(4, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Conv2d(4, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
            )
            self.body = nn.Sequential(*layers)

        def forward(self, x):
            return self.body(x)

    model = nn.Sequential(OrderedDict(b=Inner()))
    attend(model, "se", at=at, start="paper", example=torch.randn(1, 4, 9, 9), seed=0).eval()
    body = model.b.body
    folded = (fuse_conv_bn_eval(body[0], body[1]), body[2], fuse_conv_bn_eval(body[3], body[4]), body[5])
    model.b.body = nn.Sequential(*folded)
    with refused():
        model(torch.randn(1, 4, 9, 9))


def test_a_wrapper_around_a_layer_that_has_its_attention_itself():
    class Around(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, x):
            return self.base(x)

    model = attend(torchvision.models.resnet18(num_classes=3), "se", at="layer1.0.conv2", start="paper", seed=0).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    model.layer1[0].conv2 = Around(model.layer1[0].conv2)
    assert torch.equal(model(x), expected)
