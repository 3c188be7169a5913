"""The examples (`>>>`) in the docstrings of the functions that people call most, and the README's Python."""

import doctest
import re
from pathlib import Path

import pytest

import whatwhere
from whatwhere import experiment, insert

CALLED_MOST = [
    whatwhere.CBAM,
    whatwhere.create_model,
    whatwhere.list_models,
    whatwhere.attend,
    whatwhere.detach,
    insert.plan,
    whatwhere.cost.cost,
    whatwhere.compare_costs,
    experiment.compare,
    experiment.judge,
    experiment.read_results,
]
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("called", CALLED_MOST, ids=lambda called: called.__name__)
def test_the_example_in_the_docstring(called):
    (found,) = doctest.DocTestFinder(recurse=False).find(called, called.__name__, globs={})
    assert found.examples
    result = doctest.DocTestRunner().run(found)
    assert result.failed == 0, "see what was printed"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL), ids=["cost", "attend"])
def test_the_python_of_the_readme(code):
    exec(compile(code, "README.md", "exec"), {})
