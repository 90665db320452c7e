"""DARTS as modules are usually written, for comparison: every operation of every edge by itself, channels before positions.

Each mixed operation is a sum of weighted outputs, "none" among them; batch norms keep running statistics; a first-order
architecture step is a whole backward pass, weight gradients included; a second-order one steps a second copy of the network and
takes two more passes at shifted weights (reference note tetlo-darts, sections 1 and 8.1).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS, MULTIPLIER = 4, 3


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


def depthwise(channels: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    padding = dilation * (kernel - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        norm(channels),
    ]


class FactorizedReduce(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels // 2, 1, stride=2, bias=False)
        self.second = nn.Conv2d(channels_in, channels // 2, 1, stride=2, bias=False)
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.norm(torch.cat([self.first(x), self.second(x[:, :, 1:, 1:])], 1))


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0


class MixedOperation(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.operations = nn.ModuleList(
            [
                Zero(stride),
                nn.Sequential(nn.MaxPool2d(3, stride, 1), norm(channels)),
                nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), norm(channels)),
                nn.Identity() if stride == 1 else FactorizedReduce(channels, channels),
                *(nn.Sequential(*depthwise(channels, k, stride, 1), *depthwise(channels, k, 1, 1)) for k in (3, 5)),
                *(nn.Sequential(*depthwise(channels, k, stride, 2)) for k in (3, 5)),
            ]
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum((w * operation(x) for w, operation in zip(weights, self.operations, strict=True)), torch.zeros(()))


class Cell(nn.Module):
    def __init__(self, before: int, last: int, channels: int, *, reduces: bool, follows: bool) -> None:
        super().__init__()
        plain = nn.Sequential(nn.ReLU(), nn.Conv2d(before, channels, 1, bias=False), norm(channels))
        self.preprocess0 = FactorizedReduce(before, channels) if follows else plain
        self.preprocess1 = nn.Sequential(nn.ReLU(), nn.Conv2d(last, channels, 1, bias=False), norm(channels))
        strides = [2 if reduces and j < 2 else 1 for i in range(STEPS) for j in range(2 + i)]
        self.edges = nn.ModuleList(MixedOperation(channels, stride) for stride in strides)

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edges = iter(zip(self.edges, weights, strict=True))
        for _ in range(STEPS):
            into = [edge(state, w) for state, (edge, w) in zip(states, edges, strict=False)]
            states.append(sum(into[1:], into[0]))
        return torch.cat(states[2:], 1)


class PlainDarts(nn.Module):
    """The supernet; its parameters come in the order of the engine's."""

    def __init__(self, *, cells: int, channels: int, outputs: int) -> None:
        super().__init__()
        before = last = MULTIPLIER * channels
        self.stem = nn.Sequential(nn.Conv2d(3, last, 3, padding=1, bias=False), nn.BatchNorm2d(last))
        self.cells = nn.ModuleList()
        self.reductions = (cells // 3, 2 * cells // 3)
        for index in range(cells):
            reduces, follows = index in self.reductions, index - 1 in self.reductions
            channels *= 2 if reduces else 1
            self.cells.append(Cell(before, last, channels, reduces=reduces, follows=follows))
            before, last = last, STEPS * channels
        self.classifier = nn.Linear(last, outputs)

    def forward(self, x: Tensor, alphas: Tensor) -> Tensor:
        """(B, 3, H, W) and (2, 14, 8) -> logits."""
        weights = torch.softmax(alphas, -1)
        s0 = s1 = self.stem(x)
        for index, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, weights[int(index in self.reductions)])
        return self.classifier(s1.mean((2, 3)))


Examples = tuple[Tensor, Tensor]


def weight_step(model: PlainDarts, alphas: Tensor, train: Examples) -> list[Tensor]:
    """The gradients of one step of the weights."""
    return _gradients(model, alphas.detach(), train, list(model.parameters()))


def first_order(model: PlainDarts, alphas: Tensor, validation: Examples) -> Tensor:
    """The architecture gradient by a whole backward pass."""
    return _gradients(model, alphas, validation, [alphas, *model.parameters()])[0]


def second_order(model: PlainDarts, alphas: Tensor, train: Examples, validation: Examples, rate: float) -> Tensor:
    """The published finite difference, with weight decay and without momentum."""
    moved, gradients = copy.deepcopy(model), weight_step(model, alphas, train)
    with torch.no_grad():
        for p, q, g in zip(moved.parameters(), model.parameters(), gradients, strict=True):
            p.copy_(q - rate * (g + 3e-4 * q))
    direct, *v = _gradients(moved, alphas, validation, [alphas, *moved.parameters()])
    r = 1e-2 / torch.cat([g.reshape(-1) for g in v]).norm()
    ahead, behind = (_shifted(model, alphas, train, v, sign * r) for sign in (1, -1))
    return direct - rate * (ahead - behind) / (2 * r)


def _shifted(model: PlainDarts, alphas: Tensor, train: Examples, v: list[Tensor], r: Tensor) -> Tensor:
    _move(model, v, r)
    gradient = _gradients(model, alphas, train, [alphas])[0]
    _move(model, v, -r)
    return gradient


def _move(model: PlainDarts, v: list[Tensor], r: Tensor) -> None:
    with torch.no_grad():
        for p, g in zip(model.parameters(), v, strict=True):
            p.addcmul_(g, r)


def _gradients(model: PlainDarts, alphas: Tensor, examples: Examples, wanted: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(model(examples[0], alphas), examples[1]), wanted))
