import dataclasses
import json

import pytest
import timm
import torch
import torchvision
from torch import nn

from whatwhere import UserError, cost, create_model
from whatwhere.cost import measure_latency

PAPER_GMACS = {  # the CBAM paper's Table 4, "GFLOPs": base, +SE, +CBAM
    "resnet18": (1.814, 1.814, 1.815),
    "resnet34": (3.664, 3.664, 3.665),
    "resnet50": (3.858, 3.860, 3.864),
    "resnet101": (7.570, 7.575, 7.581),
    "wide_resnet18_1_5": (3.866, 3.867, 3.868),
    "wide_resnet18_2": (6.696, 6.696, 6.697),
    "resnext50_32x4d": (3.768, 3.771, 3.774),
    "resnext101_32x4d": (7.508, 7.512, 7.519),
}


@pytest.mark.parametrize(("name", "expected"), PAPER_GMACS.items())
def test_macs_are_those_of_the_papers_table(name, expected):
    options = {} if "18" in name or "34" in name else {"stride_in_1x1": True}
    macs = [cost(create_model(prefix + name, **options)).total.macs for prefix in ("", "se_", "cbam_")]
    assert [round(value / 1e9, 3) for value in macs] == list(expected)


@pytest.mark.parametrize(("name", "gmacs"), [("cbam_resnet50", 4.0956), ("cbam_resnext50_32x4d", 4.2369)])
def test_macs_with_the_stride_in_the_3x3(name, gmacs):
    total = cost(create_model(name)).total
    assert round(total.macs / 1e9, 4) == gmacs
    assert total.flops == 2 * total.macs


def test_every_figure_of_a_small_network_worked_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    result = cost(model, (2, 6, 6), batch_size=5)
    conv, norm, relu, flatten, linear = result.layers
    assert [layer.name for layer in result.layers] == ["0", "1", "2", "3", "4"]
    assert (conv.total.num_params, conv.total.macs, conv.output_size) == (72, 5 * 4 * 16 * 18, (5, 4, 4, 4))
    assert (norm.total.num_params, norm.total.macs, norm.total.other_flops) == (8, 0, 2 * 5 * 64)
    assert (relu.total.num_params, relu.total.other_flops) == (0, 5 * 64)
    assert (flatten.total.other_flops, flatten.output_size) == (0, (5, 64))
    assert (linear.total.num_params, linear.total.macs) == (195, 5 * 64 * 3)
    assert result.total.param_bytes == 4 * (72 + 8 + 195)
    # kept for backward, in float32: the input (by the convolution), the convolution's output with batch mean and
    # standard deviation (by the norm), and the ReLU's output, which the linear layer keeps too
    images, features, statistics = 5 * 2 * 36, 5 * 64, 2 * 4
    assert conv.total.saved_bytes == 4 * images
    assert norm.total.saved_bytes == 4 * (features + statistics)
    assert relu.total.saved_bytes == 4 * features
    assert linear.total.saved_bytes == 0
    assert result.total.saved_bytes == 4 * (images + 2 * features + statistics)


def test_shared_parameters_are_counted_once_and_their_work_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8, bias=False)
            self.second = self.first
            self.tied = nn.Linear(8, 8, bias=False)
            self.tied.weight = self.first.weight

        def forward(self, x):
            return self.tied(self.second(self.first(x)))

    result = cost(Twice(), (8,))
    assert result.total.num_params == 64
    assert result.total.macs == 3 * 64
    layers = {layer.name: layer for layer in result.layers}
    assert layers.keys() == {"first", "tied"}
    assert (layers["first"].num_calls, layers["first"].total.macs) == (2, 128)
    assert (layers["tied"].total.num_params, layers["tied"].total.macs) == (0, 64)


def test_a_container_costs_what_is_inside_it():
    result = cost(create_model("cbam_resnext11_8x8d", num_classes=10), (3, 32, 32))
    layers = {layer.name: layer for layer in result.layers}
    for metric in ("num_params", "macs", "other_flops", "saved_bytes", "param_bytes"):
        inside = sum(getattr(layer.own, metric) for name, layer in layers.items() if name.startswith("layer2"))
        assert getattr(layers["layer2"].total, metric) == inside
        assert sum(getattr(layer.total, metric) for layer in result.layers if layer.depth == 1) == getattr(
            result.total, metric
        )


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_plain_network_keeps_no_more_than_torchvisions(name):
    saved = [
        cost(model, (3, 64, 64), batch_size=2).total.saved_bytes
        for model in (create_model(name), torchvision.models.get_model(name))
    ]
    assert saved[0] <= saved[1]


def test_saved_bytes_agree_with_storages_found_by_hooks_alone():
    model = create_model("cbam_resnext11_8x8d", num_classes=10, seed=0)
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


def test_what_cannot_be_counted_is_named():
    class Sorting(nn.Module):
        def forward(self, x):
            return x.sort().values.cos().topk(2).values

    result = cost(Sorting(), (3, 8, 8))
    assert set(result.uncounted) == {"aten.topk", "aten.sort"}
    assert "not counted among the FLOPs of Sorting: aten.sort (1 x), aten.topk (1 x)" in str(result)


@pytest.mark.parametrize(
    ("module", "flops"),
    [
        (nn.MaxPool2d(3, 2, 1), 9 * 2 * 4 * 4),
        (nn.AvgPool2d(2), 4 * 2 * 4 * 4),
        (nn.AdaptiveAvgPool2d(1), 2 * 64),
        (nn.AdaptiveAvgPool2d(3), 2 * 64),
        (nn.Sigmoid(), 2 * 64),
        (nn.Hardswish(), 2 * 64),
        (nn.Softmax(1), 5 * 2 * 64),
        (nn.GroupNorm(1, 2), 7 * 2 * 64),
        (nn.LayerNorm(8), 7 * 2 * 64),
        (nn.InstanceNorm2d(2), 7 * 2 * 64),
        (nn.Upsample(scale_factor=2), 0),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 7 * 2 * 256),
        (nn.ZeroPad2d(1), 0),
        (nn.PixelUnshuffle(2), 0),
        (nn.Dropout(0.5), 0),
        (nn.PReLU(), 2 * 64),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_flops_of_everything_else(module, flops):
    result = cost(module, (2, 8, 8))
    assert result.uncounted == {}
    assert result.total.other_flops == flops
    assert result.total.macs == 0


@pytest.mark.parametrize(
    "name",
    ["mobilenetv3_small_050", "efficientnet_b0", "convnext_atto", "regnety_002", "densenet121", "resnest14d", "vgg11"],
)
def test_networks_of_others_are_counted_whole(name):
    result = cost(timm.create_model(name), (3, 64, 64), batch_size=2)
    assert result.uncounted == {}
    assert result.total.macs > 0
    assert result.total.num_params == sum(p.numel() for p in timm.create_model(name).parameters())


def test_macs_agree_with_torchs_own_counter():
    from torch.utils.flop_counter import FlopCounterMode

    model = timm.create_model("vit_tiny_patch16_224").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    assert cost(model).total.flops == counter.get_total_flops()


def test_multi_head_attention_is_counted_on_its_plain_path():
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    result = cost(encoder, (5, 16))
    # four projections, the two products of attention, two feed-forward layers
    assert result.total.macs == 5 * 4 * 16 * 16 + 2 * 5 * 5 * 16 + 2 * 5 * 16 * 32
    assert result.uncounted == {}
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_the_model_costs_itself_has_a_row():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x * self.scale)

    result = cost(Scaled(), (3,))
    assert result.own.num_params == 3
    assert "(model itself)" in str(result)
    assert result.own.num_params + sum(layer.total.num_params for layer in result.layers) == result.total.num_params


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
def test_restores_buffers_that_forward_replaces_and_gradients_even_when_it_fails(fails):
    model = Counting(fails)
    model.linear.weight.grad = torch.ones(3, 3)
    if fails:
        with pytest.raises(UserError, match="does not fit the model"):
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


def test_lazy_layers_are_refused_and_stay_lazy():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(UserError, match="run one batch through it first"):
        cost(model, (3, 8, 8))
    assert isinstance(model[1], nn.LazyLinear)


def test_within_inference_mode_the_figures_are_the_same():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    expected = cost(model, (3, 8, 8)).total
    with torch.inference_mode():
        assert cost(model, (3, 8, 8)).total == expected


def test_outputs_in_a_dataclass():
    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor
        cycle: list

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x):
            cycle = []
            cycle.append(cycle)
            return Output(self.linear(x).exp(), cycle)

    assert cost(Model(), (3,)).total.saved_bytes == 4 * (3 + 4)


def test_other_dtypes_and_frozen_models():
    model = create_model("resnext11_8x8d", num_classes=10).double()
    single = cost(create_model("resnext11_8x8d", num_classes=10), (3, 16, 16), batch_size=2).total
    double = cost(model, (3, 16, 16), batch_size=2).total
    assert double.param_bytes == 2 * single.param_bytes
    assert double.saved_bytes == 2 * single.saved_bytes
    frozen = cost(model.requires_grad_(False), (3, 16, 16), batch_size=2, latency=True)
    assert frozen.total.saved_bytes == 0


def test_structured_outputs():
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    result = cost(model, (3, 64, 64), batch_size=2)
    assert result.uncounted == {}
    assert result.total.saved_bytes > 0


def test_latency_on_request():
    model = nn.Conv2d(3, 4, 3)
    assert cost(model, (3, 8, 8)).latency is None
    times = cost(model, (3, 8, 8), latency=True).latency
    assert times.forward_ms > 0
    assert times.training_step_ms > 0
    assert times.peak_memory_bytes is None
    both = measure_latency([model, nn.Identity()], [torch.randn(1, 3, 8, 8)] * 2, rounds=2)
    assert len(both) == 2


@pytest.mark.parametrize(
    ("size", "batch", "sentence"),
    [
        ((3, 0, 8), 1, "input_size must be positive integers"),
        ((), 1, "input_size must be positive integers"),
        ((3, 10**30, 8), 1, "no memory for an input of shape"),
        ((3, 8.5, 8), 1, "input_size must be positive integers"),
        (224, 1, "input_size must be positive integers"),
        ((3, 8, 8), 0, "batch_size must be an integer of at least 1, got 0"),
    ],
)
def test_impossible_sizes(size, batch, sentence):
    with pytest.raises(UserError, match=sentence):
        cost(nn.Conv2d(3, 4, 3), size, batch_size=batch)


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 64), (3, 2, 64, 64)])
def test_names_the_layer_that_refuses_the_input(size):
    with pytest.raises(UserError, match=r"does not fit conv1 \(Conv2d\(3, 64") as caught:
        cost(torchvision.models.resnet18(), size)
    assert "\n" not in str(caught.value)


def test_names_the_layer_inside():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Linear(7, 2)))
    with pytest.raises(UserError, match=r"does not fit 1\.1 \(Linear\(in_features=7"):
        cost(model, (3, 8, 8))


def test_a_batch_of_one_that_batch_norm_cannot_train_on():
    with pytest.raises(UserError, match=r"BatchNorm2d.*give a batch of 2 or more, or larger images"):
        cost(create_model("resnet18"), (3, 16, 16))
    assert cost(create_model("resnet18"), (3, 16, 16), batch_size=2).total.macs > 0


def test_a_model_without_values():
    with torch.device("meta"):
        model = nn.Linear(3, 3)
    with pytest.raises(UserError, match="meta device"):
        cost(model, (3,))


@pytest.mark.parametrize("model", ["resnet50", None])
def test_what_is_no_model(model):
    with pytest.raises(UserError, match=r"cost measures a torch.nn.Module that runs in Python, got a"):
        cost(model, (3,))


def test_the_room_is_its_main_function():
    import whatwhere
    import whatwhere.cost as room

    assert whatwhere.cost is room
    model = nn.Linear(3, 3)
    assert room(model, (3,)).total == room.cost(model, (3,)).total


def test_json_holds_the_figures_and_the_layers():
    result = cost(create_model("resnext11_8x8d", num_classes=10), (3, 32, 32), name="small")
    values = json.loads(result.to_json())
    head = {"name": "small", "input_size": [3, 32, 32], "batch_size": 1, "num_params": 330_666}
    assert head.items() <= values.items()
    assert values["flops"] == 2 * values["macs"]
    assert values["param_bytes"] == 4 * 330_666
    assert {"saved_bytes", "other_flops", "uncounted", "layers"} <= values.keys()
    assert values["layers"][0]["name"] == "conv1"


@pytest.mark.gpu
def test_peak_memory_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = create_model("cbam_resnext11_8x8d", num_classes=10).cuda()
    result = cost(model, (3, 32, 32), batch_size=8, latency=True)
    assert result.latency.peak_memory_bytes > result.total.param_bytes + result.total.saved_bytes / 2
