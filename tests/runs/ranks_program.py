"""The ranks of a torchrun group in test_runs_distribution.py: they reduce a meta-batch, or search while one of them dies."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from engine.methods import scorer
from engine.runs.distribution import Ranks, joined, mean_in_order
from engine.search import main

TASKS = 5


def task_gradients(task: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(task)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((3, 4), (7,))]


def meta_gradients(ranks: Ranks) -> list[torch.Tensor]:
    found = []
    for dtype in (torch.float32, torch.float64):
        like = task_gradients(0, dtype)
        own = {task: task_gradients(task, dtype) for task in ranks.part(TASKS)}
        found += mean_in_order(ranks, own, like, TASKS)
    return found


def die_once(limit: int, mark: Path) -> None:
    """Let rank 1 of the first attempt be killed after ``limit`` batches, leaving a ``mark``."""
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) != ("1", "0"):
        return
    found, seen = scorer.Scorer.found, iter(range(limit))

    def mortal(*args):
        if next(seen, None) is None:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return found(*args)

    scorer.Scorer.found = mortal


if __name__ == "__main__":
    out, limit, *words = sys.argv[1:]
    torch.set_num_threads(1)
    if limit == "reduce":
        with joined("cpu") as ranks:
            torch.save(meta_gradients(ranks), Path(out) / f"{ranks.rank}.pt")
    else:
        die_once(int(limit), Path(f"{out}.died"))
        sys.exit(main([*words, "--out", out]))
