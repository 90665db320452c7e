"""The supernet of NAS-Bench-1Shot1 (reference note tetlo-darts, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.spaces.differentiable import differentiable
from engine.spaces.genotype import Genotype
from engine.spaces.norms import norm_factory
from engine.spaces.one_shot import OPERATIONS, OneShotSpace

# The published code sets the momentum of its norms to 0.997. That is TensorFlow's convention, in which it keeps 99.7 % of the
# running statistics; PyTorch's keeps 0.3 %. Its validation numbers are thus taken with the statistics of about the last training
# batch. Here norms take the batch's own and remember nothing, which changes no step of a search.
_NORM = norm_factory("batchstat-trained-affine")


@dataclass(frozen=True)
class OneShotMixture:
    """Weights of a cell: ``operations`` (blocks, 3), ``output`` (blocks + 1), ``inputs`` (i + 1) for each chosen block i."""

    operations: Tensor
    output: Tensor
    inputs: tuple[Tensor, ...]


class ConvNormRelu(nn.Module):
    """Convolution, norm with scale and shift, ReLU; the size is kept."""

    def __init__(self, channels_in: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = _NORM(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H, W)."""
        return F.relu(self.norm(self.convolution(x)))


class OneShotCell(nn.Module):
    """Choice blocks between a projected input and a weighted concatenation: (B, C_in, H, W) -> (B, (blocks + 1) C, H, W).

    Every block reads a projection of its own of the cell's input and the blocks before it; the projections are one convolution.
    """

    def __init__(self, space: OneShotSpace, channels_in: int, channels: int) -> None:
        super().__init__()
        self.space, self.channels = space, channels
        self.projections = ConvNormRelu(channels_in, channels * (space.blocks + 1), 1)
        self.conv3 = nn.ModuleList(ConvNormRelu(channels, channels, 3) for _ in range(space.blocks))
        self.conv1 = nn.ModuleList(ConvNormRelu(channels, channels, 1) for _ in range(space.blocks))

    def forward(self, x: Tensor, mixture: OneShotMixture) -> Tensor:
        """The cell's output under a mixture."""
        *projected, last = self.projections(x).split(self.channels, 1)
        weights = dict(zip(self.space.chosen, mixture.inputs, strict=True))
        states: list[Tensor] = []
        for i, projection in enumerate(projected):
            sources = [projection, *states]
            if i in weights:
                sources = [weight * source for weight, source in zip(weights[i], sources, strict=True)]
            y = torch.stack(sources).sum(0) if len(sources) > 1 else sources[0]
            pool, conv3, conv1 = mixture.operations[i]
            states.append(pool * F.max_pool2d(y, 3, 1, 1) + conv3 * self.conv3[i](y) + conv1 * self.conv1[i](y))
        return torch.cat([weight * state for weight, state in zip(mixture.output, [last, *states], strict=True)], 1)


class ProjectedNorm(nn.Module):
    """ReLU, 1x1 convolution, norm without scale and shift."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.norm = norm_factory("batchstat-trained")(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H, W)."""
        return self.norm(self.projection(F.relu(x)))


class OneShotSupernet(nn.Module):
    """Stem of C channels, cells, :class:`ProjectedNorm`, mean, linear head.

    A max pool of 2x2, padded by one, and twice the channels precede the cells at one and two thirds of ``of`` cells (by default
    ``cells``): 32 pixels become 17 and 9. All cells share the mixture.
    """

    def __init__(
        self, space: OneShotSpace, *, cells: int, channels: int, outputs: int, channels_in: int = 3, of: int | None = None
    ) -> None:
        if cells < 1:
            raise ConfigurationError(f"--cells: a supernet needs a cell, got {cells}")
        super().__init__()
        depth = of or cells
        self.halves = (depth // 3, 2 * depth // 3)
        self.stem = ConvNormRelu(channels_in, channels, 3)
        built, width = [], channels
        for i in range(cells):
            channels *= 2 if i in self.halves else 1
            built.append(OneShotCell(space, width, channels))
            width = channels * (space.blocks + 1)
        self.cells = nn.ModuleList(built)
        self.tail_norm = ProjectedNorm(width, channels)
        self.classifier = nn.Linear(channels, outputs)
        differentiable(self)

    def embed(self, x: Tensor, mixture: OneShotMixture) -> Tensor:
        """(B, C_in, H, W) -> the pooled features (B, F) that the classifier reads."""
        x = self.stem(x)
        for i, cell in enumerate(self.cells):
            x = cell(F.max_pool2d(x, 2, 2, 1) if i in self.halves else x, mixture)
        return self.tail_norm(x).mean((2, 3))

    def forward(self, x: Tensor, mixture: OneShotMixture) -> Tensor:
        """(B, C_in, H, W) -> logits (B, outputs)."""
        return self.classifier(self.embed(x, mixture))


class OneShotRelaxation:
    """A softmax over the operations of each block, over the output's inputs, and over those of each chosen block.

    Architecture parameters are one vector of the three, in this order (:attr:`OneShotSpace.sizes`).
    """

    def __init__(self, space: OneShotSpace) -> None:
        self.space = space

    @property
    def shape(self) -> tuple[int, ...]:
        """(A,) of the architecture parameters."""
        return (sum(self.space.sizes),)

    def __call__(self, alphas: Tensor) -> OneShotMixture:
        """(A,) -> the mixture."""
        operations, output, *inputs = alphas.split(self.space.sizes)
        blocks = operations.view(self.space.blocks, len(OPERATIONS)).softmax(-1)
        return OneShotMixture(blocks, output.softmax(-1), tuple(part.softmax(-1) for part in inputs))

    def strengths(self, alphas: Tensor) -> Tensor:
        """(blocks, 3): the weights of the operations."""
        return self(alphas.detach()).operations

    def genotype(self, alphas: Tensor) -> Genotype:
        """The cell that these parameters stand for, as a genotype of ``nas-bench-101``."""
        mixture = self(alphas.detach().double())
        rows = [part.tolist() for part in mixture.inputs]
        return self.space.discretise(mixture.operations.tolist(), mixture.output.tolist(), rows).genotype()
