"""The resumable loop: what it saves when, and that a stop never loses a step."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from engine.errors import Preempted
from engine.runs.loop import steps
from engine.runs.run import Run
from engine.runs.signals import graceful


def count_up(run: Run, total: int, *, stop_after: int | None = None, seconds: float = 1e9) -> torch.Tensor:
    """Add the numbers of the steps, resuming from the checkpoint; ends itself by SIGTERM inside one step."""
    loaded = run.load()
    state, tensors = loaded or ({"step": 0}, {"sum": torch.zeros(())})
    total_sum = tensors["sum"]
    with graceful() as stop:
        for step in steps(run, stop, lambda: ({}, tensors), start=state["step"], total=total, seconds=seconds):
            total_sum += step
            run.append("metrics.jsonl", {"step": step})
            if step == stop_after:
                signal.raise_signal(signal.SIGTERM)
    return total_sum


def test_a_stopped_loop_goes_on_with_the_next_step(tmp_path: Path) -> None:
    with Run.create(tmp_path, "", {}) as run, pytest.raises(Preempted):
        count_up(run, 10, stop_after=3)
    with Run.resume(tmp_path) as run:
        assert count_up(run, 10).item() == sum(range(10))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == [f'{{"step":{step}}}' for step in range(10)]


def test_a_finished_loop_has_nothing_left_to_do(tmp_path: Path) -> None:
    with Run.create(tmp_path, "", {}) as run:
        count_up(run, 4)
    with Run.resume(tmp_path) as run:
        assert run.load() is not None
        assert count_up(run, 4).item() == 6


@pytest.mark.parametrize(("seconds", "saves"), [(1e9, 1), (0.0, 5), (2.0, 3)])
def test_checkpoints_come_as_often_as_asked(tmp_path: Path, seconds: float, saves: int) -> None:
    ticks = iter(range(100))
    with Run.create(tmp_path, "", {}) as run, graceful() as stop:
        for _ in steps(run, stop, lambda: ({}, {}), start=0, total=5, seconds=seconds, clock=lambda: float(next(ticks))):
            pass
    assert [path.name for path in run._checkpoints.numbered()][:1] == [f"{saves:06d}"]
