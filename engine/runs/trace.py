"""Named ranges for profilers, asked for explicitly and free otherwise."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from engine.errors import ConfigurationError

_NOTHING: AbstractContextManager[Any] = nullcontext()


class Tracer:
    """Names the phases of a step: ``with tracer.span("kernel"): ...``.

    ``nvtx`` marks ranges for Nsight Systems and needs the nvtx package; ``record`` marks them for ``torch.profiler``.
    ``Tracer()`` marks nothing and costs a tenth of a microsecond a span.
    """

    def __init__(self, *, nvtx: bool = False, record: bool = False) -> None:
        self._openers: list[Any] = []
        if nvtx:
            try:
                from nvtx import annotate
            except ImportError:
                raise ConfigurationError("nvtx ranges need the nvtx package; pip install 'nas-engine[profile]'") from None
            self._openers.append(annotate)
        if record:
            from torch.profiler import record_function

            self._openers.append(record_function)

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Return a context manager that marks its body as ``name``."""
        if not self._openers:
            return _NOTHING
        if len(self._openers) == 1:
            return self._openers[0](name)
        return _Together([opener(name) for opener in self._openers])


class _Together(AbstractContextManager[None]):
    """Several context managers as one."""

    def __init__(self, parts: list[AbstractContextManager[Any]]) -> None:
        self._parts = parts
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for part in self._parts:
            self._stack.enter_context(part)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
