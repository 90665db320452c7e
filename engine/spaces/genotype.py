"""Genotypes: what a search finds. No torch here, so reports and drawings can read them cheaply."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import ConfigurationError

SCHEMA = 1
MAX_BYTES = 1_000_000


class Connection(NamedTuple):
    """One edge of a cell: states 0 and 1 are the cell's inputs, state 2 is its first intermediate node."""

    source: int
    target: int
    operation: str


@dataclass(frozen=True)
class CellGenotype:
    """The connections of a cell, ordered by (target, source, operation), and the states its output concatenates.

    A connection or a state that is listed twice, or one that does not go forward, is a :class:`ConfigurationError`.
    """

    connections: tuple[Connection, ...]
    concat: tuple[int, ...]

    def __post_init__(self) -> None:
        connections = tuple(sorted((Connection(*c) for c in self.connections), key=lambda c: (c.target, c.source, c.operation)))
        object.__setattr__(self, "connections", connections)
        object.__setattr__(self, "concat", tuple(self.concat))
        for connection, following in pairwise(connections):
            if connection == following:
                raise ConfigurationError(f"genotype: connection {tuple(connection)} is listed twice")
        for connection in connections:
            if not 0 <= connection.source < connection.target:
                raise ConfigurationError(
                    f"genotype: connection {tuple(connection)} does not go from an earlier state to a later one"
                )
        if not self.concat or len(set(self.concat)) < len(self.concat):
            raise ConfigurationError(f"genotype: a cell concatenates one or more different states, not {list(self.concat)}")


@dataclass(frozen=True)
class Genotype:
    """A cell architecture of a named space.

    ``cells`` maps a cell kind (``"normal"``, ``"reduction"``) to its :class:`CellGenotype`. Equality is structural.
    """

    space: str
    cells: tuple[tuple[str, CellGenotype], ...]

    def __getitem__(self, kind: str) -> CellGenotype:
        for name, cell in self.cells:
            if name == kind:
                return cell
        raise KeyError(kind)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, with the schema version."""
        cells = {
            kind: {"connections": [c._asdict() for c in cell.connections], "concat": list(cell.concat)}
            for kind, cell in self.cells
        }
        return {"schema": SCHEMA, "space": self.space, "cells": cells}

    def to_json(self) -> str:
        """Return canonical JSON: the same genotype always gives the same bytes."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, value: Any) -> Genotype:
        """Build from :meth:`to_dict`'s form; anything else is a :class:`ConfigurationError` that says what is wrong."""
        if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
            raise ConfigurationError(f'genotype: expected a JSON object with "schema": {SCHEMA}')
        try:
            cells = tuple((str(kind), _cell(cell)) for kind, cell in value["cells"].items())
            if not isinstance(value["space"], str):
                raise ConfigurationError(f"genotype: space is a name, not {value['space']!r:.80}")
            return cls(value["space"], cells)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"genotype: malformed or missing field ({error})") from None

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Parse :meth:`to_json`'s text."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"genotype: not JSON ({error})") from None
        return cls.from_dict(value)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Genotype:
        """Read a genotype file of at most one megabyte."""
        path = Path(path)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ConfigurationError(f"{path}: larger than a genotype can be ({MAX_BYTES} bytes)")
            return cls.from_json(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path}: cannot read the genotype ({error})") from None
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None


def _cell(value: Mapping[str, Any]) -> CellGenotype:
    connections = []
    for item in value["connections"]:
        source, target, operation = item["source"], item["target"], item["operation"]
        if not (_is_state(source) and _is_state(target) and isinstance(operation, str)):
            raise ConfigurationError(f"genotype: a connection is {{source: int, target: int, operation: str}}, not {item!r:.80}")
        connections.append(Connection(source, target, operation))
    concat = value["concat"]
    if not isinstance(concat, list) or not all(_is_state(state) for state in concat):
        raise ConfigurationError("genotype: concat is a list of state numbers")
    return CellGenotype(tuple(connections), tuple(concat))


def _is_state(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000
