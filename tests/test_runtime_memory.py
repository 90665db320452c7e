"""Memory that runs out wherever a meta-gradient asks for some: fewer tasks at a time, the same result; elsewhere one line.

Candidate batches: tests/fuzz/test_fuzz_memory.py.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.faults import WORDS
from engine.errors import ConfigurationError
from engine.learning.outer import ManyTasks, Problem, looped, meta_gradient, vmapped
from engine.learning.tasks import Task
from engine.runs.streams import stream
from engine.search import main


class Short(TorchDispatchMode):
    """Raises at request number ``last`` for memory; counts them where that is None."""

    def __init__(self, last: int | None = None, error: Exception | None = None) -> None:
        super().__init__()
        self.last, self.error = last, error or torch.OutOfMemoryError("injected")
        self.requests = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        if any(isinstance(t, Tensor) and t.untyped_storage()._cdata not in given for t in tree_leaves(result)):
            self.requests += 1
            if self.requests == self.last:
                raise self.error
        return result


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=stream(0, "test-memory"))


def mlp_problem() -> tuple[Problem, dict[str, Tensor], Task]:
    labels = torch.arange(3).expand(2, 3)
    task = Task(noise(2, 3, 4), labels, noise(2, 3, 4) + 1, labels)
    params = {"a": noise(4, 5), "b": noise(5, 3)}
    return Problem(lambda p, x: torch.relu(x @ p["a"]) @ p["b"], {"a": 0.1, "b": 0.1}, 1, ("a", "b")), params, task


@pytest.mark.parametrize("way", [looped, vmapped])
def test_every_request_of_a_meta_gradient(way: Any) -> None:
    problem, params, task = mlp_problem()
    run: ManyTasks = way(problem)
    wanted = meta_gradient(run, params, task, chunk=1)
    with Short() as count:
        meta_gradient(run, params, task)
    gc.freeze()  # what the tests hold need not be looked at after every request
    for request in range(1, count.requests + 1):
        sizes: list[int] = []
        try:
            with Short(request):
                found = meta_gradient(run, params, task, halved=sizes.append)
        except torch.OutOfMemoryError:
            continue  # what collects the result of all tasks is not a chunk's
        assert sizes == [1]
        assert torch.equal(found.losses, wanted.losses)
        assert all(torch.equal(found.gradients[name], wanted.gradients[name]) for name in params)
    gc.unfreeze()


@pytest.mark.parametrize("method", ["darts", "metanas"])
def test_a_step_that_memory_does_not_hold_ends_in_one_line(method: str, tmp_path: Path) -> None:
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    words = [method, *WORDS[method].split(), "--quiet", "--device", "cpu", "--out", str(tmp_path)]
    with Short(2000, error), pytest.raises(ConfigurationError, match=r"^memory does not hold one step of .*lower"):
        main(words)
