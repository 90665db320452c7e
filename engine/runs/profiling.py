"""Named ranges for profilers, and the window of steps that a profiler is asked to look at. Free unless asked for.

The phases of a run mark themselves with :func:`span`, its steps with :func:`step_begins`, and :func:`profiled` says who listens:

    run > round > candidate batch > data, kernel (forward, backward > gram), eigen, regions
    run > outer step > task batch > inner step > op

What is listening is a fact of the process, not of a call: ranges are marked deep inside backward passes, on autograd's own
threads too. It changes no result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from engine.errors import ConfigurationError

TRACE_NAME = "trace.json.gz"
# Steps before the window opens: they load libraries, compile kernels and fill caches.
WARM_UP = 2

Mark = Callable[[str], AbstractContextManager[Any]]
_NOTHING: AbstractContextManager[Any] = nullcontext()


class Window(Protocol):
    """A profiler that is switched on for some steps."""

    def start(self) -> None:
        """Begin to record."""

    def mark(self, name: str) -> AbstractContextManager[Any]:
        """Mark a range while recording."""

    def stop(self) -> None:
        """End the recording and leave what was recorded."""


class TraceWindow:
    """A ``torch.profiler`` trace of ranges and operators on the CPU, written to ``path`` in the format of Perfetto."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._profile.start()

    def mark(self, name: str) -> AbstractContextManager[Any]:
        from torch.profiler import record_function

        return record_function(name)

    def stop(self) -> None:
        self._profile.stop()
        self._profile.export_chrome_trace(str(self.path))


class CudaWindow:
    """``cudaProfilerStart`` to ``cudaProfilerStop``, for ``nsys --capture-range=cudaProfilerApi`` and ``ncu``.

    With ``operators`` every torch operator in it is an NVTX range too.
    """

    def __init__(self, *, operators: bool) -> None:
        self.operators = operators
        self._inner = ExitStack()

    def start(self) -> None:
        import torch

        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        if self.operators:
            self._inner.enter_context(torch.autograd.profiler.emit_nvtx())

    def mark(self, name: str) -> AbstractContextManager[Any]:
        return _NOTHING

    def stop(self) -> None:
        import torch

        torch.cuda.synchronize()
        self._inner.close()
        torch.cuda.profiler.stop()


class Profiler:
    """Marks ranges with ``mark`` (None: not at all) and opens ``window`` for ``steps`` steps once :data:`WARM_UP` are done."""

    def __init__(self, mark: Mark | None, window: Window | None = None, steps: int = 0) -> None:
        self.mark, self.window, self.steps = mark, window, steps
        self.begun = 0
        self.recording = False
        self._open: list[tuple[str, ExitStack]] = []  # the ranges that are open, and their marks in the window

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Mark the body of a ``with`` statement; see :func:`span`."""
        marks = ExitStack()
        self._open.append((name, marks))
        try:
            if self.window is not None and self.recording:
                marks.enter_context(self.window.mark(name))
            with self.mark(name) if self.mark is not None else _NOTHING:
                yield
        finally:
            marks.close()
            self._open.pop()

    def step_begins(self) -> None:
        """Open or close the window where it is time to. Ranges that are open then begin, or end, with it."""
        if self.window is None:
            return
        if self.begun == WARM_UP:
            self.recording = True
            self.window.start()
            for name, marks in self._open:
                marks.enter_context(self.window.mark(name))
        elif self.begun == WARM_UP + self.steps:
            self.close()
        self.begun += 1

    def close(self) -> None:
        """Close the window if it is open."""
        if self.window is not None and self.recording:
            self.recording = False
            for _, marks in reversed(self._open):
                marks.close()
            self.window.stop()


_active: Profiler | None = None


def span(name: str) -> AbstractContextManager[Any]:
    """Name the body of a ``with`` statement: ``with span("forward"): ...``. Costs 0.3 microseconds where nobody listens."""
    return _NOTHING if _active is None else _active.span(name)


def step_begins() -> None:
    """Say that the next step of the run begins: a batch of candidates or an outer step, all of similar work."""
    if _active is not None:
        _active.step_begins()


@contextmanager
def profiled(directory: Path, device: str, *, nvtx: bool = False, steps: int = 0) -> Iterator[None]:
    """Let profilers see what happens inside the ``with`` statement; nothing at all without ``nvtx`` and ``steps``.

    ``nvtx`` marks ranges for Nsight: by ``torch.cuda.nvtx`` on a GPU, else by the nvtx package, without which it is a
    :class:`~engine.errors.ConfigurationError`. ``steps`` opens a window of so many steps after :data:`WARM_UP`: on a GPU the CUDA
    profiler's, on the CPU a ``torch.profiler`` trace, ``directory``/:data:`TRACE_NAME`. One at a time in a process.
    """
    global _active
    if not nvtx and not steps:
        yield
        return
    if _active is not None:
        raise ValueError("profiled: a process has one profiler at a time")
    profiler = _active = Profiler(_nvtx_mark(device) if nvtx else None, _window(directory, device, nvtx, steps), steps)
    try:
        yield
    finally:
        _active = None
        profiler.close()
        if steps and profiler.begun <= WARM_UP:
            print(
                f"note: --profile-steps: the run ended within its {WARM_UP} warm-up steps; nothing was profiled", file=sys.stderr
            )


def _nvtx_mark(device: str) -> Mark:
    if device == "cuda":
        from torch.cuda.nvtx import range as mark

        return mark
    if find_spec("nvtx") is None:
        remedy = "pip install 'nas-engine[profile]', or leave it out and take --profile-steps"
        raise ConfigurationError(f"--nvtx: on a CPU ranges need the nvtx package; {remedy}")
    from nvtx import annotate

    return annotate


def _window(directory: Path, device: str, nvtx: bool, steps: int) -> Window | None:
    if not steps:
        return None
    return CudaWindow(operators=nvtx) if device == "cuda" else TraceWindow(directory / TRACE_NAME)
