"""P-DARTS's discrete steps: which operations an edge keeps for the next stage, and the limit on skip connections. No torch here.

Source: reference note tetlo-darts, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engine.spaces.darts import Rows, discretise
from engine.spaces.genotype import Genotype
from engine.spaces.space import Space

Alive = list[list[list[bool]]]  # by kind, edge and operation


def restricted(space: Space, alive: Sequence[Sequence[Sequence[bool]]]) -> Space:
    """The space whose edges carry what is alive."""
    lists = {
        (kind, e): tuple(name for name, lives in zip(space.operations, row, strict=True) if lives)
        for kind, rows in zip(space.kinds, alive, strict=True)
        for e, row in enumerate(rows)
    }
    return replace(space, edge_operations=lists)


def drop_weakest(alive: Sequence[Sequence[Sequence[bool]]], strengths: Rows, keep: int) -> Alive:
    """The ``keep`` strongest operations of each edge that are ``alive``, "none" counted; of equals the first is dropped."""
    found: Alive = []
    for kind_alive, kind_strengths in zip(alive, strengths, strict=True):
        found.append([])
        for row, values in zip(kind_alive, kind_strengths, strict=True):
            living = sorted((o for o, lives in enumerate(row) if lives), key=lambda o: values[o])
            dropped = set(living[: max(0, len(living) - keep)])
            found[-1].append([lives and o not in dropped for o, lives in enumerate(row)])
    return found


def limit_skips(space: Space, strengths: Rows, most: int) -> Genotype:
    """Discretise so that the normal cell has at most ``most`` skip connections, if other operations can take their places.

    While there are more, the weakest of those chosen (of equals the first) counts as zero and the cell is read off anew.
    """
    kind, skip = space.kinds.index("normal"), space.operations.index("skip_connect")
    rows = [[list(row) for row in kind_rows] for kind_rows in strengths]
    while True:
        found = discretise(space, rows)
        chosen = [c for c in found["normal"].connections if c.operation == "skip_connect"]
        edges = sorted(space.edges.index((c.source, c.target)) for c in chosen)
        left = [e for e in edges if rows[kind][e][skip] > 0]
        if len(chosen) <= most or not left:
            return found
        weakest = min(left, key=lambda e: rows[kind][e][skip])
        rows[kind][weakest][skip] = 0.0


def candidates(space: Space, strengths: Rows) -> list[tuple[int, Genotype]]:
    """(limit, cell) for every limit on skip connections that changes the cell, from none to 0."""
    limit = space.nodes * space.edges_per_node
    found = [(limit, limit_skips(space, strengths, limit))]
    for most in range(limit - 1, -1, -1):
        genotype = limit_skips(space, strengths, most)
        if genotype != found[-1][1]:
            found.append((most, genotype))
    return found
