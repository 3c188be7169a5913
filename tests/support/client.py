"""Other people's programs, which the tests in clients/ run with attention inside."""

import warnings

import pytest


def wanted(module):
    """Import `module`, or skip the test with the reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(module, reason=f"{module} is not installed; `make test-clients` installs it")
