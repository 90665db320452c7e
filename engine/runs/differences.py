"""What tells two runs apart, whoever wrote them: configuration, answer, and the first score that differs."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

from engine.runs.records import RunFiles
from engine.spaces.genotype import Genotype

# Seconds are facts of one execution, not of what was asked for.
TIMES = ("seconds", "phases")
SHOWN = 10


def differences(first: RunFiles, second: RunFiles) -> list[str]:
    """One line a difference: options, then genotypes, results and logs; none for runs that computed the same."""
    lines = [*_values("config", _settings(first), _settings(second)), *_genotypes(first.genotype, second.genotype)]
    lines += _values("result", _scalars(first.result), _scalars(second.result))
    for name, a, b in (("scores", first.scores, second.scores), ("metrics", first.metrics, second.metrics)):
        lines += _records(name, a, b)
    return lines


def _settings(run: RunFiles) -> dict[str, Any]:
    try:
        return tomllib.loads(run.config)
    except (ValueError, RecursionError):
        return {"": "not a TOML file"}


def _scalars(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if not key.endswith(TIMES) and not isinstance(value, dict | list)}


def _values(what: str, first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*first, *second]):
        a, b = first.get(key, "-"), second.get(key, "-")
        if a != b:
            yield f"{what}: {key}: {a} | {b}"


def _genotypes(first: Genotype | None, second: Genotype | None) -> Iterator[str]:
    if first is None or second is None:
        if first is not second:
            yield f"genotype: {'none' if first is None else first.space} | {'none' if second is None else second.space}"
        return
    a, b = (_connections(genotype) for genotype in (first, second))
    for place in sorted(a.keys() | b.keys()):
        mine, other = (" + ".join(sorted(found.get(place, ["-"]))) for found in (a, b))
        if mine != other:
            kind, source, target = place
            yield f"genotype: {kind} {source} -> {target}: {mine} | {other}"


def _connections(genotype: Genotype) -> dict[tuple[str, int, int], list[str]]:
    found: dict[tuple[str, int, int], list[str]] = {}
    for kind, cell in genotype.cells:
        for connection in cell.connections:
            found.setdefault((kind, connection.source, connection.target), []).append(connection.operation)
    return found


def _records(name: str, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> Iterator[str]:
    """How many lines there are, and the fields of the first line that differs."""
    if len(first) != len(second):
        yield f"{name}: {len(first)} lines | {len(second)} lines"
    for number, (a, b) in enumerate(zip(first, second, strict=False), start=1):
        found = list(_values(f"{name}, line {number}", _timeless(a), _timeless(b)))
        if found:
            yield from found[:SHOWN]
            return


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if not key.endswith(TIMES)}
