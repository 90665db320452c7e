"""Scores of architectures of NAS-Bench-201: their networks, the images, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.benchmarks.options import KERNEL_GROUPS, EvidenceOptions
from engine.data import ImageSet, load, normalise, sample_episodes, sample_images
from engine.runs.streams import stream
from engine.scoring.proxies.architectures import BATCHED, kernel_scores, plain_scores
from engine.scoring.proxies.catalogue import PROXIES
from engine.scoring.proxies.scores import LabelledBatch, scores
from engine.scoring.result import Score
from engine.scoring.score import EpisodeBatch
from engine.spaces.nas_bench_201 import Codes, reached, to_genotype
from engine.spaces.network import CellNetwork, build_network
from engine.spaces.space import NAS_BENCH_201
from engine.spaces.supernet import Supernet, initialise

SPLIT = "train"
WAYS = 5

Examined = tuple[dict[str, Score], dict[str, float]]


class Examiner:
    """Scores architectures on common images and weights: those of a repeat are cut out of one supernet, so that architectures
    differ by what they are and not by their draws (common random numbers).

    Kernels are taken of the network with GroupNorm in the place of BatchNorm, whose samples do not interact, on episodes; all
    other proxies of the network in train mode, on a labelled batch. Convolutions are PyTorch's default draw unless ``kaiming``:
    a residual block's shortcut has no norm, so its scale counts, and synflow and naswot order architectures otherwise.
    """

    def __init__(self, options: EvidenceOptions) -> None:
        self.options = options
        self.data = load_set(options)
        self.classes = torch.tensor(sorted(self.data.classes(SPLIT)))
        chosen = options.chosen()
        self.kernels = [name for name in chosen if PROXIES[name].group in KERNEL_GROUPS]
        self.plain = [name for name in chosen if PROXIES[name].group not in KERNEL_GROUPS]
        self._drawn: tuple[int, Supernet, Supernet] | None = None

    def scores(self, cells: Sequence[Codes], repeat: int) -> list[Examined]:
        """Of each architecture the chosen scores by name, and the CPU seconds of plain proxies and kernels.

        The scores are a pure function of the arguments, and up to rounding the same for any number of cells at once.
        """
        if len(cells) == 1:
            return [self._alone(cells[0], repeat, self.plain, self.kernels)]
        clock = time.process_time()
        alive = torch.stack([_mask(cell) for cell in cells])
        plain, kernels = self._supernets(repeat)
        together = plain_scores(plain, alive, self._batch(repeat), BATCHED.intersection(self.plain))
        seconds = {"plain": (time.process_time() - clock) / len(cells)}
        if self.kernels:
            clock = time.process_time()
            found = kernel_scores(kernels, alive, self._episodes(repeat), self.kernels)
            together = [own | more for own, more in zip(together, found, strict=True)]
            seconds["kernels"] = (time.process_time() - clock) / len(cells)
        rest = [name for name in self.plain if name not in BATCHED]
        return [self._completed(cell, repeat, rest, own, seconds) for cell, own in zip(cells, together, strict=True)]

    def _completed(
        self, cell: Codes, repeat: int, rest: list[str], known: dict[str, Score], seconds: dict[str, float]
    ) -> Examined:
        """With the scores that only a single network gives."""
        single, own = self._alone(cell, repeat, rest, [])
        merged = known | single
        return {name: merged[name] for name in self.options.chosen()}, seconds | {"plain": seconds["plain"] + own["plain"]}

    def _alone(self, cell: Codes, repeat: int, plain: Collection[str], kernels: Collection[str]) -> Examined:
        clock = time.process_time()
        found = scores(self._network(cell, repeat, "batchnorm"), self._batch(repeat), list(plain), seed=repeat)
        seconds = {"plain": time.process_time() - clock}
        if kernels:
            clock = time.process_time()
            found |= scores(self._network(cell, repeat, "groupnorm16"), self._episodes(repeat), list(kernels))
            seconds["kernels"] = time.process_time() - clock
        return found, seconds

    def _supernets(self, repeat: int) -> tuple[Supernet, Supernet]:
        """The supernet with batch statistics and the one with GroupNorm, on the same weights of this repeat."""
        if self._drawn is None or self._drawn[0] != repeat:
            pair = self._supernet(repeat, "batchstat"), self._supernet(repeat, "groupnorm16")
            self._drawn = (repeat, *pair)
        return self._drawn[1:]

    def _supernet(self, repeat: int, norm: str) -> Supernet:
        options = self.options
        supernet = Supernet(
            NAS_BENCH_201,
            cells=options.cells,
            channels=options.channels,
            outputs=len(self.classes),
            channels_in=self.data.images.shape[1],
            norm=norm,
        )
        initialise(supernet, stream(options.seed, "evidence-weights", repeat), kaiming=options.kaiming)
        return supernet.to(options.device)

    def _network(self, cell: Codes, repeat: int, norm: str) -> CellNetwork:
        """The network of one architecture, with its share of the supernet's weights."""
        options = self.options
        network = build_network(
            to_genotype(cell),
            channels=options.channels,
            classes=len(self.classes),
            cells=options.cells,
            channels_in=self.data.images.shape[1],
            norm=norm,
            tail=True,
        ).to(options.device)
        weights = dict(self._supernets(repeat)[0].named_parameters())
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name in weights:  # norms have scales and shifts of their own, ones and zeros
                    parameter.copy_(weights[name])
        return network.train()

    def _batch(self, repeat: int) -> LabelledBatch:
        options = self.options
        index = sample_images(self.data, SPLIT, options.batch, seed=options.seed, address=("evidence", repeat))
        labels = torch.searchsorted(self.classes, self.data.labels[index].cpu())
        return LabelledBatch(self._normal(index), labels)

    def _episodes(self, repeat: int) -> EpisodeBatch:
        options = self.options
        drawn = sample_episodes(
            self.data, SPLIT, ways=WAYS, shots=1, queries=1, tasks=options.tasks, seed=options.seed, address=("evidence", repeat)
        )
        return EpisodeBatch(self._normal(drawn.query_index.flatten()), self._normal(drawn.support_index.flatten()), options.tasks)

    def _normal(self, index: Tensor) -> Tensor:
        return normalise(self.data.images[index], self.data.mean, self.data.std)


def _mask(cell: Codes) -> Tensor:
    """``alive`` (1, E, O) of a cell, without what nothing reaches: a single network does not compute it either."""
    operations = torch.tensor(reached(cell))
    return F.one_hot(operations, len(NAS_BENCH_201.operations)).bool().unsqueeze(0)


def load_set(options: EvidenceOptions) -> ImageSet:
    """The training images of the data set, on the device."""
    return load(options.data, options.data_root, options.size, splits=(SPLIT,)).to(options.device)
