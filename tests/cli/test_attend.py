import json
import re
from pathlib import Path

import pytest

PLAN = """cbam in 6 places

 module                  where                                       channels   features   parameters
"""


def test_a_plan_is_printed_and_nothing_else(whatwhere):
    status, out, err = whatwhere("attend", "mobilenet_v3_small", "--plan")
    assert (status, err) == (0, "")
    assert out.startswith(PLAN)
    assert (
        " features.3.attention    behind features.3.block.2.1, in one pass          24      28x28         +174" in out
    )
    assert "2,542,856 parameters and +3,930 (+0.15%); start: identity" in out
    assert "saved for backward" not in out


def test_what_it_costs_stands_below(whatwhere):
    status, out, _ = whatwhere("attend", "timm:resnet10t", "--attention", "eca", "--input", "3x64x64", "--json")
    assert status == 0
    content = json.loads(out)
    assert [place["added_params"] for place in content["plan"]["places"]] == [4, 6, 6, 6]
    difference = content["comparison"]["total"]["num_params"]["difference"]
    assert difference == 22


@pytest.mark.parametrize(
    "arguments",
    [
        ("nobody",),
        ("mobilenet_v3_small", "--attention", "cbma"),
        ("mobilenet_v3_small", "--attention", "no_such:Gate"),
        ("densenet121", "--input", "3x64x64"),
        ("mobilenet_v3_small", "--at", "nowhere"),
        ("mobilenet_v3_small", "--start", "zero"),
        ("mobilenet_v3_small", "--replace", "x"),
        ("mobilenet_v3_small", "--input", "224"),
        ("mobilenet_v3_small", "--input", "4x64x64"),
    ],
)
def test_bad_input_is_one_sentence(arguments, refused_command):
    refused_command("attend", *arguments)


def test_summary_beside_itself_without(whatwhere):
    status, out, _ = whatwhere("summary", "--backbone", "mobilenet_v3_small", "--attention", "se", "--input", "3x64x64")
    assert status == 0
    assert "mobilenet_v3_small with se" in out
    assert "added: 6 x SqueezeExcitation, themselves 3,324 parameters" in out
    assert whatwhere("summary", "timm:resnet10t", "--input", "3x64x64")[0] == 0
    for arguments, message in (
        ((), "give one network"),
        (("resnet18", "--backbone", "resnet18"), "give one network"),
        (("resnet18", "--attention", "se", "--against", "resnet50"), "leave out --against"),
        (("resnet18", "--at", "blocks"), "give --attention too"),
    ):
        status, _, err = whatwhere("summary", *arguments)
        assert (status, message in err, err.count("\n")) == (2, True, 1)


def test_the_guide_gives_the_cost_that_is_printed(whatwhere):
    guide = (Path(__file__).parents[2] / "docs" / "inserting-attention.md").read_text(encoding="utf-8")
    status, out, _ = whatwhere("attend", "mobilenet_v3_small")
    assert status == 0
    before, after, ratio = re.search(r"saved for backward +(\S+) MiB +(\S+) MiB .* (x\S+)\n", out).groups()
    assert f"({before} MiB become {after}, {ratio}, for two images)" in guide
