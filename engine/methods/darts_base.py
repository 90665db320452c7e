"""What distinguishes the methods of the DARTS family: supernet, relaxation, and how a cell is read off them.

A search (:class:`engine.methods.darts.Darts` with one model, :class:`engine.methods.tetlo.Tetlo` with two) takes everything that
its base decides from a :class:`Base`, which holds no tensor that changes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from engine.learning.bilevel import Adam
from engine.methods.darts_options import FamilyOptions
from engine.runs.streams import stream
from engine.spaces.cost import count
from engine.spaces.darts import NOISE, operation_counts, searched_space, without_noise
from engine.spaces.darts_supernet import DartsSupernet, Encoder, SoftmaxRelaxation
from engine.spaces.draws import DrawnMixture, Draws
from engine.spaces.genotype import Genotype
from engine.spaces.mixture import Mixture
from engine.spaces.space import Space

# The network that a found cell is published with; result.json counts the parameters of that (note, section 7).
PUBLISHED_CELLS, PUBLISHED_CHANNELS = 20, 36


class Pass(NamedTuple):
    """Where in a search a loss is taken: the address of what is drawn for it.

    ``phase`` is "architecture", "weights" or "validation", ``batch`` names the batch. All evaluations of one loss, such as those
    of a Hessian product, see the same draws.
    """

    phase: str
    epoch: int
    step: int
    batch: str = "main"


class Relaxation(Protocol):
    """From architecture parameters of ``shape`` to a mixture, and to a cell."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the architecture parameters."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The mixture of architecture parameters, and of what else the method has."""

    def strengths(self, a: Tensor, /) -> Tensor:
        """(T, E, O): what operations are worth when the cell is read off."""

    def genotype(self, a: Tensor, /) -> Genotype:
        """The cell that these parameters stand for."""


class Base:
    """DARTS: every operation on every edge, weighted by a softmax. The other bases override what they change."""

    weights_first = False
    """Whether an iteration moves the weights before the architecture."""

    space: Space
    relaxation: Relaxation

    def __init__(self, options: FamilyOptions) -> None:
        self.options = options
        self.cells = options.cells
        self.first_epoch, self.epochs = 0, options.epochs
        self.address: tuple[int, ...] = ()
        self.take_space(options.space)

    def take_space(self, name: str) -> None:
        """Look up what is searched, and how parameters become a mixture."""
        self.space = searched_space(name)
        self.relaxation = SoftmaxRelaxation(self.space)

    def structure(self) -> dict[str, Any]:
        """What the base's supernet takes beyond its size; see :class:`DartsSupernet`."""
        return {"imagenet": self.options.stem == "imagenet", "recompute": self.options.recompute}

    def supernet(self, space: Space, cells: int, *, outputs: int, channels_in: int) -> DartsSupernet:
        """A supernet of so many cells of ``space``."""
        channels = self.options.channels
        return DartsSupernet(space, cells=cells, channels=channels, outputs=outputs, channels_in=channels_in, **self.structure())

    def optimiser(self, a: Tensor) -> Adam:
        """What moves the architecture parameters."""
        options = self.options
        first, second = torch.zeros_like(a), torch.zeros_like(a)
        return Adam(first, second, rate=options.alpha_rate, decay=options.alpha_decay, clip=options.alpha_clip)

    def network(self, *, outputs: int, channels_in: int) -> nn.Module:
        """The supernet that is searched."""
        return self.supernet(self.space, self.cells, outputs=outputs, channels_in=channels_in)

    def encoder(self, *, outputs: int, channels_in: int) -> Encoder:
        """The supernet without its last cell, returning features too; its reductions stay where they are."""
        first = replace(self.space, reduction_cells=self.space.reductions(self.cells))
        return Encoder(self.supernet(first, self.cells - 1, outputs=outputs, channels_in=channels_in))

    def start(self) -> Tensor:
        """The architecture parameters to start from: normal numbers of the options' scale, by address."""
        drawn = torch.randn(self.relaxation.shape, generator=stream(self.options.seed, "alphas", *self.address))
        return (self.options.alpha_scale * drawn).to(self.options.device)

    def mixture(self, a: Tensor, where: Pass) -> Mixture:
        """What the supernet is evaluated with."""
        return self.drawn(self.relaxation(a), where)

    def drawn(self, mixture: Mixture, where: Pass, **rates: float) -> Mixture:
        """The mixture with what a pass draws: noise where the space has it, and what is dropped at these ``rates``."""
        if NOISE not in self.space.operations and not any(rates.values()):
            return mixture
        return DrawnMixture.of(mixture, Draws(partial(stream, self.options.seed), (*self.address, *where), **rates))

    def penalty(self, a: Tensor, where: Pass) -> Tensor:
        """What the architecture's loss adds to the cross-entropy, a scalar."""
        return a.new_zeros(())

    def penalised(self, gradient: Tensor, a: Tensor, where: Pass) -> Tensor:
        """The gradient of a loss for the architecture with that of the penalty, which no weight acts on, added."""
        a = a.detach().requires_grad_()
        with torch.enable_grad():
            value = self.penalty(a, where)
        return gradient + torch.autograd.grad(value, a)[0] if value.requires_grad else gradient

    def genotype(self, a: Tensor) -> Genotype:
        """The cell that these parameters stand for."""
        return self.relaxation.genotype(a)

    def strengths(self, a: Tensor) -> Tensor:
        """(T, E, O): what operations are worth when the cell is read off."""
        return self.relaxation.strengths(a)

    def noted(self, genotype: Genotype) -> dict[str, Any]:
        """What the line of an epoch says of the cell."""
        return {"skips": operation_counts(genotype)["normal"]["skip_connect"]}

    def described(self, genotype: Genotype, *, size: int, classes: int, channels_in: int) -> dict[str, Any]:
        """What a result says of the cell: its operations, and the cost of the network that such cells are published with."""
        cost = count(
            without_noise(genotype),
            channels=PUBLISHED_CHANNELS,
            cells=PUBLISHED_CELLS,
            size=size,
            classes=classes,
            channels_in=channels_in,
        )
        return {
            "parameters": cost.parameters,
            "flops": cost.flops,
            "counted_network": {"cells": PUBLISHED_CELLS, "channels": PUBLISHED_CHANNELS},
            "operations": operation_counts(genotype),
        }

    def strength_table(self, a: Tensor) -> dict[str, Any]:
        """The table of :meth:`strengths`."""
        weights = self.strengths(a).tolist()
        rows = [
            [kind, f"{source}->{target}", *(round(value, 4) for value in weights[k][e])]
            for k, kind in enumerate(self.space.kinds)
            for e, (source, target) in enumerate(self.space.edges)
        ]
        return {"title": "Weights of the operations", "columns": ["cell", "edge", *self.space.operations], "rows": rows}

    def result(self, a: Tensor) -> dict[str, Any]:
        """What the base adds to a result."""
        return {}

    def following(self, epoch: int, a: Tensor) -> Base | None:
        """The base to go on with after an epoch, in a fresh network; None to go on with this one."""
        return None

    def state(self) -> dict[str, Any]:
        """Plain JSON types that :meth:`restored` makes this base of again."""
        return {}

    def restored(self, state: dict[str, Any]) -> Base:
        """The base of a checkpoint of the same options."""
        return self
