"""Linear regions of all 126 single ablations of the thin supernet on 200 images, as one batch and one candidate at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bench.measure import Case, measure, single_calls
from bench.networks import MEMORY_FORMATS
from bench.registry import Settings
from bench.rows import Row
from bench.timing import Call
from engine.runs.streams import stream
from engine.scoring.regions import linear_regions
from engine.scoring.result import Score
from engine.spaces.mixture import full, uniform, without
from engine.spaces.operations import gated_relu
from engine.spaces.space import FEW_SHOT
from engine.spaces.supernet import Supernet, initialise

BASELINE = "one candidate at a time"


def rows(settings: Settings) -> Iterator[Row]:
    """One row a method."""
    for case in cases(settings):
        yield from measure(case, settings)


def cases(settings: Settings) -> Iterator[Case]:
    """The search's default: one batch of 200 random 3x3 patches."""
    alive = full(FEW_SHOT)
    count = 4 if settings.scale == "smoke" else int(alive.sum())
    samples = 20 if settings.scale == "smoke" else 200
    yield Case(
        benchmark="regions",
        configuration={"network": "thin supernet", "candidates": count, "size": 3, "samples": samples},
        build=partial(calls, count),
        samples=samples,
        warm_samples=2,
        methods=single_calls((BASELINE, "one batch", "one batch, 64-bit hashes")),
        baselines=(BASELINE,),
    )


def calls(count: int, memory_format: str, samples: int) -> dict[str, Call]:
    """Everything that is measured on the first ``count`` ablations."""
    alive = full(FEW_SHOT)
    ablated = without(alive, [tuple(index) for index in alive.nonzero().tolist()[:count]])
    model = Supernet(FEW_SHOT, cells=2, channels=1, outputs=1, channels_in=1, norm="batchstat", stem=False)
    initialise(model, stream(0, "weights"))
    patches = smooth_patches(samples).contiguous(memory_format=MEMORY_FORMATS[memory_format])
    return {
        BASELINE: partial(counted_one_by_one, model, patches, ablated),
        "one batch": partial(counted_together, model, patches, ablated, None),
        "one batch, 64-bit hashes": partial(counted_together, model, patches, ablated, 64),
    }


def smooth_patches(samples: int) -> Tensor:
    """Patches (N, 1, 3, 3) as natural images have them: a level, a slope and a little noise, so that not all patterns differ."""
    level, right, down = torch.randn(3, samples, 1, 1, 1, generator=stream(0, "patches"))
    noise = torch.randn(samples, 1, 3, 3, generator=stream(0, "noise"))
    ramp = torch.tensor([-1.0, 0.0, 1.0])
    return level + 0.1 * (right * ramp + down * ramp[:, None]) + 0.01 * noise


def counted_together(model: nn.Module, patches: Tensor, alive: Tensor, hash_bits: Any) -> list[float]:
    """All architectures ``alive`` (G, T, E, O) side by side in one forward pass."""
    mixture, groups = uniform(alive), len(alive)
    repeated = patches.repeat(groups, 1, 1, 1)
    found = linear_regions(model, repeated, groups=groups, forward=lambda net, x: net(x, mixture), hash_bits=hash_bits)
    return [score.value for score in ([found] if isinstance(found, Score) else found)]


def counted_one_by_one(model: nn.Module, patches: Tensor, alive: Tensor) -> list[float]:
    """One forward pass an architecture; its signs as one bool matrix, whose distinct rows are counted."""
    counts = []
    for row in alive:
        with torch.no_grad(), _Signs() as seen:
            model(patches, uniform(row))
        counts.append(float(len(torch.cat(seen.signs, 1).unique(dim=0))))
    return counts


class _Signs(TorchFunctionMode):
    """Keeps the sign of every rectified activation, (N, neurons) a call."""

    def __init__(self) -> None:
        super().__init__()
        self.signs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is gated_relu:
            self.signs.append((args[0] > 0).flatten(1))
        return func(*args, **(kwargs or {}))
