"""Search spaces as tables: operations, edges, strides, preprocessing, macro layout. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.errors import ConfigurationError
from engine.spaces.genotype import CellGenotype, Connection, Genotype


@dataclass(frozen=True)
class CellPlan:
    """Where a cell stands in the macro network: its kind, width, and what its two inputs look like."""

    kind: str
    channels: int
    channels_in: tuple[int, int]
    reduces: bool
    follows_reduction: bool


@dataclass(frozen=True)
class Space:
    """A cell space.

    ``operations`` gives the order of the mixture's last axis; the name ``"none"`` stands for "no operation" and is never
    computed. ``edges`` lists (source, target) state pairs in the order of the mixture's edge axis; states ``0 .. inputs-1`` are
    the cell's inputs, the following ``nodes`` are its intermediate nodes, whose channel concatenation is the output. In cells of
    a ``reducing`` kind the edges that leave an input have stride 2. ``edge_operations`` restricts single edges: it maps (kind,
    edge index) to the names that edge may carry. A table that contradicts itself is a :class:`ConfigurationError`.
    """

    name: str
    operations: tuple[str, ...]
    nodes: int
    edges: tuple[tuple[int, int], ...]
    kinds: tuple[str, ...] = ("normal", "reduction")
    reducing: tuple[str, ...] = ("reduction",)
    inputs: int = 2
    edges_per_node: int = 2
    reduction_factor: int = 2
    odd: str = "pad"
    edge_operations: Mapping[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def require(holds: bool, problem: str) -> None:
            if not holds:
                raise ConfigurationError(f"space {self.name!r}: {problem}")

        for label, items in (("operations", self.operations), ("edges", self.edges), ("kinds", self.kinds)):
            require(0 < len(items) == len(set(items)), f"{label} must be given, each once: {list(items)}")
        require(self.inputs == 2, f"a cell has 2 inputs, not {self.inputs}")
        require(self.nodes >= 1, f"a cell has at least 1 node, not {self.nodes}")
        for source, target in self.edges:
            forward = 0 <= source < target and self.inputs <= target < self.states
            require(forward, f"edge {source}->{target} does not lead from an earlier state to a node")
        require(set(self.reducing) < set(self.kinds), f"reducing {list(self.reducing)} must leave out some of the kinds")
        require(self.reduction_factor >= 1, f"reduction_factor must be at least 1, not {self.reduction_factor}")
        for (kind, edge), names in self.edge_operations.items():
            known = kind in self.kinds and 0 <= edge < len(self.edges) and set(names) <= set(self.operations)
            require(known, f"edge_operations has {(kind, edge)}: {names}, which is not in the table")

    @property
    def states(self) -> int:
        """Inputs and intermediate nodes of a cell."""
        return self.inputs + self.nodes

    def stride(self, kind: str, edge: int) -> int:
        """Stride of an edge in a cell of this kind."""
        return 2 if kind in self.reducing and self.edges[edge][0] < self.inputs else 1

    def carries(self, kind: str, edge: int, operation: str) -> bool:
        """Whether an edge of a kind of cell may carry an operation; "none" is never carried."""
        return operation != "none" and operation in self.edge_operations.get((kind, edge), self.operations)

    def alive(self) -> list[list[list[bool]]]:
        """The full supernet as nested lists [kind][edge][operation]: which operations an edge may carry."""
        return [
            [[self.carries(kind, e, name) for name in self.operations] for e in range(len(self.edges))] for kind in self.kinds
        ]

    def reductions(self, cells: int) -> tuple[int, ...]:
        """Indices of the reduction cells: one third and two thirds of the depth, never the first cell."""
        if not self.reducing:
            return ()
        return tuple(sorted({cells // 3, 2 * cells // 3} - {0}))

    def layout(
        self, cells: int, channels: int, stem_channels: int | None = None, concatenated: Mapping[str, int] | None = None
    ) -> tuple[CellPlan, ...]:
        """The macro network: every cell with its channels, counted from the stem (``channels`` wide unless told).

        ``concatenated`` says how many states make the output of each kind of cell, by default all nodes.
        """
        if cells < 1 or channels < 1:
            raise ConfigurationError(f"cells and channels must be positive, got cells={cells}, channels={channels}")
        before = last = stem_channels or channels
        reductions = self.reductions(cells)
        normal = next(kind for kind in self.kinds if kind not in self.reducing)
        states = dict.fromkeys(self.kinds, self.nodes) if concatenated is None else concatenated
        plans, width, after_reduction = [], channels, False
        for index in range(cells):
            reduces = index in reductions
            width *= self.reduction_factor if reduces else 1
            kind = self.reducing[0] if reduces else normal
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
                if lives
            ]
            cells.append((kind, CellGenotype(tuple(connections), tuple(range(self.inputs, self.states)))))
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

SPACES: dict[str, Space] = {FEW_SHOT.name: FEW_SHOT}


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
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"space: cannot import {name!r} ({error})") from None
    if not isinstance(space, Space):
        raise ConfigurationError(f"space: {name!r} is a {type(space).__name__}, not a Space")
    return space
