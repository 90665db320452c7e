"""Scores of one architecture of NAS-Bench-201: its network, the images, and what they cost."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from engine.benchmarks.options import KERNEL_GROUPS, EvidenceOptions
from engine.data import ImageSet, load, normalise, sample_episodes, sample_images
from engine.runs.streams import stream
from engine.scoring.proxies.catalogue import PROXIES
from engine.scoring.proxies.scores import LabelledBatch, scores
from engine.scoring.result import Score
from engine.scoring.score import EpisodeBatch
from engine.spaces.nas_bench_201 import Codes, to_genotype
from engine.spaces.network import CellNetwork, build_network
from engine.spaces.supernet import initialise

SPLIT = "train"
WAYS = 5


class Examiner:
    """Scores architectures on common images: every architecture of a repeat sees the same ones (and the same stream of weights).

    Kernels are taken of the network with GroupNorm in the place of BatchNorm, whose samples do not interact, on episodes; all
    other proxies of the network in train mode, on a labelled batch.
    """

    def __init__(self, options: EvidenceOptions) -> None:
        self.options = options
        self.data = load_set(options)
        self.classes = torch.tensor(sorted(self.data.classes(SPLIT)))
        chosen = options.chosen()
        self.kernels = [name for name in chosen if PROXIES[name].group in KERNEL_GROUPS]
        self.plain = [name for name in chosen if PROXIES[name].group not in KERNEL_GROUPS]

    def scores(self, cell: Codes, repeat: int) -> tuple[dict[str, Score], dict[str, float]]:
        """The chosen scores by name, and the CPU seconds of plain proxies and kernels: a pure function of its arguments."""
        clock = time.process_time()
        found = scores(self._network(cell, repeat, "batchnorm"), self._batch(repeat), self.plain, seed=repeat)
        seconds = {"plain": time.process_time() - clock}
        if self.kernels:
            clock = time.process_time()
            found |= scores(self._network(cell, repeat, "groupnorm16"), self._episodes(repeat), self.kernels)
            seconds["kernels"] = time.process_time() - clock
        return found, seconds

    def _network(self, cell: Codes, repeat: int, norm: str) -> CellNetwork:
        options = self.options
        network = build_network(
            to_genotype(cell),
            channels=options.channels,
            classes=len(self.classes),
            cells=options.cells,
            channels_in=self.data.images.shape[1],
            norm=norm,
            tail=True,
        )
        initialise(network, stream(options.seed, "evidence-weights", repeat))
        return network.to(options.device).train()

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


def load_set(options: EvidenceOptions) -> ImageSet:
    """The training images of the data set, on the device."""
    return load(options.data, options.data_root, options.size, splits=(SPLIT,)).to(options.device)
