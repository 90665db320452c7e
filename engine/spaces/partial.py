"""Partial channels: one part in K of a state goes through the operations of an edge, the others pass by (PC-DARTS, ICLR 2020).

Reference note tetlo-darts, section 3. The published mixed operation concatenates what was operated on with what passed by and
shuffles the channels; since a node only adds edges, a cell here adds both parts separately and shuffles a node once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.spaces.cells import Cell, Lane
from engine.spaces.darts import competing, discretise
from engine.spaces.genotype import Genotype
from engine.spaces.mixture import Mixture
from engine.spaces.norms import Norm
from engine.spaces.relaxations import softmax_mixture
from engine.spaces.space import CellPlan, Space


@dataclass(frozen=True)
class PartialLane(Lane):
    """A lane with the weights of its edges alone, each broadcastable, which are all that weighs what passes by."""

    scales: Sequence[Tensor] = ()

    @classmethod
    def of(cls, lane: Lane, mixture: Mixture, kind: int, batch: int) -> PartialLane:
        """``lane`` with the edge weights of a kind of cell; a mixture without any is a ``ValueError``."""
        if mixture.edges is None:
            raise ValueError("mixture: partial channels take edge weights of their own")
        scales = mixture.edges[..., kind, :]
        if scales.dim() == 2:
            scales = scales.repeat_interleave(batch // mixture.groups, 0).T[..., None, None, None]
        return cls(lane.edges, lane.groups, list(scales))


class PartialCell(Cell):
    """A cell whose operations see the first C/``partial`` channels of their source.

    Where an edge has stride 2 the other channels go through a 2x2 maximum of stride 2. ``partial`` must divide C.
    """

    def __init__(
        self, space: Space, plan: CellPlan, operations: Sequence[Sequence[str]], concat: Sequence[int], norm: Norm, partial: int
    ) -> None:
        if plan.channels % partial:
            raise ConfigurationError(f"channels: {plan.channels} cannot be divided into {partial} parts")
        super().__init__(space, replace(plan, channels=plan.channels // partial), operations, concat, norm)
        self.plan, self.partial = plan, partial
        self._take_two_inputs(norm)  # the inputs are taken at full width

    def _mixed(self, inputs: list[Tensor], lane: Lane) -> Tensor:
        assert isinstance(lane, PartialLane)
        width = self.plan.channels // self.partial
        active: list[Tensor | None] = [None] * self.space.states
        passing: list[Tensor | None] = [None] * self.space.states
        states = list(inputs)
        for source in range(self.space.states):
            if source >= len(inputs):
                states.append(self._joined(active[source], passing[source]))
            state = states[source]
            chosen = state[:, :width].contiguous(memory_format=torch.channels_last)
            self._spread(source, chosen, active, lane)
            self._pass(source, state[:, width:], passing, lane)
        return torch.cat([states[s] for s in self.concat], 1)

    def _pass(self, source: int, rest: Tensor, passing: list[Tensor | None], lane: PartialLane) -> None:
        """Add what no operation sees to the targets. All edges of a source have one stride, so it is pooled once."""
        leaving = [e for e, (start, _) in enumerate(self.space.edges) if start == source]
        if leaving and self.space.stride(self.plan.kind, leaving[0]) == 2:
            rest = F.max_pool2d(rest, 2, 2, ceil_mode=True)
        for e in leaving:
            target, scale = self.space.edges[e][1], lane.scales[e]
            before = passing[target]
            passing[target] = rest * scale if before is None else torch.addcmul(before, rest, scale)

    def _joined(self, active: Tensor | None, passing: Tensor | None) -> Tensor:
        """Both parts of a node, their channels shuffled in ``partial`` groups. Every node has an edge, so something passed."""
        assert passing is not None
        if active is None:
            batch, _, height, width = passing.shape
            active = passing.new_zeros(batch, self.plan.channels // self.partial, height, width)
        return shuffled(torch.cat([active, passing], 1), self.partial)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel i C/K + j of (B, C, H, W) becomes channel j K + i, for K groups."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).flatten(1, 2)


class PartialRelaxation:
    """Operations by a softmax over each edge, edges by one over each node: parameters (T, E, O + 1), the last the edge's."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.alive = torch.tensor(competing(space))
        targets = [target for _, target in space.edges]
        if targets != sorted(targets):
            raise ConfigurationError(f"space {space.name!r}: edges must be listed node by node")
        self.counts = [targets.count(target) for target in sorted(set(targets))]

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, E, O + 1) of the architecture parameters."""
        kinds, edges, operations = self.alive.shape
        return kinds, edges, operations + 1

    def __call__(self, a: Tensor) -> Mixture:
        """(T, E, O + 1) -> the mixture, operation and edge weights separate."""
        mixture = softmax_mixture(a[..., :-1], alive=self.alive)
        nodes = [torch.softmax(b, -1) for b in a[..., -1].split(self.counts, -1)]
        return Mixture(mixture.weights, mixture.alive, torch.cat(nodes, -1))

    def strengths(self, a: Tensor) -> Tensor:
        """(T, E, O): the products of operation and edge weights."""
        mixture = self(a.detach())
        assert mixture.edges is not None
        return mixture.weights * mixture.edges.unsqueeze(-1)

    def genotype(self, a: Tensor) -> Genotype:
        """The cell that these parameters stand for, by :meth:`strengths`; see :func:`engine.spaces.darts.discretise`."""
        return discretise(self.space, self.strengths(a).double().tolist())
