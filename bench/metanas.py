"""One inner step of MetaNAS for a meta-batch: the stacked supernet against a plain module loop, one task at a time.

A step learns weights and architecture. ``alternating`` takes the architecture's gradient on one batch and the weights' on
another, as the plain loop and the published code do; ``simultaneous`` takes both from one batch (paper 002, Eq. 2), so its ratio
to the plain loop is also that of two algorithms.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.measure import Case, measure, single_calls
from bench.networks import MEMORY_FORMATS
from bench.plain_metanas import PlainMetaNAS
from bench.registry import Settings
from bench.rows import Row
from bench.timing import Call
from engine.learning.architecture_task import Moments, Supports, TaskLearner, TaskRule
from engine.learning.task_networks import SearchedNetwork
from engine.runs.streams import stream
from engine.spaces.metanas import Architecture, metanas_supernet
from engine.spaces.supernet import initialise

PLAIN = "plain module loop, alternating"
STACKED = "stacked, alternating"
SIMULTANEOUS = "stacked, simultaneous"
WAYS, THRESHOLD = 20, 0.01


def rows(settings: Settings) -> Iterator[Row]:
    """One row a method and width."""
    for case in cases(settings):
        yield from measure(case, settings)


def cases(settings: Settings) -> Iterator[Case]:
    """Omniglot's 28x28 at both published widths; smoke: tiny."""
    smoke = settings.scale == "smoke"
    tasks, images, size = (2, 4, 8) if smoke else (10, 20, 28)
    for channels in (2,) if smoke else (14, 28):
        yield Case(
            benchmark="metanas",
            configuration={
                "step": "weights and architecture",
                "channels": channels,
                "size": size,
                "tasks": tasks,
                "batch": images,
            },
            build=partial(calls, channels, tasks, size),
            samples=images,
            warm_samples=2,
            methods=single_calls((PLAIN, STACKED, SIMULTANEOUS)),
            baselines=(PLAIN,),
            memory=not smoke,
        )


def calls(channels: int, tasks: int, size: int, memory_format: str, samples: int) -> dict[str, Call]:
    """Everything that is measured, on the same images; the stacked supernet chooses its layout itself."""
    x = torch.rand(tasks, samples, 1, size, size, generator=stream(0, "images"))
    y = torch.arange(samples).remainder(WAYS).expand(tasks, -1)
    return {
        PLAIN: plain_step(channels, x, y, MEMORY_FORMATS[memory_format]),
        STACKED: stacked_step(channels, x, y, alternating=True),
        SIMULTANEOUS: stacked_step(channels, x, y, alternating=False),
    }


def plain_step(channels: int, x: Tensor, y: Tensor, memory_format: torch.memory_format) -> Call:
    """The loop over tasks on one network, as in published code: Adam on the architecture, then on the weights."""
    network = PlainMetaNAS(channels, x.shape[2], WAYS, THRESHOLD, memory_format)
    initialise(network, stream(0, "weights"), kaiming=False)
    network.to(memory_format=memory_format)
    optimisers = [
        torch.optim.Adam(network.architecture(), 1e-3, (0.0, 0.999), weight_decay=1e-3),
        torch.optim.Adam(network.weights(), 1e-3, (0.0, 0.999)),
    ]

    def step() -> None:
        for images, labels in zip(x, y, strict=True):
            for optimiser in optimisers:
                optimiser.zero_grad()
                F.cross_entropy(network(images, 1.0), labels).backward()
                optimiser.step()

    return step


def stacked_step(channels: int, x: Tensor, y: Tensor, *, alternating: bool) -> Call:
    """One step of the task learner for all tasks."""
    reference = metanas_supernet(channels=channels, outputs=WAYS, channels_in=x.shape[2])
    initialise(reference, stream(0, "weights"), kaiming=False)
    network = SearchedNetwork(reference, Architecture(threshold=THRESHOLD))
    start = network.stacked.pack(dict(reference.named_parameters())), torch.zeros(network.architecture.size)
    rule = TaskRule(steps=1, architecture_steps=1, t_min=1.0, alternating=alternating)
    given = Supports(x, y, lambda *_: None, lambda *_: stream(0, "unused"))
    return partial(TaskLearner(network).learn, start, Moments.zeros(*start), given, rule)
