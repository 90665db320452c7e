"""The DARTS space: its supernet's table, sub-spaces S1 to S4, discretisation and published cells. No torch here.

Sources: reference note tetlo-darts, sections 1, 5 and 7. A cell of a sub-space is a cell of ``darts`` and is written as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engine.errors import ConfigurationError
from engine.spaces.genotype import CellGenotype, Connection, Genotype
from engine.spaces.space import DARTS, Space

# In the supernet a norm follows each pool; in discretised networks there is none. Noise is a factor of ones there.
_NORMALISED = {"max_pool_3x3": "max_pool_3x3BN", "avg_pool_3x3": "avg_pool_3x3BN"}
NOISE, UNIT = "noise", "unit"
AUXILIARY = "auxiliary_skip"

Rows = Sequence[Sequence[Sequence[float]]]  # by kind, edge and operation

_SHORT = {
    "sk": "skip_connect",
    "s3": "sep_conv_3x3",
    "s5": "sep_conv_5x5",
    "d3": "dil_conv_3x3",
    "d5": "dil_conv_5x5",
    "mp": "max_pool_3x3",
    "ap": "avg_pool_3x3",
}
_S1 = {
    "normal": "sk d3|sk d5|sk d5|sk s3|sk d3|mp sk|sk s3|sk s3|sk d3|sk s3|mp sk|sk d3|d3 d5|d3 d5",
    "reduction": "mp ap|mp d3|mp ap|mp ap|sk d5|mp ap|mp s3|sk d3|sk d5|mp ap|mp ap|sk d5|sk d5|sk d5",
}


def _restricted(rows: dict[str, list[tuple[str, ...]]], space: Space = DARTS) -> Space:
    edges = {(kind, edge): names for kind, lists in rows.items() for edge, names in enumerate(lists)}
    return replace(space, edge_operations=edges)


def _same_everywhere(*names: str) -> dict[str, list[tuple[str, ...]]]:
    return {kind: [names] * len(DARTS.edges) for kind in DARTS.kinds}


# S4 has one more operation, of random numbers that ignore the input: its cells are of a space of their own, because a network of
# one needs numbers that are drawn for each pass (:func:`with_units`).
_WITH_NOISE = replace(DARTS, name="darts-s4", operations=(*DARTS.operations, NOISE))

# RobustDARTS (ICLR 2020), spaces S1 to S4.
SEARCHED: dict[str, Space] = {
    "darts": DARTS,
    "darts-s1": _restricted(
        {kind: [tuple(_SHORT[o] for o in edge.split()) for edge in row.split("|")] for kind, row in _S1.items()}
    ),
    "darts-s2": _restricted(_same_everywhere("skip_connect", "sep_conv_3x3")),
    "darts-s3": _restricted(_same_everywhere("none", "skip_connect", "sep_conv_3x3")),
    "darts-s4": _restricted(_same_everywhere(NOISE, "sep_conv_3x3"), _WITH_NOISE),
}


def searched_space(name: str) -> Space:
    """A space of :data:`SEARCHED` by name; any other is a :class:`ConfigurationError`."""
    if name not in SEARCHED:
        raise ConfigurationError(f"space: {name!r} is not one of DARTS; known are {', '.join(SEARCHED)}")
    return SEARCHED[name]


def supernet_table(space: Space, *, pool_norms: bool = True) -> Space:
    """The table of the supernet: the same with a norm after each pool (unless told not to), and with ones for noise."""
    names = {NOISE: UNIT, **(_NORMALISED if pool_norms else {})}
    edges = {place: tuple(names.get(o, o) for o in listed) for place, listed in space.edge_operations.items()}
    return replace(space, operations=tuple(names.get(o, o) for o in space.operations), edge_operations=edges)


def has_noise(genotype: Genotype) -> bool:
    """Whether a cell may carry noise."""
    return genotype.space == _WITH_NOISE.name


def with_units(genotype: Genotype) -> tuple[Genotype, Space]:
    """The genotype with ones in the place of noise, and its space: what a network is built of whose passes multiply them with
    noise (:class:`engine.spaces.draws.Draws`)."""
    cells = [
        (
            kind,
            replace(cell, connections=tuple(c._replace(operation=UNIT) if c.operation == NOISE else c for c in cell.connections)),
        )
        for kind, cell in genotype.cells
    ]
    return Genotype(genotype.space, tuple(cells)), supernet_table(_WITH_NOISE, pool_norms=False)


def with_auxiliary(space: Space) -> Space:
    """The space with one more skip connection on every edge, which is not searched (DARTS-)."""
    edges = {place: (*names, AUXILIARY) for place, names in space.edge_operations.items()}
    return replace(space, operations=(*space.operations, AUXILIARY), edge_operations=edges)


def competing(space: Space) -> list[list[list[bool]]]:
    """What takes part in an edge's softmax, [kind][edge][operation]: its operations, and "none" where its list has it."""
    return [
        [
            [name in space.edge_operations.get((kind, e), space.operations) for name in space.operations]
            for e in range(len(space.edges))
        ]
        for kind in space.kinds
    ]


def discretise(space: Space, strengths: Rows) -> Genotype:
    """The published rule (section 1.4): of each edge the strongest operation, of each node the two strongest edges.

    ``strengths[kind][edge][operation]`` are the mixture's weights, "none" among them: it takes its share but is never chosen.
    Ties go to the lower edge and to the earlier operation.
    """
    cells = []
    for kind, rows in zip(space.kinds, strengths, strict=True):
        best = [_strongest(space, kind, e, row) for e, row in enumerate(rows)]
        connections: list[Connection] = []
        for node in range(space.inputs, space.states):
            into = [e for e, (_, target) in enumerate(space.edges) if target == node]
            kept = sorted(into, key=lambda e: -best[e][0])[: space.edges_per_node]  # sorted() keeps the order of ties
            connections += [Connection(*space.edges[e], space.operations[best[e][1]]) for e in kept]
        cells.append((kind, CellGenotype(tuple(connections), space.output_states)))
    return Genotype(space.name, tuple(cells))


def _strongest(space: Space, kind: str, edge: int, row: Sequence[float]) -> tuple[float, int]:
    """Strength and index of an edge's best operation."""
    able = [o for o, name in enumerate(space.operations) if space.carries(kind, edge, name)]
    best = max(able, key=lambda o: row[o])  # max() returns the first of equals
    return row[best], best


def operation_counts(genotype: Genotype) -> dict[str, dict[str, int]]:
    """How often each operation occurs, by kind of cell (paper 004, Table 18)."""
    names = (_WITH_NOISE if genotype.space == _WITH_NOISE.name else DARTS).operations[1:]
    return {kind: {o: [c.operation for c in cell.connections].count(o) for o in names} for kind, cell in genotype.cells}


def without_noise(genotype: Genotype) -> Genotype:
    """The cell of ``darts`` that is left without noise, which has neither parameters nor multiply-adds."""
    cells = [
        (kind, replace(cell, connections=tuple(c for c in cell.connections if c.operation != NOISE)))
        for kind, cell in genotype.cells
    ]
    return Genotype(DARTS.name, tuple(cells))


def _published(normal: str, reduction: str) -> Genotype:
    """Cells written as "operation source" in pairs, node by node, as their papers list them."""
    cells = []
    for kind, text in (("normal", normal), ("reduction", reduction)):
        chosen = [word.split() for word in text.split(", ")]
        connections = tuple(Connection(int(source), 2 + i // 2, _SHORT[name]) for i, (name, source) in enumerate(chosen))
        cells.append((kind, CellGenotype(connections, DARTS.output_states)))
    return Genotype(DARTS.name, tuple(cells))


# As released: quark0/darts, chenxin061/pdarts, yuhuixu1993/PC-DARTS, salesforce/PR-DARTS.
PUBLISHED: dict[str, Genotype] = {
    "darts-v1": _published(
        "s3 1, s3 0, sk 0, s3 1, sk 0, s3 1, s3 0, sk 2",
        "mp 0, mp 1, sk 2, mp 0, mp 0, sk 2, sk 2, ap 0",
    ),
    "darts-v2": _published(
        "s3 0, s3 1, s3 0, s3 1, s3 1, sk 0, sk 0, d3 2",
        "mp 0, mp 1, sk 2, mp 1, mp 0, sk 2, sk 2, mp 1",
    ),
    "pdarts": _published(
        "sk 0, d3 1, sk 0, s3 1, s3 1, s3 3, s3 0, d5 4",
        "ap 0, s5 1, s3 0, d5 2, mp 0, d3 1, d3 1, d5 3",
    ),
    "prdarts": _published(
        "sk 0, s3 1, d3 2, s3 0, d3 3, s3 1, d3 4, d3 1",
        "ap 0, d5 1, s3 0, d5 2, s5 1, d3 3, d5 4, d5 1",
    ),
    "pcdarts-cifar": _published(
        "s3 1, sk 0, s3 0, d3 1, s5 0, s3 1, ap 0, d3 1",
        "s5 1, mp 0, s5 1, s5 2, s3 0, s3 3, s3 1, s3 2",
    ),
    "pcdarts-imagenet": _published(
        "sk 1, s3 0, s3 0, sk 1, s3 1, s3 3, s3 1, d5 4",
        "s3 0, sk 1, d5 2, mp 1, s3 2, s3 1, s5 0, s3 3",
    ),
}
