"""The guide's Python runs as it is printed, and prints what it says."""

import re
from pathlib import Path

import pytest

from whatwhere import CBAM

GUIDE = (Path(__file__).parents[2] / "docs" / "inserting-attention.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("code", BLOCKS, ids=["mobilenet", "detector", "weight decay"])
def test_the_code_of_the_guide(code, capsys):
    scope = {}
    exec(compile(code, "inserting-attention.md", "exec"), scope)
    printed = capsys.readouterr().out
    if "detector" in scope:
        places = sum(isinstance(module, CBAM) for module in scope["detector"].modules())
        assert f"# {places} places," in code
    elif "optimizer" in scope:
        assert [group["weight_decay"] for group in scope["optimizer"].param_groups] == [0.0, 0.05]
    else:
        table = re.search(r"```\n(cbam in 6 places.*?)```", GUIDE, re.DOTALL)[1]
        assert printed.startswith(table.rstrip())
