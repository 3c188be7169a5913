import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from whatwhere import cost, create_model

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


@pytest.mark.parametrize(
    ("name", "expected"),
    [pytest.param(*row, marks=[pytest.mark.slow] * ("101" in row[0])) for row in PAPER_GMACS.items()],
)
def test_macs_are_those_of_the_papers_table(name, expected):
    options = {} if "18" in name or "34" in name else {"stride_in_1x1": True}
    macs = [cost(create_model(prefix + name, **options)).total.macs for prefix in ("", "se_", "cbam_")]
    assert [round(value / 1e9, 3) for value in macs] == list(expected)


@pytest.mark.parametrize(("name", "gmacs"), [("cbam_resnet50", 4.0956), ("cbam_resnext50_32x4d", 4.2369)])
def test_macs_with_the_stride_in_the_3x3(name, gmacs):
    total = cost(create_model(name)).total
    assert round(total.macs / 1e9, 4) == gmacs
    assert total.flops == 2 * total.macs


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
    # VGG's own classifier takes 0.5 GB
    model = timm.create_model(name, **({"mlp_ratio": 1 / 64} if name == "vgg11" else {}))
    result = cost(model, (3, 64, 64), batch_size=2)
    assert result.uncounted == {}
    assert result.total.macs > 0
    assert result.total.num_params == sum(p.numel() for p in model.parameters())


def test_macs_agree_with_torchs_own_counter():
    from torch.utils.flop_counter import FlopCounterMode

    model = timm.create_model("vit_tiny_patch16_224").eval()
    # attention as matrix products: the counter of torch 2.10 silently leaves out the other form
    with sdpa_kernel(SDPBackend.MATH):
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


def test_what_returns_nothing_is_named_too():
    class InPlace(nn.Module):
        def forward(self, x):
            x = x.clone()
            torch._foreach_mul_([x], 2.0)
            return x

    assert cost(InPlace(), (3, 8, 8)).uncounted == {"aten._foreach_mul_": 1}
