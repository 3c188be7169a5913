import csv
import io
import json
import os
import pathlib
import subprocess
import sys
from collections import OrderedDict

import pytest
from torch import nn

from whatwhere import compare_costs, cost, create_model
from whatwhere.cost.result import format_figure

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def comparison():
    names = ("resnext11_8x8d", "cbam_resnext11_8x8d")
    return compare_costs(*(cost(create_model(name, num_classes=10), (3, 32, 32), name=name) for name in names))


def test_the_attention_is_what_was_added(comparison):
    assert [(layer.name, layer.type) for layer in comparison.added] == [
        (f"layer{stage}.0.attention", "CBAM") for stage in (1, 2, 3)
    ]
    assert comparison.removed == ()
    figures = comparison.summed(comparison.added)
    assert figures.num_params == comparison["num_params"].difference
    assert figures.macs == comparison["macs"].difference


def test_layers_are_aligned_in_the_order_of_the_model(comparison):
    names = [layer.name for layer in comparison.layers]
    position = names.index("layer1.0.attention")
    assert names[position - 1] == "layer1.0.relu"
    assert names.index("layer2") > position
    both = {layer.name: layer for layer in comparison.layers}["layer2"]
    assert both["num_params"].ratio == both.b.total.num_params / both.a.total.num_params
    assert both.status == "both"


def test_the_other_way_round_it_is_removed(comparison):
    back = compare_costs(comparison.b, comparison.a)
    assert [layer.status for layer in back.removed] == ["removed"] * 3
    assert back["num_params"].difference == -comparison["num_params"].difference
    assert "- 1 x CBAM" in str(back)


def test_networks_that_share_no_layer():
    a, b = cost(nn.Sequential(nn.Linear(3, 4)), (3,)), cost(nn.ModuleDict({"x": nn.Linear(3, 4)})["x"], (3,))
    comparison = compare_costs(a, b)
    assert [layer.status for layer in comparison.layers] == ["removed"]
    assert comparison["num_params"].ratio == 1
    assert str(comparison)


def test_a_ratio_to_nothing_is_none():
    a, b = cost(nn.ReLU(), (3,)), cost(nn.Linear(3, 3), (3,))
    comparison = compare_costs(a, b)
    assert comparison["num_params"].ratio is None
    assert json.loads(comparison.to_json())["total"]["num_params"] == {
        "a": 0,
        "b": 12,
        "difference": 12,
        "ratio": None,
    }


def test_models_instead_of_their_costs_are_refused(refused):
    with refused():
        compare_costs(nn.Linear(3, 3), nn.Linear(3, 3))


def test_different_inputs_are_refused(refused):
    model = nn.Conv2d(3, 3, 3)
    with refused():
        compare_costs(cost(model, (3, 8, 8)), cost(model, (3, 9, 8)))


@pytest.mark.parametrize("name", ["cost", "comparison"])
@pytest.mark.parametrize("kind", ["txt", "md", "html"])
def test_prints_as_before(cpp, comparison, name, kind):
    result = comparison if name == "comparison" else comparison.b
    printed = {"txt": str, "md": type(result).to_markdown, "html": type(result)._repr_html_}[kind](result)
    golden = GOLDEN / f"{name}.{kind}"
    assert printed.rstrip("\n") == golden.read_text(encoding="utf-8").rstrip("\n")


def test_csv_has_every_layer_and_figure(comparison):
    rows = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    assert len(rows) == 6 * (len(comparison.layers) + 1)
    total = {row["figure"]: row for row in rows if row["layer"] == "total"}
    assert int(total["num_params"]["difference"]) == comparison["num_params"].difference
    single = list(csv.DictReader(io.StringIO(comparison.b.to_csv())))
    assert int(single[-1]["num_params"]) == comparison.b.total.num_params
    assert [row["layer"] for row in single[:2]] == ["conv1", "bn1"]


def test_no_line_is_wider_than_an_ordinary_terminal(comparison):
    assert max(map(len, str(comparison).splitlines())) <= 100


def test_nothing_is_cut_short_however_long_the_names():
    model = nn.Sequential(OrderedDict({"a_very_long_name_" * 8: nn.Linear(3, 3)}))
    result = cost(model, (3,), name="network_" * 20)
    assert "a_very_long_name_" * 8 in str(result)
    assert "network_" * 20 in str(result)
    assert "…" not in str(result)


def test_csv_names_what_was_not_counted():
    class Sorting(nn.Module):
        def forward(self, x):
            return x.sort().values

    result = cost(Sorting(), (3, 8, 8))
    assert "(not counted),aten.sort,1 x" in result.to_csv().splitlines()
    assert "(not counted),aten.sort,,calls,1,1,0,1.0" in compare_costs(result, result).to_csv().splitlines()


def test_an_unknown_figure_names_the_known_ones(comparison, refused):
    for part in (comparison, comparison.layers[0]):
        with refused():
            part["parameters"]


def test_layers_that_cost_nothing_are_no_news():
    a = cost(nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 3, 1))), (3, 8, 8))
    b = cost(nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 3, 1), extra=nn.Flatten())), (3, 8, 8))
    assert "added" not in str(compare_costs(a, b))


def test_folds_to_the_width_of_a_terminal():
    code = (
        "from torch import nn; from whatwhere import cost, compare_costs\n"
        "c = cost(nn.Sequential(nn.Linear(3, 3)), (3,), name='network_' * 9); print(compare_costs(c, c))"
    )
    child, terminal = os.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=terminal, env=environment)
    os.close(terminal)
    printed = b""
    while True:
        try:
            piece = os.read(child, 4096)
        except OSError:  # the end of a terminal whose other side has closed
            break
        printed += piece
    assert process.wait() == 0
    lines = printed.decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) > 20


def test_the_tables_of_the_readme_and_of_the_guide(cpp):
    root = pathlib.Path(__file__).parent.parent.parent
    pages = [(root / name).read_text(encoding="utf-8") for name in ("README.md", "docs/cost.md")]
    names = ("resnext50_32x4d", "cbam_resnext50_32x4d")
    result = compare_costs(*(cost(create_model(name, seed=0), name=name) for name in names))
    for metric in ("num_params", "macs", "other_flops", "saved_bytes"):
        value = result[metric]
        a, b = (format_figure(metric, figure) for figure in (value.a, value.b))
        assert all(f"| {a} | {b} | x{value.ratio:.3f} |" in page for page in pages)
