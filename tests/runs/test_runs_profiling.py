"""Named ranges and the profiler's window: free when off, nested as the run is when on."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from engine.errors import ConfigurationError
from engine.runs import profiling
from engine.runs.profiling import WARM_UP, Profiler, profiled, span, step_begins
from engine.search import main


def names(path: Path) -> list[str]:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    # In lower case: libkineto spells a range "kernel" as it does a category of its own.
    return [e["name"].lower() for e in sorted(events, key=lambda e: e["ts"]) if e.get("cat") == "user_annotation"]


class Marks:
    """A list of what was begun and ended, in the place of a profiler."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.seen.append(f"<{name}")
        yield
        self.seen.append(f"{name}>")

    mark = __call__

    def start(self) -> None:
        self.seen.append("start")

    def stop(self) -> None:
        self.seen.append("stop")


def steps(profiler: Profiler, count: int) -> None:
    with profiler.span("run"):
        for _ in range(count):
            profiler.step_begins()
            with profiler.span("step"):
                pass


def test_off_is_one_shared_object_and_makes_no_file(tmp_path: Path) -> None:
    assert span("a") is span("b")
    with profiled(tmp_path, "cpu"), span("a"), span("a"):
        step_begins()
        assert span("a") is span("b")
    assert not list(tmp_path.iterdir())


def test_ranges_are_marked_inside_each_other_and_closed_by_errors() -> None:
    marks = Marks()
    profiler = Profiler(marks)
    with pytest.raises(RuntimeError, match="inside"), profiler.span("outer"), profiler.span("inner"):
        raise RuntimeError("inside")
    steps(profiler, 1)
    assert marks.seen[:2] == ["<outer", "<inner"]
    assert marks.seen[-4:] == ["<run", "<step", "step>", "run>"]


def test_the_window_holds_its_steps_and_the_ranges_that_were_open() -> None:
    window = Marks()
    steps(Profiler(None, window, 2), WARM_UP + 4)
    step = ["<step", "step>"]
    assert window.seen == ["start", "<run", *step, *step, "run>", "stop"]


def test_a_range_that_ends_inside_the_window_ends_there() -> None:
    window = Marks()
    profiler = Profiler(None, window, 9)
    with profiler.span("round"):
        steps(profiler, WARM_UP + 1)
    profiler.close()
    profiler.close()
    assert window.seen == ["start", "<round", "<run", "<step", "step>", "run>", "round>", "stop"]


def test_a_window_writes_a_trace_of_ranges_and_operators(tmp_path: Path) -> None:
    with profiled(tmp_path, "cpu", steps=1), span("run"):
        for _ in range(WARM_UP + 3):
            step_begins()
            with span("step"):
                torch.ones(2).sum()
    assert names(tmp_path / "trace.json.gz") == ["run", "step"]
    assert profiling._active is None


def test_a_run_shorter_than_the_warm_up_says_that_nothing_was_profiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with profiled(tmp_path, "cpu", steps=5):
        step_begins()
    assert "--profile-steps" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_profiler_at_a_time(tmp_path: Path) -> None:
    with profiled(tmp_path, "cpu", steps=1), pytest.raises(ValueError, match="one profiler"), profiled(tmp_path, "cpu", steps=1):
        pass


def test_nvtx_on_a_cpu_takes_the_package_or_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = Marks()
    fake: Any = ModuleType("nvtx")
    fake.annotate = marks
    fake.__spec__ = object()
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    with profiled(tmp_path, "cpu", nvtx=True), span("data"):
        pass
    assert marks.seen == ["<data", "data>"]
    monkeypatch.setattr(profiling, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'nas-engine\[profile\]'"), profiled(tmp_path, "cpu", nvtx=True):
        pass


def test_a_search_names_its_phases(tmp_path: Path) -> None:
    words = "--space bench.faults:TOY --cells 2 --repeats 1 --width 4 --region-images 20 --quiet --profile-steps 2 --device cpu"
    assert main(["metantk-nas", *words.split(), "--out", str(tmp_path / "run")]) == 0
    found = names(tmp_path / "run" / "trace.json.gz")
    assert found[:3] == ["run", "round", "candidate batch"]
    assert found.count("candidate batch") == 2
    assert {"data", "kernel", "forward", "backward", "gram", "eigen", "regions"} < set(found)
    assert "profile_steps" not in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("maml --iterations 4 --validation-tasks 0 --test-tasks 2 --batch 2", ["run", "outer step", "task batch", "inner step"]),
        ("darts --cells 2 --channels 2 --epochs 1 --batch 4 --images 32", ["run", "outer step", "architecture step"]),
        (
            "metanas --channels 2 --cells 2 --ways 3 --train-shots 3 --meta-epochs 4 --meta-batch 1 --steps 2 --batch 4 "
            "--test-steps 4 --eval-tasks 1 --validation-tasks 0",
            ["run", "outer step", "inner step"],
        ),
    ],
)
def test_learning_names_its_steps(words: str, expected: list[str], tmp_path: Path) -> None:
    common = ["--quiet", "--profile-steps", "1", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main([*words.split(), *common]) == 0
    assert names(tmp_path / "run" / "trace.json.gz")[: len(expected)] == expected
