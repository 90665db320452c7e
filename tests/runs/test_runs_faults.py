"""Damage and trouble by the hundred: checkpoints, disks that fill, folders that vanish or answer late, growth over time."""

from __future__ import annotations

import gc
import os
import random
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.cli import run_command
from engine.errors import ConfigurationError
from engine.runs.checkpoints import Checkpoint, CheckpointStore
from engine.runs.loop import SAVE_SECONDS, Pace
from engine.runs.run import Run

DAMAGES = 600


def test_hundreds_of_cut_and_flipped_checkpoints_all_fall_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    weights = torch.arange(200.0).reshape(10, 20)
    for step in range(2):
        store.save(Checkpoint({"step": step, "best": [0.5] * 20}, {"weight": weights + step}, {"scores.jsonl": 10 * step}))
    chance = random.Random(0)
    files = sorted((tmp_path / "000002").iterdir())
    whole = {path: path.read_bytes() for path in files}
    for _ in range(DAMAGES):
        path = chance.choice(files)
        content = bytearray(whole[path])
        place = chance.randrange(len(content))
        if chance.random() < 0.5:
            del content[place:]
        else:
            content[place] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        found = CheckpointStore(tmp_path).newest({"scores.jsonl": 100})
        assert found is not None
        directory, checkpoint, problems = found
        assert (directory.name, checkpoint.state["step"], len(problems)) == ("000001", 0, 1)
        assert str(tmp_path / "000002") in problems[0]
        assert torch.equal(checkpoint.tensors["weight"], weights)
        path.write_bytes(whole[path])
    assert CheckpointStore(tmp_path).newest({"scores.jsonl": 100})[0].name == "000002"  # type: ignore[index]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 4 kB, as on a disk or quota that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def count_up(run: Run, *, start: int, total: int) -> None:
    for step in range(start, total):
        run.append("scores.jsonl", {"step": step, "filling": "x" * 200})
        run.save({"step": step + 1})


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_is_said_and_the_last_checkpoint_is_whole(tmp_path: Path) -> None:
    with (
        Run.create(tmp_path, "", {}) as run,
        pytest.raises(ConfigurationError, match=r"scores\.jsonl: cannot be used \(File too"),
    ):
        count_up(run, start=0, total=30)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    with Run.resume(tmp_path) as run:
        state, _ = run.load() or ({}, {})
        assert state["step"] == (tmp_path / "scores.jsonl").read_text().count("\n") > 10
        count_up(run, start=state["step"], total=30)
    assert (tmp_path / "scores.jsonl").read_text().count("\n") == 30


def test_a_folder_that_vanishes_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"

    def command(_: object) -> int:
        with Run.create(out, "", {}) as run:
            count_up(run, start=0, total=2)
            shutil.rmtree(out)
            count_up(run, start=2, total=3)
        return 0

    assert run_command(command, []) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(out) in err


def test_checkpoints_take_at_most_a_hundredth_of_the_time_however_slow_the_disk() -> None:
    for cost in (0.004, 0.2, 3.0):
        now = 0.0
        pace = Pace(clock=lambda: now)  # noqa: B023 - called within this turn of the loop
        saving = working = 0.0
        while working < 600:
            now += 0.05
            working += 0.05
            if pace.due():
                now += cost
                saving += cost
                pace.saved()
        assert saving <= max(0.0101 * working + cost, (working / SAVE_SECONDS + 1) * cost)
        assert saving >= min(0.009 * working, working / SAVE_SECONDS * cost)


def test_a_slow_folder_slows_saving_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, syncs = os.fsync, []

    def slow(descriptor: int) -> None:
        time.sleep(0.02)
        syncs.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    with Run.create(tmp_path, "", {}) as run:
        pace, started = Pace(), time.monotonic()
        before = len(syncs)
        for step in range(200):
            run.append("scores.jsonl", {"step": step})
            if pace.due():
                run.save({"step": step + 1})
                pace.saved()
        assert time.monotonic() - started < 2, "two hundred steps do not wait for two hundred slow checkpoints"
    assert len(syncs) - before < 15


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_saving_for_long_grows_neither_memory_nor_descriptors(tmp_path: Path) -> None:
    tensors = {"weight": torch.zeros(20_000)}

    def turns(count: int) -> None:
        for step in range(count):
            run.append("scores.jsonl", {"step": step, "value": 0.1 * step})
            if step % 5 == 0:
                run.save({"step": step, "records": [[0.5, "ok"]] * 50}, tensors)

    with Run.create(tmp_path, "", {}) as run:
        turns(100)
        gc.collect()
        memory, descriptors = _resident(), len(os.listdir("/proc/self/fd"))
        turns(1000)
        gc.collect()
        # A thousand steps are what a search does in minutes: 100 kB of them would be megabytes an hour.
        assert _resident() - memory < 400_000
        assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(os.listdir(tmp_path / "checkpoints")) == 3
