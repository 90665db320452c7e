"""A genotype's network as it is usually written: every operation a module with its own rectifier, drop-path in each operation,
autograd and ``torch.optim.SGD``. The named baseline of :mod:`bench.training_step`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.spaces.cells import Cell
from engine.spaces.network import CellNetwork
from engine.spaces.operations import Chain, Identity, operation


class PlainOperation(nn.Module):
    """One operation of one edge. ``layers`` are convolutions, norms and rectifiers one after the other."""

    def __init__(self, module: nn.Module, reads_relu: bool) -> None:
        super().__init__()
        self.reads_relu, self.keeps = reads_relu, not isinstance(module, Identity)
        layers = (
            [nn.ReLU() if type(part).__name__ == "ReLU" else part for part in module] if isinstance(module, Chain) else [module]
        )
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, probability: float) -> Tensor:
        x = self.layers(F.relu(x) if self.reads_relu else x)
        if self.training and probability and self.keeps:
            kept = torch.empty(len(x), 1, 1, 1).bernoulli_(1 - probability)
            x = x / (1 - probability) * kept
        return x


class PlainCell(nn.Module):
    """A cell whose nodes sum what their edges bring."""

    def __init__(self, cell: Cell, names: list[list[str]]) -> None:
        super().__init__()
        self.nodes, self.concat = cell.space.nodes, cell.concat
        self.pre0 = PlainOperation(cell.preprocess0, True)
        self.pre1 = PlainOperation(cell.preprocess1, True)
        edges = [(e, name) for e, carried in enumerate(names) for name in carried]
        self.ends = [cell.space.edges[e] for e, _ in edges]
        stride = [cell.space.stride(cell.plan.kind, e) for e, _ in edges]
        self.operations = nn.ModuleList(
            PlainOperation(cell.module(e, name), operation(name).reads_relu(s))
            for (e, name), s in zip(edges, stride, strict=True)
        )

    def forward(self, before: Tensor, last: Tensor, probability: float) -> Tensor:
        states = [self.pre0(before, 0.0), self.pre1(last, 0.0)]
        for node in range(2, 2 + self.nodes):
            parts = [
                op(states[source], probability)
                for op, (source, end) in zip(self.operations, self.ends, strict=True)
                if end == node
            ]
            states.append(cast(Tensor, sum(parts)))
        return torch.cat([states[s] for s in self.concat], 1)


class PlainNetwork(nn.Module):
    """The plain formulation of a network with every node reached, sharing its layers."""

    def __init__(self, network: CellNetwork) -> None:
        super().__init__()
        self.stem = nn.Sequential(cast(nn.Module, network.stem), cast(nn.Module, network.stem_norm))
        self.cells = nn.ModuleList(
            PlainCell(cast(Cell, cell), [list(edge) for edge in network.lanes[kind].edges])
            for cell, kind in zip(network.cells, network.kinds, strict=True)
        )
        self.classifier = network.classifier

    def forward(self, x: Tensor, probability: float = 0.0) -> Tensor:
        """(B, C, H, W) -> logits (B, classes), each path but identities dropped with ``probability`` in training."""
        before = last = self.stem(x)
        for cell in self.cells:
            before, last = last, cell(before, last, probability)
        return self.classifier(last.mean((2, 3)))
