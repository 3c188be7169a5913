"""The end of a block without a gate: in one C++ pass, bit for bit that of torch's operators."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from whatwhere import attend, create_model
from whatwhere.ops import Call, gate, native, sums

pytestmark = pytest.mark.usefixtures("cpp")
FORMATS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.bfloat16)


def tensors(dtype, memory_format, shape=(3, 37, 9, 7)):
    """Return x and a shortcut, with values that are not finite, and zeros of both signs."""
    x, shortcut = (torch.randn(shape).to(dtype).contiguous(memory_format=memory_format) for _ in range(2))
    shortcut[0, 0, 0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    x[0, 1, 0, :4] = torch.tensor([0.0, -0.0, 0.0, -0.0])
    shortcut[0, 1, 0, :4] = torch.tensor([0.0, 0.0, -0.0, -0.0])
    return x, shortcut


def step(backend, x, shortcut, norm):
    """Return the result, all gradients and the norm's statistics."""
    norm = copy.deepcopy(norm)
    leaves = [x.clone().requires_grad_(), shortcut.clone().requires_grad_()]
    y = gate(leaves[0], norm=norm, shortcut=leaves[1], backend=backend)
    dy = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
    gradients = torch.autograd.grad(y, [*leaves, *norm.parameters()], dy)
    return [y.detach(), *gradients, norm.running_mean, norm.running_var]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan())


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_a_step_is_torchs_bit_for_bit(training, dtype, memory_format):
    x, shortcut = tensors(dtype, memory_format)
    norm = nn.BatchNorm2d(37).train(training)
    assert_equal(step("cpp", x, shortcut, norm), step("reference", x, shortcut, norm))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norm", [True, False])
def test_inference_is_torchs_bit_for_bit(with_norm, dtype, memory_format):
    x, shortcut = tensors(dtype, memory_format)
    norm = nn.BatchNorm2d(37).eval() if with_norm else None
    with torch.inference_mode():
        expected = gate(x, norm=norm, shortcut=shortcut, backend="reference")
        before = x.clone()
        assert_equal([gate(x, norm=norm, shortcut=shortcut, backend="cpp"), x], [expected, before])
        written = gate(x, norm=norm, shortcut=shortcut, overwrite=True, backend="cpp")
    assert_equal([written], [expected])
    assert (written is x) == (not with_norm)


def test_without_a_norm_and_with_a_gradient_x_stays():
    x, shortcut = (value.requires_grad_() for value in tensors(torch.float32, torch.channels_last))
    before = x.detach().clone()
    found = torch.autograd.grad(gate(x, shortcut=shortcut, backend="cpp").sum(), [x, shortcut])
    assert_equal(found, torch.autograd.grad(gate(x, shortcut=shortcut, backend="reference").sum(), [x, shortcut]))
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["resnet18", "resnext11_8x8d"])
def test_a_network_trains_to_the_same_bits(name, monkeypatch):
    calls = []
    run = sums.run
    monkeypatch.setattr(sums, "run", lambda *given: calls.append(given) or run(*given))
    images, found = torch.randn(2, 3, 32, 32), []
    for context in (native.switched_off(), torch.enable_grad()):
        with context:
            model = create_model(name, num_classes=5, seed=0)
            model(images).square().sum().backward()
            found.append([*(parameter.grad for parameter in model.parameters()), *model.buffers()])
    assert_equal(*found)
    # in C++ alone
    assert len(calls) == sum(len(model.get_submodule(stage)) for stage in model.stage_names)


def test_an_attention_that_starts_as_the_identity_is_the_plain_network():
    images = torch.randn(2, 3, 32, 32)
    plain = create_model("resnet18", seed=0).eval()
    attended = attend(copy.deepcopy(plain), "cbam", example=images).eval()
    inside = create_model("cbam_resnet18", seed=0, attention_kwargs={"start": "identity"}).eval()
    inside.load_state_dict(plain.state_dict(), strict=False)
    with torch.inference_mode():
        expected = plain(images)
        assert torch.equal(attended(images), expected)
        assert torch.equal(inside(images), expected)
    # that of torchvision has other operators, and the same bits
    theirs = torchvision.models.resnet18().eval()
    theirs.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        assert torch.equal(theirs(images), expected)


def test_a_second_derivative():
    x, shortcut = (torch.randn(2, 4, 3, 3, requires_grad=True) for _ in range(2))
    norm = nn.BatchNorm2d(4)

    def second(backend):
        y = gate(x, norm=norm, shortcut=shortcut, backend=backend)
        (first,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), [x, shortcut])

    assert_equal(second("cpp"), second("reference"))


def test_what_was_written_over_is_refused():
    x, shortcut = (torch.randn(2, 4, 3, 3, requires_grad=True) for _ in range(2))
    y = gate(x, norm=nn.BatchNorm2d(4), shortcut=shortcut, backend="cpp")
    with torch.no_grad():
        y.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_does_not_fit_says_so_and_is_torchs_under_auto():
    x, norm = torch.randn(2, 4, 3, 5), nn.BatchNorm2d(4)
    refused = {
        "BatchNorm2d": {"shortcut": x, "norm": nn.GroupNorm(2, 4)},
        "pass of its own": {"norm": norm},
        "there must be no factor": {"shortcut": x, "norm": norm, "factor": torch.ones(2)},
        "the shortcut must be as x": {"shortcut": x.bfloat16(), "norm": norm},
        "lie alike": {"shortcut": x.contiguous(memory_format=torch.channels_last), "norm": norm},
    }
    for reason, given in refused.items():
        with pytest.raises(ValueError, match=reason):
            gate(x, **given, backend="cpp")
        assert_equal([gate(x, **given)], [gate(x, **given, backend="reference")])
    assert "the shortcut must be as x" in sums.why_unfit(Call(norm=norm, relu=True), x)
    with pytest.raises(ValueError, match="dense and not empty"):
        gate(x[:0], norm=norm, shortcut=x[:0], backend="cpp")
