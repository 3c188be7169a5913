import subprocess
import sys

import pytest

import whatwhere


def test_importing_costs_torch_at_most():
    code = "import sys, whatwhere; assert not {'torchvision', 'timm', 'rich', 'typer', 'numpy'} & set(sys.modules) "
    subprocess.run([sys.executable, "-c", code], check=True)
    # nor the compiler, which takes seconds
    code = "import sys, whatwhere.ops; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "code",
    [
        "import whatwhere",
        "import pkgutil, whatwhere.statistics as room\n"
        "for file in pkgutil.iter_modules(room.__path__, room.__name__ + '.'): __import__(file.name)",
        "import whatwhere.experiment",
        "sys.argv = ['whatwhere', 'models']; main()",
        "sys.argv = ['whatwhere', 'verdict', 'results.csv']; main()",
        "import pkgutil, whatwhere.collect as room\n"
        "for file in pkgutil.iter_modules(room.__path__, room.__name__ + '.'): __import__(file.name)",
        "sys.argv = ['whatwhere', 'collect', 'results.csv', '--out', 'out.csv']; main()",
        "sys.argv = ['whatwhere', '--help']; main()",
    ],
)
def test_what_answers_without_torch(code, tmp_path):
    rows = [
        f"{arm},{seed},{0.8 + seed / 100 + up * seed % 3 / 100}"
        for seed in range(9)
        for arm, up in (("none", 0), ("se", 1))
    ]
    (tmp_path / "results.csv").write_text("\n".join(["arm,seed,accuracy", *rows]))
    main = "import sys, contextlib\ndef main():\n  import whatwhere.cli\n"
    main += "  with contextlib.suppress(SystemExit): whatwhere.cli.main()"
    program = f"{main}\n{code}\nassert not {{'torch', 'torchvision', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


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
