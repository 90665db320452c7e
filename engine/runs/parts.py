"""Several trainings one after the other as one run, which can be stopped anywhere and gone on with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from engine.runs.guard import Guard
from engine.runs.loop import steps

if TYPE_CHECKING:
    from torch import Tensor

    from engine.runs.run import Run
    from engine.runs.signals import Stop

Saved = tuple[dict[str, Any], "dict[str, Tensor]"]


class Training(ABC):
    """Work in numbered steps."""

    @abstractmethod
    def advance(self, step: int) -> list[dict[str, Any]]:
        """Do step number ``step`` and return its lines of metrics.jsonl."""

    @abstractmethod
    def snapshot(self) -> Saved:
        """The state between two steps, JSON types and at least one tensor."""

    @abstractmethod
    def restore(self, saved: Saved) -> None:
        """Take a state over."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """What came out, after the last step: JSON types."""


@dataclass(frozen=True)
class Part:
    """One training of ``length`` steps; ``facts`` say which in every line of metrics.jsonl (nothing for a run of one part)."""

    facts: dict[str, Any]
    length: int
    build: Callable[[], Training]


def run_parts(parts: Sequence[Part], run: Run, stop: Stop, progress: Any, *, title: str) -> list[dict[str, Any]]:
    """Do all parts in order, or what a resumed run has left of them; returns their results.

    A part is built when its turn comes and dropped when it has ended, so one is in memory at a time. Checkpoints hold the results
    so far and the state of the part that is under way.
    """
    loaded = run.load()
    results: list[dict[str, Any]] = loaded[0]["results"] if loaded else []
    start = loaded[0]["step"] if loaded else 0
    ends = list(accumulate(part.length for part in parts))
    # Built before its first step, so that this one too can be undone.
    training: Training | None = parts[len(results)].build() if start < ends[-1] else None
    if training is not None and loaded and loaded[1]:
        training.restore(loaded)

    def snapshot() -> Saved:
        state, tensors = training.snapshot() if training is not None else ({}, {})
        return {**state, "results": results}, tensors

    with progress(ends[-1], title, done=start) as bar:
        for step in steps(run, stop, snapshot, start=start, total=ends[-1]):
            part, end = parts[len(results)], ends[len(results)]
            if training is None:
                training = part.build()
            lines = training.advance(step - end + part.length)
            for line in lines:
                run.append("metrics.jsonl", {**part.facts, **line})
            if step + 1 == end:
                Guard(run, training.snapshot).after(step)  # the loop's own sees only what comes after the part
                results.append(training.result())
                training = None
            shown = lines[-1] if lines else {}
            bar.advance(1, **{name: shown[name] for name in ("loss", "accuracy") if name in shown})
    return results
