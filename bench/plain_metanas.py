"""MetaNAS's supernet as a plain module loop: every operation of every edge a module of its own, one after the other.

What the published code does, without what later releases of torch made slow or wrong in it: this is the named baseline of
:mod:`bench.metanas`.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Strided(nn.Module):
    """FactorizedReduce on even sizes."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels // 2, 1, 2, bias=False)
        self.second = nn.Conv2d(channels_in, channels // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = x[:, :, 1:, 1:] if x.shape[2] % 2 == 0 else x
        return self.norm(torch.cat([self.first(x), self.second(shifted)], 1))


def separable(channels: int, stride: int, dilation: int) -> nn.Sequential:
    """ReLU, depthwise, pointwise, norm."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride, dilation, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=False),
    )


def operations(c: int, stride: int) -> nn.ModuleList:
    """The seven operations of an edge."""
    wide = [nn.Conv2d(c, c, (1, 5), stride, (0, 2), bias=False), nn.Conv2d(c, c, (5, 1), 1, (2, 0), bias=False)]
    pools = [nn.MaxPool2d(3, stride, 1), nn.AvgPool2d(3, stride, 1, count_include_pad=False)]
    return nn.ModuleList(
        [
            *(nn.Sequential(pool, nn.BatchNorm2d(c, affine=False)) for pool in pools),
            nn.Identity() if stride == 1 else Strided(c, c),
            nn.Sequential(nn.ReLU(), *wide, nn.BatchNorm2d(c, affine=False)),
            separable(c, stride, 1),
            nn.Sequential(separable(c, stride, 1), separable(c, 1, 1)),
            separable(c, stride, 2),
        ]
    )


class PlainCell(nn.Module):
    """Three nodes, each the weighted sum over pairs of its mixed edges."""

    def __init__(self, channels_in: int, channels: int, reduces: bool, after_reduction: bool) -> None:
        super().__init__()
        squeeze = [nn.ReLU(), nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=False)]
        self.first = Strided(channels_in, channels) if after_reduction else nn.Sequential(*squeeze)
        squeeze = [nn.ReLU(), nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=False)]
        self.second = nn.Sequential(*squeeze)
        self.edges = nn.ModuleList(
            nn.ModuleList(operations(channels, 2 if reduces and source < 2 else 1) for source in range(node + 2))
            for node in range(3)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: list[Tensor], pairs: list[Tensor], threshold: float) -> Tensor:
        states = [self.first(s0), self.second(s1)]
        for edges, w, p in zip(self.edges, weights, pairs, strict=True):
            mixed = [
                sum(w[i, o] * op(states[i]) for o, op in enumerate(ops) if w[i, o] > threshold) for i, ops in enumerate(edges)
            ]
            chosen = enumerate(combinations(range(len(mixed)), 2))
            states.append(sum(p[k] * (mixed[i] + mixed[j]) for k, (i, j) in chosen if p[k] > threshold))
        return torch.cat(states[2:], 1)


class PlainMetaNAS(nn.Module):
    """Stem, four cells (reductions at 1 and 3), head, and the architecture parameters."""

    def __init__(
        self, channels: int, channels_in: int, classes: int, threshold: float, memory_format: torch.memory_format
    ) -> None:
        super().__init__()
        self.memory_format = memory_format
        wide = 3 * channels
        self.stem = nn.Sequential(nn.Conv2d(channels_in, wide, 3, 1, 1, bias=False), nn.BatchNorm2d(wide))
        self.cells = nn.ModuleList(PlainCell(wide, channels, k in (1, 3), k == 2) for k in range(4))
        self.head = nn.Linear(wide, classes)
        self.threshold = threshold
        self.alphas = nn.ParameterList(torch.randn(i + 2, 7) * 1e-3 for _ in range(2) for i in range(3))
        self.betas = nn.ParameterList(torch.randn((i + 2) * (i + 1) // 2) * 1e-3 for _ in range(2) for i in range(3))

    def architecture(self) -> list[nn.Parameter]:
        """The twelve tensors of architecture parameters."""
        return [*self.alphas, *self.betas]

    def weights(self) -> list[nn.Parameter]:
        """Everything else."""
        own = {id(p) for p in self.architecture()}
        return [p for p in self.parameters() if id(p) not in own]

    def forward(self, x: Tensor, temperature: float) -> Tensor:
        w = [torch.softmax(a / temperature, -1) for a in self.alphas]
        p = [torch.softmax(b / temperature, -1) for b in self.betas]
        # Images of one channel have no layout that could carry over.
        s0 = s1 = self.stem(x).contiguous(memory_format=self.memory_format)
        for k, cell in enumerate(self.cells):
            own = slice(3, 6) if k in (1, 3) else slice(0, 3)
            s0, s1 = s1, cell(s0, s1, w[own], p[own], self.threshold)
        return self.head(s1.mean((2, 3)))
