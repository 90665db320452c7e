"""One paired round of candidates: scored as batches beside one supernet, and the published way, a pair of networks for each.

Seconds are for one candidate: a batch divided by its width, plus the supernet's evaluation, which is made once a repeat,
divided by the number of candidates. Memory is that of a whole batch. The published way scores another candidate at every
call.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import cycle

import torch
from torch import Tensor, nn

from bench import published
from bench.measure import Case, measure, single_calls
from bench.networks import images, supernet
from bench.peers import HAS_OPACUS, OPACUS_FORMATS, opacus_module
from bench.registry import Settings
from bench.rows import Row
from bench.timing import Call
from engine.methods.options import PruningOptions
from engine.methods.pruning import Candidate
from engine.scoring.ablations import bytes_per_architecture
from engine.scoring.condition import condition_number
from engine.scoring.kernels import gram, selects
from engine.scoring.meta import metantk
from engine.scoring.result import Score
from engine.spaces.mixture import full, uniform, without
from engine.spaces.space import FEW_SHOT
from engine.spaces.supernet import Supernet

OPACUS, HOOKS = "two networks, opacus", "two networks, opacus 0.14 rebuilt"
PUBLISHED = {**({OPACUS: opacus_module} if HAS_OPACUS else {}), HOOKS: published.hooked_module}
CANDIDATES = [Candidate(*index) for index in full(FEW_SHOT).nonzero().tolist()]

# Query and support images of a task: five ways, one of each a way.
PER_TASK = 5


def rows(settings: Settings) -> Iterator[Row]:
    """For each configuration a row of the engine's way and one of each form of the published way, per candidate."""
    for case in cases(settings):
        yield from measure(case, settings)


def cases(settings: Settings) -> Iterator[Case]:
    """The published resolution and tasks at 16 channels, the search's default shape, and with ``--full`` 48 channels too."""
    shapes = {"smoke": [(2, 16, 4, 1)], "default": [(5, 16, 32, 3), (5, 16, 8, 1)], "full": [(5, 48, 32, 3)]}
    chosen = shapes["default"] + shapes["full"] if settings.scale == "full" else shapes[settings.scale]
    for cells, channels, size, tasks in chosen:
        samples = 2 * PER_TASK * tasks
        width = min(len(CANDIDATES), settings.width or _default_width(cells, channels, size, samples))
        yield Case(
            benchmark="paired-round",
            configuration={"cells": cells, "channels": channels, "size": size, "samples": samples, "width": width},
            build=partial(calls, cells, channels, size, width),
            samples=samples,
            warm_samples=2 * PER_TASK,
            methods={**single_calls(tuple(PUBLISHED)), "one batch": {"batch": 1 / width, "supernet": 1 / len(CANDIDATES)}},
            baselines=tuple(PUBLISHED),
        )


def _default_width(cells: int, channels: int, size: int, samples: int) -> int:
    """As many candidates as the search takes into one batch unless told otherwise."""
    each = bytes_per_architecture(FEW_SHOT, cells=cells, channels=channels, size=size, samples=samples, itemsize=4)
    return max(1, PruningOptions().memory_bytes // each)


def calls(cells: int, channels: int, size: int, width: int, memory_format: str, samples: int) -> dict[str, Call]:
    """A pair the published way, with opacus where it is installed and with its formulation rebuilt; a batch; the supernet."""
    tasks = samples // (2 * PER_TASK)
    x = images(samples, size=size, memory_format=memory_format)
    model = supernet(FEW_SHOT, cells=cells, channels=channels, memory_format=memory_format)
    shape = {"cells": cells, "channels": channels, "tasks": tasks}

    def pair(watch: published.Watch) -> Call:
        ahead = cycle(CANDIDATES[:: len(CANDIDATES) // 7])
        return lambda: published.score_pair(next(ahead), x, watch, memory_format=memory_format, **shape)

    watches = {name: watch for name, watch in PUBLISHED.items() if name != OPACUS or memory_format in OPACUS_FORMATS}
    return {
        **{name: pair(watch) for name, watch in watches.items()},
        "batch": partial(score_batch, model, x, CANDIDATES[:width], tasks),
        "supernet": partial(score_batch, model, x, [], tasks),
    }


def score_batch(model: Supernet, x: Tensor, candidates: list[Candidate], tasks: int) -> list[Score]:
    """Condition number of each candidate's MetaNTK, or of the supernet's if there is none."""
    alive = without(full(FEW_SHOT), list(candidates)) if candidates else full(FEW_SHOT).unsqueeze(0)
    groups = len(alive)
    selected = selects("weights", model)

    def assign(name: str, parameter: nn.Parameter) -> str | None:
        return "theta" if selected(name, parameter) else None

    # Unlike `repeat`, `cat` keeps the memory format.
    theta = gram(model, (torch.cat([x] * groups), uniform(alive)), assign, groups=groups)["theta"]
    phi = metantk(theta.view(groups, len(x), len(x)), tasks=tasks, query=PER_TASK, support=PER_TASK, reg=published.REG)
    found = condition_number(phi)
    return found if isinstance(found, list) else [found]
