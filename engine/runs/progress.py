"""How far a run is: a bar on a terminal, a line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

BAR_INTERVAL = 0.25
LINE_INTERVALS = ((60.0, 10.0), (float("inf"), 60.0))
# Fields of which the best so far is shown too, and what is better.
BETTER: dict[str, Callable[[float, float], float]] = {
    "accuracy": max,
    "validation_accuracy": max,
    "regions": max,
    "loss": min,
    "validation_loss": min,
    "condition": min,
}


class Progress:
    """Counts ``total`` evaluations and shows the count, speed, remaining time, peak memory and whatever is passed along.

    ``done`` is how many a resumed run starts from: they count, but not for the speed. Writes to ``stream`` (standard error).
    Calling :meth:`advance` costs under a microsecond except four times a second on a terminal and, elsewhere, every ten
    seconds in the first minute and once a minute from then on.
    """

    def __init__(
        self,
        total: int,
        title: str,
        quiet: bool = False,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.title = title
        self.done = done
        self._first = done
        self._clock = clock
        self._fields: dict[str, Any] = {}
        self._best: dict[str, float] = {}
        self._display = _display(quiet, sys.stderr if stream is None else stream, total, title)
        self._started = self._due = clock()

    def __enter__(self) -> Progress:
        self._started = self._clock()
        self._display.start()
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self._show()
        self._display.stop()

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Count ``n`` more evaluations; ``fields`` (``loss=3.79``) are shown from now on, by their names.

        Of those in :data:`BETTER` the best since this process began is shown beside; NaN is never the best.
        """
        self.done += n
        self._fields |= fields
        for name, value in fields.items():
            if name in BETTER and isinstance(value, int | float) and value == value:
                self._best[name] = BETTER[name](value, self._best.get(name, value))
        if self._clock() >= self._due:
            self._show()

    def note(self, text: str) -> None:
        """Show one line now, above the bar."""
        self._display.line(text)

    def _show(self) -> None:
        elapsed = self._clock() - self._started
        self._display.show(self.done, self.status(elapsed))
        self._due = self._clock() + self._display.interval(elapsed)

    def status(self, elapsed: float) -> str:
        """Return the line that is shown after ``elapsed`` seconds, without the title."""
        parts = [f"{self.done}/{self.total}"]
        fresh = self.done - self._first
        if fresh > 0 and elapsed > 0:
            left = max(self.total - self.done, 0) * elapsed / fresh
            parts += [f"{_significant(fresh / elapsed)}/s", f"{duration(left)} left" if left else duration(elapsed)]
        parts += [self._field(name, value) for name, value in self._fields.items()]
        return " · ".join([*parts, f"{_peak_memory() / 1e9:.2g} GB peak"])

    def _field(self, name: str, value: Any) -> str:
        """One field, with its best where that is another value."""
        text, best = f"{name.replace('_', ' ')} {_significant(value)}", self._best.get(name, value)
        return text if best == value or best != best else f"{text} (best {_significant(best)})"


class _Quiet:
    def start(self) -> None:
        """Nothing to show, so nothing to prepare."""

    def stop(self) -> None:
        """Nothing was shown, so nothing is left to clear."""

    def show(self, done: int, status: str) -> None:
        """Show nothing."""

    def line(self, text: str) -> None:
        """Show nothing."""

    def interval(self, elapsed: float) -> float:
        return float("inf")


class _Lines(_Quiet):
    def __init__(self, stream: TextIO, title: str) -> None:
        self._stream = stream
        self._title = title

    def show(self, done: int, status: str) -> None:
        self.line(f"{self._title}: {status}")

    def line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def interval(self, elapsed: float) -> float:
        return next(seconds for until, seconds in LINE_INTERVALS if elapsed < until)


class _Bar(_Quiet):
    def __init__(self, stream: TextIO, total: int, title: str) -> None:
        from rich import progress as bars
        from rich.console import Console

        self._console = Console(file=stream)
        columns = (
            bars.SpinnerColumn(),
            bars.TextColumn(title, markup=False),
            bars.BarColumn(bar_width=None),
            bars.TextColumn("{task.description}", markup=False),
        )
        # Two refreshes a second from rich's thread keep the spinner alive between slow batches.
        self._bars = bars.Progress(*columns, console=self._console, refresh_per_second=2, expand=True)
        self._task = self._bars.add_task("", total=total)

    def start(self) -> None:
        self._bars.start()

    def stop(self) -> None:
        self._bars.stop()

    def show(self, done: int, status: str) -> None:
        self._bars.update(self._task, completed=done, description=status)

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def interval(self, elapsed: float) -> float:
        return BAR_INTERVAL


def _display(quiet: bool, stream: TextIO, total: int, title: str) -> _Quiet:
    if quiet:
        return _Quiet()
    return _Bar(stream, total, title) if stream.isatty() else _Lines(stream, title)


def duration(seconds: float) -> str:
    """Return ``seconds`` for people: ``8.2 s``, ``4 min 05 s``, ``3 h 07 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _significant(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _peak_memory() -> int:
    """Return the peak bytes of this process, and of its GPU tensors if it has any."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak = max(peak, torch.cuda.max_memory_allocated())
    return peak
