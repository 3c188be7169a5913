"""Every fused backend against the reference in float64: outputs, every gradient, running statistics."""

import copy
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from numerics import assert_as_exact_as
from whatwhere import ATTENTION, CBAM, SpatialAttention, SqueezeExcitation
from whatwhere.attention import Gate
from whatwhere.attention.cbam import SharedMLP
from whatwhere.ops import Backend, gate, gated_tail, layout, normed_gate
from whatwhere.ops.layout import View, extreme
from whatwhere.ops.native import why_missing
from whatwhere.ops.reference import POOLS

FUSED = [name for name in get_args(Backend) if name not in ("auto", "reference")]
ALL_POOLS = "+".join(name for name in POOLS if not name.startswith("dct"))
FORMS = ("gate", "normed_gate", "gated_tail")
ALL_FORMS = (*FORMS, "gate+shortcut")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FORMATS = (torch.contiguous_format, torch.channels_last)
# modules with pools or functions of their own
NEWER = [name for name, build in ATTENTION.items() if issubclass(build, Gate) and name not in ("cbam", "se")]


def functions(kind, channels):
    """Return `what` and `where` of a module, with random parameters."""
    if kind == "cbam":
        built = CBAM(channels, reduction=4)
    elif kind == "timm":
        built = CBAM(channels, reduction=4, form="timm", maps=("mean",))
    elif kind == "ultralytics":
        built = CBAM(channels, form="ultralytics")
    elif kind == "se":
        built = SqueezeExcitation(channels, reduction=4)
    elif kind == "spatial":
        built = SpatialAttention(channels, kernel_size=3)
    elif kind in NEWER:
        built = ATTENTION[kind](channels)
    else:
        return SharedMLP(channels, 3, tuple(kind.split("+"))), None
    for parameter in built.parameters():
        if kind in NEWER or parameter.dim() < 2:
            nn.init.normal_(parameter, 0.3, 0.5)
        else:
            # logits of about 1, not of 60: of gates that near 1 float32 cannot tell the gradient from 0
            nn.init.normal_(parameter, 0.0, parameter[0].numel() ** -0.5)
    return built.what, built.where


class Case:
    """One call on fixed values, in any dtype and by any backend."""

    def __init__(
        self,
        form="gated_tail",
        kind="cbam",
        shape=(3, 20, 5, 7),
        *,
        dtype=torch.float32,
        memory_format=torch.contiguous_format,
        training=True,
        mix=None,
        factor=False,
        weight="mixed",
        values=None,
        mean=0.3,
    ):
        self.form, self.memory_format, self.training = form, memory_format, training
        channels = shape[1]
        if kind == "srm":
            # its norm over images divides by nearly nothing where few are alike
            shape = (4 * shape[0], *shape[1:])
        self.what, self.where = (
            None if function is None else function.to(dtype).train(training) for function in functions(kind, channels)
        )
        self.norm = nn.BatchNorm2d(channels).to(dtype).train(training)
        with torch.no_grad():
            self.norm.weight.copy_(torch.randn(channels))
            if weight == "positive":
                self.norm.weight.abs_()
            elif weight == "zero":
                self.norm.weight.zero_()
            else:
                self.norm.weight[::4] = 0
            self.norm.bias.normal_()
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)
        self.x = (torch.randn(shape) + mean if values is None else values).to(dtype)
        self.shortcut = torch.randn(shape).to(dtype)
        self.gradient = torch.randn(shape).to(dtype)
        self.mix = None if mix is None else torch.tensor(mix, dtype=dtype)
        self.factor = torch.tensor([0.0, 1.25, 0.5, 2.0] * 4, dtype=dtype)[: shape[0]] if factor else None

        self._keep_hidden_values_from_zero()
        if form in ("gated_tail", "gate+shortcut"):
            # keep away from 0, so that rounding does not decide where the ReLU is active
            copied = copy.deepcopy(self)
            copied.form, copied.gradient = "normed_gate" if form == "gated_tail" else "gate", torch.zeros(shape)
            branch = copied.run("reference", torch.float64)["y"]
            self.shortcut[(branch + self.shortcut).abs() < 0.05] += 0.25

    @torch.no_grad()
    def _keep_hidden_values_from_zero(self):
        """Move biases, so that rounding does not decide where the ReLU inside `what` is active."""
        bias = getattr(getattr(self.what, "fc1", None), "bias", None)
        for _ in range(0 if bias is None else 50):
            copied, hidden = copy.deepcopy(self), []
            copied.what.fc1.register_forward_hook(lambda module, args, output, to=hidden: to.append(output))
            with torch.enable_grad():
                copied.run("reference", torch.float64)
            near = torch.cat(hidden).abs().amin(0) < 0.03
            if not near.any():
                return
            bias[near] += 0.05
        assert bias is None, "some value is always near 0; move the biases by less"

    def run(self, backend, dtype=None):
        """Return the result, every gradient and the running statistics, by name."""
        copied = copy.deepcopy(self)

        def leaf(tensor):
            return None if tensor is None else tensor.to(dtype).requires_grad_()

        modules = {"norm": copied.norm, "what": copied.what, "where": copied.where}
        norm, what, where = (None if module is None else module.to(dtype) for module in modules.values())
        x, shortcut = (leaf(tensor.to(memory_format=self.memory_format)) for tensor in (copied.x, copied.shortcut))
        options = {"mix": leaf(copied.mix), "factor": copied.factor, "backend": backend}
        if self.factor is not None:
            options["factor"] = self.factor.to(dtype)
        if self.form == "gate":
            y = gate(x, what, where, **options)
        elif self.form == "gate+shortcut":
            y = gate(x, what, where, shortcut=shortcut, **options)
        elif self.form == "normed_gate":
            y = normed_gate(x, norm, what, where, **options)
        else:
            y = gated_tail(x, norm, what, where, shortcut, **options)
        y.backward(copied.gradient.to(y.dtype))
        results = {"y": y, "x": x.grad, "shortcut": shortcut.grad}
        if self.mix is not None:
            results["mix"] = options["mix"].grad
        for prefix, module in modules.items():
            if module is not None:
                results |= {f"{prefix}.{name}": value.grad for name, value in module.named_parameters()}
                results |= {
                    f"{prefix}.{name}": value for name, value in module.named_buffers() if value.is_floating_point()
                }
        return {name: value.detach() for name, value in results.items() if value is not None}

    def check(self, condition=0):
        dtype = self.x.dtype
        truth = self.run("reference", torch.float64)
        eager = self.run("reference", dtype)
        # eager in float64 is the truth itself, from which sums in another order differ
        eps = 1e-13 if dtype == torch.float64 else torch.finfo(dtype).eps
        for backend in filter(self.is_for, FUSED):
            assert_as_exact_as(self.run(backend, dtype), eager, truth, eps, condition)

    def is_for(self, backend):
        """Return whether a backend can compute this: the C++ passes take some dtypes and pools only."""
        is_native = self.x.dtype in (torch.float32, torch.bfloat16) and {"avg", "max", "min"}.issuperset(
            getattr(self.what, "pools", ())
        )
        return backend == "lean" or (is_native and not why_missing())


@pytest.fixture(params=["in pieces of a sample", "whole"])
def pieces(request, monkeypatch):
    if request.param != "whole":
        monkeypatch.setattr(layout, "PIECE_BYTES_CPU", 1)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["cbam", "timm", "ultralytics", "se", "spatial", ALL_POOLS, *NEWER])
@pytest.mark.parametrize("form", FORMS)
def test_as_exact_as_eager(form, kind, dtype, memory_format, training):
    Case(form, kind, dtype=dtype, memory_format=memory_format, training=training).check()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("factor", [True, False])
@pytest.mark.parametrize("mix", [None, 0.0, 0.7])
@pytest.mark.parametrize("kind", ["cbam", "se", "spatial", "max+std", "avg+dct16", "srm", "gct"])
@pytest.mark.parametrize("form", ALL_FORMS)
def test_with_mixing_and_factor(form, kind, mix, factor, memory_format, training):
    Case(form, kind, mix=mix, factor=factor, memory_format=memory_format, training=training).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", ["cbam", "se", "spatial"])
@pytest.mark.parametrize("form", ALL_FORMS)
def test_with_mixing_and_factor_in_low_precision(form, kind, memory_format, dtype):
    Case(form, kind, mix=0.7, factor=True, memory_format=memory_format, dtype=dtype).check()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 20, 5, 7),
        (2, 1, 3, 3),
        (5, 33, 1, 1),
        (2, 64, 1, 3),
        (4, 257, 2, 2),
        (2, 256, 16, 18),  # large enough for the search in blocks, both ways
        (1, 96, 23, 29),
    ],
)
def test_any_shape(shape, dtype, memory_format, training):
    Case("gated_tail", "cbam", shape, dtype=dtype, memory_format=memory_format, training=training).check()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("weight", ["positive", "zero", "mixed"])
@pytest.mark.parametrize("kind", ["cbam", "se", "max+min"])
@pytest.mark.parametrize("form", ["normed_gate", "gated_tail"])
def test_any_sign_of_the_norms_weight(form, kind, weight, memory_format, training):
    Case(form, kind, weight=weight, memory_format=memory_format, training=training).check()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("weight", ["positive", "mixed"])
@pytest.mark.parametrize("form", FORMS)
def test_a_mean_far_from_zero(form, weight, memory_format):
    Case(form, "cbam", mean=30.0, weight=weight, memory_format=memory_format).check(condition=30)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ALL_FORMS)
def test_of_several_maxima_the_first_takes_the_gradient(form, dtype, memory_format):
    # few distinct values: every plane and every pixel has tied maxima
    values = torch.randint(-2, 3, (2, 12, 6, 5)).float()
    Case(
        form, "cbam", (2, 12, 6, 5), values=values, dtype=dtype, weight="positive", memory_format=memory_format
    ).check()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("training", [True, False])
def test_of_a_constant_plane_the_first_pixel_takes_the_gradient(memory_format, training):
    case = Case("normed_gate", "max", weight="zero", memory_format=memory_format, training=training)
    (what, norm), x = (case.what, case.norm), case.x.requires_grad_()
    z = norm(x)
    z.retain_grad()
    gate(z, what, backend="lean").backward(case.gradient)
    through_gate = case.gradient * what(z.amax((2, 3)))[:, :, None, None]
    through_pool = (z.grad - through_gate).flatten(2)
    assert through_pool[:, :, 0].abs().min() > 0
    torch.testing.assert_close(through_pool[:, :, 1:], torch.zeros_like(through_pool[:, :, 1:]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", ["cbam", "se", "spatial"])
@pytest.mark.parametrize("form", ALL_FORMS)
def test_values_that_are_not_finite_give_the_same_as_in_eager(form, kind, memory_format, training, value):
    values = torch.randn(3, 20, 5, 7)
    values[1, 2, 3, 4] = value
    case = Case(form, kind, values=values, memory_format=memory_format, training=training, weight="positive")
    found, expected = case.run("lean", torch.float32), case.run("reference", torch.float32)
    for name, want in expected.items():
        torch.testing.assert_close(
            found[name], want, rtol=1e-3, atol=1e-4, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("form", ALL_FORMS)
def test_two_runs_give_the_same_bits(form, memory_format):
    case = Case(form, "cbam", (4, 64, 14, 14), memory_format=memory_format)
    first, second = case.run("lean", torch.float32), case.run("lean", torch.float32)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("mix", [None, 0.7])
def test_running_statistics_over_several_steps(momentum, mix):
    norms = [nn.BatchNorm2d(20, momentum=momentum) for _ in range(2)]
    module = CBAM(20)
    a = None if mix is None else torch.tensor(mix)
    for step in range(3):
        x = torch.randn(4, 20, 6, 5) * (step + 1) + step
        for norm, backend in zip(norms, ("lean", "reference"), strict=True):
            normed_gate(x, norm, module.what, module.where, mix=a, backend=backend)
    for name, value in norms[1].state_dict().items():
        torch.testing.assert_close(norms[0].state_dict()[name], value)
    assert norms[0].num_batches_tracked == 3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mix", [None, 0.7])
@pytest.mark.parametrize("options", [{"track_running_stats": False}, {"affine": False}, {"eps": 0.5}])
def test_norms_of_any_kind(options, mix, training):
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(20, **options).train(training)
    module = CBAM(20).train(training)
    x, a = torch.randn(4, 20, 6, 5), None if mix is None else torch.tensor(mix)
    results = []
    for backend in ("lean", "reference"):
        inner, copied = copy.deepcopy(norm), copy.deepcopy(module)
        leaf = x.clone().requires_grad_()
        y = normed_gate(leaf, inner, copied.what, copied.where, mix=a, backend=backend)
        y.square().sum().backward()
        results.append((y, leaf.grad, *(p.grad for p in (*inner.parameters(), *copied.parameters())), *inner.buffers()))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.integers(1, 1000),
    st.randoms(use_true_random=False),
)
def test_first_index_of_the_extremes(n, rows, columns, dim, largest, distinct, random):
    torch.manual_seed(random.randrange(2**31))
    x = torch.randint(distinct, (n, rows, columns)).float()
    if random.random() < 0.2:
        x[random.randrange(n), random.randrange(rows), random.randrange(columns)] = float("nan")
    values, index = extreme(x, dim, largest, with_index=True)
    expected = x.max(dim) if largest else x.min(dim)
    assert torch.equal(values.nan_to_num(-1), expected.values.nan_to_num(-1))
    assert torch.equal(index, expected.indices)
    without, _ = extreme(x, dim, largest, with_index=False)
    assert torch.equal(without.nan_to_num(-1), values.nan_to_num(-1))


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(ALL_FORMS),
    kind=st.sampled_from(
        ["cbam", "timm", "ultralytics", "se", "spatial", "max", "min+avg", "lse+max", "dct4+max", "eca", "ge"]
    ),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    training=st.booleans(),
    memory_format=st.sampled_from(FORMATS),
    mix=st.sampled_from([None, 0.0, 0.4, 1.0]),
    factor=st.booleans(),
    weight=st.sampled_from(["positive", "mixed"]),
)
def test_float64_is_the_reference_to_rounding(form, kind, shape, training, memory_format, mix, factor, weight):
    if training and shape[0] * shape[2] * shape[3] == 1:
        shape = (2, *shape[1:])  # a norm cannot train on one value
    torch.manual_seed(0)
    case = Case(
        form, kind, shape, dtype=torch.float64, memory_format=memory_format, training=training, mix=mix, factor=factor,
        weight=weight,
    )  # fmt: skip
    found, expected = case.run("lean", torch.float64), case.run("reference", torch.float64)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("form", FORMS)
def test_strided_tensors_are_read_as_they_are(form):
    case = Case(form, "cbam", (3, 20, 7, 5))
    expected = case.run("lean", torch.float32)
    case.x = case.x.transpose(2, 3).contiguous().transpose(2, 3)
    case.shortcut = case.shortcut[:, :, :, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]][..., ::2]
    case.memory_format = torch.preserve_format
    found = case.run("lean", torch.float32)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_memory_format_of_the_result_is_that_of_x():
    module = CBAM(20)
    x = torch.randn(2, 20, 6, 5)
    for memory_format in FORMATS:
        leaf = x.clone(memory_format=memory_format).requires_grad_()
        y = gate(leaf, module.what, module.where, backend="lean")
        y.sum().backward()
        assert y.is_contiguous(memory_format=memory_format)
        assert leaf.grad.is_contiguous(memory_format=memory_format)


def test_the_view_has_the_layout_of_x():
    x = torch.empty(2, 4, 3, 3)
    assert View.of(x).c == 1
    assert View.of(x.to(memory_format=torch.channels_last)).c == 2


@pytest.mark.gpu
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mix", [None, 0.7])
@pytest.mark.parametrize("kind", ["cbam", "ultralytics", "se", "spatial", ALL_POOLS, *NEWER])
@pytest.mark.parametrize("form", FORMS)
def test_as_exact_as_eager_on_a_gpu(form, kind, mix, dtype, memory_format, training):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with torch.device("cuda"):
        Case(form, kind, mix=mix, dtype=dtype, memory_format=memory_format, training=training).check()
