"""Work shared by ranks: every result once and in order, whoever computed it, and the same files for any number of them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from ranks_program import TASKS, meta_gradients, task_gradients
from torch.distributed import HashStore

from engine.errors import ConfigurationError, Preempted
from engine.runs import distribution
from engine.runs.config import restarted
from engine.runs.distribution import ALONE, Ranks, mean_in_order
from engine.search import main

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOY = ["--space", "toy_space:TOY", "--cells", "2", "--repeats", "1", "--region-images", "30", "--quiet", "--width", "2"]


def together(world: int, program) -> list:
    """What ``program(ranks)`` returns on each of ``world`` ranks, which are threads here; an exception is returned too."""
    store, found = HashStore(), [None] * world

    def run(rank: int) -> None:
        try:
            found[rank] = program(Ranks(rank, world, store))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a rank hangs"
    return found


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_sees_every_result_once_and_in_order(world: int) -> None:
    done: list[int] = []

    def work(number: int) -> dict[str, float]:
        time.sleep(0.002 * (number % 5))
        done.append(number)
        return {"value": number / 3}

    def program(ranks: Ranks) -> list[list[dict[str, float]]]:
        return [list(ranks.deal(label, 20, work)) for label in ("first", "second")]

    expected = [[{"value": number / 3} for number in range(20)]] * 2
    assert together(world, program) == [expected] * world
    assert sorted(done) == sorted([*range(20)] * 2), "nothing is computed twice"


def test_uneven_costs_are_balanced() -> None:
    taken: dict[int, list[int]] = {0: [], 1: []}

    def program(ranks: Ranks) -> None:
        def work(number: int) -> int:
            taken[ranks.rank].append(number)
            time.sleep(0.3 if ranks.rank == 0 else 0.005)
            return number

        assert list(ranks.deal("uneven", 30, work)) == list(range(30))

    together(2, program)
    assert len(taken[0]) <= 3
    assert len(taken[1]) >= 27


def test_what_a_hanging_rank_took_is_computed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "PATIENCE_SECONDS", 0.2)
    over = threading.Event()

    def program(ranks: Ranks) -> list[int]:
        def work(number: int) -> int:
            if ranks.rank == 1:
                over.wait(10)
            return number * number

        found = list(ranks.deal("hang", 6, work))
        over.set()
        return found

    started = time.monotonic()
    assert together(2, program) == [[number * number for number in range(6)]] * 2
    assert time.monotonic() - started < 5


def test_a_stop_is_obeyed_while_waiting_for_others() -> None:
    class Stop:
        def check(self) -> None:
            if over.is_set():
                raise Preempted("stop")

    over = threading.Event()

    def program(ranks: Ranks) -> list[int]:
        if ranks.rank == 1:  # takes a number and is never heard of again
            ranks._take("label")
            over.set()
            return []
        over.wait(10)
        return list(ranks.deal("label", 3, lambda number: number, Stop()))  # type: ignore[arg-type]

    found = together(2, program)
    assert isinstance(found[0], Preempted)


def test_the_value_of_rank_0_is_shared() -> None:
    assert together(3, lambda ranks: ranks.share("name", {"rank": ranks.rank})) == [{"rank": 0}] * 3
    assert ALONE.share("name", "own") == "own"


def test_tasks_are_parted_by_their_number() -> None:
    parts = [list(Ranks(rank, 3).part(7)) for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4], [2, 5]]


def test_the_mean_alone_is_the_plain_mean_and_refuses_foreign_tasks() -> None:
    own = {task: task_gradients(task, torch.float64) for task in range(TASKS)}
    for i, mean in enumerate(mean_in_order(ALONE, own, own[0], TASKS)):
        torch.testing.assert_close(mean, torch.stack([own[task][i] for task in own]).mean(0), rtol=1e-14, atol=1e-14)
    with pytest.raises(ValueError, match=r"tasks \[0\] are not those of rank 0, \[0, 1\]"):
        mean_in_order(ALONE, {0: own[0]}, own[0], 2)
    with pytest.raises(ValueError, match="at least one task"):
        mean_in_order(ALONE, {}, own[0], 0)


def torchrun(ranks: int, *words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, HERE, ROOT / "tests/methods")))}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--max-restarts", "1"]
    done = subprocess.run(
        [sys.executable, *launcher, str(HERE / "ranks_program.py"), *words],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_meta_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    torchrun(2, str(tmp_path), "reduce")
    expected = meta_gradients(ALONE)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(found) == 4
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), "not even rounding may differ"


def test_two_processes_of_which_one_is_killed_leave_the_files_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests/methods"))
    assert main([*TOY, "--out", str(tmp_path / "one")]) == 0
    torchrun(2, str(tmp_path / "two"), "7", *TOY)
    assert (tmp_path / "two.died").exists()
    for name in ("scores.jsonl", "genotype.json", "config.toml"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def test_a_restarted_group_resumes_the_run_of_the_attempt_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--out", str(tmp_path), "--seed", "1"]
    (tmp_path / "config.toml").touch()
    assert restarted(words) == words
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert restarted(words) == [*words, "--resume"]
    assert restarted([*words, "--resume"]) == [*words, "--resume"]
    (tmp_path / "config.toml").unlink()
    assert restarted(words) == words, "the attempt before had not begun"


@pytest.fixture
def group_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("group_of_two")
def test_a_group_is_refused_where_it_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="random computes in one process; start it without torchrun"):
        main(["random", "--out", str(tmp_path / "run")])
    with pytest.raises(ConfigurationError, match="--out: give the run directory"):
        main(["linear-regions"])


@pytest.mark.usefixtures("group_of_two")
def test_a_world_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ConfigurationError, match="WORLD_SIZE: 'many' is not a number of processes"):
        distribution.world_size()
