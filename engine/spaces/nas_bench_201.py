"""NAS-Bench-201 (Dong and Yang, ICLR 2020): architecture strings, and which cells compute the same function. No torch here.

A cell is written here as its six operations, as numbers into ``NAS_BENCH_201.operations``, one an edge in the order of
``NAS_BENCH_201.edges``: 0->1, 0->2, 1->2, 0->3, 1->3, 2->3.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations, product

from engine.errors import ConfigurationError
from engine.spaces.genotype import CellGenotype, Connection, Genotype
from engine.spaces.space import NAS_BENCH_201

Codes = tuple[int, ...]

_KIND = NAS_BENCH_201.kinds[0]
_NUMBER = {name: number for number, name in enumerate(NAS_BENCH_201.operations)}
_NONE, _SKIP, _POOL = _NUMBER["none"], _NUMBER["skip_connect"], _NUMBER["avg_pool_3x3"]
_TERM = re.compile(r"([a-z0-9_]{1,20})~([0-2])", re.ASCII)
_LONGEST = 200
_EXAMPLE = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"


def parse(text: str) -> Codes:
    """Read an architecture string of the benchmark, such as ``|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...~0|...~1|...~2|``.

    Anything else is a :class:`ConfigurationError`.
    """
    chosen: dict[tuple[int, int], int] = {}
    if len(text) <= _LONGEST:
        for node, part in enumerate(text.split("+"), start=1):
            terms = [_TERM.fullmatch(term) for term in part[1:-1].split("|")]
            if part[:1] + part[-1:] != "||" or len(terms) != node:
                break
            for term in terms:
                if term and term[1] in _NUMBER:
                    chosen[int(term[2]), node] = _NUMBER[term[1]]
    if chosen.keys() != set(NAS_BENCH_201.edges) or text.count("|") != 9 or text.count("+") != 2:
        raise ConfigurationError(f"architecture: {text!r:.80} is not a string such as {_EXAMPLE}")
    return tuple(chosen[edge] for edge in NAS_BENCH_201.edges)


def to_string(codes: Sequence[int]) -> str:
    """The benchmark's string of a cell; :func:`parse` reads it back."""
    nodes: dict[int, list[str]] = {}
    for (source, target), code in zip(NAS_BENCH_201.edges, codes, strict=True):
        nodes.setdefault(target, []).append(f"{NAS_BENCH_201.operations[code]}~{source}")
    return "+".join(f"|{'|'.join(terms)}|" for terms in nodes.values())


def to_genotype(codes: Sequence[int]) -> Genotype:
    """The cell as a genotype; an edge of "none" has no connection."""
    connections = tuple(
        Connection(source, target, NAS_BENCH_201.operations[code])
        for (source, target), code in zip(NAS_BENCH_201.edges, codes, strict=True)
        if code != _NONE
    )
    return Genotype(NAS_BENCH_201.name, ((_KIND, CellGenotype(connections, NAS_BENCH_201.output_states)),))


def from_genotype(genotype: Genotype) -> Codes:
    """The six operations of a genotype; several on one edge, which no string can say, are a :class:`ConfigurationError`."""
    NAS_BENCH_201.check(genotype)
    chosen = {}
    for source, target, name in genotype[_KIND].connections:
        if (source, target) in chosen:
            raise ConfigurationError(f"genotype: edge {source}->{target} carries several operations, the benchmark knows one")
        chosen[source, target] = _NUMBER[name]
    return tuple(chosen.get(edge, _NONE) for edge in NAS_BENCH_201.edges)


def every_cell() -> Iterator[Codes]:
    """All 15,625 cells, in lexicographic order."""
    return product(range(len(NAS_BENCH_201.operations)), repeat=len(NAS_BENCH_201.edges))


# A sum of what flows into a node: how often it contains source s after k average pools. Sources are the cell's input
# (INPUT) and the outputs of convolutions (their edge numbers), the only operations with weights.
_Sum = Mapping[tuple[int, int], int]
INPUT = -1


def canonical(codes: Sequence[int]) -> tuple[object, ...]:
    """A key that two cells share if and only if they compute the same function for some matching of their convolutions' weights.

    Every value in a cell is a sum of the input and of convolutions' outputs, each pooled some number of times (averaging is
    linear), so a cell is the graph of these sums; what does not reach the output is left out, and convolutions are numbered
    so that the key is smallest. There are 5,044 keys. The benchmark's own "unique string" (6,466) differs in both directions: it
    keeps traces of edges that carry nothing, and it takes one convolution that is read twice for two independent ones, which
    are 0.44 +- 0.03 points better on CIFAR-10 (202 such pairs; twins differ by 0.20 in the mean, as seeds do). About 20
    microseconds.
    """
    convolutions, output = _flow(codes)
    reached = _reached(convolutions, output)
    alike: dict[str, list[int]] = {}
    for edge in sorted(reached):
        alike.setdefault(_expression(edge, codes, convolutions), []).append(edge)
    orders = product(*(permutations(alike[key]) for key in sorted(alike)))
    return min(_numbered([edge for group in order for edge in group], codes, convolutions, output) for order in orders)


def is_disconnected(codes: Sequence[int]) -> bool:
    """Whether nothing reaches the output: such networks answer by chance."""
    return not _flow(codes)[1]


def reached(codes: Sequence[int]) -> Codes:
    """The cell with "none" on every edge that starts where nothing arrives: what a network computes of it."""
    arrived, found = {0}, []
    for code, (source, target) in zip(codes, NAS_BENCH_201.edges, strict=True):
        carries = code != _NONE and source in arrived
        arrived |= {target} if carries else set()
        found.append(code if carries else _NONE)
    return tuple(found)


def _flow(codes: Sequence[int]) -> tuple[dict[int, _Sum], _Sum]:
    """What each convolution that is fed reads, by edge, and the cell's output."""
    states: list[_Sum] = [{(INPUT, 0): 1}]
    convolutions: dict[int, _Sum] = {}
    for target in range(1, NAS_BENCH_201.states):
        total: Counter[tuple[int, int]] = Counter()
        for edge, (source, into) in enumerate(NAS_BENCH_201.edges):
            if into != target or codes[edge] == _NONE or not states[source]:
                continue
            if codes[edge] == _SKIP:
                total.update(states[source])
            elif codes[edge] == _POOL:
                total.update({(origin, pools + 1): times for (origin, pools), times in states[source].items()})
            else:
                convolutions[edge] = states[source]
                total[edge, 0] += 1
        states.append(total)
    return convolutions, states[-1]


def _reached(convolutions: Mapping[int, _Sum], output: _Sum) -> set[int]:
    """The convolutions that the output depends on."""
    found: set[int] = set()
    waiting = [origin for origin, _ in output]
    while waiting:
        edge = waiting.pop()
        if edge != INPUT and edge not in found:
            found.add(edge)
            waiting += [origin for origin, _ in convolutions[edge]]
    return found


def _expression(edge: int, codes: Sequence[int], convolutions: Mapping[int, _Sum]) -> str:
    """What a convolution computes, written out; equal texts are told apart only by who reads which."""
    terms = [
        f"{times}p{pools}{'x' if origin == INPUT else _expression(origin, codes, convolutions)}"
        for (origin, pools), times in convolutions[edge].items()
    ]
    return f"{codes[edge]}({'+'.join(sorted(terms))})"


def _numbered(order: Sequence[int], codes: Sequence[int], convolutions: Mapping[int, _Sum], output: _Sum) -> tuple[object, ...]:
    place = {INPUT: INPUT} | {edge: number for number, edge in enumerate(order)}

    def form(value: _Sum) -> tuple[tuple[int, int, int], ...]:
        return tuple(sorted((place[origin], pools, times) for (origin, pools), times in value.items()))

    return (form(output), *((codes[edge], form(convolutions[edge])) for edge in order))
