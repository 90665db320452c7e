"""The MetaNAS supernet and what is read off its architecture parameters (reference note on MetaNAS, sections 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from engine.errors import ConfigurationError
from engine.spaces.genotype import Genotype
from engine.spaces.network import build_network
from engine.spaces.relaxations import InputPairs, Relaxation
from engine.spaces.space import METANAS, Space
from engine.spaces.supernet import Supernet


def metanas_supernet(*, cells: int = 4, channels: int, outputs: int, channels_in: int, space: Space = METANAS) -> Supernet:
    """The supernet: a stem of 3C channels with an affine norm, statistics of the batch without scale and shift elsewhere.

    An odd number of channels is a :class:`ConfigurationError`, because the strided skip connection halves them.
    """
    if channels % 2:
        raise ConfigurationError(f"channels: the strided skip connection halves them, so {channels} must be even")
    return Supernet(
        space,
        cells=cells,
        channels=channels,
        outputs=outputs,
        channels_in=channels_in,
        norm="batchstat",
        stem_norm="batchstat-affine",
        tail=False,
    )


@dataclass(frozen=True)
class Architecture:
    """The architecture parameters of a space as one flat vector: operations (T, E, O), then input pairs (T, pairs).

    ``sparse_inputs`` False leaves the pairs out. ``relaxation`` is how they become a mixture.
    """

    space: Space = METANAS
    sparse_inputs: bool = True
    threshold: float = 0.0
    hard: bool = False

    @cached_property
    def relaxation(self) -> Relaxation:
        """The map to a mixture."""
        return Relaxation(InputPairs.of(self.space) if self.sparse_inputs else None, self.threshold, self.hard)

    @property
    def operation_shape(self) -> tuple[int, int, int]:
        """(T, E, O)."""
        return len(self.space.kinds), len(self.space.edges), len(self.space.operations)

    @property
    def size(self) -> int:
        """Number of parameters A; 146 in the MetaNAS space with input pairs."""
        kinds, edges, operations = self.operation_shape
        pairs = self.relaxation.pairs
        return kinds * (edges * operations + (len(pairs.pairs) if pairs else 0))

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor | None]:
        """(A,) -> operation parameters (T, E, O) and pair parameters (T, pairs), as views."""
        kinds, edges, operations = self.operation_shape
        alphas = flat[: kinds * edges * operations].view(self.operation_shape)
        return alphas, flat[alphas.numel() :].view(kinds, -1) if self.sparse_inputs else None

    def mixture_weights(self, flat: Tensor, temperature: float | Tensor) -> Tensor:
        """(A,) -> the weight of every operation in its node, c_i w_io, (T, E, O)."""
        mixture = self.relaxation(*self.split(flat), temperature)
        return mixture.weights if mixture.edges is None else mixture.weights * mixture.edges.unsqueeze(-1)

    def active(self, flat: Tensor, temperature: float) -> Tensor:
        """Which operations weigh something, bool (T, E, O) on the host (one synchronisation)."""
        return (~(self.mixture_weights(flat.detach(), temperature) <= 0)).cpu()  # a NaN weighs something

    def genotype(self, flat: Tensor) -> Genotype:
        """Discretise: each node's best pair of inputs (without pairs, its two edges of largest parameter), each edge's best
        operation. Ties go to the first."""
        alphas, betas = self.split(flat.detach().cpu())
        strength, choice = alphas.max(-1)
        chosen = torch.zeros(self.operation_shape, dtype=torch.bool)
        for kind in range(len(self.space.kinds)):
            for edge in self._inputs(strength[kind], None if betas is None else betas[kind]):
                chosen[kind, edge, choice[kind, edge]] = True
        return self.space.genotype(chosen.tolist())

    def _inputs(self, strength: Tensor, betas: Tensor | None) -> list[int]:
        """The edges that the nodes of one kind of cell keep."""
        pairs = self.relaxation.pairs
        kept: list[int] = []
        if pairs is not None and betas is not None:
            start = 0
            for count in pairs.counts:
                kept.extend(pairs.pairs[start + int(betas[start : start + count].argmax())])
                start += count
            return kept
        for node in range(self.space.inputs, self.space.states):
            edges = [e for e, (_, target) in enumerate(self.space.edges) if target == node]
            kept.extend(sorted(edges, key=lambda e: -float(strength[e]))[: self.space.edges_per_node])
        return kept


def pruned_parameters(
    architecture: Architecture, flat: Tensor, temperature: float, *, channels: int, outputs: int, channels_in: int, cells: int = 4
) -> int:
    """Parameters that are left when operations that weigh less than the threshold are taken out of the supernet.

    An operation counts while w_o >= threshold and its input belongs to a pair with p >= threshold (the forward pass needs more
    than the threshold; published both ways); stem, preprocessing and head always count. Builds the network on no device.
    """
    alphas, betas = architecture.split(flat.detach().cpu())
    least = architecture.threshold
    alive = torch.softmax(alphas / temperature, -1) >= least
    pairs = architecture.relaxation.pairs
    if pairs is not None and betas is not None:
        kept = torch.cat([torch.softmax(b / temperature, -1) for b in betas.split(pairs.counts, -1)], -1) >= least
        alive &= (kept.to(alphas) @ pairs.members.to(alphas) > 0).unsqueeze(-1)
    genotype = architecture.space.genotype(alive.tolist())
    return genotype_parameters(
        genotype, architecture.space, channels=channels, outputs=outputs, channels_in=channels_in, cells=cells
    )


def genotype_parameters(
    genotype: Genotype, space: Space, *, channels: int, outputs: int, channels_in: int, cells: int = 4
) -> int:
    """Parameters of a genotype's network cut out of the supernet: affine only in the stem's norm. Builds it on no device."""
    with torch.device("meta"):
        network = build_network(
            genotype,
            channels=channels,
            classes=outputs,
            cells=cells,
            channels_in=channels_in,
            norm="batchstat",
            space=space,
        )
    stem_norm = 2 * channels * space.stem_multiplier
    return sum(p.numel() for p in network.parameters()) + stem_norm
