"""Mixtures: the operation weights that a supernet is evaluated with (design rule 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.spaces.space import Space


@dataclass(frozen=True)
class Mixture:
    """Operation weights of every edge, for one architecture or for a batch of them.

    ``weights`` is (T, E, O) for T cell kinds, E edges, O operations, or (G, T, E, O) with one row a group of consecutive
    samples (G = the batch gives one row a sample). ``alive`` is a bool tensor of the same shape on the host: an operation that
    is not alive is given weight zero, is not computed where no group needs it, and has no activations. Being on the host it
    costs no device synchronisation. ``edges`` (T, E) or (G, T, E) are optional separate edge weights. Other shapes are a
    ``ValueError``.
    """

    weights: Tensor
    alive: Tensor
    edges: Tensor | None = None

    def __post_init__(self) -> None:
        if self.weights.dim() not in (3, 4):
            raise ValueError(f"weights: expected (T, E, O) or (G, T, E, O), got {tuple(self.weights.shape)}")
        if self.alive.shape != self.weights.shape or self.alive.dtype != torch.bool or self.alive.device.type != "cpu":
            raise ValueError(
                f"alive: expected a bool CPU tensor of shape {tuple(self.weights.shape)}, got {tuple(self.alive.shape)}"
            )
        if self.edges is not None and self.edges.shape != self.weights.shape[:-1]:
            raise ValueError(f"edges: expected {tuple(self.weights.shape[:-1])}, got {tuple(self.edges.shape)}")
        if 0 in self.weights.shape:
            raise ValueError(f"weights: nothing in {tuple(self.weights.shape)}")
        # In a batch an operation is computed for all groups as soon as one needs it, so the others' weights must be zero.
        object.__setattr__(self, "weights", torch.where(self.alive.to(self.weights.device), self.weights, 0))

    @property
    def groups(self) -> int:
        """Number of architectures G."""
        return self.weights.shape[0] if self.weights.dim() == 4 else 1

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Mixture:
        """Move the weights; ``alive`` stays on the host."""
        edges = None if self.edges is None else self.edges.to(device, dtype)
        return Mixture(self.weights.to(device, dtype), self.alive, edges)


def uniform(alive: Tensor, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Mixture:
    """The mean of the operations that are left on each edge; an edge with none contributes nothing.

    This is the softmax of equal logits over the live operations: removing one of k re-weights the others to 1/(k-1).
    ``alive`` is bool (T, E, O) or (G, T, E, O) on the host.
    """
    count = alive.sum(-1, keepdim=True).clamp(min=1)
    weights = alive.to(torch.float64) / count
    return Mixture(weights.to(device, dtype), alive)


def full(space: Space) -> Tensor:
    """``alive`` of the whole supernet, (T, E, O)."""
    return torch.tensor(space.alive(), dtype=torch.bool, device="cpu")


def without(alive: Tensor, candidates: list[tuple[int, int, int]]) -> Tensor:
    """One row (T, E, O) a candidate (kind, edge, operation): ``alive`` with that operation removed."""
    rows = alive.expand(len(candidates), *alive.shape).clone()
    for row, (kind, edge, operation) in zip(rows, candidates, strict=True):
        row[kind, edge, operation] = False
    return rows
