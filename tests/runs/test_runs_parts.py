"""Several trainings as one run: every part in its turn, whatever stops it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from engine.runs.parts import Part, Saved, Training, run_parts
from engine.runs.run import Run


class Counter(Training):
    """Adds ``rate`` at every step."""

    built: ClassVar[list[int]] = []

    def __init__(self, rate: int) -> None:
        self.built.append(rate)
        self.rate, self.total, self.seen = rate, torch.zeros(1), [0]

    def advance(self, step: int) -> list[dict[str, Any]]:
        self.total += self.rate
        self.seen.append(step)
        return [{"step": step, "total": float(self.total)}]

    def snapshot(self) -> Saved:
        return {"seen": self.seen}, {"total": self.total}

    def restore(self, saved: Saved) -> None:
        self.seen, self.total = saved[0]["seen"], saved[1]["total"]

    def result(self) -> dict[str, Any]:
        return {"total": float(self.total), "seen": self.seen}


class Stopping:
    """Stops a run after so many steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left < 0

    def check(self) -> None:
        if self.left < 0:
            raise KeyboardInterrupt


class Bar:
    """Shows nothing."""

    def __init__(self, total: int, title: str, *, done: int) -> None:
        self.total, self.done = total, done

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.done <= self.total

    def advance(self, n: int, **fields: Any) -> None:
        self.done += n


PARTS = [Part({"rate": rate}, length, partial(Counter, rate)) for rate, length in ((1, 2), (10, 3), (100, 1))]


@pytest.mark.parametrize("after", range(6))
def test_a_stopped_run_ends_with_the_same_results(tmp_path: Path, after: int) -> None:
    with Run.create(tmp_path / "a", "", {}) as run, pytest.raises(KeyboardInterrupt):
        run_parts(PARTS, run, Stopping(after), Bar, title="steps")  # type: ignore[arg-type]
    Counter.built.clear()
    with Run.resume(tmp_path / "a") as run:
        found = run_parts(PARTS, run, Stopping(100), Bar, title="steps")  # type: ignore[arg-type]
    assert [part["total"] for part in found] == [2, 30, 100]
    assert [part["seen"][1:] for part in found] == [[0, 1], [0, 1, 2], [0]]
    assert len(Counter.built) == (3, 2, 2, 2, 1, 0)[after]  # what had ended is not built again
    lines = (tmp_path / "a/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert '"rate":100' in lines[-1]
