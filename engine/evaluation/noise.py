"""Cells of S4 in evaluation: an edge of noise adds fresh normal numbers in every pass, in the test too (RobustDARTS's code)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from engine.spaces.cells import Cell, Lane
from engine.spaces.darts import UNIT
from engine.spaces.draws import Draws
from engine.spaces.network import CellNetwork
from engine.spaces.stems import StridedStem


def has_units(network: nn.Module) -> bool:
    """Whether a network was built of a genotype with ones in the place of noise."""
    return isinstance(network, CellNetwork) and UNIT in network.space.operations


def noise_lanes(
    network: CellNetwork,
    images: Tensor,
    generator: Callable[..., torch.Generator],
    address: tuple[int | str, ...],
    lanes: Sequence[Lane] | None = None,
) -> list[Lane]:
    """The lane of each cell for images (B, C, H, W), or ``lanes`` (drop-path's), with noise on the ones.

    ``generator`` and ``address`` are those of :class:`~engine.spaces.draws.Draws`: a pass is repeated by its address.
    """
    draws = Draws(generator, address)
    plain = [network.lanes[kind] for kind in network.kinds] if lanes is None else lanes
    strided = isinstance(network.stem, StridedStem)
    size = [-(-n // 8) if strided else n // network.pool for n in images.shape[2:]]
    found = []
    for index, (cell, lane) in enumerate(zip(network.cells, plain, strict=True)):
        assert isinstance(cell, Cell)
        plan = cell.plan
        size = [-(-n // 2) for n in size] if plan.reduces else size
        found.append(draws.apply(lane, network.space, plan, index, images, (len(images), plan.channels, *size)))
    return found
