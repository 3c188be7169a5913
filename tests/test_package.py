import subprocess
import sys

import pytest

import whatwhere


def test_importing_costs_torch_at_most():
    code = "import sys, whatwhere; assert not {'torchvision', 'timm', 'rich', 'typer', 'numpy'} & set(sys.modules) "
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", whatwhere.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(whatwhere, name)
    assert name in dir(whatwhere)
    assert isinstance(value, dict) or value.__doc__


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'CBMA'"):
        whatwhere.CBMA  # noqa: B018


@pytest.mark.parametrize("first", ["from whatwhere import cost", "from whatwhere.cost import compare_costs"])
def test_cost_is_callable_whatever_was_imported_before(first):
    code = f"{first}; import whatwhere, torch; whatwhere.cost(torch.nn.Linear(3, 3), (3,))"
    subprocess.run([sys.executable, "-c", code], check=True)
