"""What a MetaNAS run meta-learns: the supernet, the network of a genotype, or the four-layer convolutional network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ConfigurationError
from engine.learning.architecture_task import Classifier, TaskModel
from engine.learning.task_networks import (
    ExtractedNetwork,
    ExtractedTaskNetwork,
    FixedNetwork,
    ReferenceNetwork,
    SearchedNetwork,
)
from engine.methods.metanas_options import MetaNASOptions
from engine.methods.random_search import draw
from engine.runs.streams import stream
from engine.spaces.genotype import Genotype
from engine.spaces.metanas import Architecture, metanas_supernet
from engine.spaces.metanas_genotypes import PUBLISHED
from engine.spaces.network import build_network
from engine.spaces.space import AUTOMETA, METANAS, SPACES
from engine.spaces.supernet import initialise


@dataclass(frozen=True)
class Learner:
    """A network in its meta-training and meta-test form, which differ in the threshold only, and where meta-training starts.

    ``genotype`` is that of a fixed network, ``reference`` a searched one in a form that is differentiable twice, ``searched`` its
    test form without the ``extractor`` that images may go through before.
    """

    train: TaskModel
    test: TaskModel
    weights: Tensor
    alphas: Tensor
    genotype: Genotype | None = None
    reference: TaskModel | None = None
    searched: SearchedNetwork | None = None
    extractor: nn.Module | None = None

    @property
    def architecture(self) -> Architecture | None:
        """The searched architecture, as tests see it."""
        return None if self.searched is None else self.searched.architecture

    @property
    def extractor_parameters(self) -> int:
        """Parameters before the network; 0 without extractor."""
        return 0 if self.extractor is None else sum(p.numel() for p in self.extractor.parameters())

    def extracted(self, network: Classifier) -> Classifier:
        """A network as images reach it."""
        return network if self.extractor is None else ExtractedNetwork(self.extractor, network)


def build(options: MetaNASOptions, channels_in: int, size: int) -> Learner:
    """Weights in PyTorch's default initialisation, architecture parameters 1e-3 N(0, 1), both drawn by address."""
    generator = stream(options.seed, "weights")
    if options.searches:
        reference = metanas_supernet(
            cells=options.cells, channels=options.channels, outputs=options.ways, channels_in=channels_in
        )
        initialise(reference, generator, kaiming=False)
        sparse: dict[str, Any] = {"sparse_inputs": options.sparse == "inputs", "hard": options.hard}
        twice = ReferenceNetwork(reference, Architecture(threshold=options.threshold, **sparse))
        train = twice if options.meta_learner == "maml" else SearchedNetwork(reference, twice.architecture)
        test = SearchedNetwork(reference, Architecture(threshold=options.test_threshold, **sparse))
        alphas = 1e-3 * torch.randn(test.architecture.size, generator=stream(options.seed, "architecture"))
        weights = train.stacked.pack(dict(reference.named_parameters()))
        return Learner(train, test, weights, alphas, reference=twice, searched=test)
    genotype = None if options.network == "conv4" else find_genotype(options)
    module: nn.Module
    if genotype is None:
        module = conv4(options.ways, channels_in, size)
    else:
        module = build_network(
            genotype,
            channels=options.channels,
            classes=options.ways,
            cells=options.cells,
            channels_in=channels_in,
            norm="batchstat-affine",
            space=SPACES[genotype.space],
        )
    initialise(module, generator, kaiming=False)
    network = FixedNetwork(module)
    return Learner(network, network, network.layout.pack(dict(module.named_parameters())).detach(), torch.zeros(0), genotype)


def with_extractor(learner: Learner, extractor: nn.Module) -> Learner:
    """The same behind a feature extractor, whose parameters are learned with the others and come first among the weights."""

    def behind(network: TaskModel) -> TaskModel:
        return ExtractedTaskNetwork(extractor, network)

    weights = torch.cat([*(p.detach().flatten() for p in extractor.parameters()), learner.weights])
    reference = None if learner.reference is None else behind(learner.reference)
    return replace(
        learner,
        train=behind(learner.train),
        test=behind(learner.test),
        reference=reference,
        weights=weights,
        extractor=extractor,
    )


def find_genotype(options: MetaNASOptions) -> Genotype:
    """The genotype that --network names; unknown ones are a :class:`ConfigurationError`."""
    if options.network in PUBLISHED:
        return PUBLISHED[options.network]
    if options.network == "random":
        return METANAS.genotype(draw(METANAS, options.seed, 2))
    if not Path(options.network).is_file():
        known = ", ".join(("search", "random", "conv4", *PUBLISHED))
        raise ConfigurationError(f"--network: unknown {options.network!r}; known are {known}, or give a genotype.json")
    genotype = Genotype.load(options.network)
    (AUTOMETA if genotype.space == AUTOMETA.name else METANAS).check(genotype)
    return genotype


def conv4(ways: int, channels_in: int, size: int) -> nn.Sequential:
    """Four blocks of a 3x3 convolution to 64 channels, norm by the batch's statistics, ReLU and 2x2 max pooling; a linear head.

    Below 16 pixels a side pooling stops where one pixel is left.
    """
    layers: list[nn.Module] = []
    for _ in range(4):
        norm = nn.BatchNorm2d(64, track_running_stats=False)
        layers += [nn.Conv2d(channels_in, 64, 3, padding=1), norm, nn.ReLU()]
        if size > 1:
            layers.append(nn.MaxPool2d(2))
            size //= 2
        channels_in = 64
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * size * size, ways))
