"""Signals stop a run at safe points."""

from __future__ import annotations

import signal
import threading

import pytest

from engine.errors import Interrupted, Preempted
from engine.runs.signals import SIGNALS, graceful, leaving


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [(signal.SIGINT, Interrupted, 130), (signal.SIGTERM, Preempted, 75), (signal.SIGUSR1, Preempted, 75)],
)
def test_a_signal_is_raised_at_the_check(number: int, error: type[Interrupted | Preempted], code: int) -> None:
    with graceful() as stop:
        stop.check()
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        with pytest.raises(error, match="--resume") as caught:
            stop.check()
    assert caught.value.exit_code == code


def test_a_second_ctrl_c_stops_at_once() -> None:
    with graceful():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_still_waits() -> None:
    with graceful() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Preempted):
            stop.check()


def ctrl_c_twice(handler_before: object) -> None:
    assert signal.getsignal(signal.SIGINT) != handler_before
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def test_a_run_inside_another_shares_the_signal() -> None:
    """A comparison's runs: a signal between two of them, or after the last safe point of one, stops the next at once."""
    with graceful() as outer:
        signal.raise_signal(signal.SIGTERM)
        with graceful() as inner, pytest.raises(Preempted):
            inner.check()
    with graceful() as outer:
        with graceful():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            outer.check()


def test_the_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyboardInterrupt), graceful():
        ctrl_c_twice(before[0])
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_before_the_work_begins_a_signal_ends_the_command_with_the_code_of_a_preemption(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with leaving():
        with graceful() as stop, leaving():  # a command within another leaves the outer one's handlers alone
            signal.raise_signal(number)
            assert stop.requested
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(number)
    assert caught.value.code == 75
    assert capfd.readouterr().err == f"stopped by {number.name}; start the command again\n"
    assert signal.getsignal(number) == before


def test_in_another_thread_nothing_is_installed() -> None:
    seen = []

    def work() -> None:
        with graceful() as stop:
            seen.append(signal.getsignal(signal.SIGINT))
            stop.check()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
