"""Pruning by rank sum: Algorithm 1 of MetaNTK-NAS, and the edge stage that its published code adds. Pure, without torch.

A supernet is a mask of operations that are still alive. Removing one at a time gives the candidates; each is scored beside
the supernet; ranks say which removal hurts least. Nothing here knows how scores are computed.
"""

from __future__ import annotations

import functools
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from engine.errors import ConfigurationError, NumericalError
from engine.scoring.result import Score

Mask = tuple[tuple[tuple[bool, ...], ...], ...]
Stage = Literal["operations", "edges"]

# A drop of the metric after a removal speaks for pruning it (1: smaller is better) or against it (-1: larger is better).
METRICS: dict[str, int] = {"condition": 1, "regions": -1}


class Candidate(NamedTuple):
    """The removal of one operation: cell kind, edge and operation, as indices into the mask."""

    cell: int
    edge: int
    operation: int


@dataclass(frozen=True)
class Record:
    """The scores of one candidate in one repeat, by metric, and those of the supernet that it is compared with."""

    candidate: Candidate
    repeat: int
    supernet: Mapping[str, Score]
    ablated: Mapping[str, Score]


@dataclass(frozen=True)
class State:
    """Where a pruning stands; all that a checkpoint needs.

    ``alive[cell][edge][operation]`` is the mask now, ``origin`` the mask when this round or the edge stage began, ``round``
    the operation rounds done, ``group`` the node groups of the edge stage done.
    """

    alive: Mask
    origin: Mask
    round: int = 0
    group: int = 0

    @property
    def stage(self) -> Stage:
        """``operations`` until every edge has at most one operation, then ``edges``."""
        return "operations" if any(sum(edge) > 1 for cell in self.alive for edge in cell) else "edges"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; :meth:`Pruning.restore` reads them back."""
        return {"alive": self.alive, "origin": self.origin, "round": self.round, "group": self.group}


@dataclass(frozen=True)
class Row:
    """One candidate in a ranking: relative drop and dense rank by metric (0 is pruned first), and the sum of its ranks."""

    candidate: Candidate
    drops: dict[str, float]
    ranks: dict[str, int]
    total: int


@dataclass(frozen=True)
class Decision:
    """What one round, or one node group, decided.

    ``rows`` is in pruning order. ``agreement[i]`` is the share of single repeats that would have pruned ``pruned[i]`` too.
    """

    round: int
    stage: Stage
    rows: tuple[Row, ...]
    pruned: tuple[Candidate, ...]
    agreement: tuple[float, ...]
    state: State


Scorer = Callable[[list[Candidate], Mask, int, Stage], Sequence[Record]]


@dataclass(frozen=True)
class Pruning:
    """The rule of a pruning.

    ``nodes[cell][node]`` lists the edges into a node, ``final_edges`` of which survive. ``metrics`` are keys of
    :data:`METRICS`, in the order that breaks ties.

    Clean (default): the relative drop (supernet - ablated) / supernet is averaged over repeats and ranked rounded to
    ``precision`` decimals, so that equal values get equal ranks. ``faithful`` reproduces the published code (reference note,
    sections 6 and 8.7): each repeat's drop is rounded, the mean is sorted by its first ``precision`` significant digits, and a
    tie is tested on the mean itself, so that equal keys may get successive ranks in the order of enumeration.

    Ties in the sum of ranks go to the larger drop in the first metric, then the next, then the order of enumeration
    (faithful: the order of the first metric's sorted list).

    Statuses: a removal with a score that is not ``ok`` in some repeat ranks last in that metric (its drop is infinite) and is
    pruned after all others whatever its sum: what breaks a score when removed is important. A repeat in which a supernet
    score is not ``ok``, or is zero, says nothing and is left out; none left is a :class:`NumericalError`. ``faithful`` takes
    every finite value for what it is, as the published code does, which has numbers for broken scores (section 4).
    """

    nodes: tuple[tuple[tuple[int, ...], ...], ...]
    final_edges: int = 2
    metrics: tuple[str, ...] = ("condition", "regions")
    precision: int = 3
    faithful: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics or len(set(self.metrics)) != len(self.metrics):
            raise ConfigurationError(f"metrics: {self.metrics} must be one or more different ones of {', '.join(METRICS)}")
        if self.final_edges < 1:
            raise ConfigurationError(f"final_edges: expected at least 1, got {self.final_edges}")
        fewest = 1 if self.faithful else 0
        if self.precision < fewest:
            raise ConfigurationError(f"precision: expected at least {fewest} digits, got {self.precision}")

    def start(self, alive: Sequence[Sequence[Sequence[bool]]]) -> State:
        """Return the state before the first round; a mask that does not fit ``nodes`` is a :class:`ConfigurationError`."""
        mask = self._checked(alive)
        return State(mask, mask)

    def restore(self, value: Any) -> State:
        """Read :meth:`State.to_dict`'s form, which comes from a file; anything else is a :class:`ConfigurationError`."""
        if not isinstance(value, Mapping) or set(value) != {"alive", "origin", "round", "group"}:
            raise ConfigurationError("pruning state: expected an object with alive, origin, round and group")
        counts = value["round"], value["group"]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ConfigurationError("pruning state: round and group are counts")
        state = State(self._checked(value["alive"]), self._checked(value["origin"]), *counts)
        if state.group > len(self._groups(state.origin)):
            raise ConfigurationError(f"pruning state: group {state.group} does not exist")
        return state

    def candidates(self, state: State) -> list[Candidate]:
        """The removals to score next, in order of enumeration; none when the pruning is done."""
        if state.stage == "operations":
            cells = enumerate(state.alive)
            edges = ((c, e, edge) for c, cell in cells for e, edge in enumerate(cell) if sum(edge) > 1)
        else:
            groups = self._groups(state.origin)[state.group :][:1]
            edges = ((c, e, state.alive[c][e]) for c, group in groups for e in group)
        return [Candidate(c, e, o) for c, e, edge in edges for o, live in enumerate(edge) if live]

    def decide(self, state: State, records: Sequence[Record]) -> Decision:
        """Rank the candidates of ``state`` by their ``records`` (any order) and prune.

        In the operation stage every edge loses the operation of the smallest rank sum; in the edge stage the node keeps the
        ``final_edges`` edges of the largest. Missing, repeated or foreign records are a ``ValueError``.
        """
        candidates = self.candidates(state)
        if not candidates:
            raise ValueError("state: the pruning is done, there is nothing to decide")
        drops = self._drops(candidates, records)
        rows = self._ranked(candidates, drops)
        pruned = self._chosen(state, rows)
        repeats = sorted(set.intersection(*(set(values) for values in drops.values())))
        single = [self._chosen(state, self._ranked(candidates, {c: {r: drops[c][r]} for c in candidates})) for r in repeats]
        return Decision(state.round, state.stage, tuple(rows), pruned, agreement(pruned, single), self._advanced(state, pruned))

    def run(self, state: State, score: Scorer) -> Iterator[Decision]:
        """Algorithm 1 from ``state`` to the end: score the candidates, rank, prune; yields each decision as it falls."""
        while candidates := self.candidates(state):
            decision = self.decide(state, score(candidates, state.alive, state.round, state.stage))
            state = decision.state
            yield decision

    def plan(self, alive: Sequence[Sequence[Sequence[bool]]]) -> list[int]:
        """The numbers of candidates of every operation round and, last, of the edge stage."""
        mask = self._checked(alive)
        counts = [sum(edge) for cell in mask for edge in cell]
        rounds = [sum(n - r for n in counts if n - r > 1) for r in range(max(counts, default=1) - 1)]
        return [*rounds, sum(len(group) for _, group in self._groups(mask))]

    def _checked(self, value: Any) -> Mask:
        try:
            mask = tuple(tuple(tuple(edge) for edge in cell) for cell in value)
        except TypeError:
            raise ConfigurationError("mask: expected flags by cell, edge and operation") from None
        if not all(isinstance(live, bool) for cell in mask for edge in cell for live in edge):
            raise ConfigurationError("mask: every operation is either true or false")
        edges = [sorted(edge for node in cell for edge in node) for cell in self.nodes]
        if edges != [list(range(len(cell))) for cell in mask]:
            raise ConfigurationError(f"mask: has {[len(cell) for cell in mask]} edges by cell, the nodes list {edges}")
        return mask

    def _groups(self, mask: Mask) -> list[tuple[int, tuple[int, ...]]]:
        """The nodes that have edges to lose: (cell kind, its edges with an operation)."""
        live = ((c, tuple(e for e in node if any(mask[c][e]))) for c, cell in enumerate(self.nodes) for node in cell)
        return [(c, edges) for c, edges in live if len(edges) > self.final_edges]

    def _drops(self, candidates: list[Candidate], records: Sequence[Record]) -> dict[Candidate, dict[int, tuple[float, ...]]]:
        """By candidate and usable repeat, the drop in each metric, signed so that the largest is pruned first."""
        seen: defaultdict[Candidate, set[int]] = defaultdict(set)
        drops: dict[Candidate, dict[int, tuple[float, ...]]] = {candidate: {} for candidate in candidates}
        for record in records:
            candidate = Candidate(*record.candidate)
            if candidate not in drops or record.repeat in seen[candidate]:
                raise ValueError(f"records: {tuple(candidate)} in repeat {record.repeat} is repeated or was not asked for")
            seen[candidate].add(record.repeat)
            if all(self._usable(record.supernet[name]) and record.supernet[name].value != 0 for name in self.metrics):
                drops[candidate][record.repeat] = tuple(self._drop(record, name) for name in self.metrics)
        if any(not seen[candidate] or seen[candidate] != seen[candidates[0]] for candidate in candidates):
            raise ValueError("records: the candidates were not all scored in the same repeats")
        for candidate, values in drops.items():
            if not values:
                raise NumericalError(
                    f"the supernet of candidate {tuple(candidate)} has no usable {' and '.join(self.metrics)} in any repeat; "
                    "try other data, more channels or a larger regularisation"
                )
        return drops

    def _usable(self, score: Score) -> bool:
        return score.ok or (self.faithful and math.isfinite(score.value))

    def _drop(self, record: Record, name: str) -> float:
        before, after = record.supernet[name], record.ablated[name]
        if not self._usable(after):
            return -math.inf
        drop = METRICS[name] * (before.value - after.value) / before.value
        return round(drop, self.precision) if self.faithful else drop

    def _ranked(self, candidates: list[Candidate], drops: Mapping[Candidate, Mapping[int, tuple[float, ...]]]) -> list[Row]:
        """Rank the candidates by every metric and sort them into pruning order."""
        means = {c: tuple(self._mean(values) for values in zip(*drops[c].values(), strict=True)) for c in candidates}
        rank = _faithful_ranks if self.faithful else _dense_ranks
        ranks = [rank({c: means[c][i] for c in candidates}, self.precision) for i in range(len(self.metrics))]
        totals = {c: sum(column[c] for column in ranks) for c in candidates}
        first = list(ranks[0]) if self.faithful else sorted(candidates, key=lambda c: means[c], reverse=True)
        return [
            Row(
                candidate,
                {name: METRICS[name] * mean for name, mean in zip(self.metrics, means[candidate], strict=True)},
                {name: column[candidate] for name, column in zip(self.metrics, ranks, strict=True)},
                totals[candidate],
            )
            for candidate in sorted(first, key=lambda c: (-math.inf in means[c], totals[c]))
        ]

    def _mean(self, values: Sequence[float]) -> float:
        # Published ties depend on plain addition from left to right; otherwise the order of repeats must not matter.
        total = functools.reduce(operator.add, values) if self.faithful else math.fsum(values)
        return total / len(values)

    def _chosen(self, state: State, rows: Sequence[Row]) -> tuple[Candidate, ...]:
        order = [row.candidate for row in rows]
        if state.stage == "edges":
            return tuple(sorted(order[: len(order) - self.final_edges]))
        smallest: dict[tuple[int, int], Candidate] = {}
        for candidate in order:
            smallest.setdefault(candidate[:2], candidate)
        return tuple(sorted(smallest.values()))

    def _advanced(self, state: State, pruned: Sequence[Candidate]) -> State:
        gone = set(pruned)
        alive = tuple(
            tuple(tuple(live and (c, e, o) not in gone for o, live in enumerate(edge)) for e, edge in enumerate(cell))
            for c, cell in enumerate(state.alive)
        )
        if state.stage == "edges":
            return State(alive, state.origin, state.round, state.group + 1)
        return State(alive, alive, state.round + 1)


def agreement(pruned: Sequence[Candidate], single: Sequence[Sequence[Candidate]]) -> tuple[float, ...]:
    """For each pruned candidate, the share of the ``single`` repeats' own choices that contain it (0 without repeats)."""
    return tuple(sum(candidate in choice for choice in single) / max(len(single), 1) for candidate in pruned)


def _dense_ranks(values: Mapping[Candidate, float], precision: int) -> dict[Candidate, int]:
    """Ranks from 0 for the largest; values equal after rounding to ``precision`` decimals share one."""
    rounded = {candidate: round(value, precision) for candidate, value in values.items()}
    order = {value: rank for rank, value in enumerate(sorted(set(rounded.values()), reverse=True))}
    return {candidate: order[value] for candidate, value in rounded.items()}


def _faithful_ranks(values: Mapping[Candidate, float], precision: int) -> dict[Candidate, int]:
    """The published ranks, in the order of the published stable sort by ``precision`` significant digits."""
    order = sorted(values, key=lambda c: float(f"{values[c]:.{precision - 1}e}"), reverse=True)
    ranks: dict[Candidate, int] = {}
    for previous, candidate in zip([None, *order], order, strict=False):
        ranks[candidate] = 0 if previous is None else ranks[previous] + (values[candidate] != values[previous])
    return ranks
