"""Cells of NAS-Bench-101 (Ying et al., ICML 2019): at most seven vertices, operations on vertices. No torch here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from engine.errors import ConfigurationError
from engine.spaces.genotype import CellGenotype, Connection, Genotype

SPACE = "nas-bench-101"
MAX_VERTICES = 7
INPUT, OUTPUT = "input", "output"
POOL, CONV3, CONV1 = "maxpool3x3", "conv3x3-bn-relu", "conv1x1-bn-relu"
# In the order by which the benchmark's fingerprints number them.
_NUMBERED = (CONV3, CONV1, POOL)

Matrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Cell101:
    """A cell: ``matrix[i][j]`` is 1 where vertex i feeds vertex j > i; ``operations`` begin with "input" and end with "output".

    What is no such graph is a :class:`ConfigurationError`. Vertices that no path from the input to the output visits are
    allowed, and make no difference: see :meth:`pruned`.
    """

    matrix: Matrix
    operations: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", tuple(tuple(int(value) for value in row) for row in self.matrix))
        object.__setattr__(self, "operations", tuple(self.operations))
        size, matrix = len(self.operations), self.matrix
        if not 2 <= size <= MAX_VERTICES or len(matrix) != size or any(len(row) != size for row in matrix):
            raise ConfigurationError(f"cell: its matrix is square with a row for each of 2 to {MAX_VERTICES} operations")
        if any(value not in (0, 1) or (value and i >= j) for i, row in enumerate(matrix) for j, value in enumerate(row)):
            raise ConfigurationError("cell: its matrix holds 0 and 1, the latter above the diagonal only")
        inner = self.operations[1:-1]
        if (self.operations[0], self.operations[-1]) != (INPUT, OUTPUT) or any(name not in _NUMBERED for name in inner):
            raise ConfigurationError(f"cell: operations are input, any of {', '.join(_NUMBERED)}, output; got {self.operations}")

    def pruned(self) -> Cell101:
        """Without the vertices that no path from the input to the output visits; no path at all is a
        :class:`ConfigurationError`."""
        size = len(self.operations)
        ahead, behind = {0}, {size - 1}
        for vertex in range(size):
            if any(self.matrix[source][vertex] for source in ahead if source < vertex):
                ahead.add(vertex)
        for vertex in reversed(range(size)):
            if any(self.matrix[vertex][target] for target in behind if target > vertex):
                behind.add(vertex)
        kept = sorted(ahead & behind)
        if kept[:1] != [0] or kept[-1] != size - 1 or len(kept) < 2:
            raise ConfigurationError("cell: no path leads from its input to its output")
        matrix = tuple(tuple(self.matrix[i][j] for j in kept) for i in kept)
        return Cell101(matrix, tuple(self.operations[i] for i in kept))

    def fingerprint(self) -> str:
        """The benchmark's hash of the pruned cell, the same for isomorphic cells (``hash_module`` of its code)."""
        cell = self.pruned()
        size = range(len(cell.operations))
        labels = [-1, *(_NUMBERED.index(name) for name in cell.operations[1:-1]), -2]
        incoming = [sum(row[j] for row in cell.matrix) for j in size]
        hashes = [_digest(str((sum(cell.matrix[i]), incoming[i], labels[i]))) for i in size]
        for _ in size:
            hashes = [
                _digest(
                    "".join(sorted(hashes[w] for w in size if cell.matrix[w][v]))
                    + "|"
                    + "".join(sorted(hashes[w] for w in size if cell.matrix[v][w]))
                    + "|"
                    + hashes[v]
                )
                for v in size
            ]
        return _digest(str(sorted(hashes)))

    def genotype(self) -> Genotype:
        """The cell as a genotype of ``nas-bench-101``: a connection carries the operation of the vertex that it leads to, and the
        output's sources are concatenated."""
        last = len(self.operations) - 1
        connections = tuple(Connection(i, j, self.operations[j]) for j in range(1, last) for i in range(j) if self.matrix[i][j])
        return Genotype(SPACE, (("normal", CellGenotype(connections, tuple(i for i in range(last) if self.matrix[i][last]))),))


def _digest(text: str) -> str:
    # The benchmark's keys are MD5 sums; nothing rests on their security.
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def from_genotype(genotype: Genotype) -> Cell101:
    """Undo :meth:`Cell101.genotype`; a genotype of another space is a :class:`ConfigurationError`."""
    if genotype.space != SPACE or [kind for kind, _ in genotype.cells] != ["normal"]:
        raise ConfigurationError(f"cell: a genotype of {SPACE} is wanted, not one of {genotype.space}")
    cell = genotype["normal"]
    last = 1 + max((*cell.concat, *(c.target for c in cell.connections)))
    names = {c.target: c.operation for c in cell.connections}
    edges = {*((c.source, c.target) for c in cell.connections), *((source, last) for source in cell.concat)}
    matrix = tuple(tuple(int((i, j) in edges) for j in range(last + 1)) for i in range(last + 1))
    return Cell101(matrix, (INPUT, *(names.get(i, CONV1) for i in range(1, last)), OUTPUT))


def parse(matrix: str, operations: str) -> Cell101:
    """Read a cell from text: the matrix as rows of 0 and 1 with spaces between them, operations with commas."""
    rows = matrix.split()
    if not all(set(row) <= {"0", "1"} for row in rows):
        raise ConfigurationError(f"cell: {matrix!r:.80} is not a matrix such as 011 001 000")
    return Cell101(tuple(tuple(map(int, row)) for row in rows), tuple(name.strip() for name in operations.split(",")))


def to_text(cell: Cell101) -> tuple[str, str]:
    """What :func:`parse` reads."""
    return " ".join("".join(map(str, row)) for row in cell.matrix), ",".join(cell.operations)
