import pytest
import timm.layers.coord_attn
import torch
from torch import nn

from whatwhere import CoordinateAttention


def pair(channels, **options):
    """timm's module with biases and our hidden width, and ours with the same random parameters."""
    ours = CoordinateAttention(channels, **options).double()
    theirs = timm.layers.coord_attn.CoordAttn(channels, rd_channels=ours.conv.out_channels, bias=True).double()
    names = {"conv1": "conv", "bn1": "norm", "conv_h": "conv_h", "conv_w": "conv_w"}
    own = dict(ours.named_parameters())
    with torch.no_grad():
        for their_name, parameter in theirs.named_parameters():
            layer, kind = their_name.split(".")
            own[f"{names[layer]}.{kind}"].copy_(parameter.normal_())
    assert len(own) == len(list(theirs.parameters()))
    return ours, theirs, names


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("channels", "reduction"), [(12, 32), (64, 4), (300, 32)])
def test_computes_what_timms_module_computes_forward_and_every_gradient(channels, reduction, training):
    ours, theirs, names = pair(channels, reduction=reduction)
    ours.train(training)
    theirs.train(training)
    x = torch.randn(3, channels, 7, 4, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(value) for module, value in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(x)
    for output in outputs:
        (output * weight).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-9, atol=1e-10)
    own = dict(ours.named_parameters())
    for their_name, parameter in theirs.named_parameters():
        layer, kind = their_name.split(".")
        torch.testing.assert_close(own[f"{names[layer]}.{kind}"].grad, parameter.grad, rtol=1e-9, atol=1e-10)
    for part in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours.norm, part), getattr(theirs.bn1, part))


@pytest.mark.parametrize("channels", [1, 64, 256, 300, 2048])
@pytest.mark.parametrize("reduction", [8, 32])
def test_parameter_formula(channels, reduction):
    hidden = max(8, channels // reduction)
    count = sum(p.numel() for p in CoordinateAttention(channels, reduction=reduction).parameters())
    assert count == 3 * channels * hidden + 3 * hidden + 2 * channels


def test_zero_logits_quarter_the_input():
    module = CoordinateAttention(16)
    for last in (module.conv_h, module.conv_w):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    x = torch.randn(2, 16, 5, 4)
    torch.testing.assert_close(module(x), x / 4)


def test_values_worked_by_hand():
    # one channel; the strips are (1, 3) for the rows and (0, 2, 4) for the columns; conv and norm leave them alone
    module = CoordinateAttention(1).eval()
    for layer in (module.conv, module.conv_h, module.conv_w):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    module.norm.eps = 1e-30  # torch 2.10 wants one above 0
    nn.init.ones_(module.conv.weight[:1])
    nn.init.ones_(module.conv_h.weight[:, :1])
    nn.init.constant_(module.conv_w.weight[:, :1], 2.0)
    x = torch.tensor([[-1.0, 1, 3], [1, 3, 5]])[None, None]
    rows = torch.tensor([1 * 4 / 6, 3.0]).sigmoid()  # h_swish(1) = 4/6, h_swish(3) = 3
    columns = torch.tensor([0, 2 * 2 * 5 / 6, 2 * 4.0]).sigmoid()  # h_swish(2) = 10/6, h_swish(4) = 4
    torch.testing.assert_close(module(x)[0, 0], x[0, 0] * rows[:, None] * columns)


def test_is_a_gate_over_rows_times_a_gate_over_columns():
    module = CoordinateAttention(16).double()
    gates = module.gates(torch.randn(2, 16, 5, 7, dtype=torch.float64))
    assert ((gates > 0) & (gates < 1)).all()
    torch.testing.assert_close(gates * gates[:, :, :1, :1], gates[:, :, :, :1] * gates[:, :, :1, :])
    assert gates.std(2).min() > 0
    assert gates.std(3).min() > 0


def test_turned_images_and_exchanged_convolutions_give_the_turned_output():
    module = CoordinateAttention(16).double()
    turned = CoordinateAttention(16).double()
    exchange = {"conv_h": "conv_w", "conv_w": "conv_h"}
    turned.load_state_dict(
        {".".join([exchange.get((part := key.split("."))[0], part[0]), *part[1:]]): value
         for key, value in module.state_dict().items()}
    )  # fmt: skip
    x = torch.randn(2, 16, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(turned(x.mT).mT, module(x))


def test_only_the_bias_that_the_norm_takes_away_does_not_learn():
    module = CoordinateAttention(64).double()
    module(torch.randn(4, 64, 9, 9, dtype=torch.float64)).square().sum().backward()
    assert {name for name, p in module.named_parameters() if p.grad.abs().max() < 1e-9} == {"conv.bias"}


@pytest.mark.parametrize("reduction", [0, -16, "16", float("nan"), float("inf")])
def test_refuses_impossible_reduction(reduction, refused):
    with refused():
        CoordinateAttention(64, reduction=reduction)
