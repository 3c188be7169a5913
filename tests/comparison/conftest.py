import pytest

from comparisons import Comparisons


@pytest.fixture
def compared(patterns, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Comparisons(patterns, tmp_path / "out")
