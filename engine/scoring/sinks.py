"""Where per-sample gradients go: into Gram matrices at once, or into rows that wait for the other samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from engine.kernels.gram import add_gram
from engine.runs.profiling import span
from engine.scoring.capture import Use
from engine.scoring.rows import add_use, sample_rows


class Sink(Protocol):
    """Takes the gradients of one backward pass."""

    def begin(self, uses: Mapping[str, int]) -> None:
        """Hear how often each parameter was used in the forward pass."""

    def take(self, use: Use, gradients: list[Tensor]) -> None:
        """Take one use and K gradients of its output, each (N, *output)."""

    def add_rows(self, name: str, rows: Tensor) -> None:
        """Take the complete per-sample gradients (N, K, P) of one parameter."""


class GramSink:
    """Adds up each set's Gram matrix as the gradients of parameters arrive.

    A parameter that is used once is streamed; the gradients of one that is used several times are added before the Gram matrix is
    taken. ``sets`` gives the set that a parameter counts in. ``fused`` is that of :func:`engine.scoring.rows.add_use`, by default
    whether ``device`` is a GPU.
    """

    def __init__(
        self, sets: Mapping[str, str], samples: int, groups: int, device: torch.device, fused: bool | None = None
    ) -> None:
        self.sets, self.samples, self.groups, self.device = sets, samples, groups, device
        self.fused = device.type == "cuda" if fused is None else fused
        self.totals: dict[str, Tensor] = {}
        self.pending: dict[str, Tensor] = {}
        self.uses: dict[str, int] = {}

    def begin(self, uses: Mapping[str, int]) -> None:
        self.uses = dict(uses)

    def take(self, use: Use, gradients: list[Tensor]) -> None:
        name = use.name
        if self.uses[name] == 1 and name not in self.pending:
            with span("gram"):
                add_use(self.total(name, len(gradients)), use, gradients, fused=self.fused)
        else:
            rows = sample_rows(use, gradients, dense=True)
            self.pending[name] = rows + self.pending[name] if name in self.pending else rows
            self.uses[name] -= 1
            if self.uses[name] == 0:
                self.add_rows(name, self.pending.pop(name))
        if use.activation is not None:
            use.activation.release()

    def add_rows(self, name: str, rows: Tensor) -> None:
        total = self.total(name, rows.shape[1])
        add_gram(total, rows.reshape(*total.shape[:2], rows.shape[2]))

    def total(self, name: str, count: int) -> Tensor:
        """The running sum (G, n*K, n*K) of the set that a parameter counts in."""
        key = self.sets[name]
        if key not in self.totals:
            side = self.samples // self.groups * count
            self.totals[key] = torch.zeros(self.groups, side, side, dtype=torch.float64, device=self.device)
        return self.totals[key]

    def finish(self, outputs: str, count: int) -> dict[str, Tensor]:
        """The kernels. Uses on which the output does not depend never arrive; what did arrive of their parameter counts."""
        for name in list(self.pending):
            self.add_rows(name, self.pending.pop(name))
        kernels = {}
        for name, key in self.sets.items():
            total = self.total(name, count)
            per_group = self.samples // self.groups
            if outputs == "all":
                total = total.view(self.groups, per_group, count, per_group, count)
            kernels[key] = total if self.groups > 1 else total[0]
        return kernels


class RowSink:
    """Keeps per-sample gradients, (N, K, P) a parameter, of batches that come one after the other; the next begins at
    ``offset``.
    """

    def __init__(self, sizes: Mapping[str, int], samples: int) -> None:
        self.sizes, self.samples, self.offset = sizes, samples, 0
        self.rows: dict[str, Tensor] = {}

    def begin(self, uses: Mapping[str, int]) -> None:
        """Every use is added where it belongs, so their number does not matter."""

    def take(self, use: Use, gradients: list[Tensor]) -> None:
        self.add_rows(use.name, sample_rows(use, gradients, dense=True))
        if use.activation is not None:
            use.activation.release()

    def add_rows(self, name: str, rows: Tensor) -> None:
        if name not in self.rows:
            self.rows[name] = rows.new_zeros(self.samples, rows.shape[1], self.sizes[name])
        self.rows[name][self.offset : self.offset + len(rows)] += rows
