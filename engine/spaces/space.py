"""Search spaces as tables: operations, edges, strides, preprocessing, macro layout. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from engine.errors import ConfigurationError
from engine.spaces.genotype import CellGenotype, Connection, Genotype


@dataclass(frozen=True)
class CellPlan:
    """Where a cell stands in the macro network: its kind, width, and what the outputs of the two cells before it look like.

    ``reduces`` says that the maps are halved here: on the edges of a reduction cell, or by the residual block before the cell.
    """

    kind: str
    channels: int
    channels_in: tuple[int, int]
    reduces: bool
    follows_reduction: bool


@dataclass(frozen=True)
class Space:
    """A cell space.

    ``operations`` gives the order of the mixture's last axis; the name ``"none"`` stands for "no operation" and is never
    computed; where ``none_competes`` a search may choose it as it may any other. ``edges`` lists (source, target) state pairs in
    the order of the mixture's edge axis; states ``0 .. inputs-1`` are the cell's inputs, the following ``nodes`` are its
    intermediate nodes, whose channel concatenation is the output. In cells of a ``reducing`` kind the edges that leave an input
    have stride 2. ``edge_operations`` restricts single edges: it maps (kind, edge index) to the names that edge may carry.
    ``reduction_cells`` are the indices of the reduction cells, None for one and two thirds of the depth; ``stem_multiplier`` is
    the width of the stem in units of the first cells' channels. A table that contradicts itself is a
    :class:`ConfigurationError`.

    With one input (NAS-Bench-201) a cell reads the output of the one before it as it is and its last node is its output; no kind
    reduces, because residual blocks between the cells do.
    """

    name: str
    operations: tuple[str, ...]
    nodes: int
    edges: tuple[tuple[int, int], ...]
    kinds: tuple[str, ...] = ("normal", "reduction")
    reducing: tuple[str, ...] = ("reduction",)
    inputs: int = 2
    edges_per_node: int = 2
    none_competes: bool = False
    reduction_factor: int = 2
    odd: str = "pad"
    reduction_cells: tuple[int, ...] | None = None
    stem_multiplier: int = 1
    edge_operations: Mapping[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def require(holds: bool, problem: str) -> None:
            if not holds:
                raise ConfigurationError(f"space {self.name!r}: {problem}")

        for label, items in (("operations", self.operations), ("edges", self.edges), ("kinds", self.kinds)):
            require(0 < len(items) == len(set(items)), f"{label} must be given, each once: {list(items)}")
        require(set(self.operations) != {"none"}, "there must be an operation besides none")
        require(self.inputs in (1, 2), f"a cell has 1 or 2 inputs, not {self.inputs}")
        require(self.inputs == 2 or not self.reducing, "cells with one input are reduced between them: reducing must be empty")
        require(self.nodes >= 1, f"a cell has at least 1 node, not {self.nodes}")
        for source, target in self.edges:
            forward = 0 <= source < target and self.inputs <= target < self.states
            require(forward, f"edge {source}->{target} does not lead from an earlier state to a node")
        require(set(self.reducing) < set(self.kinds), f"reducing {list(self.reducing)} must leave out some of the kinds")
        unused = set(self.kinds) - {self.normal, *self.reducing[:1]}
        require(not unused, f"a network has one kind of cell that keeps the resolution and one that reduces it, none of {unused}")
        require(self.reduction_factor >= 1, f"reduction_factor must be at least 1, not {self.reduction_factor}")
        require(self.stem_multiplier >= 1, f"stem_multiplier must be at least 1, not {self.stem_multiplier}")
        for (kind, edge), names in self.edge_operations.items():
            known = kind in self.kinds and 0 <= edge < len(self.edges) and set(names) <= set(self.operations)
            require(known, f"edge_operations has {(kind, edge)}: {names}, which is not in the table")

    @property
    def normal(self) -> str:
        """The kind of the cells that keep the resolution."""
        return next(kind for kind in self.kinds if kind not in self.reducing)

    @property
    def states(self) -> int:
        """Inputs and intermediate nodes of a cell."""
        return self.inputs + self.nodes

    @property
    def output_states(self) -> tuple[int, ...]:
        """The states that make a cell's output unless a genotype says otherwise: all nodes, with one input the last."""
        return tuple(range(self.inputs if self.inputs == 2 else self.states - 1, self.states))

    def stride(self, kind: str, edge: int) -> int:
        """Stride of an edge in a cell of this kind."""
        return 2 if kind in self.reducing and self.edges[edge][0] < self.inputs else 1

    def carries(self, kind: str, edge: int, operation: str) -> bool:
        """Whether an edge of a kind of cell may carry an operation; "none" is never carried."""
        return operation != "none" and operation in self.edge_operations.get((kind, edge), self.operations)

    def alive(self) -> list[list[list[bool]]]:
        """The full supernet as nested lists [kind][edge][operation]: what a search may choose from."""
        return [
            [
                [self.carries(kind, e, name) or (name == "none" and self.none_competes) for name in self.operations]
                for e in range(len(self.edges))
            ]
            for kind in self.kinds
        ]

    def reductions(self, cells: int) -> tuple[int, ...]:
        """Indices of the cells that reduce, or before which a residual block does: one and two thirds of the depth, never the
        first.
        """
        if self.inputs == 2 and not self.reducing:
            return ()
        if self.reduction_cells is not None:
            return tuple(index for index in self.reduction_cells if index < cells)
        return tuple(sorted({cells // 3, 2 * cells // 3} - {0}))

    def layout(
        self, cells: int, channels: int, stem_channels: int | None = None, concatenated: Mapping[str, int] | None = None
    ) -> tuple[CellPlan, ...]:
        """The macro network: every cell with its channels, counted from the stem (``channels`` wide unless told).

        ``concatenated`` says how many states make the output of each kind of cell, by default :attr:`output_states`.
        """
        if cells < 1 or channels < 1:
            raise ConfigurationError(f"cells and channels must be positive, got cells={cells}, channels={channels}")
        before = last = stem_channels or channels
        reductions = self.reductions(cells)
        states = dict.fromkeys(self.kinds, len(self.output_states)) if concatenated is None else concatenated
        plans, width, after_reduction = [], channels, False
        for index in range(cells):
            reduces = index in reductions
            width *= self.reduction_factor if reduces else 1
            kind = self.reducing[0] if reduces and self.reducing else self.normal
            plans.append(CellPlan(kind, width, (before, last), reduces, after_reduction))
            before, last, after_reduction = last, width * states[kind], reduces
        return tuple(plans)

    def genotype(self, alive: list[list[list[bool]]]) -> Genotype:
        """Discretise: the operations that are left on each edge become the genotype's connections."""
        cells = []
        for kind, edges in zip(self.kinds, alive, strict=True):
            connections = [
                Connection(source, target, name)
                for (source, target), row in zip(self.edges, edges, strict=True)
                for name, lives in zip(self.operations, row, strict=True)
                if lives and name != "none"
            ]
            cells.append((kind, CellGenotype(tuple(connections), self.output_states)))
        return Genotype(self.name, tuple(cells))

    def check(self, genotype: Genotype) -> None:
        """Raise a :class:`ConfigurationError` unless the genotype is one of this space."""
        if genotype.space != self.name:
            raise ConfigurationError(f"genotype: it belongs to the space {genotype.space!r}, expected {self.name!r}")
        if tuple(kind for kind, _ in genotype.cells) != self.kinds:
            raise ConfigurationError(f"genotype: cells {[k for k, _ in genotype.cells]}, expected {list(self.kinds)}")
        for kind, cell in genotype.cells:
            for connection in cell.connections:
                self._check_connection(kind, connection)
            if any(not self.inputs <= state < self.states for state in cell.concat):
                raise ConfigurationError(f"genotype: concat {list(cell.concat)} names states that are not intermediate nodes")
            if self.inputs == 1 and cell.concat != self.output_states:
                raise ConfigurationError(f"genotype: concat {list(cell.concat)}, expected {list(self.output_states)}")

    def _check_connection(self, kind: str, connection: Connection) -> None:
        source, target, name = connection
        if (source, target) not in self.edges:
            raise ConfigurationError(f"genotype: {kind} cell has no edge {source}->{target} in {self.name!r}")
        if name not in self.operations or name == "none":
            raise ConfigurationError(f"genotype: operation {name!r} is not in the space {self.name!r}")
        if not self.carries(kind, self.edges.index((source, target)), name):
            raise ConfigurationError(f"genotype: edge {source}->{target} of the {kind} cell cannot carry {name!r}")


def dense_edges(nodes: int, inputs: int = 2) -> tuple[tuple[int, int], ...]:
    """Every intermediate node reads every earlier state: (0,2) (1,2) (0,3) (1,3) (2,3) ..."""
    return tuple((source, target) for target in range(inputs, inputs + nodes) for source in range(target))


# MetaNTK-NAS's space (reference note, section 1), which is MetaNAS's with doubling channels.
FEW_SHOT = Space(
    name="few-shot-cell",
    operations=(
        "none",
        "skip_connect",
        "sep_conv_3x3",
        "dil_conv_3x3",
        "avg_pool_3x3BN",
        "max_pool_3x3BN",
        "conv_1x5_5x1",
        "conv_3x3",
    ),
    nodes=3,
    edges=dense_edges(3),
)

# Dong and Yang, NAS-Bench-201 (ICLR 2020), in the benchmark's order of operations and edges.
NAS_BENCH_201 = Space(
    name="nas-bench-201",
    operations=("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    nodes=3,
    edges=dense_edges(3, inputs=1),
    kinds=("cell",),
    reducing=(),
    inputs=1,
    edges_per_node=3,
    none_competes=True,
)

# MetaNAS's own: constant width, a wide stem, reductions at fixed places (reference note on MetaNAS, section 1).
METANAS = Space(
    name="metanas-cell",
    operations=(
        "max_pool_3x3BN",
        "avg_pool_3x3BN",
        "skip_connect",
        "conv_1x5_5x1",
        "conv_3x3",
        "sep_conv_3x3",
        "dil_conv_3x3",
    ),
    nodes=3,
    edges=dense_edges(3),
    reduction_factor=1,
    odd="unshifted",
    reduction_cells=(1, 3),
    stem_multiplier=3,
)

# AutoMeta's cell in MetaNAS's comparison (reference note on MetaNAS, section 3).
AUTOMETA = replace(
    METANAS, name="autometa-cell", operations=(*METANAS.operations, "conv_3x3_twice"), nodes=5, edges=dense_edges(5)
)

# DARTS (reference note tetlo-darts, section 1), in the published order of operations and edges; pools as discretised networks
# have them (see engine.spaces.darts for the supernet's).
DARTS = Space(
    name="darts",
    operations=(
        "none",
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
    ),
    nodes=4,
    edges=dense_edges(4),
    stem_multiplier=3,
)

SPACES: dict[str, Space] = {space.name: space for space in (FEW_SHOT, NAS_BENCH_201, METANAS, AUTOMETA, DARTS)}


def register_space(space: Space) -> None:
    """Add a space of your own; a name that is taken is a :class:`ConfigurationError`."""
    if space.name in SPACES:
        raise ConfigurationError(f"space {space.name!r} exists already; choose another name")
    SPACES[space.name] = space


def get_space(name: str) -> Space:
    """Look a space up by name, or import one given as ``package.module:NAME``."""
    if ":" in name:
        return _imported(name)
    if name not in SPACES:
        raise ConfigurationError(f"space: unknown {name!r}; known are {', '.join(SPACES)}, or give package.module:NAME")
    return SPACES[name]


def _imported(name: str) -> Space:
    import importlib

    module, _, attribute = name.partition(":")
    try:
        space = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigurationError(f"space: cannot import {name!r} ({error})") from None
    if not isinstance(space, Space):
        raise ConfigurationError(f"space: {name!r} is a {type(space).__name__}, not a Space")
    return space
