"""The examples (`>>>`) in the docstrings of the functions that people call most, and the Python of the documents."""

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
    whatwhere.no_weight_decay,
    insert.plan,
    whatwhere.cost.cost,
    whatwhere.compare_costs,
    experiment.collect,
    experiment.compare,
    experiment.judge,
    experiment.read_results,
]
ROOT = Path(__file__).parents[1]
CODE = [
    pytest.param(code, id=f"{page}-{number}")
    for page in ("README.md", "docs/cost.md", "docs/gates.md", "docs/weights.md")
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("called", CALLED_MOST, ids=lambda called: called.__name__)
def test_the_example_in_the_docstring(called, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write files
    (found,) = doctest.DocTestFinder(recurse=False).find(called, called.__name__, globs={})
    assert found.examples
    result = doctest.DocTestRunner().run(found)
    assert result.failed == 0, "see what was printed"


@pytest.mark.parametrize("code", CODE)
def test_the_python_of_the_documents(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "document", "exec"), {})
