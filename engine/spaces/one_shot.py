"""NAS-Bench-1Shot1 (Zela, Siems, Hutter, ICLR 2020): three sub-spaces of NAS-Bench-101 that a supernet can search.

A cell has choice blocks, each with one of three operations and so many parents among the cell's input and the blocks before it,
and an output with parents of its own. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import ConfigurationError
from engine.spaces.nas_bench_101 import CONV1, CONV3, INPUT, MAX_VERTICES, OUTPUT, POOL, Cell101

OPERATIONS = (POOL, CONV3, CONV1)


@dataclass(frozen=True)
class OneShotSpace:
    """One of the three spaces: ``parents`` of every choice block, and of the output last.

    State 0 is the cell's input and state i + 1 is block i. A block with as many parents as states before it has no choice: its
    inputs are added without weights, and have no architecture parameters.
    """

    name: str
    parents: tuple[int, ...]

    @property
    def blocks(self) -> int:
        """Choice blocks."""
        return len(self.parents) - 1

    @property
    def chosen(self) -> tuple[int, ...]:
        """The blocks whose parents are chosen."""
        return tuple(i for i in range(self.blocks) if self.parents[i] <= i)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many architecture parameters there are: of operations, of the output's inputs, and of each chosen block's."""
        return (self.blocks * len(OPERATIONS), self.blocks + 1, *(i + 1 for i in self.chosen))

    def discretise(
        self, operations: Sequence[Sequence[float]], output: Sequence[float], inputs: Sequence[Sequence[float]]
    ) -> Cell101:
        """The cell of the strongest operation of each block and the strongest inputs of each block and of the output.

        ``operations`` is (blocks, 3), ``output`` (blocks + 1), ``inputs`` a list of (i + 1) for each chosen block i. Ties go to
        the earlier operation and input. Blocks that do not lead to the output have no edges; spaces of four blocks get a fifth
        that has none, as in the published code, because the benchmark's matrices have seven rows.
        """
        names = [OPERATIONS[max(range(len(OPERATIONS)), key=row.__getitem__)] for row in operations]
        weights = dict(zip(self.chosen, inputs, strict=True))
        parents = [_strongest(weights[i], self.parents[i]) if i in weights else list(range(i + 1)) for i in range(self.blocks)]
        spare = MAX_VERTICES - 2 - self.blocks
        last = MAX_VERTICES - 1
        edges: set[tuple[int, int]] = set()
        waiting = [(last, _strongest(output, self.parents[-1]))]
        while waiting:
            target, sources = waiting.pop()
            edges |= {(source, target) for source in sources}
            waiting += [(source, parents[source - 1]) for source in sources if source > 0]
        matrix = tuple(tuple(int((i, j) in edges) for j in range(MAX_VERTICES)) for i in range(MAX_VERTICES))
        return Cell101(matrix, (INPUT, *names, *[CONV1] * spare, OUTPUT))


def _strongest(weights: Sequence[float], count: int) -> list[int]:
    return sorted(sorted(range(len(weights)), key=lambda i: -weights[i])[:count])


ONE_SHOT: dict[str, OneShotSpace] = {
    space.name: space
    for space in (
        OneShotSpace("nas-bench-1shot1-1", (1, 2, 2, 2, 2)),
        OneShotSpace("nas-bench-1shot1-2", (1, 1, 2, 2, 3)),
        OneShotSpace("nas-bench-1shot1-3", (1, 1, 1, 2, 2, 2)),
    )
}


def one_shot_space(name: str) -> OneShotSpace:
    """A space of :data:`ONE_SHOT` by name; any other is a :class:`ConfigurationError`."""
    if name not in ONE_SHOT:
        raise ConfigurationError(f"space: {name!r} is not one of NAS-Bench-1Shot1; known are {', '.join(ONE_SHOT)}")
    return ONE_SHOT[name]
