# SPDX-License-Identifier: Apache-2.0
"""Signals wait for a good moment, and leave no trace."""

from __future__ import annotations

import signal
import threading

import pytest

from yolo.engine.interrupt import SIGNALS, Interrupted, InterruptGuard, leave


@pytest.fixture(autouse=True)
def handlers():
    """Whatever a test does, the handlers of the process stay."""
    around = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before
    signal.signal(signal.SIGINT, around)


@pytest.mark.parametrize("number", SIGNALS)
def test_at_once_unless_deferred(number):
    with pytest.raises(Interrupted) as caught, InterruptGuard():
        signal.raise_signal(number)
    assert caught.value.number == number
    assert str(caught.value) in {"SIGINT", "SIGTERM"}


def test_deferred_waits_for_a_check_or_an_open_window():
    steps = []
    with InterruptGuard() as guard, guard.deferred():
        guard.check()
        signal.raise_signal(signal.SIGTERM)
        steps.append("the step is finished")
        with pytest.raises(Interrupted):
            guard.check()
        with pytest.raises(Interrupted), guard.allowed():
            steps.append("never")
    assert steps == ["the step is finished"]


def test_an_open_window_lets_signals_through_and_closes_again():
    with InterruptGuard() as guard, guard.deferred():
        with pytest.raises(Interrupted), guard.allowed():
            signal.raise_signal(signal.SIGINT)
        guard.noted = None
        signal.raise_signal(signal.SIGINT)
        assert guard.noted == signal.SIGINT


def test_a_second_signal_goes_where_it_would_have_gone():
    with InterruptGuard() as guard, guard.deferred():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with InterruptGuard() as guard:
        signal.raise_signal(signal.SIGINT)
        assert guard.noted is None
    assert signal.signal(signal.SIGINT, before) == signal.SIG_IGN


def test_other_threads_catch_nothing():
    seen = []

    def run():
        with InterruptGuard():
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_program_ends_with_128_and_the_signal_a_session_goes_on(monkeypatch):
    with pytest.raises(SystemExit) as caught:
        leave(signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    with pytest.raises(KeyboardInterrupt):
        leave(signal.SIGINT)
