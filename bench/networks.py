"""The networks and batches that benchmarks run on, drawn by address so that every process sees the same numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from engine.runs.streams import stream
from engine.spaces.mixture import Mixture, full, uniform
from engine.spaces.space import FEW_SHOT, Space
from engine.spaces.supernet import Supernet, initialise

OUTPUTS = 5
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

# One operation an edge, by index into the space's operations; every operation of the space occurs in both kinds of cell.
PATH = {"normal": (1, 4, 7, 3, 6, 2, 5, 1, 4), "reduction": (6, 2, 5, 1, 4, 7, 3, 6, 2)}


def space_of(network: str) -> Space:
    """``"supernet"``: the few-shot cell space; ``"path"``: the same with one operation an edge, so that no other is built."""
    if network == "supernet":
        return FEW_SHOT
    only = {(kind, edge): (FEW_SHOT.operations[o],) for kind, row in PATH.items() for edge, o in enumerate(row)}
    return replace(FEW_SHOT, name="single-path", edge_operations=only)


def supernet(space: Space, *, cells: int, channels: int, memory_format: str) -> Supernet:
    """A GroupNorm scoring network with Kaiming weights."""
    model: Any = Supernet(space, cells=cells, channels=channels, outputs=OUTPUTS)
    initialise(model, stream(0, "weights"))
    return model.to(memory_format=MEMORY_FORMATS[memory_format])  # a call that torch's stubs do not know, hence Any


def everything(space: Space) -> Mixture:
    """The mixture of all operations of a space."""
    return uniform(full(space))


def images(samples: int, *, channels: int = 3, size: int, memory_format: str) -> Tensor:
    """Gaussian images (N, C, H, W)."""
    drawn = torch.randn(samples, channels, size, size, generator=stream(0, "images"))
    return drawn.contiguous(memory_format=MEMORY_FORMATS[memory_format])
