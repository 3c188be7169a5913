import pytest

from pictures import make_folder


@pytest.fixture(scope="session")
def patterns(tmp_path_factory):
    """Images without a split."""
    return make_folder(tmp_path_factory.mktemp("data") / "patterns")
