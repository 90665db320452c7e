"""Ctrl-C and preemption at safe points only."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from engine.errors import Interrupted, Preempted

# Ctrl-C; the end of a preempted job; the warning that SLURM sends some time before a job's end (``sbatch --signal=USR1@120``).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Whether somebody asked the run to stop. Ask with :meth:`check` where everything worth keeping has been saved."""

    def __init__(self) -> None:
        self._signal: int | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._signal is not None

    def check(self) -> None:
        """Raise :class:`Interrupted` (exit 130) after SIGINT, :class:`Preempted` (exit 75) after another, else return."""
        if self._signal == signal.SIGINT:
            raise Interrupted("stopped by Ctrl-C; the work is saved, continue with --resume")
        if self._signal is not None:
            name = signal.Signals(self._signal).name
            raise Preempted(f"stopped by {name}; the work is saved, continue with --resume")

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is None and number == signal.SIGINT:
            # os.write, because print is not safe inside a handler that may have interrupted a print.
            os.write(2, b"\nstopping at the next safe point; Ctrl-C again stops at once\n")
        self._signal = number


@contextmanager
def graceful() -> Iterator[Stop]:
    """Let :data:`SIGNALS` ask for a stop instead of stopping; a second SIGINT raises ``KeyboardInterrupt`` at once.

    The handlers that were there come back at the end. A run inside another (of a comparison) shares what was asked for: it
    stops for a signal that came before it began, and the outer one for a signal that came too late for it. Python handles
    signals in the main thread only, so in any other thread the yielded :class:`Stop` never asks for anything.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    outer = next((owner for handler in before.values() if isinstance(owner := getattr(handler, "__self__", None), Stop)), None)
    if outer is not None:
        stop._signal = outer._signal
    try:
        for number in before:
            signal.signal(number, stop._handle)
        yield stop
    finally:
        if outer is not None:
            outer._signal = stop._signal
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def leaving() -> Iterator[None]:
    """Where nothing is under way that is worth saving, let SIGTERM and SIGUSR1 end the command at once, with the code of a
    preemption.

    A signal that arrives while torch is still being imported would otherwise kill the process with a code that no job script
    takes for a preemption. :func:`graceful` takes over inside; handlers that others have set stay.
    """

    def leave(number: int, _: FrameType | None) -> None:
        os.write(2, f"stopped by {signal.Signals(number).name}; start the command again\n".encode())
        raise SystemExit(Preempted.exit_code)

    free = threading.current_thread() is threading.main_thread()
    mine = [n for n in SIGNALS if free and n != signal.SIGINT and signal.getsignal(n) == signal.SIG_DFL]
    try:
        for number in mine:
            signal.signal(number, leave)
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
