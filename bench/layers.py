"""Masked layers, updates of flat buffers and convolutions of an edge group, against the same as plain modules and optimisers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.measure import Case, measure, single_calls
from bench.networks import MEMORY_FORMATS
from bench.registry import Settings
from bench.rows import Row
from bench.timing import Call
from engine.kernels.masked import threshold
from engine.kernels.masked_layers import masked_conv2d, masked_linear
from engine.kernels.pointwise import Normalisable, grouped_pair, grouped_pointwise
from engine.kernels.score_gradient import update_scores_
from engine.kernels.updates import adam_, sgd_
from engine.runs.streams import stream

BASELINE, OWN = "plain modules", "engine"
EPS = 1e-5
# Layers of the published networks: the colour and the Omniglot 5-MLP, a ResNet-12, a cell of MetaNAS on Omniglot, one of DARTS.
CASES: dict[str, list[tuple[int, ...]]] = {
    "masked linear, forward and backward": [(25, 784, 256), (25, 3072, 1024)],
    "masked conv 3x3, forward and backward": [(25, 64, 64, 21), (25, 128, 128, 10)],
    "scores, mask and first weights": [(784 * 256,), (3072 * 1024,)],
    "adam": [(245_760,), (3_833_856,)],
    "sgd with momentum": [(245_760,), (3_833_856,)],
    "pointwise and batch norm, forward and backward": [(8, 20, 14, 28), (8, 64, 16, 32)],
    "1x5-5x1 and batch norm, forward and backward": [(8, 20, 14, 28)],
}


def rows(settings: Settings) -> Iterator[Row]:
    """One row a method."""
    for case in cases(settings):
        yield from measure(case, settings)


def cases(settings: Settings) -> Iterator[Case]:
    """One case an operator and shape; ``shape`` is (N, I, O), (N, I, O, side), (P,) or (branches, N, channels, side)."""
    for operator, shapes in CASES.items():
        for shape in shapes:
            used = tuple(min(size, 6) for size in shape) if settings.scale == "smoke" else shape
            yield Case(
                benchmark="layers",
                configuration={"operator": operator, "shape": "x".join(map(str, used))},
                build=partial(calls, operator, used),
                samples=1,
                warm_samples=1,
                methods=single_calls((BASELINE, OWN)),
                baselines=(BASELINE,),
                memory=False,
            )


def calls(operator: str, shape: tuple[int, ...], memory_format: str, samples: int) -> dict[str, Call]:
    """Both methods on the same numbers; each call returns what it computes."""
    layout = MEMORY_FORMATS[memory_format]
    if operator.startswith("masked"):
        return _masked(shape, layout)
    if operator.startswith("scores"):
        return _scores(shape)
    if operator in ("adam", "sgd with momentum"):
        return _optimiser(operator, shape)
    return _edges(operator.startswith("1x5"), shape, layout)


class Mask(torch.autograd.Function):
    """The mask of the original code: a comparison forward, the identity backward."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, sigma: Tensor) -> Tensor:
        return torch.where(scores < sigma, torch.zeros_like(scores), torch.ones_like(scores))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def noise(*shape: int, address: int) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "layers", address))


def _gradients(function: Callable[..., Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    y = function(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y)))


def _masked(shape: tuple[int, ...], layout: torch.memory_format) -> dict[str, Call]:
    rows, inputs, outputs, *side = shape
    image, kernel = side * 2, [3] * 2 * len(side)
    x, weight = noise(rows, inputs, *image, address=0), noise(outputs, inputs, *kernel, address=1)
    scores = noise(outputs, inputs, *kernel, address=2)
    if side:
        x, weight, scores = (tensor.contiguous(memory_format=layout) for tensor in (x, weight, scores))
    sigma, leaves = threshold(scores, 0.4), [tensor.requires_grad_() for tensor in (x, weight, scores)]

    def plain(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
        w = weight * Mask.apply(scores, sigma)
        return F.conv2d(x, w, padding=1) if side else F.linear(x, w)

    def own(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
        return masked_conv2d(x, weight, scores, sigma, padding=1) if side else masked_linear(x, weight, scores, sigma)

    return {BASELINE: partial(_gradients, plain, leaves), OWN: partial(_gradients, own, leaves)}


def _scores(shape: tuple[int, ...]) -> dict[str, Call]:
    leaf = torch.nn.Parameter(noise(*shape, address=0))
    leaf.grad, weight, sigma = noise(*shape, address=1), noise(*shape, address=2), torch.tensor(0.1)
    optimiser = torch.optim.SGD([leaf], lr=1e-3, momentum=0.9)
    scores, velocity, gradient = noise(*shape, address=0), torch.zeros(shape), noise(*shape, address=1)

    def plain() -> Tensor:
        optimiser.step()
        with torch.no_grad():
            return weight * Mask.apply(leaf, sigma)

    return {
        BASELINE: plain,
        OWN: lambda: update_scores_(scores, gradient, velocity, weight, sigma, rate=1e-3, momentum=0.9)[1],
    }


def _optimiser(operator: str, shape: tuple[int, ...]) -> dict[str, Call]:
    leaf = torch.nn.Parameter(noise(*shape, address=0))
    leaf.grad = noise(*shape, address=1)
    parameters, gradient = noise(*shape, address=0), noise(*shape, address=1)
    states = [torch.zeros(shape), torch.zeros(shape)]
    optimiser = torch.optim.Adam([leaf], lr=1e-3) if operator == "adam" else torch.optim.SGD([leaf], lr=1e-3, momentum=0.9)
    count = iter(range(1, 2**31))

    def plain() -> Tensor:
        optimiser.step()
        return leaf.detach()

    def own() -> Tensor:
        if operator == "adam":
            adam_(parameters, gradient, states[0], states[1], next(count), rate=1e-3)
        else:
            sgd_(parameters, gradient, states[0], rate=1e-3, momentum=0.9)
        return parameters

    return {BASELINE: plain, OWN: own}


def _edges(pair: bool, shape: tuple[int, ...], layout: torch.memory_format) -> dict[str, Call]:
    branches, samples, channels, side = shape
    images = [noise(samples, channels, side, side, address=k).contiguous(memory_format=layout) for k in range(branches)]
    kernels = [(1, 5), (5, 1)] if pair else [(1, 1)]
    weights = [noise(branches, channels, channels, *kernel, address=branches + k) for k, kernel in enumerate(kernels)]
    leaves = [torch.stack(images).requires_grad_(), *(weight.requires_grad_() for weight in weights)]
    if layout == torch.channels_last:  # a stack keeps no memory format
        leaves[0] = leaves[0].detach().movedim(2, -1).contiguous().movedim(-1, 2).requires_grad_()

    def plain(x: Tensor, *weights: Tensor) -> Tensor:
        found = []
        for image, *kernels in zip(x.unbind(), *(weight.unbind() for weight in weights), strict=True):
            for kernel in kernels:
                image = F.conv2d(image, kernel, padding=(kernel.shape[2] // 2, kernel.shape[3] // 2))
            found.append(F.batch_norm(image, None, None, training=True, eps=EPS))
        return torch.stack(found).sum(0)

    def own(x: Tensor, *weights: Tensor) -> Tensor:
        found = grouped_pair(x, *weights) if pair else grouped_pointwise(x, weights[0][..., 0, 0])
        return _normalised_sum(found)

    return {BASELINE: partial(_gradients, plain, leaves), OWN: partial(_gradients, own, leaves)}


def _normalised_sum(found: Normalisable) -> Tensor:
    """The sum of the normalised branches, with scale and shift applied in it."""
    scale = (found.variance + EPS).rsqrt().transpose(1, 2)[..., None]  # (B, O, 1, 1)
    total = -(found.mean.transpose(1, 2)[..., None] * scale).sum(0)
    for y, factor in zip(found.y, scale, strict=True):
        total = torch.addcmul(total, y, factor)
    return total
