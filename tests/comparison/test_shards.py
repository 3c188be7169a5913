"""The processes that a comparison starts end with it, whatever signal comes, and whoever sends it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from whatwhere import UserError
from whatwhere.base.errors import Stopped
from whatwhere.comparison.shards import run_shards

# saves and ends at a signal, as a run does; a test that fails leaves none behind for long
CHILD = """\
import os, pathlib, signal, sys, time
def end(number, frame):
    (pathlib.Path(FOLDER) / f"ended-{os.getpid()}").write_text(str(number))
    os._exit(128 + number)  # a second signal would kill Python while it ends
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, end)
(pathlib.Path(FOLDER) / f"began-{os.getpid()}").touch()
time.sleep(60)
"""


@pytest.fixture
def children(tmp_path, monkeypatch):
    """Return a function that gives the content of the files with a name that begins so; the processes write them."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text(f"#!{PYTHON}\nFOLDER = {str(tmp_path)!r}\n{CHILD}")
    (tmp_path / "python").chmod(0o755)
    return lambda name: [path.read_text() for path in tmp_path.glob(f"{name}-*")]


PYTHON = sys.executable


def send(number, condition):
    """Send this process a signal once a condition holds."""

    def wait():
        limit = time.monotonic() + 30
        while not condition() and time.monotonic() < limit:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize(
    ("number", "passed_on"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGHUP), (signal.SIGINT, signal.SIGTERM)],
)
def test_a_signal_to_the_first_process_alone_ends_all(children, number, passed_on):
    send(number, lambda: len(children("began")) == 3)
    with pytest.raises(Stopped, match="continue with: whatwhere compare photos") as stopped:
        run_shards(["photos"], (1, 1), 3, num_gpus=1, command="whatwhere compare photos")
    assert stopped.value.signal == number
    assert children("ended") == 3 * [str(int(passed_on))]


@pytest.mark.parametrize("during", [1, 2, 3])
def test_a_signal_while_a_process_starts_reaches_that_process_and_those_before(children, monkeypatch, during):
    started = []

    class Slow(subprocess.Popen):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            started.append(self)
            while len(children("began")) < len(started):
                time.sleep(0.01)
            if len(started) == during:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Slow)
    with pytest.raises(Stopped) as stopped:
        run_shards(["photos"], (1, 1), 3, num_gpus=1, command="whatwhere compare photos")
    assert stopped.value.signal == signal.SIGTERM
    assert len(started) == during
    assert [process.returncode for process in started] == during * [128 + signal.SIGTERM]


def test_where_a_process_cannot_be_started_the_others_end(children, monkeypatch):
    started = []

    class Scarce(subprocess.Popen):
        def __init__(self, *arguments, **named):
            if len(started) == 2:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            super().__init__(*arguments, **named)
            started.append(self)
            while len(children("began")) < len(started):
                time.sleep(0.01)

    monkeypatch.setattr(subprocess, "Popen", Scarce)
    with pytest.raises(UserError, match="give fewer --processes"):
        run_shards(["photos"], (1, 1), 3, num_gpus=1, command="whatwhere compare photos")
    assert [process.returncode for process in started] == 2 * [128 + signal.SIGTERM]


def test_a_signal_that_comes_when_all_have_ended_is_not_lost(children, tmp_path):
    """Without it the comparison would go on to its next look."""
    (tmp_path / "python").write_text(
        f"#!{PYTHON}\nimport os, signal\nos.kill(os.getppid(), signal.SIGTERM)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    )
    with pytest.raises(Stopped) as stopped:
        run_shards(["photos"], (1, 1), 1, num_gpus=1, command="whatwhere compare photos")
    assert stopped.value.signal == signal.SIGTERM
