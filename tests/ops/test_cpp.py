"""The C++ passes: what the comparison of all backends with float64 (test_fused.py) does not show."""

import copy
import os
import resource
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from numerics import assert_as_exact_as
from whatwhere import CBAM, ChannelAttention, EfficientChannelAttention, SpatialAttention, SqueezeExcitation
from whatwhere.attention.cbam import SharedMLP
from whatwhere.attention.squeeze_excitation import Excitation
from whatwhere.cli.backends import backends_command
from whatwhere.ops import block, cpp, gate, gated_tail, layout, lean, native, normed_gate
from whatwhere.ops.forms import form_of

pytestmark = pytest.mark.usefixtures("cpp")
FORMATS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.bfloat16)
OPERATORS = torch.ops.whatwhere


def tail(shape, dtype=torch.float32, memory_format=torch.channels_last, seed=0):
    """Return a function that computes the end of a block by a backend: its result and all its gradients."""
    torch.manual_seed(seed)
    module, norm = CBAM(shape[1], reduction=4), nn.BatchNorm2d(shape[1])
    x, shortcut, gradient = (torch.randn(shape).to(dtype).contiguous(memory_format=memory_format) for _ in range(3))

    def run(backend="cpp"):
        leaves = [value.detach().requires_grad_() for value in (x, shortcut)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
            y = gated_tail(leaves[0], norm, module.what, module.where, leaves[1], backend=backend)
        learned = [*leaves, *norm.parameters(), *module.what.parameters(), *module.where.parameters()]
        return [y.detach(), *torch.autograd.grad(y, learned, gradient)]

    return run


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 70, 40, 33), (1, 256, 60, 60), (5, 17, 7, 7)])
def test_the_number_of_threads_changes_no_bit(shape, dtype, memory_format):
    x, y, g = (torch.randn(shape).to(dtype).contiguous(memory_format=memory_format) for _ in range(3))
    num, channels, pixels = *shape[:2], shape[2] * shape[3]
    scale, shift, m = torch.randn(num, channels), torch.randn(num, channels), torch.rand(num, pixels)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, dv, dx = (torch.empty_like(x) for _ in range(3))
            results = [*OPERATORS.pool(x, True), *OPERATORS.maps(x, scale, shift), OPERATORS.weighted(x, m, shift[0])]
            OPERATORS.apply(x, scale, shift, m, None, y, True, out)
            results += [*OPERATORS.reduce(g, y, x, scale, shift, m, shift[0], True, True, dv), out, dv]
            rest = (m, results[3], results[1][:1].float().mul(0).add(1), results[1][:1])
            OPERATORS.spread(dv, x, m, m, scale, shift, shift, scale[0], shift[0], *rest, dx)
            found.append([*results, dx])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize("instructions", ["avx2", "baseline"])
def test_other_instruction_sets_are_as_exact(instructions):
    # the environment decides at the first call, so in a process of its own
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", "tests/ops/test_fused.py", "-k"]
    chosen = "test_any_shape or test_any_sign or (test_with_mixing_and_factor and cbam)"
    done = subprocess.run(
        [*command, chosen],
        env={**os.environ, "WHATWHERE_INSTRUCTIONS": instructions},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pools_and_maps_are_torchs(dtype, memory_format):
    x = torch.randn(3, 37, 19, 23).mul(3).to(dtype).contiguous(memory_format=memory_format)
    values, indices = OPERATORS.pool(x, True)
    planes = x.double().flatten(2)
    torch.testing.assert_close(values[0].double(), planes.mean(2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values[1].double(), planes.var(2, correction=0), rtol=1e-5, atol=0)
    for row, found in enumerate((planes.max(2), planes.min(2))):
        assert torch.equal(values[2 + row].double(), found.values)
        assert torch.equal(indices[row].long(), found.indices)
    maps, index = OPERATORS.maps(x, None, None)
    pixels = x.double().flatten(2)
    assert torch.equal(maps[0].double(), pixels.amax(1))
    assert torch.equal(index.long(), pixels.max(1).indices)
    torch.testing.assert_close(maps[1].double(), pixels.mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_variance_of_large_equal_and_single_values(memory_format):
    for x in (torch.full((2, 3, 50, 50), 1e4), torch.full((2, 40, 1, 1), -3.0), 1e4 + torch.randn(2, 5, 60, 60)):
        values, _ = OPERATORS.pool(x.contiguous(memory_format=memory_format), True)
        exact = x.double().flatten(2)
        torch.testing.assert_close(values[0].double(), exact.mean(2), rtol=1e-7, atol=0)
        torch.testing.assert_close(values[1].double(), exact.var(2, correction=0), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_what_is_not_finite_stays_so(memory_format):
    x = torch.randn(2, 40, 9, 9)
    x[0, 3, 2, 1] = x[0, 3, 4, 4] = x[1, 33, 0, 0] = float("nan")
    x[1, 2, 5, 5], x[1, 38, 5, 5] = float("inf"), float("-inf")
    x = x.contiguous(memory_format=memory_format)
    values, indices = OPERATORS.pool(x, True)
    found = x.flatten(2).max(2)
    torch.testing.assert_close(values[2], found.values, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(indices[0].long(), found.indices)
    module = CBAM(40, reduction=4).eval()
    with torch.no_grad():
        expected = gate(x, module.what, module.where, backend="reference")
        torch.testing.assert_close(gate(x, module.what, module.where, backend="cpp"), expected, equal_nan=True)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_that_begin_anywhere_in_memory(dtype, memory_format):
    module, norm = SqueezeExcitation(17, reduction=4).eval().to(dtype), nn.BatchNorm2d(17).eval()
    for start in range(1, 5):
        memory = torch.randn(start + 2 * 17 * 5 * 3).to(dtype)[start:]
        if memory_format == torch.channels_last:
            x = memory.view(2, 5, 3, 17).permute(0, 3, 1, 2)
        else:
            x = memory.view(2, 17, 5, 3)
        with torch.no_grad():
            found = normed_gate(x, norm, module.what, backend="cpp")
            assert torch.equal(found, normed_gate(x.clone(), norm, module.what, backend="cpp"))


KINDS = {
    "cbam": lambda c: CBAM(c, reduction=4),
    "timm": lambda c: CBAM(c, reduction=4, form="timm"),
    "ultralytics": lambda c: CBAM(c, form="ultralytics"),
    "wide kernel, one map": lambda c: CBAM(c, reduction=4, kernel_size=11, maps=("mean",), norm=None),
    "one pool": lambda c: CBAM(c, reduction=4, pools=("max",), mlp_bias=False, zero_init_norm=True),
    "se": lambda c: SqueezeExcitation(c, reduction=4),
    "eca": EfficientChannelAttention,
    "channel": lambda c: ChannelAttention(c, reduction=4),
    "spatial": lambda c: SpatialAttention(c, kernel_size=3),
}


def trained(module, training=False):
    for parameter in module.parameters():
        if parameter.dim() < 2:
            nn.init.normal_(parameter, 0.3, 0.5)
        else:
            nn.init.normal_(parameter, 0.0, parameter[0].numel() ** -0.5)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5)
    return module.train(training)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("mix", [None, 0.0, 0.7, 1.0])
@pytest.mark.parametrize("form", ["gate", "norm", "norm+shortcut", "shortcut"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_one_operator_for_inference_is_as_exact_as_eager(kind, form, mix, memory_format, monkeypatch):
    torch.manual_seed(7)
    shape = (2, 37, 9, 20)
    module, norm = trained(KINDS[kind](shape[1])), trained(nn.BatchNorm2d(shape[1]))
    x, shortcut = (torch.randn(shape).contiguous(memory_format=memory_format) for _ in range(2))
    monkeypatch.setattr(cpp._Forward, "_run_passes", lambda self: pytest.fail("by several operators"))

    def run(backend, dtype):
        options = {"mix": None if mix is None else torch.tensor(mix, dtype=dtype), "backend": backend}
        options |= {"norm": copy.deepcopy(norm).to(dtype)} if "norm" in form else {}
        options |= {"shortcut": shortcut.to(dtype)} if "shortcut" in form else {}
        copied = copy.deepcopy(module).to(dtype)
        with torch.no_grad():
            return {"y": gate(x.to(dtype), copied.what, copied.where, **options)}

    for dtype in DTYPES:
        eager, truth = run("reference", dtype), run("reference", torch.float64)
        assert_as_exact_as(run("cpp", dtype), eager, truth, torch.finfo(dtype).eps)


def learned_by(module, norm, form, mix, memory_format, x, shortcut, gradient, backend, dtype):
    """Return by name the result, every gradient and every running statistic of a call."""
    module, norm = copy.deepcopy(module).to(dtype), copy.deepcopy(norm).to(dtype)
    leaves = {"x": x.to(dtype, copy=True), "shortcut": shortcut.to(dtype, copy=True)}
    options = {"backend": backend, "factor": torch.tensor([1.25, 0.0], dtype=dtype)}
    if mix is not None:
        options["mix"] = leaves["mix"] = torch.tensor(mix, dtype=dtype)
    for leaf in leaves.values():
        leaf.requires_grad_()
    options |= {"norm": norm} if "norm" in form else {}
    options |= {"shortcut": leaves["shortcut"]} if "shortcut" in form else {}
    y = gate(leaves["x"], module.what, module.where, **options)
    y.backward(gradient.to(dtype).contiguous(memory_format=memory_format))
    parameters = {**dict(module.named_parameters()), **{f"norm.{name}": p for name, p in norm.named_parameters()}}
    found = {name: value.grad for name, value in {**leaves, **parameters}.items() if value.grad is not None}
    buffers = {**dict(module.named_buffers()), **{f"norm.{name}": b for name, b in norm.named_buffers()}}
    return {"y": y, **found, **{name: value.double() for name, value in buffers.items()}}


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mix", [None, 0.0, 0.7])
@pytest.mark.parametrize("form", ["gate", "norm", "norm+shortcut", "shortcut"])
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("route", ["by one operator", "by passes"])
def test_training_is_as_exact_as_eager_by_both_routes(route, kind, form, mix, training, memory_format, monkeypatch):
    torch.manual_seed(7)
    shape = (2, 37, 9, 20)
    module, norm = trained(KINDS[kind](shape[1]), training), trained(nn.BatchNorm2d(shape[1]), training)
    with torch.no_grad():
        norm.weight[::5], norm.weight[1::5] = 0, -norm.weight[1::5].abs()
    x, shortcut, gradient = (torch.randn(shape).contiguous(memory_format=memory_format) for _ in range(3))
    if route == "by passes":
        monkeypatch.setattr(block, "forward", lambda of: None)
    else:
        monkeypatch.setattr(cpp._Forward, "_run_passes", lambda self: pytest.fail("by several operators"))
    # where rounding cannot decide whether a ReLU is active
    call = (module, norm, form, mix, memory_format, x)
    branch = learned_by(*call, torch.full(shape, 1e3), gradient, "reference", torch.float64)["y"].detach() - 1e3
    shortcut[(branch + shortcut).abs() < 0.05] += 0.25
    rest = (shortcut, gradient)
    eager, truth = (learned_by(*call, *rest, "reference", dtype) for dtype in (torch.float32, torch.float64))
    found = learned_by(*call, *rest, "cpp", torch.float32)
    assert_as_exact_as(found, eager, truth, torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_a_convolution_along_few_channels(channels, monkeypatch):
    monkeypatch.setattr(cpp._Forward, "_run_passes", lambda self: pytest.fail("by several operators"))
    module, x = EfficientChannelAttention(channels, kernel_size=9), torch.rand(2, channels, 3, 4) + 1
    exact = copy.deepcopy(module).double()
    (found,) = torch.autograd.grad(module(x).sum(), module.parameters())
    (expected,) = torch.autograd.grad(exact(x.double()).sum(), exact.parameters())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 70, 40, 33), (5, 17, 7, 7), (1, 256, 60, 60)])
def test_the_number_of_threads_changes_no_bit_of_a_step(shape, dtype, memory_format, monkeypatch):
    # by several operators torch runs the small convolution, whose last bits depend on the number
    monkeypatch.setattr(cpp._Forward, "_run_passes", lambda self: pytest.fail("by several operators"))
    run, before, found = tail(shape, dtype, memory_format), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(run())
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize("momentum", [0.1, None, 0.0])
def test_the_running_statistics_move_as_torchs(momentum):
    module = CBAM(20, reduction=4)
    norm = nn.BatchNorm2d(20, momentum=momentum)
    module.where.norm.momentum = momentum
    copies = {backend: copy.deepcopy((module, norm)) for backend in ("reference", "cpp")}
    for step in range(3):
        x = torch.randn(3, 20, 5, 7) + step
        for backend, (own, own_norm) in copies.items():
            with torch.set_grad_enabled(step != 1):  # without a gradient too
                normed_gate(x, own_norm, own.what, own.where, backend=backend)
    for one, other in zip(*copies.values(), strict=True):
        for name, value in one.named_buffers():
            torch.testing.assert_close(other.get_buffer(name), value)


def test_what_the_block_keeps_is_refused_when_it_was_written_over():
    for written in ("x", "what.fc1.weight", "where.conv.weight"):
        module, norm = CBAM(20, reduction=4), nn.BatchNorm2d(20)
        x = torch.randn(2, 20, 6, 6, requires_grad=True) * 1
        y = normed_gate(x, norm, module.what, module.where, backend="cpp")
        with torch.no_grad():
            (x if written == "x" else module.get_parameter(written)).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_a_frozen_network_and_tied_weights():
    module, norm, x = CBAM(20, reduction=1), nn.BatchNorm2d(20), torch.randn(2, 20, 6, 6)
    module.what.fc2.weight = module.what.fc1.weight
    found = {}
    for backend in ("reference", "cpp"):
        own = copy.deepcopy(module)
        assert own.what.fc2.weight is own.what.fc1.weight
        own.where.requires_grad_(requires_grad=False)
        y = normed_gate(x, norm.requires_grad_(requires_grad=False).eval(), own.what, own.where, backend=backend)
        y.square().sum().backward()
        found[backend] = own.what.fc1.weight.grad
        assert own.where.conv.weight.grad is None
    torch.testing.assert_close(found["cpp"], found["reference"], rtol=1e-4, atol=1e-4)


def test_a_parameter_in_two_places_gets_its_gradient_once():
    x = torch.randn(3, 8, 6, 6)
    for shared in ("mix", "norm"):
        module, norm, found = SqueezeExcitation(8, reduction=2, start="identity"), nn.BatchNorm2d(8), {}
        with torch.no_grad():
            module.mix.fill_(0.5)
        if shared == "mix":
            module.what.also = module.mix
        else:
            module.what.also = norm
        for backend in ("reference", "cpp"):
            y = gate(x, module.what, norm=norm, mix=module.mix, backend=backend)
            found[backend] = torch.autograd.grad(y.square().sum(), [module.mix, *norm.parameters()])
        for one, other in zip(*found.values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_last_layer_that_broadcasts():
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    two, one = SqueezeExcitation(8, reduction=2).what, CBAM(8, form="ultralytics").what
    two.fc2, one.fc = nn.Linear(4, 1), nn.Linear(8, 1)
    for what in (two, one):
        torch.testing.assert_close(gate(x, what, backend="cpp"), gate(x, what, backend="reference"))


def test_small_functions_of_another_dtype_are_torchs_error():
    x, module = torch.randn(2, 8, 5, 5).bfloat16(), CBAM(8, reduction=2)
    for backend in ("reference", "lean", "cpp"):
        with pytest.raises(RuntimeError, match="same dtype"):
            gate(x, module.what, backend=backend)


def test_a_nan_shows_through_a_norm_whose_weight_is_0():
    module, norm, x = (
        ChannelAttention(4, reduction=1, pools=("max",)),
        nn.BatchNorm2d(4).eval(),
        torch.randn(2, 4, 6, 6),
    )
    with torch.no_grad():
        norm.weight[0], x[0, 0, 2, 3] = 0, float("nan")
        for backend in ("reference", "lean", "cpp"):
            y = normed_gate(x, norm, module.what, backend=backend)
            assert y.isnan().sum() == normed_gate(x, norm, module.what, backend="reference").isnan().sum()


def test_a_bias_may_change_before_the_backward_pass():
    module, norm = CBAM(8, reduction=2), nn.BatchNorm2d(8)
    x, found = torch.randn(2, 8, 5, 5), {}
    for backend in ("reference", "cpp"):
        own = copy.deepcopy(module)
        y = normed_gate(x, norm, own.what, own.where, backend=backend)
        with torch.no_grad():
            own.what.fc2.bias.zero_()
            own.where.norm.bias.add_(1)
        y.square().sum().backward()
        found[backend] = own.where.norm.bias.grad
    torch.testing.assert_close(found["cpp"], found["reference"], rtol=1e-4, atol=1e-4)


def test_images_of_many_sizes_keep_the_memory_of_the_largest():
    module = SpatialAttention(1).eval()

    def grown(sizes):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with torch.no_grad():
            for size in sizes:
                gate(torch.zeros(1, 1, size, size), None, module.where, backend="cpp")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    grown([256])
    # each call needs some 10 values a pixel: at 768 px 24 MB, over all sizes 700
    assert grown(range(256, 769, 8)) < 120 * 1024


def test_one_value_for_a_norm_of_maps_is_torchs_error():
    module, x = CBAM(20, reduction=4), torch.randn(1, 20, 1, 1, requires_grad=True)
    for backend in ("reference", "cpp"):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            gate(x, module.what, module.where, backend=backend)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inference_is_the_same_for_any_batch_and_number_of_threads(dtype, memory_format):
    module, norm = trained(CBAM(96, reduction=4).to(dtype)), trained(nn.BatchNorm2d(96))
    x, shortcut = (torch.randn(5, 96, 40, 41).to(dtype).contiguous(memory_format=memory_format) for _ in range(2))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):  # more than images, too
            torch.set_num_threads(threads)
            with torch.no_grad():
                whole = gated_tail(x, norm, module.what, module.where, shortcut, backend="cpp")
                parts = [
                    gated_tail(one, norm, module.what, module.where, other, backend="cpp", overwrite=True)
                    for one, other in zip(x.clone().split(1), shortcut.split(1), strict=True)
                ]
            found += [whole, torch.cat(parts)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_function_that_is_not_what_it_seems_runs_itself():
    class Halved(SharedMLP):
        def forward(self, *pooled):
            return super().forward(*pooled) / 2

    class Odd(Excitation):
        def mlp(self, z):
            return -super().mlp(z)

    x = torch.randn(2, 20, 6, 6)
    where = CBAM(20).eval().where
    dilated, lone = (CBAM(20).eval().where for _ in range(2))
    dilated.conv.dilation, dilated.conv.padding = (2, 2), (6, 6)
    lone.conv = nn.Sequential(lone.conv)
    known = [Halved(20, 5, ("avg", "max")), Odd(20, 5)]
    spectral = SharedMLP(20, 5)
    nn.utils.parametrizations.spectral_norm(spectral.fc1)
    for what, spatial in ((known[0], where), (known[1], None), (spectral, None), *((None, o) for o in (dilated, lone))):
        with torch.no_grad():
            expected = gate(x, what, spatial, backend="reference")
            torch.testing.assert_close(gate(x, what, spatial, backend="cpp"), expected)
    assert form_of(lone) is None
    assert form_of(where) is not None


@pytest.mark.parametrize(
    "patched", [(Excitation, "mlp"), (SharedMLP, "forward"), (nn.Linear, "forward"), (None, "mlp")]
)
def test_a_function_that_somebody_has_replaced_runs_itself(patched, monkeypatch):
    x, (owner, name) = torch.randn(2, 20, 6, 6), patched
    what = CBAM(20).eval().what
    owner = what if owner is None else owner
    before = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *values: -before(*values))
    with torch.no_grad():
        expected = gate(x, what, backend="reference")
        torch.testing.assert_close(gate(x, what, backend="cpp"), expected)


class Spread(nn.Module):
    """A gate of any shape that broadcasts."""

    pools = maps = ("max",)
    form = "a name that a user may take"

    def __init__(self, shape):
        super().__init__()
        self.shape, self.weight = shape, nn.Parameter(torch.rand(shape))

    def forward(self, pooled):
        if pooled.dim() == 2:
            found = pooled.mean(tuple(d for d in (0, 1) if self.shape[d] == 1), keepdim=True)
        else:
            found = pooled.mean(tuple(d for d in (0, 2, 3) if self.shape[d] == 1), keepdim=True)
        return torch.sigmoid(found * self.weight)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("channels", [(3, 1), (1, 20), (1, 1), None])
@pytest.mark.parametrize("pixels", [(3, 1, 1, 1), (1, 1, 5, 7), None])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_gates_may_be_spread_and_lie_anyhow(channels, pixels, with_norm, memory_format, in_pieces, monkeypatch):
    if channels is None and pixels is None:
        return
    if in_pieces:
        monkeypatch.setattr(layout, "PIECE_BYTES_CPU", 1)
    torch.manual_seed(3)
    found = {}
    x, gradient = (torch.randn(3, 20, 5, 7).contiguous(memory_format=memory_format) for _ in range(2))
    what, where = (None if shape is None else Spread(shape) for shape in (channels, pixels))
    norm = nn.BatchNorm2d(20)
    for backend in ("reference", "lean", "cpp"):
        leaf = x.clone().requires_grad_()
        options = {"norm": copy.deepcopy(norm)} if with_norm else {}
        y = gate(leaf, what, where, backend=backend, **options)
        learned = [leaf, *(part.weight for part in (what, where) if part is not None)]
        found[backend] = [y, *torch.autograd.grad(y, learned, gradient)]
        with torch.no_grad():
            found[backend].append(gate(x, what, where, backend=backend, **options))
    for one, *others in zip(*found.values(), strict=True):
        for other in others:
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("first", [30.0, 1000.0, float("inf"), float("-inf")])
def test_a_first_pixel_far_from_the_others_costs_no_precision(first, memory_format):
    x = torch.randn(2, 20, 60, 61)
    x[:, :, 0, 0] = first
    x[1, 3, 30, 30] = first
    x = x.contiguous(memory_format=memory_format)
    exact = x.double().flatten(2)
    values, _ = OPERATORS.pool(x, True)
    torch.testing.assert_close(values[0].double(), exact.mean(2), rtol=1e-6, atol=1e-6)
    # a sum of 3,660 float32 values, one after the other, is off by some 60 roundings
    torch.testing.assert_close(values[1].double(), exact.var(2, correction=0), rtol=1e-5, atol=0, equal_nan=True)


def test_weights_that_lie_otherwise_or_are_no_plain_tensors():
    x, module = torch.randn(2, 20, 6, 6), CBAM(20, reduction=4).eval()
    module.what.fc1.weight = nn.Parameter(module.what.fc1.weight.detach().t().contiguous().t())
    module.where.conv.to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = gate(x, module.what, module.where, backend="reference")
        torch.testing.assert_close(gate(x, module.what, module.where, backend="cpp"), expected)
    weight = module.what.fc1.weight.detach().as_subclass(type("Own", (torch.Tensor,), {}))
    module.what.fc1.weight = nn.Parameter(weight, requires_grad=False)
    assert form_of(module.what) is None


def test_the_mixing_under_another_default_dtype():
    module, x = CBAM(20, start="identity"), torch.randn(2, 20, 6, 6)
    with torch.no_grad():
        module.mix.fill_(0.5)
    expected = gate(x, module.what, module.where, mix=module.mix, backend="cpp")
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(gate(x, module.what, module.where, mix=module.mix, backend="cpp"), expected)
    finally:
        torch.set_default_dtype(before)


def test_saved_tensors_that_come_back_in_another_layout():
    run = tail((2, 20, 9, 9))
    expected = run()
    with torch.autograd.graph.saved_tensors_hooks(lambda value: value.contiguous(), lambda value: value):
        found = run()
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_written_over_is_refused_by_the_graph_that_saved_it():
    module, weight = SqueezeExcitation(20, reduction=4), torch.randn(2, 20, 6, 6, requires_grad=True)
    x = torch.randn(2, 20, 6, 6)
    product = (weight * x).sum()
    with torch.no_grad():
        gate(x, module.what, backend="cpp", overwrite=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_a_thousand_steps_keep_no_memory():
    run = tail((2, 64, 14, 14))
    for _ in range(100):
        run()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        run()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048  # KiB; one step keeps 100


# in a process of its own: where other tests have started threads of autograd, a child cannot compute a gradient
FORKING = """
import os, signal, torch, traceback
from torch import nn
from whatwhere import CBAM
from whatwhere.ops import gated_tail
module, norm, x = CBAM(20, reduction=4), nn.BatchNorm2d(20), torch.randn(2, 20, 9, 9, requires_grad=True)
def run():
    y = gated_tail(x, norm, module.what, module.where, x, backend="cpp")
    return [y.detach(), *torch.autograd.grad(y.sum(), [x, *norm.parameters(), *module.parameters()])]
expected = run()
child = os.fork()
if not child:
    try:
        signal.alarm(60)  # a child that hangs ends too
        torch.set_num_threads(1)  # as torch's loader does: OpenMP's threads do not come along
        torch.testing.assert_close(run(), expected)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
assert os.waitpid(child, 0)[1] == 0
"""


def test_works_in_a_forked_process():
    subprocess.run([sys.executable, "-c", FORKING], check=True)


def test_the_operators_keep_torchs_rules():
    x = torch.randn(2, 20, 5, 7)
    scale, shift, m, past = torch.rand(2, 20), torch.rand(2, 20), torch.rand(2, 35), torch.rand(2)
    index = torch.randint(0, 20, (2, 35), dtype=torch.int32)
    pixels = torch.randint(0, 35, (1, 2, 20), dtype=torch.int32)
    norm, what = (scale[0], shift[0], None, None), (torch.rand(5, 20), None, torch.rand(20, 5), torch.rand(20))
    small = [*norm, *what, torch.rand(1, 2, 3, 3), None, torch.rand(1), None, torch.rand(1), torch.rand(1)]
    small += [torch.rand(2), None]
    told = ([1e-5, 1e-5], [1, 1, 1, 0, 1, 1, 0])
    mixed = [None] * 4 + small[4:14] + [None, torch.rand(1)]
    along = [*norm, torch.rand(1, 1, 3), *[None] * 11]
    running = [torch.rand(20), torch.rand(20)]
    kept = OPERATORS.block(x, small, *told, x, True, True, x.clone(), running, [0.1, -1.0])
    checked = {
        "pool": [(x, True), (x, False)],
        "maps": [(x, scale, shift), (x, None, None)],
        "apply": [
            (x, scale, shift, m, None, x.clone(), True, x.clone()),
            (x, scale, None, m, past, None, False, x.clone()),
        ],
        "reduce": [
            (x, x.clone(), x.clone(), scale, shift, m, scale[0], True, True, x.clone()),
            (x, None, x.clone(), None, None, None, None, False, False, None),
        ],
        "weighted": [(x, m, scale[0])],
        "block": [
            (x, small, *told, x.clone(), True, True, x.clone(), running, [0.1, -1.0]),
            (x, mixed, [0.0, 1e-5], [0, 1, 1, 0, 1, 1, 0], None, False, False, x.clone(), [], [-1.0, -1.0]),
            (x, along, [1e-5, 0.0], [1, 1, 0, -1, -1, 0, 0], None, False, True, x.clone(), [], [-1.0, -1.0]),
        ],
        "block_backward": [
            (x.clone(), x.clone(), x, small, *told, *kept, x.clone(), x.clone()),
            (x.clone(), None, x, small, *told, *kept, None, None),
        ],
        "spread": [
            (x, x.clone(), m, m, scale, scale, shift, scale[0], shift[0], m, index, scale[None], pixels, x.clone())
        ],
    }
    for name, calls in checked.items():
        for arguments in calls:
            torch.library.opcheck(getattr(OPERATORS, name).default, arguments)


def test_a_tensor_that_does_not_fit_is_refused_and_not_read():
    x = torch.randn(2, 20, 5, 7)
    wrong = {
        "float32 or bfloat16": lambda: OPERATORS.pool(x.double(), True),
        r"\(N, C, H, W\)": lambda: OPERATORS.pool(x[0], True),
        "not empty": lambda: OPERATORS.pool(x[:0], True),
        "dense, contiguous or channels_last": lambda: OPERATORS.pool(x[..., ::2], True),
        "as x": lambda: OPERATORS.apply(x, None, None, None, None, x[:1], True, x),
        "memory format of x": lambda: OPERATORS.apply(
            x, None, None, None, None, x.contiguous(memory_format=torch.channels_last), True, x
        ),
        "number of values": lambda: OPERATORS.maps(x, torch.rand(2, 19), None),
        "in float32 or int32": lambda: OPERATORS.maps(x, torch.rand(2, 20).double(), None),
        "where comes with its kernel": lambda: OPERATORS.block(
            x, [None] * 16, [0.0, 1e-5], [0, 0, 0, -1, -1, 1, 0], None, False, True, x.clone(), [], [-1.0, -1.0]
        ),
        "a batch of several values": lambda: OPERATORS.block(
            x, [None] * 16, [0.0, 0.0], [0, 0, 0, -1, -1, 0, 0], None, False, True, x.clone(), [x, x], [0.5, -1.0]
        ),
        "not that of a channel": lambda: OPERATORS.block_backward(
            x,
            None,
            x,
            [None] * 8 + [torch.rand(1, 1, 3, 3)] + [None] * 7,
            [0.0, 0.0],
            [0, 0, 0, 0, -1, 0, 0],
            torch.rand(2 * 2 * 35),
            torch.full((2 * 35,), 20, dtype=torch.int32),
            None,
            None,
        ),
    }
    for reason, call in wrong.items():
        with pytest.raises(RuntimeError, match=reason):
            call()


def test_auto_takes_them_unless_they_are_switched_off(monkeypatch):
    seen, run = [], lean.run
    monkeypatch.setattr(lean, "run", lambda *arguments: seen.append(len(arguments)) or run(*arguments))
    module, x = CBAM(20), torch.randn(2, 20, 5, 7)
    gate(x, module.what, module.where)
    with native.switched_off():
        gate(x, module.what, module.where)
        with pytest.raises(ValueError, match="backend='cpp' cannot compute this: the C\\+\\+ passes are switched off"):
            gate(x, module.what, module.where, backend="cpp")
    gate(x.double(), module.double().what, module.where)
    monkeypatch.setenv("WHATWHERE_CPP", "0")
    assert native.passes() == "Python"
    gate(x, module.float().what, module.where)
    assert seen == [7, 6, 6, 6]  # the C++ passes come as a seventh argument


def test_a_library_that_cannot_be_loaded_is_one_warning_and_the_passes_in_python(monkeypatch, tmp_path):
    (tmp_path / "_passes.abi3.so").write_bytes(b"not a library")
    for folder, expected in ((tmp_path, "cannot be loaded: "), (tmp_path / "none", "not in this installation")):
        monkeypatch.setattr(native, "_FOLDER", folder)
        native._why_not_loaded.cache_clear()
        if folder == tmp_path:
            with pytest.warns(UserWarning, match="the passes in Python are used, which are slower") as caught:
                reasons = [native.why_missing() for _ in range(3)]
            assert len(caught) == 1
        else:
            reasons = [native.why_missing()]
        assert all(expected in reason for reason in reasons)
        assert native.passes() == "Python"
    native._why_not_loaded.cache_clear()


def test_the_command_says_in_a_line_each_which_backends_there_are(capsys, monkeypatch):
    backends_command()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["cpp", "yes:"], ["lean", "yes:"], ["reference", "yes:"]]
    assert native.passes() in lines[0]
    monkeypatch.setenv("WHATWHERE_CPP", "0")
    backends_command()
    assert capsys.readouterr().out.startswith("cpp        no: the C++ passes are switched off\n")


SMALL = [partial(kind, reduction=4) for kind in (CBAM, ChannelAttention, SqueezeExcitation)]


# the matrices of the first are larger than an image, so the batch shares them
@pytest.mark.parametrize("shape", [(4, 64, 2, 3), (4, 16, 14, 15), (3, 20, 1, 1)])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("build", [*SMALL, SpatialAttention, EfficientChannelAttention])
def test_what_is_kept_for_a_gradient_changes_no_bit(build, dtype, memory_format, shape):
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    x[:, 1], x[:, 2] = 1.0, x[:, 3]  # equal values, in a plane and between channels
    x[0, 4, 0, 0], x[-1, 5, -1, -1] = float("inf"), float("nan")
    module, norm = build(shape[1]).to(dtype).eval(), nn.BatchNorm2d(shape[1]).eval()
    nn.init.normal_(norm.weight)
    kept = gated_tail(x, norm, module.what, module.where, x, backend="cpp")
    assert kept.requires_grad
    with torch.no_grad():
        y = gated_tail(x, norm, module.what, module.where, x, backend="cpp")
    torch.testing.assert_close(y, kept, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", ["lean", "cpp"])
def test_without_a_gradient_parameters_may_have_hooks(backend):
    module, x = SqueezeExcitation(8, reduction=4), torch.randn(2, 8, 4, 4)
    expected = gate(x, module.what, backend="reference").detach()
    module.what.fc1.weight.register_hook(lambda gradient: gradient)
    with torch.no_grad():
        torch.testing.assert_close(gate(x, module.what, backend=backend), expected)


def test_only_the_shortcut_needs_a_gradient():
    module, norm = CBAM(20, reduction=4), nn.BatchNorm2d(20)
    for part in (module, norm):
        part.requires_grad_(requires_grad=False)
    x, found = torch.randn(3, 20, 5, 7), []
    for backend in ("reference", "lean", "cpp"):
        shortcut = x.clone().requires_grad_()
        y = gated_tail(x, copy.deepcopy(norm), module.what, module.where, shortcut, backend=backend)
        found += torch.autograd.grad(y.square().sum(), shortcut)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
