"""A cell: a small directed graph whose edges mix operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from engine.errors import ConfigurationError
from engine.kernels import mixed_edge
from engine.spaces.norms import Norm, TrainedBatchStatistics, is_stateless
from engine.spaces.operations import Chain, FactorizedReduce, Pool, ResidualReduction, gated_relu, operation
from engine.spaces.space import CellPlan, Space

# What TrainedBatchStatistics does to one group.
BATCH = mixed_edge.Norm("batch")


class Term(NamedTuple):
    """One operation on one edge: a broadcastable weight (None for one) and the groups it exists in, bool (G,) (None for all)."""

    weight: Tensor | None = None
    alive: Tensor | None = None


@dataclass(frozen=True)
class Lane:
    """How one cell is mixed in this forward: for each edge the operations that some group carries, in the space's order."""

    edges: Sequence[Mapping[str, Term]]
    groups: int = 1


def plain_lane(operations: Sequence[Sequence[str]]) -> Lane:
    """The lane of a discretised cell: every operation it has, added with weight one."""
    return Lane([dict.fromkeys(names, Term()) for names in operations])


class Cell(nn.Module):
    """One cell of a space at its place in the network.

    ``operations[e]`` names what edge ``e`` may carry, in the space's order. The modules are ``edges[e][name]``, except that
    operations without parameters or buffers exist once a source state, in ``shared``: they are evaluated once however many
    edges read them. ``concat`` lists the states that make the output.
    """

    def __init__(
        self, space: Space, plan: CellPlan, operations: Sequence[Sequence[str]], concat: Sequence[int], norm: Norm
    ) -> None:
        super().__init__()
        self.space, self.plan, self.concat = space, plan, tuple(concat)
        channels = plan.channels
        if space.inputs == 1:
            self._take_one_input(norm)
        else:
            self._take_two_inputs(norm)
        self.edges = nn.ModuleList()
        self.shared = nn.ModuleDict()
        for e, names in enumerate(operations):
            built = nn.ModuleDict()
            for name in names:
                module = operation(name).build(channels, space.stride(plan.kind, e), norm, space.odd)
                key = self._shared_key(e, name)
                if not is_stateless(module):
                    built[name] = module
                elif key not in self.shared:
                    self.shared[key] = module
            self.edges.append(built)

    def _take_two_inputs(self, norm: Norm) -> None:
        (before, last), channels = self.plan.channels_in, self.plan.channels
        if self.plan.follows_reduction:
            self.preprocess0: nn.Module = FactorizedReduce(before, channels, norm, self.space.odd)
        else:
            self.preprocess0 = Chain([nn.Conv2d(before, channels, 1, bias=False), norm(channels)])
        self.preprocess1 = Chain([nn.Conv2d(last, channels, 1, bias=False), norm(channels)])

    def _take_one_input(self, norm: Norm) -> None:
        last, channels = self.plan.channels_in[1], self.plan.channels
        self.reduction = ResidualReduction(last, channels, norm) if self.plan.reduces else None
        if self.reduction is None and last != channels:
            raise ConfigurationError(
                f"channels: a cell with one input keeps its {last} channels, not {channels}; give the network a stem"
            )

    def module(self, edge: int, name: str) -> nn.Module:
        """The module of an operation on an edge that carries it."""
        key = self._shared_key(edge, name)
        return self.shared[key] if key in self.shared else cast(nn.ModuleDict, self.edges[edge])[name]

    def _shared_key(self, edge: int, name: str) -> str:
        return f"{name}@{self.space.edges[edge][0]}/{self.space.stride(self.plan.kind, edge)}"

    def forward(self, s0: Tensor, s1: Tensor, lane: Lane) -> Tensor:
        """The rectified outputs of the two cells before, (B, C0, H0, W0) and (B, C1, H, W) -> (B, len(concat)*C, H', W')."""
        return self._mixed([self.preprocess0(s0, lane.groups), self.preprocess1(s1, lane.groups)], lane)

    def chained(self, x: Tensor, lane: Lane) -> Tensor:
        """The forward pass of a cell with one input: the output of the cell before, (B, C, H, W) -> (B, C', H', W')."""
        return self._mixed([x if self.reduction is None else self.reduction(x, lane.groups)], lane)

    def _mixed(self, inputs: list[Tensor], lane: Lane) -> Tensor:
        states: list[Tensor | None] = [*inputs, *[None] * self.space.nodes]
        for source in range(self.space.states):
            state = states[source]
            if state is not None:
                self._spread(source, state, states, lane)
        outputs = [self._node(states[s], inputs[-1]) for s in self.concat]
        return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]

    def _node(self, state: Tensor | None, source: Tensor) -> Tensor:
        """A node that nothing reaches is zero: its edges were all pruned away."""
        if state is not None:
            return state
        reduces = self.plan.kind in self.space.reducing
        size = [-(-n // 2) if reduces else n for n in source.shape[-2:]]
        return source.new_zeros(source.shape[0], self.plan.channels, *size)

    def _spread(self, source: int, state: Tensor, states: list[Tensor | None], lane: Lane) -> None:
        """Add everything that reads ``source`` to its targets; nothing is evaluated twice.

        Operations that end in batch statistics are normalised where they are added, so neither normalised nor weighted outputs
        are stored (:func:`engine.kernels.mixed_edge.mixed_sum`); there a weight of exactly zero has no gradient.
        """
        done: dict[tuple[str, bool], Tensor] = {}
        rectified: Tensor | None = None
        for e, (start, target) in enumerate(self.space.edges):
            if start != source:
                continue
            fused: list[tuple[Tensor, Tensor]] = []
            for name, term in lane.edges[e].items():
                x = state
                if self._reads_relu(e, name):
                    if rectified is None:
                        rectified = gated_relu(state, *self._rectified_for(source, lane))
                    x = rectified
                scalar = term.weight is not None and term.weight.dim() == 0
                fuses = scalar and lane.groups == 1 and _ends_in_statistics(self.module(e, name))
                y = self._output(e, name, x, lane.groups, term.alive, done, normalised=not fuses)
                self._check(e, name, state, y)
                if fuses:
                    assert term.weight is not None
                    fused.append((y, term.weight))
                else:
                    states[target] = _accumulate(states[target], y, term.weight)
            if fused:
                terms, weights = zip(*fused, strict=True)
                states[target] = mixed_edge.mixed_sum(terms, torch.stack(weights), states[target], norm=BATCH)

    def _output(
        self,
        edge: int,
        name: str,
        x: Tensor,
        groups: int,
        alive: Tensor | None,
        done: dict[tuple[str, bool], Tensor],
        *,
        normalised: bool,
    ) -> Tensor:
        """What an operation makes of a source, from ``done`` where its edges share it; without its last norm if asked for."""
        key = self._shared_key(edge, name)
        if (key, normalised) in done:
            return done[key, normalised]
        module: Any = self.module(edge, name)
        y = (module if normalised else module.unnormalised)(x, groups, alive)
        if key in self.shared:
            done[key, normalised] = y
        return y

    def _check(self, edge: int, name: str, state: Tensor, y: Tensor) -> None:
        """A wrong shape would be broadcast into the node unseen."""
        stride = self.space.stride(self.plan.kind, edge)
        expected = (*state.shape[:2], *(-(-n // stride) for n in state.shape[2:]))
        if y.shape != expected:
            raise ConfigurationError(
                f"operation {name!r}: made {tuple(y.shape)} of {tuple(state.shape)} at stride {stride}, expected {expected}"
            )

    def _readers(self, source: int, lane: Lane) -> Iterator[tuple[int, str, Term]]:
        """Every operation that reads a state, as (edge, name, term)."""
        for e, (start, _) in enumerate(self.space.edges):
            if start == source:
                for name, term in lane.edges[e].items():
                    yield e, name, term

    def _reads_relu(self, edge: int, name: str) -> bool:
        return operation(name).reads_relu(self.space.stride(self.plan.kind, edge))

    def _rectified_for(self, source: int, lane: Lane) -> tuple[Tensor | None, int | Tensor]:
        """For which groups the rectified state exists (where some operation that reads it is alive), and how many read it,
        (G,) where groups differ.
        """
        alive = [term.alive for e, name, term in self._readers(source, lane) if self._reads_relu(e, name)]
        flags = [groups for groups in alive if groups is not None]
        everywhere = len(alive) - len(flags)
        return _union(alive), torch.stack(flags).sum(0) + everywhere if flags else everywhere


def _ends_in_statistics(module: nn.Module) -> bool:
    """Whether a norm that the weighted sum can take over is the last that an operation does."""
    return type(module) in (Chain, FactorizedReduce, Pool) and type(module.norm) is TrainedBatchStatistics


def _union(alive: Iterable[Tensor | None]) -> Tensor | None:
    union: Tensor | None = None
    for groups in alive:
        if groups is None:
            return None
        union = groups if union is None else union | groups
    return union


def _accumulate(total: Tensor | None, y: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return y if total is None else total + y
    return y * weight if total is None else torch.addcmul(total, y, weight)
