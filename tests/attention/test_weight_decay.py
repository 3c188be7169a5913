"""Which parameters of the attention weight decay leaves alone."""

import copy

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

import whatwhere.timm  # noqa: F401  registers the networks
from whatwhere import ATTENTION, attend, create_model, no_weight_decay
from whatwhere.attention import IdentityStart, LocalGatherExcite, starting_as_identity
from whatwhere.data.batches import Order
from whatwhere.training.config import Recipe
from whatwhere.training.distributed import Team
from whatwhere.training.trainer import Trainer, make_optimizer

# every attention by name, and every option that brings other parameters
BUILDERS = {
    **ATTENTION,
    "cbam-timm": lambda channels, **start: ATTENTION["cbam"](channels, form="timm", **start),
    "cbam-ultralytics": lambda channels, **start: ATTENTION["cbam"](channels, form="ultralytics", **start),
    "cbam-biased": lambda channels, **start: ATTENTION["cbam"](channels, norm=None, **start),
    "ela-both": lambda channels, **start: ATTENTION["ela"](channels, shared=False, group_channels=4, **start),
    "ge-theta-plus": lambda channels, **start: LocalGatherExcite(channels, extent=2, **start),
    "ge-whole": lambda channels, **start: LocalGatherExcite(channels, extent=None, size=(8, 8), **start),
}
# layers whose weights are decayed in every network
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


@pytest.mark.parametrize("start", ["paper", "identity"])
@pytest.mark.parametrize("name", BUILDERS)
def test_only_the_weights_of_linear_layers_and_convolutions_are_decayed(name, start):
    module = BUILDERS[name](16, start=start)
    weights = {
        f"{owner}.weight"
        for owner, layer in module.named_modules()
        if isinstance(layer, LAYERS) and layer.weight.dim() >= 2
    }
    assert no_weight_decay(module) == {name for name, _ in module.named_parameters()} - weights


@pytest.mark.parametrize("start", ["paper", "identity", "wrapped"])
@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_decaying_all_others_to_zero_leaves_an_effect(name, start):
    module = IdentityStart(BUILDERS[name](16)) if start == "wrapped" else BUILDERS[name](16, start=start)
    exempt = no_weight_decay(module)
    for key, parameter in module.named_parameters():
        parameter.copy_(torch.rand_like(parameter) + 0.5 if key in exempt else torch.zeros_like(parameter))
    x = torch.rand(2, 16, 8, 8)
    assert not torch.allclose(module(x), x, rtol=0.05)


class Scale(nn.Module):
    """A module of a user: a matrix, and a scale that is none by its dimensions."""

    def __init__(self, channels):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(channels))
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), 2.0))
        self.shift = nn.Parameter(torch.zeros(channels))

    def no_weight_decay(self):
        return {"scale"}

    def forward(self, x):
        return torch.einsum("nchw,dc->ndhw", x, self.matrix) * self.scale + self.shift[:, None, None]


def test_a_module_of_a_user_names_its_own():
    assert no_weight_decay(nn.Sequential(starting_as_identity(Scale(4), 4))) == {
        "0.mix",
        "0.attention.scale",
        "0.attention.shift",
    }


@pytest.mark.parametrize("start", ["paper", "identity"])
def test_a_module_of_a_user_that_attend_has_put_in(start):
    model = attend(timm.create_model("resnet10t"), Scale, at="layer4.0.bn2", start=start)
    exempt = no_weight_decay(copy.deepcopy(model))
    names = {name.rpartition(".")[2] for name in exempt}
    assert names == {"scale", "shift", *(["mix"] if start == "identity" else [])}


def test_the_parameters_of_the_network_are_not_named():
    assert no_weight_decay(timm.create_model("resnet10t")) == set()
    model = attend(timm.create_model("resnet10t"), "cbam", at="layer4.0.bn2")
    assert all(name.startswith("layer4.0.bn2_attention.") for name in no_weight_decay(model))
    assert no_weight_decay(nn.ModuleDict({"module": model})) == {f"module.{name}" for name in no_weight_decay(model)}


def decayed(groups, model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for group in groups if group["weight_decay"] for parameter in group["params"]}


@pytest.mark.parametrize("attention", ATTENTION)
def test_timms_groups_exempt_them(attention):
    model = attend(timm.create_model("resnet10t"), attention)
    exempt = no_weight_decay(model)
    assert exempt or not [name for name, _ in model.named_parameters() if "attention" in name]
    found = decayed(param_groups_weight_decay(model, 0.05, no_weight_decay_list=exempt), model)
    assert found.isdisjoint(exempt)
    # what timm needs to be told
    told = decayed(param_groups_weight_decay(model, 0.05), model) - found
    assert {name.rpartition("attention.")[2] for name in told} == ({"what.weight"} if attention == "srm" else set())


def test_registered_networks_tell_timm_themselves():
    model = timm.create_model("srm_resnet18")
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05).param_groups
    assert decayed(groups, model) == {
        name for name, value in model.named_parameters() if value.dim() >= 2 and "attention" not in name
    }
    assert create_model("cbam_resnet18").no_weight_decay() == no_weight_decay(create_model("cbam_resnet18"))


RECIPE = Recipe(epochs=2, batch_size=2, weight_decay=0.5)


def trainer(attention):
    model = create_model(f"{attention}_resnet8", num_classes=2, seed=0)
    return Trainer(model, RECIPE, Order(4, 2, 0), num_classes=2, seed=0, team=Team(0, 1, 0, torch.device("cpu")))


def with_momentum(optimizer):
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        optimizer.state[parameter] = {"momentum_buffer": torch.full_like(parameter, index)}
    return {id(p): optimizer.state[p]["momentum_buffer"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("attention", ["srm", "gct", "cbam"])
def test_our_trainer_exempts_them_and_goes_on_where_it_stopped(attention):
    first, second = trainer(attention), trainer(attention)
    found = decayed(first.optimizer.param_groups, first.model)
    assert found.isdisjoint(no_weight_decay(first.model))
    assert found == {
        name
        for name, value in first.model.named_parameters()
        if value.dim() >= 2 and name not in no_weight_decay(first.model)
    }
    buffers = with_momentum(first.optimizer)
    second.load_state_dict(first.state_dict())
    assert decayed(second.optimizer.param_groups, second.model) == found
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(buffers[id(one)], second.optimizer.state[other]["momentum_buffer"])


@pytest.mark.parametrize("attention", ["srm", "gct"])
def test_a_run_of_an_earlier_version_goes_on_as_it_began(attention):
    old, new = trainer(attention), trainer(attention)
    old.optimizer = make_optimizer(old.model, RECIPE)  # by dimensions alone
    buffers = with_momentum(old.optimizer)
    new.load_state_dict(old.state_dict())
    assert decayed(new.optimizer.param_groups, new.model) == {
        name for name, value in new.model.named_parameters() if value.dim() >= 2
    }
    for one, other in zip(old.model.parameters(), new.model.parameters(), strict=True):
        assert torch.equal(buffers[id(one)], new.optimizer.state[other]["momentum_buffer"])
