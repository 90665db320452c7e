"""Few-shot tasks with their data: episodes of a data set, and sinusoids."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from engine.data import ImageSet, sample_episodes
from engine.runs.streams import stream


class Task(NamedTuple):
    """Support and query of one task, or of T tasks with a leading axis.

    ``x`` (N, ...) float inputs and ``y`` (N,) int64 labels, or (N, 1) targets of a regression.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    @property
    def support(self) -> tuple[Tensor, Tensor]:
        """(x, y) to learn from."""
        return self.support_x, self.support_y

    @property
    def query(self) -> tuple[Tensor, Tensor]:
        """(x, y) to be tested on."""
        return self.query_x, self.query_y

    def take(self, index: int | slice) -> Task:
        """One task, or a range of them."""
        return Task(*(part[index] for part in self))


def image_tasks(
    data: ImageSet,
    split: str,
    *,
    ways: int,
    shots: int,
    queries: int,
    tasks: int,
    seed: int,
    address: tuple[int | str, ...],
    dtype: torch.dtype = torch.float32,
) -> Task:
    """T tasks of :func:`~engine.data.sample_episodes`, pixels in [0, 1] and not normalised (reference note meta-ticket, 4)."""
    drawn = sample_episodes(data, split, ways=ways, shots=shots, queries=queries, tasks=tasks, seed=seed, address=address)

    def pixels(index: Tensor) -> Tensor:
        return data.images[index.flatten()].to(dtype).div_(255).unflatten(0, index.shape)

    return Task(pixels(drawn.support_index), drawn.support_labels, pixels(drawn.query_index), drawn.query_labels)


def sinusoid_tasks(*, shots: int, tasks: int, seed: int, address: tuple[int | str, ...]) -> Task:
    """T regressions y = A sin(x - b), A in [0.1, 5], b in [0, pi], x in [-5, 5]: ``shots`` points to learn, as many to test.

    float32 (T, shots, 1) each (MAML, section 5.1; reference note meta-ticket, 6).
    """
    draws = torch.rand(tasks, 2 + 2 * shots, generator=stream(seed, "sinusoids", *address), dtype=torch.float64).float()
    amplitude, phase = 0.1 + 4.9 * draws[:, :1], math.pi * draws[:, 1:2]
    x = 10 * draws[:, 2:] - 5
    y = amplitude * torch.sin(x - phase)
    support, query = (x[:, 0::2], y[:, 0::2]), (x[:, 1::2], y[:, 1::2])
    return Task(*(part.unsqueeze(-1).contiguous() for part in (*support, *query)))
