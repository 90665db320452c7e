"""The run directory: one writer, whole files, and the same bytes after any death."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigurationError
from engine.runs.checkpoints import CheckpointStore
from engine.runs.run import LOGS, Run

WRITER = """
import sys
from pathlib import Path
from engine.runs.run import Run

out, steps = Path(sys.argv[1]), int(sys.argv[2])
run = Run.resume(out) if (out / "config.toml").exists() else Run.create(out, "", {})
loaded = run.load()
step = loaded[0]["step"] if loaded else 0
while step < steps:
    for repeat in range(3):
        run.append("scores.jsonl", {"step": step, "repeat": repeat, "value": 1 / (1 + step + repeat)})
    run.append("metrics.jsonl", {"step": step})
    step += 1
    run.save({"step": step})
run.write_json("result.json", {"steps": step})
run.close()
"""


def start_writer(out: Path, steps: int = 10**9) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(out), str(steps)], cwd=Path(__file__).parents[2])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline


def create(out: Path) -> Run:
    return Run.create(out, "seed = 0\n", {"engine": "0"})


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    log = tmp_path / "scores.jsonl"
    for size in (0, 3_000, 5_000, 12_345, 20_000):
        writer = start_writer(tmp_path)
        wait_until(lambda size=size: log.exists() and log.stat().st_size > size)  # type: ignore[misc]
        os.kill(writer.pid, signal.SIGKILL)
        assert writer.wait(30) == -signal.SIGKILL
    steps = len(log.read_bytes().splitlines()) // 3 + 20
    assert start_writer(tmp_path, steps).wait(60) == 0
    records = [{"repeat": repeat, "step": step, "value": 1 / (1 + step + repeat)} for step in range(steps) for repeat in range(3)]
    assert log.read_bytes() == b"".join(json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in records)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(f'{{"step":{step}}}\n' for step in range(steps))


def test_resume_cuts_the_logs_back_to_the_checkpoint(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        run.append("scores.jsonl", {"step": 0})
        run.save({"step": 1})
        run.append("scores.jsonl", {"step": 1})
    with Run.resume(tmp_path / "run") as run:
        assert run.load() == ({"step": 1}, {})
        run.append("scores.jsonl", {"step": "again"})
    assert (run.directory / "scores.jsonl").read_text() == '{"step":0}\n{"step":"again"}\n'


def test_without_a_checkpoint_the_logs_start_empty(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        run.append("scores.jsonl", {"step": 0})
    with Run.resume(tmp_path / "run") as run:
        assert run.load() is None
    assert (run.directory / "scores.jsonl").read_bytes() == b""


def test_a_finished_run_keeps_its_logs(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        assert not run.finished
        run.save({})
        run.append("metrics.jsonl", {"event": "end"})
        run.write_json("result.json", {})
    with Run.resume(tmp_path / "run") as run:
        assert run.finished
        assert run.load() == ({}, {})
        with pytest.raises(ValueError, match="a finished or closed one takes no more"):
            run.append("metrics.jsonl", {})
    assert (run.directory / "metrics.jsonl").read_text() == '{"event":"end"}\n'


def test_writing_before_load_is_a_mistake(tmp_path: Path) -> None:
    create(tmp_path).close()
    with Run.resume(tmp_path) as run:
        with pytest.raises(ValueError, match=r"load\(\) a resumed run"):
            run.append("scores.jsonl", {})
        with pytest.raises(ValueError, match=r"load\(\) a resumed run"):
            run.save({})


def test_records_are_canonical_strict_json(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        run.append("scores.jsonl", {"b": math.nan, "a": [math.inf, -math.inf, 0.1], "c": {"y": 1, "x": (2,)}})
        line = (tmp_path / "scores.jsonl").read_text()
    assert line == '{"a":["inf","-inf",0.1],"b":"nan","c":{"x":[2],"y":1}}\n'


def test_write_json_keeps_the_order_of_keys(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        run.write_json("result.json", {"b": math.inf, "a": 1})
    assert (tmp_path / "result.json").read_text() == '{\n  "b": "inf",\n  "a": 1\n}\n'


@pytest.mark.parametrize("marker", ["config.toml", "result.json", "scores.jsonl", "checkpoints"])
def test_a_used_directory_is_refused(tmp_path: Path, marker: str) -> None:
    (tmp_path / marker).touch()
    with pytest.raises(ConfigurationError, match="already holds a run; add --resume or choose another --out"):
        create(tmp_path)
    assert not (tmp_path / "lock").exists()


def test_a_directory_with_other_files_is_fine(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    create(tmp_path).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.toml", "env.json", "metrics.jsonl", "notes.txt", "scores.jsonl"]


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_in_the_way(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file.*choose another --out"):
        create(tmp_path / out)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no run to resume"):
        Run.resume(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_a_read_only_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigurationError, match=r"Read-only file system.*choose another --out"):
        create(tmp_path / "run")


def test_one_writer(tmp_path: Path) -> None:
    with create(tmp_path), pytest.raises(ConfigurationError, match=rf"in use by process {os.getpid()} on "):
        Run.resume(tmp_path)
    Run.resume(tmp_path).close()


def test_the_lock_of_a_dead_process_holds_nobody_up(tmp_path: Path) -> None:
    writer = start_writer(tmp_path / "run")
    wait_until((tmp_path / "run/checkpoints").exists)
    with pytest.raises(ConfigurationError, match=f"in use by process {writer.pid} "):
        Run.resume(tmp_path / "run")
    writer.kill()
    writer.wait(30)
    assert (tmp_path / "run/lock").exists()
    Run.resume(tmp_path / "run").close()


def test_a_full_disk_at_any_write_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(tmp_path)
    run.append("scores.jsonl", {"step": 0})
    run.save({"step": 1})
    calls = failures = limit = 0

    def fragile(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > limit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        for name in ("write", "fsync", "replace", "mkdir"):
            patch.setattr(os, name, fragile(getattr(os, name)))
        while failures == limit:
            calls = 0
            try:
                run.append("scores.jsonl", {"step": 1})
                run.save({"step": 2})
            except ConfigurationError as error:
                assert "No space left on device" in str(error)  # noqa: PT017 - the loop ends when nothing fails
                failures += 1
            found = CheckpointStore(tmp_path / "checkpoints").newest(dict.fromkeys(LOGS, 10**6))
            assert found is not None
            assert (found[1].state["step"], found[2]) in ((1, []), (2, []))
            limit += 1
    assert failures > 8
    run.close()
    with Run.resume(tmp_path) as run:
        assert run.load() == ({"step": 2}, {})
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 0}
