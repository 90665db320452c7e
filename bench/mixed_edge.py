"""Everything that reads one source state of a DARTS cell: fused, and one module after the other.

A state with ``edges`` outgoing edges, each with maximum and average pool, skip connection, two separable and two dilated
separable convolutions of 3x3 and 5x5, batch statistics without scale and shift, and a softmax mixture (reference note
tetlo-darts, 1.1). Passes: ``forward`` keeps nothing; ``architecture`` gives the gradients of the state and the mixture;
``weights`` those of the state and the convolutions. ``floor_bytes`` in a row's configuration is the traffic of the minimal plan
(section 8.4), in which every tensor that must exist is read and written once a phase.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from engine.kernels.depthwise import depthwise
from engine.kernels.mixed_edge import Norm, mixed_edge, mixed_sum
from engine.runs.streams import stream

PUBLISHED, LAID, SHARED, FUSED = "modules", "modules, channels_last", "modules, shared pools, channels_last", "mixed edge group"
PASSES = ("forward", "architecture", "weights")
# (kernel, dilation, separable twice) of the convolutions on an edge.
BRANCHES = ((3, 1, True), (5, 1, True), (3, 2, False), (5, 2, False))


def rows(settings: Settings) -> Iterator[Row]:
    """One row a formulation, for each pass."""
    for case in cases(settings):
        yield from measure(case, settings)


def cases(settings: Settings) -> Iterator[Case]:
    """The goal's shape; with ``--full`` also a smaller batch and the wider, smaller states of later cells."""
    shapes = {"smoke": [(2, 4, 6, 2)], "default": [(64, 16, 32, 2)], "full": [(16, 16, 32, 4), (64, 32, 16, 2), (64, 64, 8, 2)]}
    chosen = shapes["default"] + shapes["full"] if settings.scale == "full" else shapes[settings.scale]
    for samples, channels, size, edges in chosen:
        for kind in PASSES:
            yield Case(
                benchmark="mixed-edge",
                configuration={
                    "pass": kind,
                    "samples": samples,
                    "channels": channels,
                    "size": size,
                    "edges": edges,
                    "floor_bytes": floor_bytes(kind, samples * channels * size * size * 4, edges),
                },
                build=partial(calls, kind, channels, size, edges),
                samples=samples,
                warm_samples=2,
                methods=single_calls((PUBLISHED, LAID, SHARED, FUSED)),
                baselines=(PUBLISHED,),
            )


def floor_bytes(kind: str, tensor: int, edges: int) -> int:
    """The minimal plan: 16 tensors an edge forward, of which 3 are the state and serve all edges, and 23 backward, of which 2."""
    forward = (16 - 3) * edges + 3
    return tensor * (forward if kind == "forward" else forward + (23 - 2) * edges + 2)


def calls(
    kind: str, channels: int, size: int, edges: int, memory_format: str, samples: int, device: str = "cpu"
) -> dict[str, Call]:
    """The formulations on one state, one set of weights and one mixture."""

    def noise(purpose: str, index: int, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream(0, purpose, index)).to(device)

    x = noise("state", 0, samples, channels, size, size).contiguous(memory_format=MEMORY_FORMATS[memory_format])
    weights = [convolutions(noise, e, channels) for e in range(edges)]
    mixture = noise("mixture", 0, edges, 7).softmax(-1)
    cotangents = [noise("cotangent", e, *x.shape).contiguous(memory_format=MEMORY_FORMATS[memory_format]) for e in range(edges)]
    ways: Mapping[str, Any] = {
        PUBLISHED if memory_format == "contiguous" else LAID: by_modules,
        **({SHARED: by_shared_modules, FUSED: fused} if memory_format == "channels_last" else {}),
    }
    return {name: partial(run, way, kind, x, weights, mixture, cotangents) for name, way in ways.items()}


def convolutions(noise: Any, edge: int, channels: int) -> list[list[Tensor]]:
    """[branch][depthwise, pointwise, ...] of one edge."""
    return [
        [
            noise(f"weight {part}", 10 * edge + b, channels, 1, k, k) / k if part % 2 == 0 else pointwise
            for part in range(4 if twice else 2)
            for pointwise in [noise(f"weight {part}", 10 * edge + b, channels, channels, 1, 1) / channels**0.5]
        ]
        for b, (k, _, twice) in enumerate(BRANCHES)
    ]


def run(way: Any, kind: str, x: Tensor, weights: list[list[list[Tensor]]], mixture: Tensor, cotangents: list[Tensor]) -> Any:
    """One pass: the sums, or their gradients."""
    if kind == "forward":
        with torch.no_grad():
            return way(x, weights, mixture)
    learns = kind == "weights"
    x = x.detach().requires_grad_()
    mixture = mixture.detach().requires_grad_(not learns)
    weights = [[[w.detach().requires_grad_(learns) for w in branch] for branch in edge] for edge in weights]
    leaves = [w for edge in weights for branch in edge for w in branch] if learns else [mixture]
    return torch.autograd.grad(way(x, weights, mixture), [x, *leaves], cotangents)


def by_modules(x: Tensor, weights: list[list[list[Tensor]]], mixture: Tensor) -> list[Tensor]:
    """Every operation of every edge by itself, weighted, then added, as the published code does."""
    return [_added(mixture[e], [*_pools(x), x, *_branches(x, edge)]) for e, edge in enumerate(weights)]


def by_shared_modules(x: Tensor, weights: list[list[list[Tensor]]], mixture: Tensor) -> list[Tensor]:
    """The same with one evaluation of the operations without parameters for all edges, and multiply-adds."""
    pools = _pools(x)
    return [_added(mixture[e], [*pools, x, *_branches(x, edge)]) for e, edge in enumerate(weights)]


def fused(x: Tensor, weights: list[list[list[Tensor]]], mixture: Tensor) -> list[Tensor]:
    """The group's operators; what follows a depthwise convolution is a pointwise one and a normalised sum."""
    norm, one = Norm("batch"), mixture.new_ones(1)
    filters = [branch[0] for edge in weights for branch in edge]
    sums, taps = mixed_edge(x, mixture[:, :3], filters, [d for _, d, _ in BRANCHES] * len(weights), norm=norm)
    for e, edge in enumerate(weights):
        terms = []
        for (k, _, twice), branch, tap in zip(BRANCHES, edge, taps[4 * e : 4 * e + 4], strict=True):
            y = F.conv2d(tap, branch[1])
            if twice:
                y = F.conv2d(depthwise(mixed_sum([y], one, norm=norm).relu(), branch[2], padding=(k // 2, k // 2)), branch[3])
            terms.append(y)
        sums[e] = mixed_sum(terms, mixture[e, 3:], sums[e], norm=norm)
    return sums


def _pools(x: Tensor) -> list[Tensor]:
    return [_normalised(F.max_pool2d(x, 3, 1, 1)), _normalised(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))]


def _branches(x: Tensor, edge: list[list[Tensor]]) -> list[Tensor]:
    ys = []
    for (k, d, _), branch in zip(BRANCHES, edge, strict=True):
        y = x
        for depth, point in zip(branch[::2], branch[1::2], strict=True):
            y = _normalised(F.conv2d(F.conv2d(y.relu(), depth, None, 1, d * (k // 2), d, x.shape[1]), point))
        ys.append(y)
    return ys


def _normalised(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def _added(weights: Tensor, terms: list[Tensor]) -> Tensor:
    total = terms[0] * weights[0]
    for weight, term in zip(weights[1:], terms[1:], strict=True):
        total = total + term * weight
    return total
