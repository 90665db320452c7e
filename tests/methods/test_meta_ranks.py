"""MAML and Meta-ticket under torchrun: the files of one process, whoever computes, dies or is stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine.runs.checkpoints import CheckpointStore
from engine.search import main

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
QUICK = ["--iterations", "8", "--validate-every", "4", "--validation-tasks", "30", "--test-tasks", "60", "--device", "cpu"]


def torchrun(ranks: int, *words: str, restarts: int = 1) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    group = ["--standalone", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    command = [sys.executable, "-m", "torch.distributed.run", *group, str(HERE / "meta_ranks_program.py"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def left(out: Path) -> tuple[str, bytes, dict[str, Any]]:
    result = json.loads((out / "result.json").read_text())
    times = ("seconds", "cpu_seconds")
    kept = {name: value for name, value in result.items() if name not in times}
    return (out / "config.toml").read_text(), (out / "metrics.jsonl").read_bytes(), kept


def test_two_ranks_of_which_one_is_killed_leave_the_files_of_one(tmp_path: Path) -> None:
    words = ["meta-ticket", "--compare", "meta-ticket+iterand,maml", *QUICK, "--task-chunk", "2", "--quiet", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    done = torchrun(2, "SIGKILL", "5", *words, str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    for run in ("meta-ticket+iterand-0", "maml-0"):
        assert left(tmp_path / "two" / run) == left(tmp_path / "one" / run)


def test_a_rank_that_is_asked_to_stop_stops_all_at_the_same_step(tmp_path: Path) -> None:
    words = ["maml", *QUICK, "--quiet", "--out"]
    assert torchrun(2, "SIGTERM", "5", *words, str(tmp_path / "two"), restarts=0).returncode
    saved = CheckpointStore(tmp_path / "two" / "checkpoints").newest({"metrics.jsonl": 10**9, "scores.jsonl": 10**9})
    assert saved is not None
    assert saved[1].state["step"] == 7  # steps 0 to 5, and the one in which rank 0 is told
    assert main(["maml", "--out", str(tmp_path / "two"), "--resume", "--quiet"]) == 0
    assert "task_chunk = 2" in left(tmp_path / "two")[0]  # what two ranks took each, which one process repeats
    assert main([*words, str(tmp_path / "one"), "--task-chunk", "2"]) == 0
    assert left(tmp_path / "two") == left(tmp_path / "one")
