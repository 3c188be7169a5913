"""Which backend computes a gate. The choice changes nothing but memory and time."""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from numerics import assert_as_exact_as, assert_same
from whatwhere import CBAM, SqueezeExcitation, create_model
from whatwhere.attention import Gate
from whatwhere.ops import Call, FoldedNorm, gate, gated_tail, lean, normed_gate, why_apart, why_not_fused


class Block(nn.Module):
    """A convolution and the end of a residual block."""

    def __init__(self, backend="auto", **options):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(20, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20)
        self.attention = CBAM(20, reduction=4, **options)
        self.backend = backend

    def forward(self, x):
        a = self.attention
        features = self.conv(x)
        return gated_tail(
            features, self.norm, a.what, a.where, x, arrangement=a.arrangement, mix=a.mix, backend=self.backend
        )


@pytest.fixture
def blocks():
    lean_block = Block("lean")
    reference = copy.deepcopy(lean_block)
    reference.backend = "reference"
    return lean_block, reference


@pytest.fixture
def calls(monkeypatch):
    """The calls that the lean backend has computed."""
    made = []
    run = lean.run
    monkeypatch.setattr(lean, "run", lambda *args: made.append(args) or run(*args))
    return made


X = torch.randn(4, 20, 6, 5, generator=torch.Generator().manual_seed(0))


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def test_auto_takes_lean(calls):
    module = CBAM(20)
    gate(X, module.what, module.where)
    gated_tail(X, nn.BatchNorm2d(20), module.what, None, X)
    assert len(calls) == 2


UNFIT = {
    "spatial_first": (lambda m: gate(X, m.what, m.where, arrangement="spatial_first", backend="lean"), "arrangement"),
    "parallel": (lambda m: gate(X, m.what, m.where, arrangement="parallel", backend="lean"), "arrangement"),
    "no gate": (lambda m: gate(X, backend="lean"), "without a gate"),
    "group norm": (lambda m: normed_gate(X, nn.GroupNorm(4, 20), m.what, backend="lean"), "got a GroupNorm"),
    "synchronised norm": (lambda m: normed_gate(X, nn.SyncBatchNorm(20).eval(), m.what, backend="lean"), "SyncBatch"),
    "broadcast shortcut": (
        lambda m: gated_tail(X, nn.BatchNorm2d(20), m.what, None, X[:, :1], backend="lean"),
        "shortcut",
    ),
    "plain function": (lambda m: gate(X, PlainFunction(), backend="lean"), "must be modules"),
    "twice the same pool": (lambda m: gate(X, Pools(), backend="lean"), "name one twice"),
    "a map of another kind": (lambda m: gate(X, None, Minimum(), backend="lean"), "only max and mean"),
    "empty batch": (lambda m: gate(X[:0], m.what, backend="lean"), "non-empty"),
}


class PlainFunction:
    pools = ("avg",)

    def __call__(self, pooled):
        return torch.sigmoid(pooled)


class Minimum(nn.Module):
    maps = ("min",)


class Pools(nn.Module):
    pools = ("avg", "avg")

    def forward(self, first, second):
        return torch.sigmoid(first + second)


@pytest.mark.parametrize("name", sorted(UNFIT))
def test_an_explicit_backend_that_cannot_says_why_and_auto_takes_the_reference(name, calls):
    run, reason = UNFIT[name]
    with pytest.raises(ValueError, match=f"backend='lean' cannot compute this.*{reason}.*give backend='auto'"):
        run(SqueezeExcitation(20, reduction=4) if name != "spatial_first" else CBAM(20))
    assert not calls


def test_the_rule_names_the_reason():
    module = CBAM(20)
    call = Call(module.what, module.where, nn.BatchNorm2d(20))
    assert why_not_fused(call, X) == why_not_fused(call) == ""
    assert "one device" in why_not_fused(call, X, None, torch.ones((), device="meta"))
    assert "arrangement 'parallel'" in why_not_fused(Call(module.what, module.where, arrangement="parallel"))
    with torch.no_grad(), Operations(X.numel()):
        assert "dispatch mode" in why_not_fused(call, X)
    module.where.register_forward_hook(lambda *_: None)
    assert "hook" in why_not_fused(call)
    module.where = CBAM(20).where
    module.what.fc1.weight.register_hook(lambda gradient: gradient)
    assert "a parameter has a hook" in why_not_fused(Call(module.what, module.where))


def test_modules_that_must_be_called_one_by_one_have_a_reason():
    class Own(CBAM):
        def forward(self, x):
            return 2 * super().forward(x)

    assert why_apart((CBAM(20), (Gate, nn.Identity)), (nn.Identity(), (Gate, nn.Identity))) == ""
    assert why_apart((CBAM(20), (Gate,)), (Own(20), (Gate,))) == "Own has a forward of its own"
    assert "forward of its own" in why_apart((nn.Identity(), (nn.ReLU,)))
    module = CBAM(20)
    module.what.register_forward_hook(lambda *_: None)
    assert why_apart((module, (Gate,))) == ""  # why_not_fused looks at hooks inside
    module.register_forward_hook(lambda *_: None)
    assert why_apart((module, (Gate,))) == "a hook hangs on CBAM"


def test_the_old_names_are_cases_of_gate():
    module, norm = CBAM(20), nn.BatchNorm2d(20)
    options = {"norm": norm, "mix": torch.tensor(0.5), "factor": torch.rand(4)}
    assert torch.equal(
        normed_gate(X, norm, module.what, module.where, mix=options["mix"], factor=options["factor"]),
        gate(X, module.what, module.where, **options),
    )
    assert torch.equal(
        gated_tail(X, norm, module.what, module.where, X, mix=options["mix"], factor=options["factor"]),
        gate(X, module.what, module.where, shortcut=X, **options),
    )


@pytest.mark.parametrize("arrangement", ["spatial_first", "parallel"])
def test_other_arrangements_take_the_reference(arrangement):
    module = CBAM(20, arrangement=arrangement).eval()
    assert torch.equal(module(X), gate(X, module.what, module.where, arrangement=arrangement, backend="reference"))


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend must be one of auto, reference, lean, cpp; got 'fast'"):
        gate(X, CBAM(20).what, backend="fast")


def test_hooks_on_anything_inside_fire():
    module = CBAM(20)
    names = [name for name, _ in module.named_modules()]
    for name in names:
        for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
            fired = []
            handle = getattr(module.get_submodule(name), register)(lambda *_, fired=fired: fired.append(1) or None)
            module(X.clone().requires_grad_()).sum().backward()
            handle.remove()
            assert fired, (name, register)


def test_hooks_on_anything_in_a_network_fire():
    model = create_model("cbam_resnext11_8x8d", num_classes=3)
    fired = dict.fromkeys((name for name, _ in model.named_modules()), 0)
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: fired.__setitem__(name, fired[name] + 1))
    model(torch.randn(2, 3, 16, 16))
    assert all(fired.values())


@pytest.mark.parametrize("name", ["bn3", "conv3", "relu", "attention.where", "attention", "drop_path"])
def test_a_hook_changes_nothing_else(name):
    model = create_model("cbam_resnext11_8x8d", num_classes=3, drop_path_rate=0.1, seed=0).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(images)
        kept = []
        model.layer2[0].get_submodule(name).register_forward_hook(lambda _module, _args, y: kept.append((y, y.clone())))
        torch.testing.assert_close(model(images), expected)
    # the tensor that the hook saw is not overwritten later, except by the ReLU in place, as in torchvision's block
    seen, then = kept[0]
    assert torch.equal(seen, then)


def test_global_hooks_fire(calls):
    fired = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: fired.append(type(module).__name__))
    try:
        CBAM(20)(X)
    finally:
        handle.remove()
    assert {"Conv2d", "Linear", "SharedMLP", "SpatialConv", "BatchNorm2d"} <= set(fired)
    assert not calls


@pytest.mark.parametrize("training", [True, False])
def test_gradients_through_a_block(blocks, training):
    for block in blocks:
        block.train(training)(X).square().mean().backward()
    assert_same(gradients(blocks[0]), gradients(blocks[1]), rtol=1e-4, atol=1e-6)
    assert_same(blocks[0].state_dict(), blocks[1].state_dict())


def test_accumulated_gradients(blocks):
    for block in blocks:
        for batch in X.split(2):
            block(batch).square().mean().backward()
    assert_same(gradients(blocks[0]), gradients(blocks[1]), rtol=1e-4, atol=1e-6)


def test_backward_twice_through_one_graph():
    block = Block("lean")
    loss = block(X).square().mean()
    loss.backward(retain_graph=True)
    once = {name: value.clone() for name, value in gradients(block).items()}
    loss.backward()
    assert_same(gradients(block), {name: 2 * value for name, value in once.items()})
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(blocks, use_reentrant):
    for block in blocks:
        x = X.clone().requires_grad_()
        checkpoint(block, x, use_reentrant=use_reentrant).square().mean().backward()
    assert_same(gradients(blocks[0]), gradients(blocks[1]), rtol=1e-4, atol=1e-6)
    assert_same(blocks[0].state_dict(), blocks[1].state_dict())


def test_hooks_on_parameters_run_once(blocks):
    runs = []
    for block in blocks:
        block.attention.what.fc1.weight.register_hook(lambda gradient: runs.append(1) or 0.1 * gradient)
        block(X).square().mean().backward()
    assert len(runs) == 2
    assert_same(gradients(blocks[0]), gradients(blocks[1]), rtol=1e-4, atol=1e-6)


def test_parameters_that_are_plain_attributes_get_their_gradients(blocks):
    results = []
    for block in blocks:
        flat = block.attention.what.fc1.weight.detach().flatten().requires_grad_()
        del block.attention.what.fc1.weight
        block.attention.what.fc1.weight = flat.view(5, 20)  # as FSDP lays out its flat parameter
        block(X).square().mean().backward()
        results.append({"flat": flat.grad})
    assert_same(*results, rtol=1e-4, atol=1e-6)


def test_a_parameter_computed_from_another_gets_its_gradient_once(blocks):
    results = []
    for block in blocks:
        first = block.attention.what.fc1.weight.detach().requires_grad_()
        values = {"attention.what.fc1.weight": first, "attention.what.fc2.weight": first.t() * 1}
        torch.func.functional_call(block, values, (X,)).square().mean().backward()
        results.append({"first": first.grad})
    assert_same(*results, rtol=1e-4, atol=1e-6)


def test_small_functions_may_write_to_what_they_get(blocks):
    for block in blocks:
        block.attention.what.__class__ = InPlaceMLP
        block.attention.where.__class__ = InPlaceConv
        block(X).square().mean().backward()
    assert_same(gradients(blocks[0]), gradients(blocks[1]), rtol=1e-4, atol=1e-6)


class InPlaceMLP(type(CBAM(4).what)):
    def forward(self, *pooled):
        return super().forward(*(values.mul_(0.5) for values in pooled))


class InPlaceConv(type(CBAM(4).where)):
    def forward(self, maps):
        return super().forward(maps.relu_())


def test_gates_may_broadcast(blocks):
    for block in blocks:
        block.attention.what.__class__ = OneGateForAllChannels
        block.attention.where.__class__ = OneGateForAllPixels
        block(X).square().mean().backward()
    assert_same(gradients(blocks[0]), gradients(blocks[1]), rtol=1e-4, atol=1e-6)


class OneGateForAllChannels(type(CBAM(4).what)):
    def forward(self, *pooled):
        return super().forward(*pooled).mean(1, keepdim=True)


class OneGateForAllPixels(type(CBAM(4).where)):
    def forward(self, maps):
        return super().forward(maps).mean((2, 3), keepdim=True)


def test_a_norm_of_other_channels_is_refused_as_by_torch():
    module = CBAM(20)
    with pytest.raises(RuntimeError, match="running_mean should contain 20 elements"):
        normed_gate(X, nn.BatchNorm2d(1).eval(), module.what)


def test_small_graphs_are_freed_by_the_backward_pass():
    block = Block("lean")
    y = block(X)
    kept = weakref.ref(y.grad_fn.kept.m)
    y.sum().backward()
    assert kept() is None


def test_small_graphs_are_freed_with_the_result():
    """A node that holds its own result, through the saved-tensor hooks, would never be freed."""
    y = Block("lean")(X)
    small = [weakref.ref(tensor) for tensor in (y.grad_fn.kept.s, y.grad_fn.kept.m, *y.grad_fn.kept.pooled)]
    del y
    assert all(reference() is None for reference in small)


def test_functional_call_with_values_that_have_a_history(blocks):
    results = []
    for block in blocks:
        scale = torch.tensor(1.5, requires_grad=True)
        values = {name: parameter.detach() * scale for name, parameter in block.named_parameters()}
        torch.func.functional_call(block, values, (X,)).square().mean().backward()
        results.append({"scale": scale.grad})
    assert_same(*results, rtol=1e-4, atol=1e-5)


def test_functional_transforms_see_plain_operators():
    module = CBAM(20).eval()
    parameters = dict(module.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(module, parameters, (x[None],)).square().mean()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, X)
    module.zero_grad()
    module(X[:1]).square().mean().backward()
    assert_same({name: value[0] for name, value in per_sample.items()}, gradients(module), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
def test_without_gradients(blocks, context, training):
    with context():
        found, expected = (block.train(training)(X) for block in blocks)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)
    assert_same(blocks[0].state_dict(), blocks[1].state_dict())


@pytest.mark.parametrize("mix", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight", [1.0, -1.0])
@pytest.mark.parametrize("training", [True, False])
def test_overwriting_x_gives_the_same(mix, dtype, weight, training):
    module, norm = CBAM(20).to(dtype).train(training), nn.BatchNorm2d(20, dtype=dtype).train(training)
    nn.init.constant_(norm.weight, weight)
    a = None if mix is None else torch.tensor(mix)
    x = X.to(dtype)
    with torch.no_grad():
        args = norm, module.what, module.where, x
        expected = gated_tail(x.clone(), *args, mix=a)
        torch.testing.assert_close(gated_tail(x.clone(), *args, mix=a, overwrite=True), expected)
        # x is kept unless overwrite allows it
        gated_tail(x, *args, mix=a)
        assert torch.equal(x, X.to(dtype))
        for options in ({}, {"shortcut": x}, {"norm": norm}):
            options |= {"what": module.what, "where": module.where, "mix": a}
            torch.testing.assert_close(gate(x.clone(), **options, overwrite=True), gate(x, **options))


def test_x_is_kept_where_a_gradient_needs_it():
    module, norm = CBAM(20), nn.BatchNorm2d(20)
    x = X.clone()
    gated_tail(x, norm, module.what, module.where, X, overwrite=True).sum().backward()
    assert torch.equal(x, X)


def test_the_end_of_a_plain_block_without_a_norm_is_written_over_x_if_it_may_be():
    shortcut = torch.randn_like(X)
    expected = torch.relu(X + shortcut)
    with torch.no_grad():
        for norm in (None, FoldedNorm()):
            x = X.clone()
            y = gate(x, norm=norm, shortcut=shortcut, overwrite=True)
            assert torch.equal(y, expected)
            assert y is x
        assert gate(X, shortcut=shortcut) is not X
        # the sum has another dtype, or another shape
        assert gate(X.clone(), shortcut=shortcut.double(), overwrite=True).dtype is torch.float64
        assert gate(X[:1].clone(), shortcut=shortcut, overwrite=True).shape == X.shape
    x = X.clone().requires_grad_()
    gate(x, shortcut=shortcut, overwrite=True).sum().backward()
    assert torch.equal(x, X)


def test_a_norm_that_returns_its_input_is_not_written_over():
    x = X.clone()
    gated_tail(x, nn.Identity(), None, None, torch.ones(20, 6, 5).expand_as(X))
    assert torch.equal(x, X)


class Operations(TorchDispatchMode):
    """Count the operators that write a tensor as large as x."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.count = numel, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() == self.numel and not func.is_view:
            self.count += 1
        return out


def large_operations(block, x):
    loss = block(x).sum()
    with Operations(x.numel()) as operations:
        loss.backward()
    return operations.count


@pytest.mark.parametrize("training", [True, False])
def test_no_work_for_gradients_that_are_not_needed(training):
    def count(*wanted, of_x=False):
        block = Block("lean").train(training)
        block.conv = nn.Identity()
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(name.startswith(wanted))
        return large_operations(block, X.clone().requires_grad_(of_x))

    everything = count("norm", "attention", of_x=True)
    assert count("norm", "attention") < everything  # no gradient of x
    assert count("attention.what") < count("norm", "attention") + 1
    assert count("attention.where") < count("attention.what")  # nor the sums over pixels


@pytest.mark.parametrize("frozen", ["norm", "attention.what", "attention.where", "attention", "conv"])
def test_frozen_parameters_get_no_gradient_and_the_rest_do(blocks, frozen):
    for block in blocks:
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        block(X).square().mean().backward()
    assert_same(gradients(blocks[0]), gradients(blocks[1]), rtol=1e-4, atol=1e-6)


def test_parameters_that_both_functions_share_get_one_gradient(blocks):
    for block in blocks:
        block.attention.where.scale = block.attention.what.scale = nn.Parameter(torch.tensor(0.7))
        block.attention.what.forward = None
        del block.attention.what.forward
        block.attention.what.__class__ = ScaledMLP
        block.attention.where.__class__ = ScaledConv
        block(X).square().mean().backward()
    assert_same(gradients(blocks[0]), gradients(blocks[1]), rtol=1e-4, atol=1e-6)


class ScaledMLP(type(CBAM(4).what)):
    def forward(self, *pooled):
        return self.scale * super().forward(*pooled)


class ScaledConv(type(CBAM(4).where)):
    def forward(self, maps):
        return self.scale * super().forward(maps)


def test_copies_are_independent():
    block = Block("lean")
    copied = copy.deepcopy(block)
    block(X).square().mean().backward()
    assert all(parameter.grad is None for parameter in copied.parameters())
    copied(X).square().mean().backward()
    assert_same(gradients(copied), gradients(block))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_autocast(blocks, dtype, training):
    seen = []
    for block in blocks:
        block.train(training)
    exact = copy.deepcopy(blocks[1]).double()
    shortcut = X.to(dtype)

    def run(block, enabled=True):
        a = block.attention
        with torch.autocast("cpu", dtype, enabled=enabled):
            features = block.conv(shortcut if enabled else shortcut.double())
            y = gated_tail(features, block.norm, a.what, a.where, features.detach().flip(1), backend=block.backend)
        seen.append((features.dtype, y.dtype))
        y.float().square().mean().backward()
        return {"y": y.detach(), **gradients(block)}

    truth = run(exact, enabled=False)
    assert_as_exact_as(run(blocks[0]), run(blocks[1]), truth, torch.finfo(dtype).eps)
    assert seen[1:] == [(dtype, dtype)] * 2


def test_small_functions_run_in_float32_under_autocast():
    seen = []

    class Spy(nn.Module):
        pools = ("avg",)

        def forward(self, pooled):
            seen.append((pooled.dtype, torch.is_autocast_enabled("cpu")))
            return torch.sigmoid(pooled)

    for backend in ("lean", "reference"):
        with torch.autocast("cpu", torch.bfloat16):
            assert gate(X.bfloat16(), Spy(), backend=backend).dtype == torch.bfloat16
    assert seen == [(torch.float32, False)] * 2


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning", "ignore:.*is deprecated:DeprecationWarning")
def test_forward_mode_sees_plain_operators():
    module, tangent = CBAM(20).eval(), torch.randn(X.shape)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, tangent)
        found = torch.autograd.forward_ad.unpack_dual(module(dual)).tangent
    step = 1e-6
    double, x, tangent = copy.deepcopy(module).double(), X.double(), tangent.double()
    expected = (double(x + step * tangent) - double(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_replicas_on_several_devices_keep_their_gradients():
    module = CBAM(20)
    # as DataParallel does on each device: parameters become plain attributes, which `parameters()` does not return
    replicas = {inner: inner._replicate_for_data_parallel() for inner in module.modules()}
    for inner, replica in replicas.items():
        for name, child in inner._modules.items():
            if child is not None:
                setattr(replica, name, replicas[child])
        for name, parameter in inner._parameters.items():
            setattr(replica, name, None if parameter is None else parameter * 1)
        for name, buffer in inner._buffers.items():
            replica._buffers[name] = buffer
    replicas[module](X).square().mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_double_backward_says_what_to_do():
    block = Block("lean")
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice; set `backend = 'reference'`"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("first", ["input", "weight", "gate"])
@pytest.mark.parametrize("second", ["input", "weight", "gate"])
def test_double_backward_with_respect_to_anything_says_so(first, second):
    # the gradient depends on x and the parameters too, not only on the gradient of the result
    convolution, attention = nn.Conv2d(3, 4, 3), CBAM(4, reduction=2)
    images = torch.randn(2, 3, 5, 5, requires_grad=True)
    by = {"input": images, "weight": convolution.weight, "gate": attention.what.fc1.weight}
    loss = attention(convolution(images)).square().sum()
    (gradient,) = torch.autograd.grad(loss, by[first], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(gradient.square().sum(), by[second])


def test_a_gradient_of_a_graph_can_be_detached_in_place():
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Block("lean")(x).square().sum(), x, create_graph=True)
    gradient.detach_()


def test_double_backward_by_the_reference():
    module = CBAM(4, reduction=2).double()
    module.backend = "reference"
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(module, (x,))


def test_data_parallel_training(blocks):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        DistributedDataParallel(blocks[0])(X).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    blocks[1](X).square().mean().backward()
    assert_same(gradients(blocks[0]), gradients(blocks[1]), rtol=1e-4, atol=1e-6)


def test_synchronised_norms_take_the_reference(calls):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(create_model("cbam_resnext11_8x8d", num_classes=3)).eval()
    plain = create_model("cbam_resnext11_8x8d", num_classes=3).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images), plain(images))
    assert len(calls) == 3  # by the network with plain norms


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_networks_give_the_same_and_take_one_graph(calls):
    model = create_model("cbam_resnext11_8x8d", num_classes=3, seed=0)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    images = torch.randn(2, 3, 16, 16)
    found, expected = compiled(images), model(images)
    torch.testing.assert_close(found, expected)
    assert len(calls) == 3
    found.square().mean().backward()
    expected.square().mean().backward()
    assert_same(
        {f"_orig_mod.{name}": g for name, g in gradients(model).items()}, gradients(compiled), rtol=1e-3, atol=1e-5
    )


def test_parameters_changed_before_the_backward_pass_raise_as_in_eager():
    block = Block("lean")
    loss = block(X).sum()
    with torch.no_grad():
        block.norm.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
