"""Signals stop a run at safe points."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from engine.errors import Interrupted, Preempted
from engine.runs.signals import graceful


@pytest.mark.parametrize(("number", "error", "code"), [(signal.SIGINT, Interrupted, 130), (signal.SIGTERM, Preempted, 75)])
def test_a_signal_is_raised_at_the_check(number: int, error: type[Interrupted | Preempted], code: int) -> None:
    with graceful() as stop:
        stop.check()
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(error, match="--resume") as caught:
            stop.check()
    assert caught.value.exit_code == code


def test_a_second_ctrl_c_stops_at_once() -> None:
    with graceful(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_still_waits() -> None:
    with graceful() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Preempted):
            stop.check()


def test_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="inside"), graceful():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise RuntimeError("inside")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


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
