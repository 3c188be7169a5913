import sys

import pytest

from whatwhere import cli


@pytest.fixture
def whatwhere(capsys, monkeypatch):
    """The command, in this process: exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["whatwhere", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return stop.value.code or 0, printed.out, printed.err

    return run
