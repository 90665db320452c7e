"""The supernet of the DARTS family (reference note tetlo-darts, section 1)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from engine.errors import ConfigurationError
from engine.spaces.darts import competing, discretise, normalised_pools
from engine.spaces.differentiable import differentiable
from engine.spaces.genotype import Genotype
from engine.spaces.mixture import Mixture
from engine.spaces.relaxations import softmax_mixture
from engine.spaces.space import Space
from engine.spaces.supernet import Supernet


def darts_supernet(space: Space, *, cells: int, channels: int, outputs: int, channels_in: int = 3) -> Supernet:
    """Stem of 3C channels with an affine norm, cells normalised without scale and shift, no tail.

    Norms use the statistics of the batch and remember nothing, so no pass changes the network. The published code keeps running
    statistics, which only its validation accuracy reads; validation here uses the batch's own. An odd number of channels is a
    :class:`ConfigurationError`, because the strided skip connection halves them.
    """
    if channels % 2:
        raise ConfigurationError(f"--channels: the strided skip connection halves them, so {channels} must be even")
    model = Supernet(
        normalised_pools(space),
        cells=cells,
        channels=channels,
        outputs=outputs,
        channels_in=channels_in,
        norm="batchstat-trained",
        stem_norm="batchstat-trained-affine",
        tail=False,
    )
    return differentiable(model)


class Encoder(nn.Module):
    """A supernet that also returns its features: images and a mixture -> features (B, F) and logits (B, K)."""

    def __init__(self, supernet: Supernet) -> None:
        super().__init__()
        self.supernet = supernet

    def forward(self, x: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
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

    def genotype(self, alphas: Tensor) -> Genotype:
        """The cell that these parameters stand for; see :func:`engine.spaces.darts.discretise`."""
        return discretise(self.space, self(alphas.detach()).weights.double().tolist())
