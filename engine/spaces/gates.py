"""PR-DARTS's relaxation: a hard-concrete gate an operation, a few of which are open in a pass (Zhou et al., NeurIPS 2020).

Note tetlo-darts, section 4. A gate is g = clamp(s (b - a) + a, 0, 1) with s = sigmoid((beta + logit u) / tau), u uniform,
a = -0.1 and b = 1.1; it is not zero with probability P = sigmoid(beta - tau log(-a / b)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.spaces.darts import NOISE, competing
from engine.spaces.genotype import CellGenotype, Connection, Genotype
from engine.spaces.mixture import Mixture
from engine.spaces.space import Space

LOW, HIGH = -0.1, 1.1
POOLS = ("max_pool_3x3", "avg_pool_3x3")
SKIP = "skip_connect"
# The released loss does not penalise a group whose mean activation probability is below this.
THRESHOLD = 0.2


@dataclass(frozen=True)
class GateDraw:
    """What one pass draws, each of (T, E, O): ``uniform`` for the gates, ``order`` to break ties, ``dropped`` gates."""

    uniform: Tensor
    order: Tensor
    dropped: Tensor

    @classmethod
    def of(cls, shape: tuple[int, ...], chance: float, generator: torch.Generator) -> GateDraw:
        """One draw; a gate is dropped with this chance."""
        uniform, order, dropout = torch.rand((3, *shape), generator=generator, dtype=torch.float64)
        return cls(uniform, order, dropout < chance)


class GateRelaxation:
    """Gates of the operations that compete on each edge, "none" among them; parameters beta (T, E, O).

    ``active`` operations of an edge are open in a pass; ``tau`` is the temperature at which the cell is read off; ``released``
    ranks operations then as the released code does.
    """

    def __init__(self, space: Space, *, active: int = 2, tau: float = 0.1, released: bool = False) -> None:
        self.space, self.active, self.tau, self.released = space, active, tau, released
        self.alive = torch.tensor(competing(space))

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, E, O) of the architecture parameters."""
        return tuple(self.alive.shape)

    def gates(self, beta: Tensor, tau: float, uniform: Tensor) -> Tensor:
        """g (T, E, O) for uniform numbers u of that shape."""
        u = uniform.clamp(1e-12, 1 - 1e-12)
        noise = (u.log() - torch.log1p(-u)).to(beta)
        return (torch.sigmoid((beta + noise) / tau) * (HIGH - LOW) + LOW).clamp(0, 1)

    def chosen(self, gates: Tensor, draw: GateDraw) -> Tensor:
        """The ``active`` operations of each edge with the largest gates, bool (T, E, O) on the host; dropped gates come last."""
        contest = gates.detach().double().cpu() - draw.dropped.double()
        contest = torch.where(self.alive, contest, -torch.inf)
        # Saturated gates are equal: they are ranked in a random order by a stable sort.
        shuffle = draw.order.argsort(-1)
        ranked = shuffle.gather(-1, contest.gather(-1, shuffle).argsort(dim=-1, descending=True, stable=True))
        return torch.zeros_like(self.alive).scatter_(-1, ranked[..., : self.active], True) & self.alive

    def __call__(self, beta: Tensor, tau: float, draw: GateDraw) -> Mixture:
        """The mixture of a pass: chosen operations weigh exactly one, with the gate's gradient; the others do not exist."""
        gates = self.gates(beta, tau, draw.uniform)
        return Mixture(1 + (gates - gates.detach()), self.chosen(gates, draw))

    def probabilities(self, beta: Tensor, tau: float) -> Tensor:
        """P (T, E, O) that a gate is not zero."""
        return torch.sigmoid(beta - tau * math.log(-LOW / HIGH))

    def strengths(self, a: Tensor) -> Tensor:
        """(T, E, O): what ranks operations when the cell is read off; zero where an edge does not carry one.

        That is P at the last temperature; the released code ranks a softmax over each edge instead.
        """
        alive = self.alive.to(a.device)
        if self.released:
            return torch.where(alive, torch.softmax(torch.where(alive, a.detach(), -torch.inf), -1), 0)
        return torch.where(alive, self.probabilities(a.detach(), self.tau), 0)

    def genotype(self, a: Tensor) -> Genotype:
        """Of each node the two strongest pairs of edge and operation, which may share an edge; ties go to the earlier."""
        space, cells = self.space, []
        for kind, rows in zip(space.kinds, self.strengths(a).double().tolist(), strict=True):
            connections: list[Connection] = []
            for node in range(space.inputs, space.states):
                pairs = [
                    (-rows[e][o], e, o)
                    for e, (_, target) in enumerate(space.edges)
                    for o, name in enumerate(space.operations)
                    if target == node and space.carries(kind, e, name)
                ]
                best = sorted(pairs)[: space.edges_per_node]
                connections += [Connection(*space.edges[e], space.operations[o]) for _, e, o in best]
            cells.append((kind, CellGenotype(tuple(connections), space.output_states)))
        return Genotype(space.name, tuple(cells))


class GateGroups:
    """The groups of operations that PR-DARTS's regularisers tell apart, each bool (T, E, O): what edges carry of it."""

    def __init__(self, space: Space) -> None:
        names, alive = space.operations, torch.tensor(competing(space))

        def group(members: Callable[[str], bool]) -> Tensor:
            return alive & torch.tensor([members(name) for name in names])

        self.skips = group(lambda name: name == SKIP)
        self.pools = group(lambda name: name in POOLS)
        self.convolutions = group(lambda name: name not in (SKIP, "none", NOISE, *POOLS))
        self.rest = alive & ~self.skips & ~self.pools
        # The path from node to node: the edges that lead from the state before.
        self.chain = [e for e, (source, target) in enumerate(space.edges) if source == target - 1]

    def skip_sparsity(self, p: Tensor) -> Tensor:
        """Mean activation probability of the skip connections, averaged over the kinds of cells."""
        return masked_mean(p, self.skips).mean()

    def group_sparsity(self, p: Tensor) -> Tensor:
        """The same of all other operations."""
        return masked_mean(p, self.rest | self.pools).mean()

    def path_depth(self, p: Tensor) -> Tensor:
        """Product along the path of the sums of the convolutions' activation probabilities, averaged over the kinds."""
        open_convolutions = torch.where(self.convolutions.to(p.device), p, 0)
        return open_convolutions[:, self.chain].sum(-1).prod(-1).mean()

    def released(self, p: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(skip, other, path) as released: over the operations ``chosen`` (T, E, O) in this pass.

        Groups are means that count only above :data:`THRESHOLD`, pools a group of their own; the path is the product of mean
        probabilities over the edges that have a chosen convolution (1 where none has).
        """
        skip, rest, pools = (
            F.relu(masked_mean(p, chosen & group).mean() - THRESHOLD) for group in (self.skips, self.rest, self.pools)
        )
        convolutions = (chosen & self.convolutions)[:, self.chain]
        means = masked_mean(p[:, self.chain].flatten(0, 1), convolutions.flatten(0, 1)).view(convolutions.shape[:2])
        some = convolutions.any(-1).to(p.device)
        return skip, rest + pools, torch.where(some, means, 1).prod(-1).mean()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values (N, ...) that the mask selects, for each of the N; 0 where it selects none."""
    mask = mask.to(values.device)
    chosen = torch.where(mask, values, 0).flatten(1).sum(1)
    return chosen / mask.flatten(1).sum(1).clamp(min=1)
