"""What becomes of activation patterns: kept bit by bit, or folded into hashes while they exist; counted by group at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.kernels.regions import count_distinct, fold_signs


class PatternSets(Protocol):
    """The patterns of G groups of samples, activation by activation, batch by batch."""

    def begin(self, samples: int) -> None:
        """Start the patterns of a batch of that many samples, a G-th of them a group's."""

    def add(self, x: Tensor, knee: float, alive: Tensor | None) -> None:
        """Append one bit a neuron, ``x`` > ``knee``, to the samples' patterns.

        ``x`` (samples, n) or (samples, ...); groups whose flag in ``alive`` (G,) is False all get the same.
        """

    def end(self) -> None:
        """Add the batch's patterns to their groups' sets."""

    def counts(self) -> Tensor:
        """Distinct patterns of each group over all batches, (G,)."""


class PackedPatterns:
    """Exact patterns on the CPU, eight neurons a byte: samples * n / 8 bytes a batch."""

    def __init__(self, groups: int) -> None:
        self._seen: list[set[bytes]] = [set() for _ in range(groups)]
        self._parts: list[np.ndarray] = []

    def begin(self, samples: int) -> None:
        self._parts = []

    def add(self, x: Tensor, knee: float, alive: Tensor | None) -> None:
        packed = np.packbits((x > knee).flatten(1).cpu().numpy(), axis=1)
        if alive is not None:
            packed[~np.repeat(alive.cpu().numpy(), len(x) // len(alive))] = 0
        self._parts.append(packed)

    def end(self) -> None:
        rows = np.concatenate(self._parts, axis=1)
        for seen, own in zip(self._seen, np.split(rows, len(self._seen)), strict=True):
            seen.update(_row_bytes(own))

    def counts(self) -> Tensor:
        return torch.tensor([len(seen) for seen in self._seen])


class HashedPatterns:
    """Patterns as hashes of 64 ``lanes`` bits (:func:`engine.kernels.regions.fold_signs`), on the device of the activations.

    Nothing is read by the host: 8 ``lanes`` bytes a sample, and a sort at the end.
    """

    def __init__(self, groups: int, lanes: int, device: torch.device) -> None:
        self._groups, self._lanes, self._device = groups, lanes, device
        self._done: list[Tensor] = []

    def begin(self, samples: int) -> None:
        shape = (samples,) if self._lanes == 1 else (samples, self._lanes)
        self._state, self._calls = torch.zeros(shape, dtype=torch.int64, device=self._device), 0

    def add(self, x: Tensor, knee: float, alive: Tensor | None) -> None:
        self._state = fold_signs(self._state, x.to(self._device), self._calls, alive, threshold=knee)
        self._calls += 1

    def end(self) -> None:
        self._done.append(self._state.unflatten(0, (self._groups, -1)))

    def counts(self) -> Tensor:
        return count_distinct(torch.cat(self._done, 1).flatten(0, 1), self._groups)


def _row_bytes(rows: np.ndarray) -> Iterator[bytes]:
    data, width = rows.tobytes(), rows.shape[1] * rows.itemsize
    return (data[start : start + width] for start in range(0, len(data), width))
