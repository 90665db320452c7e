"""NaN and infinities in training loops: found at their step, kept, and the step undone or the run ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.errors import NumericalError
from engine.runs.guard import nonfinite
from engine.runs.loop import steps
from engine.runs.run import Run
from engine.runs.signals import graceful


def descend(directory: Path, bad_at: int | None, value: float = torch.nan, how: Any = "stop") -> torch.Tensor:
    """Five steps of -1 on two weights, one of which becomes ``value`` in step ``bad_at``."""
    tensors = {"weights": torch.zeros(2), "count": torch.zeros(1, dtype=torch.int64)}
    weights = tensors["weights"]
    with Run.create(directory, "", {}) as run, graceful() as stop:
        run.nonfinite = how
        for step in steps(run, stop, lambda: ({}, tensors), start=0, total=5):
            weights.sub_(1)
            if step == bad_at:
                weights[1] = value
    return weights


def test_finite_steps_leave_nothing(tmp_path: Path) -> None:
    assert descend(tmp_path, None).tolist() == [-5.0, -5.0]
    assert not (tmp_path / "nonfinite.safetensors").exists()
    assert not (tmp_path / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_step_ends_the_run_and_is_kept(tmp_path: Path, value: float) -> None:
    with pytest.raises(NumericalError, match=r"step 3: weights\[1\] not finite .*nonfinite\.safetensors.*--nonfinite skip"):
        descend(tmp_path, 2, value)
    assert load_file(tmp_path / "nonfinite.safetensors")["weights"].isfinite().tolist() == [True, False]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"event": "nonfinite", "step": 2, "where": ["weights[1]"]}
    with Run.resume(tmp_path) as run:
        assert run.load() is None  # no checkpoint holds the bad state


def test_a_bad_step_is_undone_when_asked(tmp_path: Path) -> None:
    assert descend(tmp_path, 2, how="skip").tolist() == [-4.0, -4.0]
    assert load_file(tmp_path / "nonfinite.safetensors")["weights"].isfinite().tolist() == [True, False]
    with Run.resume(tmp_path) as run:
        loaded = run.load()
    assert loaded is not None
    assert loaded[0]["step"] == 5


def test_a_step_that_cannot_be_undone_ends_the_run(tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    with Run.create(tmp_path, "", {}) as run, graceful() as stop:
        run.nonfinite = "skip"
        loop = steps(run, stop, lambda: ({}, tensors), start=0, total=2)
        assert next(loop) == 0
        tensors["new"] = torch.full((1,), torch.nan)
        with pytest.raises(NumericalError, match=r"^step 1: new\[0\]"):
            next(loop)


def test_every_bad_tensor_is_named_with_its_first_place() -> None:
    bad = torch.zeros(2, 3, dtype=torch.bfloat16)
    bad[1, 0] = torch.inf
    tensors = {"a": torch.ones(3), "b": bad, "c": torch.tensor(torch.nan), "d": torch.tensor([1]), "e": torch.zeros(0)}
    assert nonfinite(tensors) == ["b[1, 0]", "c"]
    assert nonfinite({"big": torch.full((4,), 3e38)}) == []
    assert nonfinite({}) == []
