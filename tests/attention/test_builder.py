import importlib
import sys

import pytest
import torch
from torch import nn

from whatwhere import create_model
from whatwhere.attention import attention_by_path

SOURCE = """
import torch
from torch import nn

class Scale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x):
        return x * self.weight

def build(channels):
    return Scale(channels)

built = Scale(3)
number = 7
"""


@pytest.fixture(autouse=True)
def _modules_of_a_test_end_with_it():
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]
    assert sys.path == path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_attention.py").write_text(SOURCE)
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").touch()
    (tmp_path / "own_package" / "inner.py").write_text("from own_attention import Scale as Inner\n")
    return tmp_path


@pytest.mark.parametrize("path", ["own_attention:Scale", "own_attention:build", "own_package.inner:Inner"])
def test_what_a_path_names_is_a_network_s_attention(folder, path):
    builder = attention_by_path(path)
    assert str(folder) not in sys.path
    model = create_model("resnext11_8x8d", num_classes=3, seed=0, attention=builder)
    assert type(model.layer1[0].attention).__name__ == "Scale"
    assert torch.equal(model.layer1[0].attention.weight, torch.full((128, 1, 1), 0.5))


def test_installed_modules_too():
    assert attention_by_path("torch.nn:BatchNorm2d") is nn.BatchNorm2d


def test_the_current_folder_comes_first_as_for_python_m(folder):
    (folder / "this.py").write_text("def build(channels): ...\n")
    assert attention_by_path("this:build").__module__ == "this"


def test_a_module_written_after_the_last_look_is_found(folder, refused):
    with refused():
        attention_by_path("younger:build")
    (folder / "younger.py").write_text("def build(channels): ...\n")
    assert callable(attention_by_path("younger:build"))


@pytest.mark.parametrize(
    "path",
    [
        "own_attention",
        ":Scale",
        "own_attention:",
        "absent:Scale",
        "own_package.absent:Scale",
        "absent.inner:Scale",
        "own_attention:Gone",
        "own_attention:Scale.forward",
        "own_attention:number",
        "own_attention:built",
        "own_package:inner",
        ".own_attention:Scale",
        "own attention:Scale",
    ],
)
def test_what_cannot_be_had_is_one_sentence_that_names_the_path(folder, path, refused):
    with refused() as caught:
        attention_by_path(path)
    assert f"attention {path!r}" in str(caught.value)


@pytest.mark.parametrize(
    "code",
    [
        "1 / 0",
        "import absent_too",
        "def (",
        "raise RuntimeError('two\\nlines')",
        "raise ValueError",
        "import sys; sys.exit(3)",
        "def __getattr__(name): raise OSError('gone')",
    ],
)
def test_an_error_while_importing_is_one_sentence(folder, code, refused):
    (folder / "broken.py").write_text(code)
    importlib.invalidate_caches()
    with refused() as caught:
        attention_by_path("broken:build")
    assert str(caught.value).startswith("cannot import attention 'broken:build': ")


def test_ctrl_c_while_importing_is_no_error_of_the_module(folder):
    (folder / "slow.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        attention_by_path("slow:build")


def test_a_current_folder_that_was_removed_is_left_out(tmp_path, monkeypatch, refused):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert attention_by_path("torch.nn:BatchNorm2d") is nn.BatchNorm2d
    with refused():
        attention_by_path("own_attention:build")
