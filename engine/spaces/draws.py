"""What is drawn at random in one forward pass of a supernet: dropout of skip connections, drop path, and noise.

Every factor has the address of its pass, its cell and its edge, so that a pass can be repeated bit by bit. It multiplies the
weight with which an operation's output is added to a node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.errors import ConfigurationError
from engine.spaces.cells import Lane, Term
from engine.spaces.darts import UNIT
from engine.spaces.mixture import Mixture
from engine.spaces.space import CellPlan, Space


@dataclass(frozen=True)
class Draws:
    """The draws of one pass.

    ``generator(purpose, *address, cell, edge)`` returns a fresh generator. ``skip_dropout`` is the chance of an element of a skip
    connection of stride 1 to be zero (P-DARTS); ``drop_path`` that of an edge's whole output, sample by sample (RobustDARTS).
    What is kept is divided by its chance.
    """

    generator: Callable[..., torch.Generator]
    address: tuple[int | str, ...] = ()
    skip_dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("skip_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def apply(self, lane: Lane, space: Space, plan: CellPlan, cell: int, like: Tensor, shape: Sequence[int]) -> Lane:
        """The lane of one cell with its weights multiplied by what is drawn.

        ``shape`` (B, C, H, W) is that of what an edge adds; ``like`` gives dtype and device.
        """
        edges = []
        for e, terms in enumerate(lane.edges):
            path = self._kept("drop-path", (shape[0], 1, 1, 1), self.drop_path, cell, e).to(like) if self.drop_path else None
            identity = space.stride(plan.kind, e) == 1
            edges.append({name: self._drawn(name, term, path, identity, cell, e, like, shape) for name, term in terms.items()})
        return replace(lane, edges=edges)

    def _drawn(
        self, name: str, term: Term, path: Tensor | None, identity: bool, cell: int, e: int, like: Tensor, shape: Sequence[int]
    ) -> Term:
        weight = term.weight if term.weight is not None else like.new_ones(())
        if path is not None:
            weight = weight * path
        if name == "skip_connect" and identity and self.skip_dropout:
            weight = weight * self._kept("skip-dropout", shape, self.skip_dropout, cell, e).to(like)
        if name == UNIT:
            weight = weight * _channels_last(torch.randn, shape, self.generator("noise", *self.address, cell, e)).to(like)
        return Term(weight, term.alive)

    def _kept(self, purpose: str, shape: Sequence[int], chance: float, cell: int, e: int) -> Tensor:
        """1 / (1 - chance) where an element is kept, else 0."""
        return (_channels_last(torch.rand, shape, self.generator(purpose, *self.address, cell, e)) >= chance) / (1 - chance)


def _channels_last(draw: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator) -> Tensor:
    batch, channels, height, width = shape
    return draw(batch, height, width, channels, generator=generator).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class DrawnMixture(Mixture):
    """A mixture with what is drawn in the pass that it is for."""

    draws: Draws | None = None

    @classmethod
    def of(cls, mixture: Mixture, draws: Draws) -> DrawnMixture:
        """``mixture`` with ``draws``."""
        return cls(mixture.weights, mixture.alive, mixture.edges, draws)
