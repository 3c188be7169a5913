"""What every attention module promises. A new entry of ATTENTION is picked up here by itself."""

import copy
import functools

import pytest
import torch

from starts import IDLE, STEPS
from whatwhere import ATTENTION, CBAM, UserError
from whatwhere.attention import Gate, starting_as_identity

CHANNELS = 20
# a form of a module that has other layers counts as a module
BUILDERS = {**ATTENTION, "cbam-ultralytics": functools.partial(CBAM, form="ultralytics")}
# modules that learn nothing about a channel, and so take any number of them
ANY_CHANNELS = {"eca", "ge", "simam", "triplet"}
# modules that add to x, which makes 0.0 of -0.0
ADDING = {"gc"}
# modules of one hidden ReLU at 16 channels, which is dead after some draws, as published
ONE_HIDDEN = {"bam", "cbam", "fca", "se"}


@pytest.fixture(params=sorted(BUILDERS))
def name(request):
    return request.param


@pytest.fixture
def build(name):
    return BUILDERS[name]


def gradients_within(module, name, num_steps, channels=64):
    """The names of the parameters that get a gradient in the first steps of training, and of those that do not."""
    optimizer = torch.optim.SGD(module.parameters(), 0.1) if list(module.parameters()) else None
    moved, x = set(), torch.randn(4, channels, 9, 9)
    for _ in range(num_steps):
        module(x.clone().requires_grad_()).square().mean().backward()
        moved |= {key for key, value in module.named_parameters() if value.grad.abs().sum() > 0}
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
    return moved, {key for key, _ in module.named_parameters()} - moved - IDLE.get(name, set())


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (13, 4)])
@pytest.mark.parametrize("channels", [1, 3, 20, 64])
def test_keeps_shape(build, size, channels):
    assert build(channels)(torch.randn(2, channels, *size)).shape == (2, channels, *size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_dtype(build, dtype):
    out = build(CHANNELS).eval().to(dtype)(torch.randn(2, CHANNELS, 6, 5, dtype=dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_memory_format_does_not_matter(build, training):
    module = build(CHANNELS).double().train(training)
    x = torch.randn(3, CHANNELS, 6, 5, dtype=torch.float64)
    expected = copy.deepcopy(module)(x)
    channels_last = copy.deepcopy(module)(x.to(memory_format=torch.channels_last))
    strided = copy.deepcopy(module)(x.transpose(2, 3).contiguous().transpose(2, 3))
    torch.testing.assert_close(channels_last, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(strided, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("start", ["paper", "identity"])
def test_gradients_are_right(build, training, start):
    module = build(6, start=start).double().train(training)
    if "mix" in dict(module.named_parameters()):
        torch.nn.init.constant_(module.mix, 0.7)
    x = torch.randn(2, 6, 3, 2, dtype=torch.float64, requires_grad=True)
    names = [key for key, _ in module.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    values = [value.detach().clone().requires_grad_() for value in module.parameters()]
    assert torch.autograd.gradcheck(run, (x, *values))


def test_every_parameter_learns_from_the_first_step_that_the_published_start_allows(build, name):
    num_steps = STEPS.get(name, 1)
    assert gradients_within(build(64), name, num_steps)[1] == set()
    assert num_steps == 1 or gradients_within(build(64), name, num_steps - 1)[1] != set()


@pytest.mark.parametrize("start", ["paper", "identity", "wrapped"])
def test_every_parameter_of_a_narrow_module_learns(build, name, start):
    draws = []
    for seed in range(8 if name in ONE_HIDDEN else 1):
        torch.manual_seed(seed)
        module = starting_as_identity(build(16), 16) if start == "wrapped" else build(16, start=start)
        num_steps = STEPS.get(name, 1) + ("mix" in dict(module.named_parameters()))
        draws.append(gradients_within(module, name, num_steps, 16)[1])
    assert set() in draws, draws


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_identity_start_is_the_identity_bit_for_bit(build, name, training, dtype):
    module = build(CHANNELS, start="identity").to(dtype).train(training)
    x = torch.randn(2, CHANNELS, 5, 7, dtype=dtype)
    x[0, 0, 0, :2] = torch.tensor([0.0, -0.0])
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    expected = x + 0 if name in ADDING else x
    assert torch.equal(module(x).view(integer), expected.view(integer))


def test_identity_start_learns_everything_by_the_step_after(build, name):
    module = build(64, start="identity")
    mixed = "mix" in dict(module.named_parameters())
    assert mixed != getattr(module, "identity_at_start", False)
    if mixed:
        assert "mix" in gradients_within(copy.deepcopy(module), name, 1)[0]
    assert gradients_within(module, name, STEPS.get(name, 1) + mixed)[1] == set()


def test_identity_start_by_wrapping_is_the_identity_and_learns(build, name):
    module = starting_as_identity(build(64), 64)
    x = torch.randn(2, 64, 5, 7)
    assert torch.equal(copy.deepcopy(module)(x), x)
    assert gradients_within(module, name, 3)[1] == set()


def test_identity_start_at_one_is_the_module_of_the_paper(build):
    paper, identity = build(CHANNELS).eval(), build(CHANNELS, start="identity").eval()
    state = {**paper.state_dict(), "mix": torch.tensor(1.0)}
    identity.load_state_dict({key: state[key] for key in identity.state_dict()})
    x = torch.randn(2, CHANNELS, 5, 7)
    torch.testing.assert_close(identity(x), paper(x))


def test_state_dict_round_trip(build):
    source, target = build(CHANNELS), build(CHANNELS)
    target.load_state_dict(source.state_dict())
    x = torch.randn(2, CHANNELS, 5, 7)
    assert torch.equal(source(x), target(x))


def test_deepcopy_is_independent(build):
    module = build(CHANNELS)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    copied = copy.deepcopy(module)
    for parameter in copied.parameters():
        torch.nn.init.constant_(parameter, 0.123)
    for parameter, value in zip(module.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert not (value == 0.123).any()


@pytest.mark.parametrize("start", ["paper", "identity"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_trains_under_autocast(build, dtype, start):
    module = build(64, start=start)
    x = torch.randn(4, 64, 9, 9, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), copy.deepcopy(module)(x.float()), rtol=0.05, atol=0.05)
    out.float().square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *module.parameters()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("fresh_compiler")
def test_traces_under_compile_and_export(build):
    module = build(CHANNELS).eval()
    x = torch.randn(2, CHANNELS, 5, 7)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x), module(x))


def test_traces_symbolically(build):
    module = build(CHANNELS).eval()
    traced = torch.fx.symbolic_trace(module)
    for size in ((5, 7), (1, 1)):
        x = torch.randn(2, CHANNELS, *size)
        # the trace has plain operators, which round otherwise than a fused backend
        torch.testing.assert_close(traced(x), module(x))


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_traces_under_torchscript_with_and_without_gradients(build):
    module = build(CHANNELS).eval()
    x = torch.randn(2, CHANNELS, 5, 7)
    with torch.no_grad():
        without_gradients = torch.jit.trace(module, x)
    for traced in (without_gradients, torch.jit.trace(module, x)):
        torch.testing.assert_close(traced(x), module(x))


@pytest.mark.parametrize("shape", [(CHANNELS, 5, 7), (2, CHANNELS, 5), (2, 0, 5, 7), (2, CHANNELS, 5, 7, 1)])
def test_refuses_an_input_of_another_shape(build, name, shape):
    called, size = (r"\w+", "C") if name in ANY_CHANNELS else (rf"\w+\({CHANNELS}\)", CHANNELS)
    with pytest.raises(UserError, match=rf"^{called} takes an input of shape \(N, {size}, H, W\), got \("):
        build(CHANNELS)(torch.randn(shape))


def test_refuses_another_number_of_channels_where_it_has_learned_something_about_them(build, name):
    module, x = build(CHANNELS), torch.randn(2, CHANNELS + 1, 5, 7)
    if name not in ANY_CHANNELS:
        with pytest.raises(UserError, match=rf"\({CHANNELS}\) takes .* \(N, {CHANNELS}, H, W\), got \(2, 21, 5, 7\)"):
            module(x)
        return
    wider = build(CHANNELS + 1)
    wider.load_state_dict(module.state_dict())
    assert torch.equal(module.eval()(x), wider.eval()(x))


def test_says_its_channels_as_its_weights_have_them(build, name):
    module = build(CHANNELS)
    assert module.channels == (None if name in ANY_CHANNELS else CHANNELS)
    assert "channels" not in vars(module)
    assert (str(CHANNELS) in module.extra_repr().split(", ")) == (name not in ANY_CHANNELS)


@pytest.mark.parametrize("channels", [0, -1, 2.5, "64", True])
def test_refuses_impossible_channels(build, channels):
    with pytest.raises(UserError, match="channels must be a positive integer"):
        build(channels)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_refuses_an_image_without_a_pixel(build, size):
    with pytest.raises(UserError, match=r"of shape \(N, (20|C), H, W\)"):
        build(CHANNELS)(torch.zeros(2, CHANNELS, *size))


def test_refuses_integers(build):
    with pytest.raises(UserError, match=r"takes a floating-point input, got torch.int64"):
        build(CHANNELS)(torch.zeros(2, CHANNELS, 5, 7, dtype=torch.int64))


class Scaled(torch.nn.Module):
    """A channel function as a user would write it."""

    pools = ("avg",)

    def __init__(self, channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(channels))

    def forward(self, averages):
        return averages * self.weight


def test_a_gate_refuses_the_channels_that_its_function_says_it_cannot_take():
    gate, x = Gate(8, Scaled(8)), torch.randn(2, 9, 4, 4)
    assert gate(x[:, :8]).shape == (2, 8, 4, 4)
    assert gate.channels is None
    with pytest.raises(RuntimeError, match=r"must match the size"):
        gate(x)
    gate.what.channels = 8
    with pytest.raises(UserError, match=r"^Gate\(8\) takes an input of shape \(N, 8, H, W\), got \(2, 9, 4, 4\)"):
        gate(x)
    gate.what.weight = torch.nn.Parameter(torch.ones(9))
    gate.what.channels = 9
    torch.testing.assert_close(gate(x), x * x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_an_identity_start_given_afterwards_is_of_the_modules_kind(name):
    for options in ({"dtype": torch.bfloat16}, {"device": "meta"}):
        module = ATTENTION[name](8, **options)
        like = {(value.dtype, value.device) for value in module.parameters()}
        begun = starting_as_identity(module, 8)
        if like:
            assert {(value.dtype, value.device) for value in begun.parameters()} == like
