"""Networks as functions of flat weights, for :class:`~engine.learning.architecture_task.TaskLearner`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from engine.learning.architecture_task import Classifier, TaskModel
from engine.learning.flat import Layout
from engine.spaces.genotype import Genotype
from engine.spaces.metanas import Architecture, genotype_parameters
from engine.spaces.mixture import Mixture, full
from engine.spaces.stacked import StackedSupernet
from engine.spaces.supernet import Supernet


class SearchedNetwork:
    """The MetaNAS supernet with its relaxation: the stacked formulation, differentiable once.

    ``reference`` gives the shapes; its own weights are not used. ``size`` is P, ``architecture.size`` A.
    """

    def __init__(self, reference: Supernet, architecture: Architecture) -> None:
        self.stacked, self.architecture = StackedSupernet(reference), architecture
        self.size = self.stacked.size

    def __call__(
        self,
        weights: Tensor,
        alphas: Tensor,
        x: Tensor,
        temperature: float,
        *,
        alive: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        return self.stacked(weights, x, self.architecture.mixture_weights(alphas, temperature), alive, masks)

    def active(self, alphas: Tensor, temperature: float) -> Tensor:
        return self.architecture.active(alphas, temperature)

    def drop_path(self, probability: float, samples: int, generator: torch.Generator) -> Tensor:
        _, edges, operations = self.architecture.operation_shape
        draws = torch.rand(len(self.stacked.cells), edges, operations, samples, generator=generator)
        return (draws >= probability) / (1 - probability)

    def discrete(self, alphas: Tensor) -> DiscreteNetwork:
        """The network of the parameters' genotype, with the supernet's weights (one synchronisation)."""
        return DiscreteNetwork(self.stacked, self.architecture.genotype(alphas))


class DiscreteNetwork:
    """The supernet with the operations of one genotype only, each of weight one: pruned, not retrained."""

    def __init__(self, stacked: StackedSupernet, genotype: Genotype) -> None:
        self.stacked, self.genotype = stacked, genotype
        space = stacked.space
        chosen = [{(c.source, c.target, c.operation) for c in cell.connections} for _, cell in genotype.cells]
        rows = [[[(*edge, name) in cell for name in space.operations] for edge in space.edges] for cell in chosen]
        self.alive = torch.tensor(rows)

    def __call__(
        self,
        weights: Tensor,
        alphas: Tensor,
        x: Tensor,
        temperature: float,
        *,
        alive: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        return self.stacked(weights, x, self.alive.to(weights), self.alive, masks)

    def parameters(self, *, channels: int, channels_in: int, outputs: int, cells: int) -> int:
        """How many it has."""
        return genotype_parameters(
            self.genotype, self.stacked.space, channels=channels, channels_in=channels_in, outputs=outputs, cells=cells
        )


class ReferenceNetwork(SearchedNetwork):
    """The same network module by module, differentiable any number of times; two to three times slower on a CPU."""

    def __init__(self, reference: Supernet, architecture: Architecture) -> None:
        super().__init__(reference, architecture)
        self.module = reference

    def __call__(
        self,
        weights: Tensor,
        alphas: Tensor,
        x: Tensor,
        temperature: float,
        *,
        alive: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        if masks is not None:
            raise ValueError("masks: the reference network has no DropPath; use SearchedNetwork")
        mixture = Mixture(
            self.architecture.mixture_weights(alphas, temperature), full(self.module.space) if alive is None else alive
        )
        return functional_call(self.module, self.stacked.unpack(weights), (x, mixture))


class FixedNetwork:
    """Any module without architecture parameters; A = 0."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layout = Layout.of(dict(module.named_parameters()))
        self.size = self.layout.size

    def __call__(
        self,
        weights: Tensor,
        alphas: Tensor,
        x: Tensor,
        temperature: float,
        *,
        alive: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return functional_call(self.module, self.layout.views(weights), (x,))

    def active(self, alphas: Tensor, temperature: float) -> None:
        return None

    def drop_path(self, probability: float, samples: int, generator: torch.Generator) -> Tensor:
        raise ValueError("drop_path: a network of one genotype has none")


class ExtractedNetwork:
    """A network on what a feature extractor makes of the images; weights (P,) are the extractor's, then the network's."""

    def __init__(self, extractor: nn.Module, network: Classifier) -> None:
        self.extractor, self.network = extractor, network
        self.layout = Layout.of(dict(extractor.named_parameters()))

    def __call__(
        self,
        weights: Tensor,
        alphas: Tensor,
        x: Tensor,
        temperature: float,
        *,
        alive: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        own, others = weights.split([self.layout.size, len(weights) - self.layout.size])
        maps = functional_call(self.extractor, self.layout.views(own), (x,))
        return self.network(others, alphas, maps, temperature, alive=alive, masks=masks)


class ExtractedTaskNetwork(ExtractedNetwork):
    """The same for a network that a task learner trains."""

    network: TaskModel

    def active(self, alphas: Tensor, temperature: float) -> Tensor | None:
        return self.network.active(alphas, temperature)

    def drop_path(self, probability: float, samples: int, generator: torch.Generator) -> Tensor:
        return self.network.drop_path(probability, samples, generator)
