"""A random cell: the baseline that any search must beat (MetaNTK-NAS, Table 2, "Random Cell")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from engine.methods.options import CellOptions
from engine.methods.scorer import load_images
from engine.runs.stopwatch import Stopwatch
from engine.runs.streams import stream
from engine.spaces.cost import count
from engine.spaces.space import Space, get_space

if TYPE_CHECKING:
    from engine.runs.run import Run


def search(options: CellOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Draw one genotype by address; see :func:`draw`."""
    run.load()
    watch = Stopwatch()
    space = get_space(options.space)
    data = load_images(options)
    channels_in, _, size = data.images.shape[1:]
    genotype = space.genotype(draw(space, options.seed, options.final_edges or space.edges_per_node))
    cost = count(
        genotype,
        channels=options.channels,
        cells=options.cells,
        size=size,
        classes=len(data.classes("train")),
        channels_in=channels_in,
        space=space,
    )
    seconds, cpu_seconds, _ = watch.read()
    return {
        "genotype": genotype,
        "evaluations": 0,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "parameters": cost.parameters,
        "flops": cost.flops,
    }


def plan(options: CellOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    return [("evaluations", "0: one genotype is drawn at random")]


def draw(space: Space, seed: int, final_edges: int) -> list[list[list[bool]]]:
    """A random discrete cell of each kind, as nested lists [kind][edge][operation].

    Every edge draws a strength for each operation it may carry and keeps the strongest; every node keeps its ``final_edges``
    strongest edges. This is the published draw (normal architecture parameters, argmax, top edges), uniform over operations.
    """
    alive = torch.tensor(space.alive())
    generator = stream(seed, "random-cell")
    strength = torch.randn(alive.shape, generator=generator).masked_fill(~alive, -torch.inf)
    best, chosen = strength.max(-1)
    picked = torch.zeros_like(alive)
    for kind in range(len(space.kinds)):
        for state in range(space.inputs, space.states):
            into = [e for e, (_, target) in enumerate(space.edges) if target == state and best[kind, e] > -torch.inf]
            for e in sorted(into, key=lambda e: float(best[kind, e]), reverse=True)[:final_edges]:
                picked[kind, e, chosen[kind, e]] = True
    return picked.tolist()
