"""One paired round of candidates: scored as batches beside one supernet, and the published way, a pair of networks for each.

Seconds are for one candidate: a batch divided by its width, plus the supernet's evaluation, which is made once a repeat,
divided by the number of candidates. The published way scores another candidate at every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import cycle

from torch import Tensor, nn

from bench import published
from bench.measure import Case, measure
from bench.networks import images, supernet
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

BASELINE = "two networks a candidate"
CANDIDATES = [Candidate(*index) for index in full(FEW_SHOT).nonzero().tolist()]

# Query and support images of a task: five ways, one of each a way.
PER_TASK = 5


def rows(settings: Settings) -> Iterator[Row]:
    """Two rows a configuration: per candidate, the published way and the engine's."""
    for case in cases(settings):
        yield from measure(case, settings)


def cases(settings: Settings) -> Iterator[Case]:
    """The published resolution and tasks at 16 channels, the search's default shape, and with ``--full`` 48 channels too."""
    shapes = {"smoke": [(2, 16, 4, 1)], "default": [(5, 16, 32, 3), (5, 16, 8, 1)], "full": [(5, 48, 32, 3)]}
    chosen = shapes["default"] + shapes["full"] if settings.scale == "full" else shapes[settings.scale]
    for cells, channels, size, tasks in chosen:
        samples = 2 * PER_TASK * tasks
        width = settings.width or _default_width(cells, channels, size, samples)
        yield Case(
            benchmark="paired-round",
            configuration={"cells": cells, "channels": channels, "size": size, "samples": samples, "width": width},
            build=partial(calls, cells, channels, size, width),
            samples=samples,
            warm_samples=2 * PER_TASK,
            methods={BASELINE: {"pair": 1.0}, "one batch": {"batch": 1 / width, "supernet": 1 / len(CANDIDATES)}},
            baseline=BASELINE,
            notes={BASELINE: f"gradients by {published.SOURCE}"},
        )


def _default_width(cells: int, channels: int, size: int, samples: int) -> int:
    """As many candidates as the search takes into one batch unless told otherwise."""
    each = bytes_per_architecture(FEW_SHOT, cells=cells, channels=channels, size=size, samples=samples, itemsize=4)
    return max(1, min(len(CANDIDATES), PruningOptions().memory_bytes // each))


def calls(cells: int, channels: int, size: int, width: int, memory_format: str, samples: int) -> dict[str, Call]:
    """A pair the published way, a batch of candidates, and the supernet."""
    tasks = samples // (2 * PER_TASK)
    x = images(samples, size=size, memory_format=memory_format)
    model = supernet(FEW_SHOT, cells=cells, channels=channels, memory_format=memory_format)
    ahead = cycle(CANDIDATES[:: len(CANDIDATES) // 7])
    shape = {"cells": cells, "channels": channels, "tasks": tasks}
    return {
        "pair": lambda: published.score_pair(next(ahead), x, memory_format=memory_format, **shape),
        "batch": partial(score_batch, model, x, CANDIDATES[:width], tasks),
        "supernet": partial(score_batch, model, x, [], tasks),
    }


def score_batch(model: Supernet, x: Tensor, candidates: list[Candidate], tasks: int) -> list[Score]:
    """Condition number of each candidate's MetaNTK, or of the supernet's where there is none."""
    alive = without(full(FEW_SHOT), list(candidates)) if candidates else full(FEW_SHOT).unsqueeze(0)
    groups = len(alive)
    selected = selects("weights", model)

    def assign(name: str, parameter: nn.Parameter) -> str | None:
        return "theta" if selected(name, parameter) else None

    repeated = x.repeat(groups, 1, 1, 1)
    theta = gram(model, (repeated, uniform(alive)), assign, groups=groups)["theta"]
    phi = metantk(theta.view(groups, len(x), len(x)), tasks=tasks, query=PER_TASK, support=PER_TASK, reg=published.REG)
    found = condition_number(phi)
    return found if isinstance(found, list) else [found]
