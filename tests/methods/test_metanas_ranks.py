"""MetaNAS and LAMANAS under torchrun: the files of one process, whoever dies or is stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from engine.runs.checkpoints import CheckpointStore
from engine.search import main

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TINY = ["--channels", "2", "--cells", "2", "--ways", "3", "--train-shots", "3", "--queries", "1", "--meta-epochs", "3"]
TINY += ["--warm-up", "1", "--meta-batch", "3", "--steps", "2", "--batch", "4", "--test-steps", "2", "--eval-tasks", "2"]
TINY += ["--test-architecture-steps", "2", "--validation-tasks", "0", "--device", "cpu", "--quiet"]


def torchrun(name: str, step: int, *words: str, restarts: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    group = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    program = [str(HERE / "metanas_ranks_program.py"), name, str(step)]
    command = [sys.executable, "-m", "torch.distributed.run", *group, *program, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def left(out: Path) -> tuple[list[bytes], float]:
    accuracy = json.loads((out / "result.json").read_text())["accuracy"]
    return [(out / name).read_bytes() for name in ("config.toml", "metrics.jsonl", "genotype.json")], accuracy


def test_two_ranks_of_which_one_is_killed_leave_the_files_of_one(tmp_path: Path) -> None:
    words = ["lamanas", *TINY, "--proxy", "mse", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    done = torchrun("SIGKILL", 2, *words, str(tmp_path / "two"), restarts=1)
    assert done.returncode == 0, done.stderr
    assert left(tmp_path / "two") == left(tmp_path / "one")


def test_a_rank_that_is_asked_to_stop_stops_all_at_the_same_step(tmp_path: Path) -> None:
    """Asked while the test tasks are learned, where no tasks are dealt."""
    words = ["metanas", *TINY, "--out"]
    assert torchrun("SIGTERM", 3, *words, str(tmp_path / "two"), restarts=0).returncode
    saved = CheckpointStore(tmp_path / "two" / "checkpoints").newest({"metrics.jsonl": 10**9, "scores.jsonl": 10**9})
    assert saved is not None
    assert saved[1].state["step"] == 4
    assert main(["metanas", "--out", str(tmp_path / "two"), "--resume", "--quiet"]) == 0
    assert main([*words, str(tmp_path / "one")]) == 0
    assert left(tmp_path / "two") == left(tmp_path / "one")
