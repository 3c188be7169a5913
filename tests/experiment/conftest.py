import pytest

from comparisons import Comparisons
from pictures import make_folder


@pytest.fixture(scope="session")
def patterns(tmp_path_factory):
    """Images without a split."""
    return make_folder(tmp_path_factory.mktemp("data") / "patterns")


@pytest.fixture
def compared(patterns, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Comparisons(patterns, tmp_path / "out", monkeypatch)
