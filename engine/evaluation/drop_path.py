"""Drop-path: an operation of a cell is left out for some images of a batch, as a mixture and not as a layer.

The weights of a cell's lane (design rule 1) are the dropped-out ones: 0 with probability p, else 1/(1 - p), drawn for each
image and for every operation but the identity (reference note section 7). So no module of the space knows about it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.spaces.cells import Cell, Lane, Term
from engine.spaces.network import CellNetwork
from engine.spaces.operations import Identity


def drop_path_lanes(network: CellNetwork, images: Tensor, probability: float, generator: torch.Generator) -> list[Lane]:
    """The lane of each cell for images (B, C, H, W); one draw of ``generator`` for all cells."""
    cells = [cell for cell in network.cells if isinstance(cell, Cell)]
    plain = [network.lanes[kind] for kind in network.kinds]
    dropped = [droppable(cell, lane) for cell, lane in zip(cells, plain, strict=True)]
    count = sum(map(len, dropped))
    draws = torch.rand(count, len(images), generator=generator, device=generator.device).to(images.device)
    weights = iter(((draws >= probability) / (1 - probability)).to(images.dtype)[:, :, None, None, None])
    return [_weighted(lane, chosen, weights) for lane, chosen in zip(plain, dropped, strict=True)]


def droppable(cell: Cell, lane: Lane) -> set[tuple[int, str]]:
    """(edge, operation) of everything in the cell but identities."""
    carried = ((e, name) for e, edge in enumerate(lane.edges) for name in edge)
    return {(e, name) for e, name in carried if not isinstance(cell.module(e, name), Identity)}


def _weighted(lane: Lane, chosen: set[tuple[int, str]], weights: Iterator[Tensor]) -> Lane:
    """The lane with the next of ``weights`` (B, 1, 1, 1) on every chosen operation."""
    return Lane(
        [
            {name: Term(next(weights)) if (e, name) in chosen else term for name, term in edge.items()}
            for e, edge in enumerate(lane.edges)
        ]
    )
