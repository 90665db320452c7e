"""The supernet of the DARTS family (reference note tetlo-darts, section 1)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from engine.errors import ConfigurationError
from engine.spaces.cells import Cell, Lane
from engine.spaces.darts import UNIT, competing, discretise, supernet_table
from engine.spaces.differentiable import differentiable
from engine.spaces.draws import DrawnMixture, Draws
from engine.spaces.genotype import Genotype
from engine.spaces.mixture import Mixture
from engine.spaces.norms import norm_factory
from engine.spaces.one_shot_supernet import OneShotSupernet
from engine.spaces.partial import PartialCell, PartialLane
from engine.spaces.relaxations import softmax_mixture
from engine.spaces.space import Space
from engine.spaces.supernet import Supernet, make_lane


class DartsSupernet(Supernet):
    """A supernet of the family: stem of 3C channels with an affine norm, cells normalised without scale and shift.

    Norms use the statistics of the batch and remember nothing, so no pass changes the network. The published code keeps running
    statistics, which only its validation accuracy reads; validation here uses the batch's own. An odd number of channels is a
    :class:`ConfigurationError`, because the strided skip connection halves them.

    ``partial`` K above 1 takes cells with partial channels, whose mixture must have edge weights; ``imagenet`` the strided stem.
    ``pool_norms`` says whether a norm follows each pool, ``tail`` whether an affine norm and a ReLU precede the last pooling:
    PR-DARTS has no norms there, but a tail. ``recompute`` keeps only what passes between cells and computes each cell again
    when its gradient is taken, to the same bits.
    """

    def __init__(
        self,
        space: Space,
        *,
        cells: int,
        channels: int,
        outputs: int,
        channels_in: int = 3,
        partial: int = 1,
        imagenet: bool = False,
        pool_norms: bool = True,
        tail: bool = False,
        recompute: bool = False,
    ) -> None:
        if channels % (2 * partial):
            parts = "the strided skip connection halves them" if partial == 1 else f"one part in {partial} is halved"
            raise ConfigurationError(f"--channels: {parts}, so {channels} must be a multiple of {2 * partial}")
        super().__init__(
            supernet_table(space, pool_norms=pool_norms),
            cells=cells,
            channels=channels,
            outputs=outputs,
            channels_in=channels_in,
            norm="batchstat-trained",
            stem_norm="batchstat-trained-affine",
            tail=tail,
            strided_width=channels * space.stem_multiplier if imagenet else None,
            cell=Cell if partial == 1 else functools.partial(PartialCell, partial=partial),
        )
        self.partial, self.strided, self.recompute = partial, imagenet, recompute
        if tail:
            self.tail_norm = norm_factory("batchstat-trained-affine")(self.features)
        differentiable(self)

    def embed(self, x: Tensor, mixture: Mixture) -> Tensor:
        """What the classifier reads: images and a mixture, drawn or not -> pooled features (B, F)."""
        self._check(x, mixture)
        lanes = {kind: self._lane(mixture, k, len(x)) for k, kind in enumerate(self.space.kinds)}
        if isinstance(mixture, DrawnMixture) and mixture.draws is not None:
            return self.pooled(x, self._drawn(x, lanes, mixture.draws), mixture.groups)
        if UNIT in self.space.operations:
            raise ValueError("mixture: noise is drawn by address; give a DrawnMixture")
        return self.pooled(x, lanes, mixture.groups)

    def through(self, cell: Cell, s0: Tensor, s1: Tensor, lane: Lane) -> Tensor:
        """The output of a cell; with ``recompute`` its graph is made anew in the backward pass."""
        if not (self.recompute and torch.is_grad_enabled()):
            return super().through(cell, s0, s1, lane)
        # The weights of this call: others may be in their places when the gradient is taken.
        weights: dict[str, Tensor] = dict(cell.named_parameters())

        def forward(s0: Tensor, s1: Tensor) -> Tensor:
            return functional_call(cell, weights, (s0, s1, lane))

        return checkpoint(forward, s0, s1, use_reentrant=False, preserve_rng_state=False)

    def _lane(self, mixture: Mixture, kind: int, batch: int) -> Lane:
        lane = make_lane(mixture, self.space, kind, batch)
        return lane if self.partial == 1 else PartialLane.of(lane, mixture, kind, batch)

    def _drawn(self, x: Tensor, lanes: Mapping[str, Lane], draws: Draws) -> list[Lane]:
        """The lane of every cell, multiplied by what is drawn for it."""
        size = [-(-n // 8) if self.strided else n for n in x.shape[-2:]]
        found = []
        for index, module in enumerate(self.cells):
            plan = cast(Cell, module).plan
            size = [-(-n // 2) for n in size] if plan.reduces else size
            shape = (len(x), plan.channels // self.partial, *size)
            found.append(draws.apply(lanes[plan.kind], self.space, plan, index, x, shape))
        return found


def darts_supernet(space: Space, *, cells: int, channels: int, outputs: int, channels_in: int = 3) -> DartsSupernet:
    """DARTS's own supernet."""
    return DartsSupernet(space, cells=cells, channels=channels, outputs=outputs, channels_in=channels_in)


class Encoder(nn.Module):
    """A supernet that also returns its features: images and a mixture -> features (B, F) and logits (B, K)."""

    def __init__(self, supernet: Supernet | OneShotSupernet) -> None:
        super().__init__()
        self.supernet = supernet

    def forward(self, x: Tensor, mixture: Any) -> tuple[Tensor, Tensor]:
        features = self.supernet.embed(x, mixture)
        return features, self.supernet.classifier(features)


def darts_encoder(space: Space, *, cells: int, of: int, channels: int, outputs: int, channels_in: int = 3) -> Encoder:
    """The stem and the first ``cells`` cells of a supernet of ``of`` cells, whose reductions stay where they are, and a head."""
    first = replace(space, reduction_cells=space.reductions(of))
    return Encoder(darts_supernet(first, cells=cells, channels=channels, outputs=outputs, channels_in=channels_in))


class SoftmaxRelaxation:
    """softmax over the operations that compete on each edge (DARTS, Eq. 2); "none" takes its share and adds nothing."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.alive = torch.tensor(competing(space))

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, E, O) of the architecture parameters."""
        return tuple(self.alive.shape)

    def __call__(self, alphas: Tensor) -> Mixture:
        """(T, E, O) -> the mixture."""
        return softmax_mixture(alphas, alive=None if bool(self.alive.all()) else self.alive)

    def strengths(self, alphas: Tensor) -> Tensor:
        """(T, E, O): the weights of the operations."""
        return self(alphas.detach()).weights

    def genotype(self, alphas: Tensor) -> Genotype:
        """The cell that these parameters stand for, by :meth:`strengths`; see :func:`engine.spaces.darts.discretise`."""
        return discretise(self.space, self.strengths(alphas).double().tolist())
