"""Signals that ask a process to stop."""

import os
import signal

import pytest

from whatwhere.base.processes import on_signals


@pytest.fixture
def hup():
    """SIGHUP, which is as it was after the test."""
    before = signal.getsignal(signal.SIGHUP)
    yield signal.SIGHUP
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.default_int_handler])
def test_a_signal_is_taken_and_its_handler_put_back(hup, before):
    signal.signal(hup, before)
    received = []
    with on_signals(lambda number, frame: received.append(number)):
        os.kill(os.getpid(), hup)
    assert received == [hup]
    assert signal.getsignal(hup) is before


def test_a_signal_that_is_ignored_stays_ignored_as_nohup_wants(hup):
    signal.signal(hup, signal.SIG_IGN)
    received = []
    with on_signals(lambda number, frame: received.append(number)):
        os.kill(os.getpid(), hup)
        assert signal.getsignal(hup) is signal.SIG_IGN
    assert received == []
    assert signal.getsignal(hup) is signal.SIG_IGN


def test_a_handler_in_c_that_was_there_before_python_stays(hup, monkeypatch):
    """Python gives None for it, which it could not put back."""
    own = signal.getsignal(hup)
    monkeypatch.setattr("whatwhere.base.processes.signal.getsignal", lambda number: None)
    with on_signals(lambda number, frame: None):
        monkeypatch.undo()
        assert signal.getsignal(hup) is own
