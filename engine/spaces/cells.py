"""A cell: a small directed graph whose edges mix operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.spaces.norms import Norm, is_stateless
from engine.spaces.operations import Chain, FactorizedReduce, gated_relu, operation
from engine.spaces.space import CellPlan, Space


@dataclass(frozen=True)
class Lane:
    """How one cell is mixed in this forward: per (edge, operation) a broadcastable weight and who it is alive for.

    ``weight[e][o]`` is None where no group carries the operation. ``alive[e][o]`` is None where every group does, else
    bool (G,).
    """

    weight: list[list[Tensor | None]]
    alive: list[list[Tensor | None]]
    groups: int


class Cell(nn.Module):
    """One cell of a space at its place in the network.

    ``operations[e]`` names what edge ``e`` may carry, in the space's order; edges with no operation are not built. The modules are
    ``edges[e][name]``, except that operations without parameters or buffers exist once a source state, in ``shared``: they
    are evaluated once however many edges read them.
    """

    def __init__(
        self, space: Space, plan: CellPlan, operations: Sequence[Sequence[str]], concat: Sequence[int], norm: Norm
    ) -> None:
        super().__init__()
        self.space, self.plan, self.concat = space, plan, tuple(concat)
        channels = plan.channels
        if plan.follows_reduction:
            self.preprocess0: nn.Module = FactorizedReduce(plan.channels_in[0], channels, norm, space.odd)
        else:
            self.preprocess0 = Chain([nn.Conv2d(plan.channels_in[0], channels, 1, bias=False), norm(channels)])
        self.preprocess1 = Chain([nn.Conv2d(plan.channels_in[1], channels, 1, bias=False), norm(channels)])
        self.edges = nn.ModuleList()
        self.shared = nn.ModuleDict()
        for e, names in enumerate(operations):
            stride = space.stride(plan.kind, e)
            built = nn.ModuleDict()
            for name in names:
                module = operation(name).build(channels, stride, norm, space.odd)
                key = self._shared_key(e, name)
                if not is_stateless(module):
                    built[name] = module
                elif key not in self.shared:
                    self.shared[key] = module
            self.edges.append(built)

    def _shared_key(self, edge: int, name: str) -> str:
        return f"{name}@{self.space.edges[edge][0]}/{self.space.stride(self.plan.kind, edge)}"

    def forward(self, s0: Tensor, s1: Tensor, lane: Lane) -> Tensor:
        """(B, C0, H0, W0), (B, C1, H, W) -> (B, nodes*C, H', W')."""
        states: list[Tensor | None] = [
            self.preprocess0(gated_relu(s0), lane.groups),
            self.preprocess1(gated_relu(s1), lane.groups),
        ] + [None] * self.space.nodes
        for source in range(self.space.states):
            state = states[source]
            if state is not None:
                self._spread(source, state, states, lane)
        missing = next((state for state in states[self.space.inputs :] if state is not None), None)
        return torch.cat([self._node(states[s], missing, s0) for s in self.concat], 1)

    def _node(self, state: Tensor | None, like: Tensor | None, s0: Tensor) -> Tensor:
        """A node that nothing reaches is zero: its edges were all pruned away."""
        if state is not None:
            return state
        if like is not None:
            return torch.zeros_like(like)
        size = [-(-n // 2) if self.plan.reduces != self.plan.follows_reduction else n for n in s0.shape[-2:]]
        return s0.new_zeros(s0.shape[0], self.plan.channels, *size)

    def _spread(self, source: int, state: Tensor, states: list[Tensor | None], lane: Lane) -> None:
        """Add everything that reads ``source`` to its targets; nothing is evaluated twice."""
        done: dict[str, Tensor] = {}
        rectified: Tensor | None = None
        for e, (start, target) in enumerate(self.space.edges):
            if start != source:
                continue
            stride = self.space.stride(self.plan.kind, e)
            for o, name in enumerate(self.space.operations):
                weight, alive = lane.weight[e][o], lane.alive[e][o]
                if weight is None:
                    continue
                key = self._shared_key(e, name)
                if operation(name).reads_relu(stride) and rectified is None:
                    rectified = gated_relu(state, self._readers(source, lane))
                x = rectified if operation(name).reads_relu(stride) else state
                if key in self.shared:
                    if key not in done:
                        done[key] = self.shared[key](x, lane.groups)
                    y = done[key]
                else:
                    y = self.edges[e][name](x, lane.groups, alive)
                states[target] = _accumulate(states[target], y, weight)

    def _readers(self, source: int, lane: Lane) -> Tensor | None:
        """For which groups the rectified state exists: those where some operation that reads it is alive."""
        union: Tensor | None = None
        for e, (start, _) in enumerate(self.space.edges):
            stride = self.space.stride(self.plan.kind, e)
            for o, name in enumerate(self.space.operations):
                if start != source or lane.weight[e][o] is None or not operation(name).reads_relu(stride):
                    continue
                alive = lane.alive[e][o]
                if alive is None:
                    return None
                union = alive if union is None else union | alive
        return union


def _accumulate(total: Tensor | None, y: Tensor, weight: Tensor) -> Tensor:
    return y * weight if total is None else torch.addcmul(total, y, weight)
