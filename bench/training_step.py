"""A training step of a found cell's network, against the same step as networks are usually written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.measure import Case, measure, single_calls
from bench.networks import MEMORY_FORMATS
from bench.plain_cells import PlainNetwork
from bench.registry import Settings
from bench.rows import Row
from bench.timing import Call
from engine.evaluation.drop_path import drop_path_lanes
from engine.evaluation.sgd import SGD
from engine.methods.random_search import draw
from engine.runs.streams import stream
from engine.spaces.network import CellNetwork, build_network
from engine.spaces.space import FEW_SHOT
from engine.spaces.supernet import initialise

PLAIN = "plain modules"
ENGINE = "engine"
CLASSES, RATE, DECAY, DROPPED = 64, 0.02, 5e-4, 0.1


def rows(settings: Settings) -> Iterator[Row]:
    """One row a formulation and resolution."""
    for case in cases(settings):
        yield from measure(case, settings)


def cases(settings: Settings) -> Iterator[Case]:
    """The recipe's network of 5 cells and 48 channels, with drop-path, at 32 and at the published 84 pixels."""
    smoke = settings.scale == "smoke"
    cells, channels = (3, 8) if smoke else (5, 48)
    for size, samples in ((8, 2),) if smoke else ((32, 16), (84, 4)):
        yield Case(
            benchmark="training-step",
            configuration={"cells": cells, "channels": channels, "size": size, "samples": samples},
            build=partial(calls, cells, channels, size),
            samples=samples,
            warm_samples=2,
            methods=single_calls((PLAIN, ENGINE)),
            baselines=(PLAIN,),
            notes={PLAIN: "a rectifier an operation, drop-path inside operations, torch.optim.SGD"},
            memory=not smoke,
        )


def network(cells: int, channels: int) -> CellNetwork:
    """A random cell's network: two operations a node, as every search finds."""
    genotype = FEW_SHOT.genotype(draw(FEW_SHOT, seed=0, final_edges=2))
    found = build_network(genotype, channels=channels, cells=cells, classes=CLASSES)
    initialise(found, stream(0, "weights"))
    return found.train()


def calls(cells: int, channels: int, size: int, memory_format: str, samples: int) -> dict[str, Call]:
    """One step of each formulation on networks of the same weights; drop-path draws its own numbers in each."""
    layout = MEMORY_FORMATS[memory_format]
    images = torch.randn(samples, 3, size, size, generator=stream(0, "images")).contiguous(memory_format=layout)
    labels = torch.arange(samples) % CLASSES
    own = network(cells, channels).to(memory_format=layout)  # type: ignore[call-overload]
    plain = PlainNetwork(copy.deepcopy(own)).train()
    usual = torch.optim.SGD(plain.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY)
    sgd = SGD(own, momentum=0.9, nesterov=False, weight_decay=DECAY)
    return {PLAIN: partial(plain_step, plain, usual, images, labels), ENGINE: partial(step, own, sgd, images, labels)}


def plain_step(model: PlainNetwork, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Tensor:
    """Forward, backward and update."""
    optimiser.zero_grad()
    loss = cross_entropy(model(images, DROPPED), labels)
    loss.backward()
    optimiser.step()
    return loss.detach()


def step(model: CellNetwork, sgd: SGD, images: Tensor, labels: Tensor) -> Tensor:
    """The same as :class:`engine.evaluation.training.Trainer` does it."""
    lanes = drop_path_lanes(model, images, DROPPED, stream(0, "drop-path"))
    loss = cross_entropy(model.training_logits(images, lanes)[0], labels)
    loss.backward()
    sgd.step(RATE)
    return loss.detach()
