"""Tasks of an outer step dealt to the ranks of a process group."""

from __future__ import annotations

import torch
from torch import distributed

from engine.errors import ConfigurationError
from engine.learning.flat import Layout
from engine.learning.inner import Params
from engine.learning.outer import ManyTasks, Sums
from engine.learning.tasks import Task


def over_ranks(run: ManyTasks, group: distributed.ProcessGroup | None = None) -> ManyTasks:
    """``run`` on this rank's tasks, summed over the ranks: every rank returns what ``run`` on all tasks returns, up to rounding.

    All ranks call it with the same parameters and the same T tasks, T at least the number of ranks; rank r takes the tasks
    T r / world to T (r + 1) / world. One sum over the ranks of the meta-parameters' size, one of the outputs'.
    """

    def shared(params: Params, tasks: Task) -> Sums:
        world, rank, total = distributed.get_world_size(group), distributed.get_rank(group), len(tasks.support_y)
        if total < world:
            raise ConfigurationError(f"{total} tasks cannot be dealt to {world} ranks; give each outer step at least {world}")
        mine = slice(total * rank // world, total * (rank + 1) // world)
        found = run(params, tasks.take(mine))
        layout = Layout.of(found.gradients)
        gradient = layout.pack(found.gradients)
        facts = torch.cat([found.losses.unsqueeze(1), found.outputs.flatten(1)], dim=1)
        every = facts.new_zeros(total, facts.shape[1])
        every[mine] = facts
        for buffer in (gradient, every):
            distributed.all_reduce(buffer, group=group)
        outputs = every[:, 1:].unflatten(1, found.outputs.shape[1:])
        return Sums(layout.views(gradient), every[:, 0], outputs)

    return shared
