import pytest
import torch
from torch import nn

from whatwhere import cost, create_model


def test_leaves_the_model_as_it_was():
    model = create_model("cbam_resnext11_8x8d", num_classes=10, drop_rate=0.5)
    model.layer1.eval()
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = {key: value.grad.clone() for key, value in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    cost(model, (3, 16, 16), batch_size=2, latency=True)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value.grad, gradients[key]) for key, value in model.named_parameters())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks for module in model.modules())


class Counting(nn.Module):
    """Reassigns, adds and resizes buffers in forward, and may fail after that."""

    def __init__(self, fails=False):
        super().__init__()
        self.fails = fails
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("wide", torch.zeros(1).expand(4))
        self.register_buffer("grown", torch.zeros(2))
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        self.count = self.count + 1
        self.register_buffer("late", torch.ones(1))
        self.grown.resize_(5).fill_(1)
        if self.fails:
            raise KeyError("no luck")
        return self.linear(x)


@pytest.mark.parametrize("fails", [True, False])
def test_restores_buffers_that_forward_replaces_and_gradients_even_when_it_fails(fails, refused):
    model = Counting(fails)
    model.linear.weight.grad = torch.ones(3, 3)
    if fails:
        with refused():
            cost(model, (3,))
    else:
        cost(model, (3,), latency=True)
    assert {name: tuple(buffer.shape) for name, buffer in model.named_buffers()} == {
        "count": (1,),
        "wide": (4,),
        "grown": (2,),
    }
    assert all(buffer.abs().sum() == 0 for buffer in model.buffers())
    assert torch.equal(model.linear.weight.grad, torch.ones(3, 3))


def test_lazy_layers_are_refused_and_stay_lazy(refused):
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    with refused():
        cost(model, (3, 8, 8))
    assert isinstance(model[1], nn.LazyLinear)
