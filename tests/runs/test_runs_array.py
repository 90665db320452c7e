"""Commands as one SLURM array, with an executor that runs them here."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engine.errors import ConfigurationError
from engine.runs.array import Command, slurm_executor, submit

WORDS = "random --space bench.faults:TOY --cells 2 --device cpu --quiet --out"


class Here:
    """Runs pickled jobs in this process when the batch ends."""

    def __init__(self) -> None:
        self.jobs: list[bytes] = []
        self.batches = 0

    @contextmanager
    def batch(self) -> Iterator[None]:
        yield
        self.batches += 1

    def submit(self, fn: Any) -> int:
        self.jobs.append(pickle.dumps(fn))
        return len(self.jobs) - 1

    def results(self) -> list[int]:
        return [pickle.loads(job)() for job in self.jobs]


def command(out: Path, *words: str) -> list[str]:
    return ["search", *WORDS.split(), str(out), *words]


def test_commands_are_one_array_and_go_on_when_called_again(tmp_path: Path) -> None:
    here = Here()
    assert submit([command(tmp_path / "a"), command(tmp_path / "b", "--seed", "1")], here) == [0, 1]
    assert here.batches == 1
    assert here.results() == [0, 0]
    seeds = [json.loads((tmp_path / name / "result.json").read_text())["seed"] for name in "ab"]
    assert seeds == [0, 1]
    assert here.results() == [0, 0]  # nothing is left to do


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ([["serach", "--out", "a"]], "begin with one of search"),
        ([[]], "begin with one of search"),
        ([["search", "darts"]], "an --out of its own"),
        ([["search", "darts", "--out"]], "an --out of its own"),
        ([["search", "--out", "a"], ["search", "--seed", "1", "--out", "a"]], "--out a: several"),
    ],
)
def test_wrong_commands_are_refused_before_anything_is_submitted(commands: list[list[str]], message: str) -> None:
    here = Here()
    with pytest.raises(ConfigurationError, match=message):
        submit(commands, here)
    assert not here.jobs


def test_submitit_is_asked_for_and_told_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class AutoExecutor:
        def __init__(self, folder: Path) -> None:
            given["folder"] = folder

        def update_parameters(self, **parameters: Any) -> None:
            given.update(parameters)

    package: Any = ModuleType("submitit")
    package.AutoExecutor = AutoExecutor
    helpers: Any = ModuleType("submitit.helpers")
    helpers.DelayedSubmission = lambda function: ("again", function)
    monkeypatch.setitem(sys.modules, "submitit", package)
    monkeypatch.setitem(sys.modules, "submitit.helpers", helpers)
    slurm_executor(tmp_path, timeout_min=60)
    assert given == {"folder": tmp_path, "timeout_min": 60}
    own = Command(("search", "--out", "a"))
    assert own.checkpoint() == ("again", own)


def test_without_submitit_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigurationError, match=r"nas-engine\[slurm\]"):
        slurm_executor(tmp_path)
