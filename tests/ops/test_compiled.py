"""What torch.compile makes of a gate: the same gradients, and it keeps no more than for the plain network."""

import copy
import functools

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch.nn.parallel import DistributedDataParallel

from numerics import assert_same
from whatwhere import (
    CBAM,
    ChannelAttention,
    EfficientChannelAttention,
    SpatialAttention,
    SqueezeExcitation,
    create_model,
)
from whatwhere.attention import Gate, attention_builder
from whatwhere.models.blocks import Bottleneck, StochasticDepth
from whatwhere.ops import gate, gated_tail, native, normed_gate, reference

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    # by the compiler of torch 2.10
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
CHANNELS = 16
IMAGES = torch.randn(3, CHANNELS, 7, 5, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.randn(3, CHANNELS, 7, 5, generator=torch.Generator().manual_seed(1))


def block(attention, drop_rate=0.0, channels=CHANNELS):
    """A residual block."""
    options = {"stride": 1, "downsample": None, "groups": 1, "first_dilation": 1, "dilation": 1, "stride_in_1x1": False}
    drop_path = StochasticDepth(drop_rate)
    planes = channels // Bottleneck.expansion
    return Bottleneck(
        channels, planes, width=planes, norm_layer=nn.BatchNorm2d, attention=attention, drop_path=drop_path, **options
    )


class Counted:
    """A compiled network, and how many checkpoints and C++ operators each of its graphs has."""

    def __init__(self, model, **options):
        self.checkpoints, self.operators = [], []
        inner = torch._dynamo.lookup_backend("aot_eager")

        def counting(graph, inputs):
            self.checkpoints.append(sum("checkpoint" in str(node.target) for node in graph.graph.nodes))
            self.operators.append(sum("whatwhere.traced" in str(node.target) for node in graph.graph.nodes))
            return inner(graph, inputs)

        self.run = torch.compile(model, backend=counting, **options)


def trained(run, model, images, steps=2):
    """Return the gradients after some steps without an optimizer, and the buffers."""
    images = images.clone().requires_grad_()
    for _ in range(steps):
        (run(images).float() * WEIGHTS[: len(images)]).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {**found, "images": images.grad, **{name: buffer.clone() for name, buffer in model.named_buffers()}}


@pytest.mark.parametrize("start", ["paper", "identity"])
@pytest.mark.parametrize("name", ["cbam", "se", "eca", "srm", "fca", "gct", "static:cbam"])
def test_gradients_and_statistics_are_those_of_eager_training(name, start):
    torch.manual_seed(0)
    memory_format = torch.channels_last if start == "paper" else torch.contiguous_format
    attention = attention_builder(name)
    model = nn.Sequential(block(attention(CHANNELS, start=start)), attention(CHANNELS, start=start))
    for parameter in model.parameters():
        if parameter.dim() == 0:
            nn.init.constant_(parameter, 0.4)
    model = model.double().to(memory_format=memory_format)
    eager = copy.deepcopy(model)
    compiled = Counted(model, fullgraph=True)
    images = IMAGES.double().to(memory_format=memory_format)
    assert_same(trained(compiled.run, model, images), trained(eager, eager, images), rtol=1e-6, atol=1e-8)
    # the attention by itself, without a norm, is in none
    assert compiled.checkpoints == [3 if "cbam" in name else 2]
    # running statistics have moved once for each step
    assert model[0].bn3.num_batches_tracked == 2


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("start", ["paper", "identity"])
@pytest.mark.parametrize(
    "attention", [CBAM, SqueezeExcitation, EfficientChannelAttention, ChannelAttention, SpatialAttention]
)
def test_the_operator_in_cpp(attention, start, training):
    torch.manual_seed(0)
    memory_format = torch.channels_last if training else torch.contiguous_format
    model = nn.Sequential(
        block(attention(CHANNELS, start=start)), attention(CHANNELS, start=start), block(attention(CHANNELS), 0.5)
    )
    for parameter in model.parameters():
        if parameter.dim() == 0:
            nn.init.constant_(parameter, 0.4)
    model = model.to(memory_format=memory_format).train(training)
    eager = copy.deepcopy(model)
    compiled = Counted(model, fullgraph=True)
    for images in (IMAGES, IMAGES[:2], IMAGES[:, :, :4].repeat(2, 1, 1, 1)):
        found = []
        for run, network in ((compiled.run, model), (eager, eager)):
            torch.manual_seed(3)
            leaf = images.clone(memory_format=memory_format).requires_grad_()
            network.zero_grad()
            (run(leaf) ** 2).sum().backward()
            gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
            found.append({**gradients, "images": leaf.grad, **dict(network.named_buffers())})
        assert_same(*found, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        found = []
        for run in (compiled.run, eager):
            torch.manual_seed(3)
            found.append(run(IMAGES))
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    assert_same(dict(model.named_buffers()), dict(eager.named_buffers()), rtol=1e-3, atol=1e-3)
    # those in a tail and the one without a norm; with other sizes of images it is compiled again
    assert set(compiled.operators) == {3}
    assert set(compiled.checkpoints) == {0}


@pytest.mark.usefixtures("cpp")
def test_a_block_without_a_gate_is_the_compilers():
    # which joins its norm, sum and ReLU with what stands beside them; and torch's own error shows
    plain = block(nn.Identity())
    compiled = Counted(plain, fullgraph=True)
    compiled.run(IMAGES).sum().backward()
    assert (compiled.operators, compiled.checkpoints) == ([0], [0])


@pytest.mark.usefixtures("cpp")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own tool asks for it
def test_the_operator_keeps_torchs_rules():
    x = torch.randn(2, 20, 5, 7)
    norm, what = [torch.rand(20), torch.rand(20), None, None], [torch.rand(5, 20), None, torch.rand(20, 5), None]
    where = [torch.rand(1, 2, 3, 3), torch.rand(1), torch.rand(1), torch.rand(1), None, None]
    told = ([1e-5, 1e-5], [1, 1, 1, 0, 1, 1, 0])
    mixed = ([1e-5, 1e-5], [1, 1, 1, 0, 1, 1, 1])
    learned = [None if value is None else value.requires_grad_() for value in (*norm, *what, *where)]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        leaf, other = (x.clone(memory_format=memory_format).requires_grad_() for _ in range(2))
        mix = torch.rand(1).requires_grad_()
        for arguments in (
            (leaf, other, True, *told, *learned, torch.rand(2), None),
            (leaf, None, True, *mixed, *learned, None, mix),
        ):
            torch.library.opcheck(torch.ops.whatwhere.traced.default, arguments, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("cpp")
def test_a_second_derivative_of_the_operator_is_refused():
    norm, module, x = nn.BatchNorm2d(CHANNELS), CBAM(CHANNELS), IMAGES.clone().requires_grad_()
    run = torch.compile(lambda x: normed_gate(x, norm, module.what, module.where), backend="eager")
    (gradient,) = torch.autograd.grad((run(x) * WEIGHTS).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.square().sum().backward()


class Ignored(torch.autograd.Function):
    """Gives no gradient to its second input."""

    @staticmethod
    def forward(ctx, x, other):
        return x + other

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


@pytest.mark.usefixtures("cpp")
def test_a_result_of_the_operator_that_gets_no_gradient():
    norm, module, x = nn.BatchNorm2d(CHANNELS), CBAM(CHANNELS), IMAGES.clone().requires_grad_()
    run = torch.compile(lambda x: gated_tail(x, norm, module.what, module.where, x), backend="eager")
    Ignored.apply(x, run(x)).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.usefixtures("cpp")
def test_a_mixing_in_low_precision_is_as_exact_as_in_eager_mode():
    norm, module = nn.BatchNorm2d(CHANNELS, affine=False), CBAM(CHANNELS, start="identity")
    x = (10 + torch.randn(4, CHANNELS, 9, 9)).bfloat16()
    compiled = Counted(lambda x: normed_gate(x, norm, module.what, module.where, mix=module.mix))
    with torch.autocast("cpu", torch.bfloat16):
        y = compiled.run(x)
        expected = norm(x)
    assert compiled.operators == [1]
    torch.testing.assert_close(y, expected, rtol=0.01, atol=0.01)


@pytest.mark.usefixtures("cpp")
def test_the_switch_reaches_what_is_compiled(monkeypatch):
    norm, module = nn.BatchNorm2d(CHANNELS), CBAM(CHANNELS)
    compiled = Counted(lambda x: normed_gate(x, norm, module.what, module.where))
    compiled.run(IMAGES)
    with native.switched_off():
        compiled.run(IMAGES)
    monkeypatch.setenv("WHATWHERE_CPP", "0")
    compiled.run(IMAGES)
    assert compiled.operators[0] == 1
    assert set(compiled.operators[1:]) == {0}


def test_norms_in_evaluation_mode():
    model = block(CBAM(CHANNELS, reduction=2)).double().eval()
    eager = copy.deepcopy(model)
    compiled = Counted(model, fullgraph=True)
    assert_same(trained(compiled.run, model, IMAGES.double()), trained(eager, eager, IMAGES.double()))
    assert compiled.checkpoints == [3]
    with torch.no_grad():
        torch.testing.assert_close(compiled.run(IMAGES.double()), eager(IMAGES.double()))
    assert compiled.checkpoints == [3, 0]


def test_another_batch_and_stochastic_depth():
    model = block(CBAM(CHANNELS, reduction=2), drop_rate=0.5).double()
    eager = copy.deepcopy(model)
    compiled = Counted(model, fullgraph=True)
    for images in (IMAGES, IMAGES[:2], IMAGES.repeat(3, 1, 1, 1)[:, :, :4]):
        found = []
        for run, network in ((compiled.run, model), (eager, eager)):
            torch.manual_seed(3)
            network.zero_grad()
            (run(images.double()) ** 2).sum().backward()
            found.append({name: parameter.grad for name, parameter in network.named_parameters()})
        assert_same(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast(dtype):
    model = block(CBAM(CHANNELS, reduction=2))
    eager = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = trained(Counted(model, fullgraph=True).run, model, IMAGES.to(dtype), steps=1)
        expected = trained(eager, eager, IMAGES.to(dtype), steps=1)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        if value.is_floating_point():
            distance = (found[name] - value).float().norm()
            assert distance <= 0.1 * value.float().norm() + 1e-3, name


def kept_bytes(model, images):
    """The bytes that the compiled network keeps for the backward pass, but for its parameters and inputs."""
    kept = []

    def backward(graph, _):
        kept.extend(
            node.meta["val"].numel() * node.meta["val"].element_size()
            for node in graph.graph.find_nodes(op="placeholder")
            if not node.name.startswith(("primals", "tangents"))
        )
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        bw_compiler=backward,
        decompositions=select_decomp_table(),
        partition_fn=functools.partial(min_cut_rematerialization_partition, compiler="inductor"),
    )
    torch.compile(model, backend=backend, fullgraph=True)(images).sum().backward()
    return sum(kept)


def test_it_keeps_no_more_than_for_the_plain_network():
    images, channels = torch.randn(2, 3, 32, 32), 256  # as in the first stage of a ResNet
    kept = {}
    for name in ("none", "cbam", "se", "cbam by lean", "se by lean", "cbam by reference"):
        attention = nn.Identity if name == "none" else attention_builder(name.partition(" ")[0])
        blocks = (block(attention(channels), channels=channels) for _ in range(3))
        # behind the last block something that keeps its result, as behind all but one in a network
        model = nn.Sequential(nn.Conv2d(3, channels, 3), *blocks, nn.Conv2d(channels, 1, 1))
        for module in model.modules():
            if isinstance(module, Gate) and " by " in name:
                module.backend = name.rpartition(" ")[2]
        kept[name] = kept_bytes(model, images)
    for name in ("cbam", "se", "cbam by lean", "se by lean"):
        assert kept[name] <= 1.02 * kept["none"], name
    # what the compiler likes to keep otherwise
    assert kept["cbam by reference"] > 1.2 * kept["none"]


class Ours(nn.Module):
    """A channel gate of a user, which torch.compile cannot trace, and which counts its calls."""

    pools = ("avg", "max")

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(CHANNELS, CHANNELS)
        self.num_calls = 0

    def forward(self, average, maximum):
        self.num_calls += 1
        torch._dynamo.graph_break()
        return torch.sigmoid(self.fc(average) + maximum)


class Tail(nn.Module):
    def __init__(self, what, norm=None):
        super().__init__()
        self.what, self.norm = what, norm or nn.BatchNorm2d(CHANNELS)

    def forward(self, x):
        return gated_tail(x, self.norm, self.what, None, x)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_functions_of_a_user_run_once():
    model = Tail(Ours()).double()
    eager = copy.deepcopy(model)
    found = trained(torch.compile(model, backend="aot_eager"), model, IMAGES.double())
    assert_same(found, trained(eager, eager, IMAGES.double()))
    assert (model.what.num_calls, model.norm.num_batches_tracked) == (2, 2)


class Writing(nn.Module):
    """A channel gate that writes to what it is given."""

    pools = ("max",)

    def forward(self, maximum):
        return torch.sigmoid(maximum.mul_(2))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d(CHANNELS)])
def test_a_gate_that_writes_to_its_pools(norm, backend):
    def run(x):
        return gate(x, what, norm=norm, backend=backend).square().sum()

    norm = None if norm is None else copy.deepcopy(norm).double()
    what, found, expected = Writing(), *(IMAGES.double().requires_grad_() for _ in range(2))
    torch.compile(run, backend="aot_eager", fullgraph=True)(found).backward()
    run(expected).backward()
    torch.testing.assert_close(found.grad, expected.grad)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("affine", [None, False, True])
def test_inductor_in_low_precision_loses_no_maximum(dtype, affine):
    """Each plane's maximum gets the gradient of its pool."""
    norm = None if affine is None else nn.BatchNorm2d(CHANNELS, affine=affine)
    what = Writing()
    x = IMAGES.to(dtype).to(memory_format=torch.channels_last)
    found, expected = x.clone().requires_grad_(), x.float().requires_grad_()
    torch.compile(lambda x: gate(x, what, norm=norm).float().square().sum())(found).backward()
    gate(expected, what, norm=norm, backend="reference").square().sum().backward()
    torch.testing.assert_close(found.grad.float(), expected.grad, rtol=0.1, atol=0.1)


OTHER_NORMS = {
    "another norm": lambda: nn.GroupNorm(4, CHANNELS),
    "a norm of a user": lambda: type("Norm", (nn.BatchNorm2d,), {})(CHANNELS),
    "a mean over all batches": lambda: nn.BatchNorm2d(CHANNELS, momentum=None),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", OTHER_NORMS)
def test_other_norms_are_called(name):
    model = Tail(CBAM(CHANNELS).what, OTHER_NORMS[name]()).double()
    eager = copy.deepcopy(model)
    compiled = Counted(model)
    assert_same(trained(compiled.run, model, IMAGES.double()), trained(eager, eager, IMAGES.double()))
    assert set(compiled.checkpoints) == {0}


def test_hooks_fire_once():
    model, seen = Tail(CBAM(CHANNELS).what), []
    model.norm.register_forward_hook(lambda *_: seen.append(1))
    trained(torch.compile(model, backend="aot_eager"), model, IMAGES)
    assert len(seen) == 2


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("largest", [True, False])
def test_the_first_of_several_extremes_takes_the_gradient(largest, dim):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[1.0, 2, 2], [0, -0.0, 0], [inf, inf, 1], [1, nan, nan], [-inf, -inf, -inf], [nan, inf, 0]])
    x = x.double().expand(2, 6, 3) if dim == 2 else x.double().T.expand(2, 3, 6)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    values = reference._Extreme.apply(found, dim, largest)
    other = (torch.max if largest else torch.min)(expected, dim)[0]
    torch.testing.assert_close(values, other, equal_nan=True, rtol=0, atol=0)
    gradient = torch.arange(1.0, 1 + other.numel()).double().view_as(other)
    values.backward(gradient)
    other.backward(gradient)
    assert torch.equal(found.grad, expected.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("strict", [False, True])
def test_exported_networks_train_alike(strict):
    model = create_model("cbam_resnext11_8x8d", num_classes=3, seed=0).double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64).relu()  # with equal values
    exported = torch.export.export(copy.deepcopy(model), (images,), strict=strict).module()
    for run in (exported, model):
        run(images).square().mean().backward()
    found, expected = (
        {name: parameter.grad for name, parameter in run.named_parameters()} | dict(run.named_buffers())
        for run in (exported, model)
    )
    assert_same(found, expected)


def test_transforms_of_torch_func():
    module = CBAM(CHANNELS, reduction=2).double().eval()
    transform = torch.func.grad(lambda x: module(x).square().sum())
    compiled = torch.compile(transform, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGES.double()), transform(IMAGES.double()))


def test_data_parallel_training_in_several_buckets():
    model = create_model("cbam_resnext11_8x8d", num_classes=3, seed=0).double()
    eager, images = copy.deepcopy(model), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        compiled = torch.compile(DistributedDataParallel(model, bucket_cap_mb=1), backend="aot_eager")
        compiled(images).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    eager(images).square().mean().backward()
    torch.testing.assert_close(
        [parameter.grad for parameter in model.parameters()], [parameter.grad for parameter in eager.parameters()]
    )
    torch.testing.assert_close(list(model.buffers()), list(eager.buffers()))


@pytest.mark.slow
def test_inductor():
    torch.manual_seed(0)
    model = nn.Sequential(block(CBAM(CHANNELS, reduction=2)), block(CBAM(CHANNELS, reduction=2, start="identity")))
    model = model.to(memory_format=torch.channels_last)
    eager = copy.deepcopy(model).double()
    images = IMAGES.to(memory_format=torch.channels_last)
    found = trained(torch.compile(model, fullgraph=True), model, images)
    expected = trained(eager, eager, IMAGES.double())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-3, atol=1e-4)
