import pytest
import timm
import torch
import torchvision
from torch import nn

from whatwhere import CBAM, cost, create_model


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_plain_network_keeps_no_more_than_torchvisions(name):
    saved = [
        cost(model, (3, 64, 64), batch_size=2).total.saved_bytes
        for model in (create_model(name), torchvision.models.get_model(name))
    ]
    assert saved[0] <= saved[1]


def test_saved_bytes_agree_with_storages_found_by_hooks_alone():
    model = create_model("cbam_resnext11_8x8d", num_classes=10, seed=0)
    for module in model.modules():
        if isinstance(module, CBAM):
            module.backend = "reference"  # the lean gates keep graphs of their own
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.train()(images)
    for tensor in (*model.parameters(), *model.buffers()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    expected = sum(storage.nbytes() for storage in storages.values())
    assert out.requires_grad
    assert cost(model, (3, 32, 32), batch_size=2).total.saved_bytes == expected


class KeepsAnAttribute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.doubled = [x * 2]
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.doubled[0]


class SavesTheProperWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x * 2)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


class KeepsAGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            ctx.y = torch.exp((x + 1) * scale)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def test_tensors_in_the_graph_of_a_custom_function_are_found_at_the_layer_of_its_parameters():
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return KeepsAGraph.apply(x + self.scale, self.scale)

    result = cost(nn.Sequential(nn.Flatten(), nn.Sequential(Custom())), (7,), batch_size=3)
    # x + 1, and the result of exp, which its node saved too
    assert {layer.name: layer.total.saved_bytes for layer in result.layers if layer.name} == {
        "0": 0,
        "1": 2 * 4 * 21,
        "1.0": 2 * 4 * 21,
    }


@pytest.mark.parametrize("function", [KeepsAnAttribute, SavesTheProperWay])
def test_tensors_kept_by_custom_functions_are_found(function):
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return function.apply(x + self.scale)

    assert cost(Custom(), (7,), batch_size=3).total.saved_bytes == 4 * 21


def test_a_branch_that_is_thrown_away_keeps_nothing():
    class Wasteful(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            torch.exp(self.unused(x))
            return self.used(x)

    assert cost(Wasteful(), (4,), batch_size=2).total.saved_bytes == 4 * 8


def test_checkpointed_blocks_keep_their_input_alone():
    import whatwhere.timm  # noqa: F401

    model = timm.create_model("cbam_resnext11_8x8d", num_classes=10)
    full = cost(model, (3, 32, 32), batch_size=2).total.saved_bytes
    model.set_grad_checkpointing()
    assert cost(model, (3, 32, 32), batch_size=2).total.saved_bytes < full / 3


def test_saved_bytes_come_from_a_run_without_module_hooks():
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            if self.training:
                seen.append(len(self._forward_hooks) + len(self._forward_pre_hooks))
            return super().forward(x)

    cost(Spy(3, 3), (3,))
    assert seen == [0]


@pytest.mark.parametrize("frozen", [False, True])
def test_what_the_cpp_passes_keep_for_an_attention_counts_there(cpp, frozen):
    model = create_model("cbam_resnext11_8x8d")
    model.layer1[0].attention.requires_grad_(not frozen)
    layers = {layer.name: layer.own.saved_bytes for layer in cost(model, (3, 32, 32)).layers}
    channels, hidden, pixels = 128, 8, 32 * 32
    norms, mlp, maps = 2 * channels + 2, 2 * (channels + hidden) + channels, 3 * pixels
    indices, copied_biases = channels + pixels, hidden + channels + 1
    assert layers["layer1.0.attention"] == 4 * (norms + mlp + maps + indices + copied_biases)
    # the input of the gates belongs to the block
    assert layers["layer1.0"] >= 4 * channels * pixels


@pytest.mark.parametrize("frozen", [False, True])
def test_what_the_python_passes_keep_for_an_attention_counts_there(monkeypatch, frozen):
    monkeypatch.setenv("WHATWHERE_CPP", "0")
    model = create_model("cbam_resnext11_8x8d")
    model.layer1[0].attention.requires_grad_(not frozen)
    layers = {layer.name: layer.total.saved_bytes for layer in cost(model, (3, 32, 32)).layers}
    channels, pixels = 128, 32 * 32
    # at least the indices of both maxima, as int32 and int16
    assert layers["layer1.0.attention"] >= 4 * channels + 2 * pixels
