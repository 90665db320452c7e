"""Relaxations: from architecture parameters to the mixture that a supernet is evaluated with (design rule 1).

Everything here is data: temperatures and thresholds may be tensors, and nothing is read back to the host, so a step that mixes
by them can be captured and replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from engine.errors import ConfigurationError
from engine.spaces.mixture import Mixture
from engine.spaces.space import Space


def softmax_mixture(alphas: Tensor, temperature: float | Tensor = 1.0, alive: Tensor | None = None) -> Mixture:
    """softmax(alphas / temperature) over the operations of every edge (DARTS, Eq. 2; with a temperature, SNAS and MetaNAS).

    ``alphas`` (T, E, O) or (G, T, E, O) for T cell kinds, E edges, O operations and G architectures. ``alive``, a bool tensor of
    the same shape on the host, takes operations out of the softmax (default: none); an edge with none left weighs nothing.
    ``temperature`` is a positive number or a 0-d tensor. Cost: one softmax of the parameters.
    """
    if alive is None:
        alive = torch.ones(alphas.shape, dtype=torch.bool, device="cpu")
        return Mixture(torch.softmax(alphas / temperature, -1), alive)
    held = alive.to(alphas.device)
    # An edge without operations would be a softmax of nothing: NaN, also in the gradient.
    logits = torch.where(held | ~held.any(-1, keepdim=True), alphas / temperature, -torch.inf)
    return Mixture(torch.softmax(logits, -1), alive)


def annealed_temperature(step: int, steps: int, t_max: float = 1.0, t_min: float = 0.1) -> float:
    """T(s) = t_max - s (t_max - t_min) / (S - 1) for step s of S, held at ``t_min`` from S - 1 on (reference note, section 2).

    One step cannot anneal: with S = 1 the two temperatures must be equal, else this is a :class:`ConfigurationError`, as are
    temperatures that are not positive.
    """
    check_annealing(steps, t_max, t_min)
    if step >= steps - 1:
        return t_min
    return t_max - step * (t_max - t_min) / (steps - 1)


def check_annealing(steps: int, t_max: float, t_min: float) -> None:
    """Raise a :class:`ConfigurationError` unless the temperature can go from ``t_max`` to ``t_min`` in ``steps`` steps."""
    if not 0 < t_min <= t_max < float("inf"):
        raise ConfigurationError(f"temperatures must be finite with 0 < t_min <= t_max, got t_min={t_min} and t_max={t_max}")
    if steps < 2 and t_min != t_max:
        raise ConfigurationError(
            f"annealing from {t_max} to {t_min} takes at least 2 architecture steps, got {steps}; add steps or equal temperatures"
        )


@dataclass(frozen=True)
class InputPairs:
    """The pairs of inputs that each node of a space chooses from, in lexicographic order of their edges.

    ``counts`` is the number of pairs of each node; ``members`` (pairs, E) is 1 where an edge belongs to a pair.
    """

    pairs: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]
    members: Tensor

    @classmethod
    def of(cls, space: Space) -> InputPairs:
        """The pairs of a space whose every node has at least two edges; else a :class:`ConfigurationError`."""
        pairs: list[tuple[int, int]] = []
        counts = []
        for node in range(space.inputs, space.states):
            edges = [e for e, (_, target) in enumerate(space.edges) if target == node]
            if len(edges) < 2:
                raise ConfigurationError(f"space {space.name!r}: node {node} has {len(edges)} input, which makes no pair")
            counts.append(len(edges) * (len(edges) - 1) // 2)
            pairs.extend(combinations(edges, 2))
        members = torch.zeros(len(pairs), len(space.edges), device="cpu")
        for row, pair in enumerate(pairs):
            members[row, list(pair)] = 1
        return cls(tuple(pairs), tuple(counts), members)


@dataclass(frozen=True)
class Relaxation:
    """MetaNAS's relaxation of operations and, with ``pairs``, of inputs (reference note, section 2).

    With T the temperature, a and b the parameters of an edge's operations and of a node's pairs:
    w = softmax(a / T) and p = softmax(b / T); a node is sum_i c_i sum_o w_io op_o(x_i) with c_i the sum of the p of the pairs
    that input i belongs to, which equals the published sum over pairs of p_ik (e_i + e_k) at a fraction of its cost. Without
    ``pairs`` every c_i is 1 (DARTS; SNAS-like if annealed).

    ``threshold``: operations with w <= threshold and pairs with p <= threshold weigh nothing; the others are not renormalised.
    ``hard``: of each edge only the heaviest operation and of each node only the heaviest pair keep their weights, which are not
    raised to one; gradients reach what is kept.
    """

    pairs: InputPairs | None = None
    threshold: float = 0.0
    hard: bool = False

    def __call__(self, alphas: Tensor, betas: Tensor | None, temperature: float | Tensor) -> Mixture:
        """``alphas`` (T, E, O) and, with pairs, ``betas`` (T, pairs) -> the mixture, all operations alive on the host."""
        mixture = softmax_mixture(alphas, temperature)
        weights = self._kept(mixture.weights)
        return Mixture(weights, mixture.alive, self.coefficients(betas, temperature))

    def coefficients(self, betas: Tensor | None, temperature: float | Tensor) -> Tensor | None:
        """The edge weights c (T, E); None without pairs."""
        if self.pairs is None:
            return None
        assert betas is not None
        nodes = [torch.softmax(b / temperature, -1) for b in betas.split(self.pairs.counts, -1)]
        return torch.cat([self._kept(p) for p in nodes], -1) @ self.pairs.members.to(betas)

    def _kept(self, weights: Tensor) -> Tensor:
        """What the hard choice and the threshold leave of softmax weights (..., n)."""
        if self.hard:
            heaviest = torch.arange(weights.shape[-1], device=weights.device) == weights.argmax(-1, keepdim=True)
            weights = torch.where(heaviest, weights, 0)
        return torch.where(weights <= self.threshold, 0, weights)  # NaN stays what it is
