"""One and two ranks compute the same outer gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.func import functional_call

from engine.errors import ConfigurationError
from engine.learning.masked_mlp import mlp_batch
from engine.learning.outer import ManyTasks, Problem, meta_gradient
from engine.learning.ranks import over_ranks
from engine.learning.tasks import Task
from engine.runs.streams import stream
from engine.spaces.networks import MLP, initialise


def made() -> tuple[ManyTasks, dict[str, torch.Tensor], Task]:
    model = MLP(6, (5,), 3)
    initialise(model, stream(0, "ranks"))
    params = {name: value.detach() for name, value in model.named_parameters()}
    problem = Problem(lambda p, x: functional_call(model, p, (x,)), dict.fromkeys(params, 0.3), 1, tuple(params))
    x = torch.rand(2, 3, 6, 6, generator=stream(0, "ranks-tasks"))
    labels = (torch.arange(6) % 3).expand(3, 6).contiguous()
    return mlp_batch(problem, model), params, Task(x[0], labels, x[1], labels)


def work(rank: int, place: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=2)
    run, params, tasks = made()
    found = meta_gradient(over_ranks(run), params, tasks)
    torch.save((found.gradients, found.losses, found.outputs), f"{place}/{rank}.pt")
    with pytest.raises(ConfigurationError, match="1 tasks cannot be dealt to 2 ranks"):
        over_ranks(run)(params, tasks.take(slice(0, 1)))
    distributed.destroy_process_group()


def test_two_ranks_agree_with_one(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    run, params, tasks = made()
    alone = meta_gradient(run, params, tasks)
    for rank in range(2):
        gradients, losses, outputs = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(losses, alone.losses)
        torch.testing.assert_close(outputs, alone.outputs)
        for name, value in alone.gradients.items():
            torch.testing.assert_close(gradients[name], value, rtol=1e-5, atol=1e-6)
