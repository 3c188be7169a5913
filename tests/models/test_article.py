import contextlib
import io
import re

import pytest
import torch
from torchsummary import summary

from whatwhere import cost, create_model


def torchsummary_figures(model):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        summary(model, (3, 224, 224), batch_size=1, device="cpu")
    figures = dict(re.findall(r"^(.*?)(?: \(MB\))?: ([\d.,]+)$", printed.getvalue(), re.MULTILINE))
    return {key: float(value.replace(",", "")) for key, value in figures.items()}


@pytest.mark.parametrize(
    ("name", "params", "params_mb", "activations_mb", "total_mb"),
    [
        ("article_resnext50", 36_539_018, 139.39, 353.73, 493.69),
        ("cbam_article_resnext50", 44_716_553, 170.58, 488.07, 659.22),
    ],
)
def test_torchsummary_prints_the_articles_table(name, params, params_mb, activations_mb, total_mb):
    figures = torchsummary_figures(create_model(name, num_classes=10))
    assert figures["Total params"] == params
    assert figures["Params size"] == params_mb
    assert figures["Forward/backward pass size"] == activations_mb
    assert figures["Estimated Total Size"] == total_mb


@pytest.mark.parametrize(
    ("name", "params", "mib"),
    [("article_resnext50", 36_539_018, 139.39), ("cbam_article_resnext50", 40_628_745, 154.99)],
)
def test_the_true_cost(name, params, mib):
    total = cost(create_model(name, num_classes=10)).total
    assert total.num_params == params
    assert round(total.param_bytes / 2**20, 2) == mib


@pytest.mark.parametrize(("depth", "params"), [(101, 147_482_483), (152, 230_460_233)])
def test_parameters_of_the_deeper_networks(depth, params):
    with torch.device("meta"):
        model = create_model(f"cbam_article_resnext{depth}", num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == params


def test_ends_in_probabilities():
    out = create_model("article_resnext50", num_classes=4).eval()(torch.randn(1, 3, 224, 224))
    torch.testing.assert_close(out.sum(1), torch.ones(1))


def test_says_that_it_takes_one_size_only(refused):
    with refused():
        create_model("article_resnext50")(torch.randn(1, 3, 256, 256))


def test_needs_a_class(refused):
    with refused():
        create_model("article_resnext50", num_classes=0)
