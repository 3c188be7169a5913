import dataclasses
import json

import pytest
import torch
import torchvision
from torch import nn

from whatwhere import cost, create_model
from whatwhere.cost import measure_latency


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
    # saved for backward, in float32: the input (by the convolution), the convolution's output with batch mean and
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
    ("size", "batch"),
    [
        ((3, 0, 8), 1),
        ((), 1),
        ((3, 10**30, 8), 1),
        ((3, 2**30, 2**30), 1),
        ((3, 8.5, 8), 1),
        (224, 1),
        ((3, 8, 8), 0),
    ],
)
def test_impossible_sizes(size, batch, refused):
    with refused():
        cost(nn.Conv2d(3, 4, 3), size, batch_size=batch)


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 64), (3, 2, 64, 64)])
def test_names_the_layer_that_refuses_the_input(size, refused):
    with refused(hiding=r"(?<=\(Conv2d\(3, 64).*"):
        cost(torchvision.models.resnet18(), size)


def test_names_the_layer_inside(refused):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Linear(7, 2)))
    with refused(hiding=r"(?<=in_features=7).*"):
        cost(model, (3, 8, 8))


def test_a_batch_of_one_that_batch_norm_cannot_train_on(refused):
    with refused():
        cost(create_model("resnet18"), (3, 16, 16))
    assert cost(create_model("resnet18"), (3, 16, 16), batch_size=2).total.macs > 0


def test_a_model_without_values(refused):
    with torch.device("meta"):
        model = nn.Linear(3, 3)
    with refused():
        cost(model, (3,))


@pytest.mark.parametrize("model", ["resnet50", None])
def test_what_is_no_model(model, refused):
    with refused():
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


def test_whatever_the_default_device_is():
    model = create_model("resnext11_8x8d", seed=0)
    expected = cost(model, (3, 32, 32)).total
    with torch.device("meta"):
        assert cost(model, (3, 32, 32)).total == expected
