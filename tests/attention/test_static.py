"""The placebo: the parameters and the start of the attention, and gates that depend on no image."""

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from starts import IDLE, STEPS
from whatwhere import ATTENTION, CBAM, UserError, attend, create_model
from whatwhere.attention import attention_builder
from whatwhere.attention.static import PREFIX, RunningMeans, Static
from whatwhere.networks.spec import STATIC

CHANNELS = 16


@pytest.fixture(params=sorted(ATTENTION))
def name(request):
    return request.param


def built(name, **kwargs):
    torch.manual_seed(0)
    return attention_builder(f"static:{name}")(CHANNELS, **kwargs).double()


def trained(name, num_batches=3):
    module = built(name).train()
    for _ in range(num_batches):
        module(torch.randn(4, CHANNELS, 12, 9, dtype=torch.float64))
    return module


def test_it_has_the_parameters_of_the_attention_with_the_same_start(name):
    torch.manual_seed(0)
    attention = ATTENTION[name](CHANNELS).double()
    ours, theirs = dict(built(name).named_parameters()), dict(attention.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_networks_start_equal_but_for_what_they_see():
    plain, static = (create_model("resnet8", attention=name, seed=3) for name in ("cbam", "static:cbam"))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), static.parameters(), strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_the_output_at_an_image_depends_on_no_other_image(name, training):
    module = trained(name).train(training)
    twin = copy.deepcopy(module)
    x, other = torch.randn(2, 4, CHANNELS, 12, 9, dtype=torch.float64)
    other[0] = x[0]
    assert torch.equal(module(x)[0], twin(other)[0])


@pytest.mark.parametrize("training", [True, False])
def test_the_gates_depend_on_no_image(name, training):
    module = trained(name).train(training)
    twin = copy.deepcopy(module)
    x, other = torch.randn(2, 4, CHANNELS, 12, 9, dtype=torch.float64)
    if name == "gc":  # it adds
        torch.testing.assert_close(module(x) - x, twin(other) - other)
    else:
        torch.testing.assert_close(module(x) / x, twin(other) / other)


def test_the_attention_itself_looks(name):
    """What the tests above find different without the means."""
    module = ATTENTION[name](CHANNELS).double().eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x, other = torch.randn(2, 4, CHANNELS, 12, 9, dtype=torch.float64)
    change = (module(x) - x) - (module(other) - other) if name == "gc" else module(x) / x - module(other) / other
    assert change.abs().max() > 1e-3


def test_means_by_hand():
    means = RunningMeans(2, 3, is_map=False).double().train()
    a, b = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    first = means(*a)
    assert torch.equal(torch.stack(first), a.mean(1)[:, None].expand(2, 4, 3))  # the very first batch gets its own
    assert torch.equal(torch.stack(means(*b)), torch.stack(first))  # that of the batches before
    torch.testing.assert_close(means.mean, (a.mean(1) + b.mean(1)) / 2)
    for _ in range(20):
        means(*a)
    before = means.mean.clone()
    means(*b)
    torch.testing.assert_close(means.mean, 0.9 * before + 0.1 * b.mean(1))
    means.eval()
    kept = means.mean.clone()
    means(*a)
    assert torch.equal(means.mean, kept)


def test_a_map_keeps_its_positions():
    means = RunningMeans(1, 1, is_map=True).double().train()
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64).expand(5, 1, 32, 32)
    (seen,) = means(ramp)
    torch.testing.assert_close(seen[0, 0, 16, 2:-2], ramp[0, 0, 16, 2:-2], rtol=0, atol=1e-9)
    assert (means.eval()(torch.zeros(2, 1, 7, 9, dtype=torch.float64))[0][0, 0].diff(dim=1) > 0).all()


def test_no_gradient_goes_through_the_means(name):
    module = trained(name)
    x = torch.randn(4, CHANNELS, 12, 9, dtype=torch.float64, requires_grad=True)
    y = module(x)
    (gradient,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    expected = torch.ones_like(x) if name == "gc" else (y / x).detach()
    torch.testing.assert_close(gradient, expected)


def test_every_parameter_learns(name):
    torch.manual_seed(1)  # after some draws a hidden ReLU is dead, as in the attention itself
    module = attention_builder(f"static:{name}")(128)
    start = {key: value.clone() for key, value in module.named_parameters()}
    for _ in range(STEPS.get(name, 1) + 1 if start else 0):
        module(torch.randn(4, 128, 9, 9)).square().mean().backward()
        torch.optim.SGD(module.parameters(), 0.1).step()
    still = {key for key, value in module.named_parameters() if torch.equal(value, start[key])}
    # a bias before a BatchNorm gets rounding noise or nothing
    assert {key for key in still if not key.endswith("conv.bias")} <= IDLE.get(name, set())


def test_evaluation_agrees_with_training(name):
    torch.manual_seed(0)
    model = create_model("resnet8", attention=f"static:{name}", num_classes=4, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    x, labels = torch.randn(32, 3, 16, 16), torch.arange(32) % 4
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        evaluated = torch.nn.functional.cross_entropy(model.eval()(x), labels)
    assert abs(evaluated - loss) < 0.2


def test_it_starts_as_the_identity_in_a_trained_network(name):
    model = create_model("resnet18", num_classes=5, seed=0).eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    attend(model, f"static:{name}", start="identity")
    assert torch.equal(model(x), before)


def test_it_is_saved_loaded_and_averaged():
    model = create_model("resnet8", attention="static:cbam", num_classes=3, seed=0)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for _ in range(3):
        model(torch.randn(4, 3, 32, 32))
        average.update_parameters(model)
    again = create_model("resnet8", attention="static:cbam", num_classes=3, seed=1)
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 48, 32)  # another size
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert average.eval()(x).isfinite().all()


def test_what_it_takes():
    assert PREFIX == STATIC
    with pytest.raises(UserError, match="a Linear is none"):
        Static(torch.nn.Linear)(4, out_features=4)
    with pytest.raises(UserError, match="unknown attention 'cban'; did you mean cbam"):
        attention_builder("static:cban")
    assert isinstance(attention_builder("static:cbam")(4, reduction=2), CBAM)
