"""Signals that ask the command to stop, at whatever moment they come."""

import signal
import subprocess
import sys

import pytest

# the command in a process that sends itself a signal when a module is imported for the first time, or at its end
START = """
import atexit, os, runpy, signal, sys
moment, number, sys.argv = sys.argv[1], int(sys.argv[2]), ["whatwhere", *sys.argv[3:]]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & would ignore it

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == moment:
            signal.raise_signal(number)

if moment == "end":
    atexit.register(signal.raise_signal, number)
sys.meta_path.insert(0, Finder())
runpy.run_module("whatwhere", run_name="__main__", alter_sys=True)
"""


def run(moment, number, *arguments, cwd=None):
    command = [sys.executable, "-c", START, moment, str(int(number)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("typer", signal.SIGINT),
        ("typer", signal.SIGTERM),
        ("rich.progress", signal.SIGINT),
        ("whatwhere.cli.verdict", signal.SIGINT),
        ("whatwhere.attention", signal.SIGTERM),
        ("torch", signal.SIGINT),
        ("numpy.linalg", signal.SIGINT),
        ("torch.nn.functional", signal.SIGINT),
        ("torch.nn.functional", signal.SIGHUP),
    ],
)
def test_a_signal_while_modules_are_imported_ends_the_command(moment, number):
    assert run(moment, number, "summary", "resnext11_8x8d") == (128 + number, "", "whatwhere: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_ends(number):
    status, out, err = run("end", number, "--version")
    assert (status, out, err) == (128 + number, "0.1.0\n", "whatwhere: interrupted\n")


SWALLOWED = """
import signal

class Named:
    def __set_name__(self, owner, name):  # before Python 3.12, what it raises becomes a RuntimeError
        signal.raise_signal(signal.SIGINT)

class Lost:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def named():
    class Owner:
        name = Named()

def caught():
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        pass

def ended():
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        raise SystemExit(0)

def again():
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.raise_signal(signal.SIGINT)

"""


@pytest.mark.parametrize("how", ["named()", "caught()", "ended()", "again()", "Lost()"])
def test_code_that_swallows_the_interrupt_does_not_keep_the_command_alive(tmp_path, how):
    (tmp_path / "own.py").write_text(f"{SWALLOWED}\n{how}\n")
    status, _, err = run("", 0, "attend", "resnext11_8x8d", "--attention", "own:gate", cwd=tmp_path)
    assert (status, err) == (130, "whatwhere: interrupted\n")


def test_nohup_keeps_the_command_alive():
    code = (
        "import signal; from whatwhere.base.processes import end_at_signals, unwound_at_signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "end_at_signals(); signal.raise_signal(signal.SIGHUP)\n"
        "with unwound_at_signals(): signal.raise_signal(signal.SIGHUP)\n"
        "print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "alive\n"
