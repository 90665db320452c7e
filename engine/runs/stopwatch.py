"""Where the time of a run goes, by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from engine.runs.profiling import span


class Stopwatch:
    """Adds up wall seconds by phase name, and the wall and CPU seconds since it was started."""

    def __init__(self) -> None:
        self.phases: defaultdict[str, float] = defaultdict(float)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the ``with`` block as this phase's, and name it for profilers."""
        started = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            self.phases[name] += time.perf_counter() - started

    def read(self) -> tuple[float, float, dict[str, float]]:
        """Return wall seconds, CPU seconds and the wall seconds of each phase, rounded to milliseconds."""
        phases = {name: round(seconds, 3) for name, seconds in self.phases.items()}
        return round(time.perf_counter() - self._wall, 3), round(time.process_time() - self._cpu, 3), phases
