from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jvp, vjp

from engine.kernels.masked import mask, masked_reference
from engine.kernels.score_gradient import score_gradient, score_gradient_reference
from engine.runs.streams import stream

RATE, SIGMA = 0.3, 0.1
Pair = tuple[Tensor, Tensor]


def noise(*shape: int, address: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-score-gradient", address), dtype=torch.float64).to(dtype)


# A network of two masked layers on T = 3 tasks of 4 support and 5 query samples.
WEIGHTS = [noise(6, 7), noise(2, 6, address=1)]
SCORES = [noise(6, 7, address=2), noise(2, 6, address=3)]
SUPPORT, QUERY = noise(3, 4, 7, address=4), noise(3, 5, 7, address=5)


def loss(weights: list[Tensor], x: Tensor) -> Tensor:
    return (torch.tanh(x @ weights[0].mT) @ weights[1].mT).sin().square().mean()


def factors(weights: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
    """(left, right) of each layer: the loss's gradient with respect to its output, and its input."""
    first = x @ weights[0].mT
    hidden, pull = vjp(torch.tanh, first)
    _, back = vjp(lambda out: out.sin().square().mean(), hidden @ weights[1].mT)
    (error,) = back(torch.ones((), dtype=x.dtype))
    (below,) = pull(error @ weights[1])
    return below, x, error, hidden


def by_factors(steps: int, second_order: bool) -> tuple[list[Pair], list[Pair], list[Pair] | None]:
    """Per layer: the factors of the query, of every step, and of every step's Hessian product, stacked as the operator wants."""
    keep = [mask(scores, SIGMA) for scores in SCORES]
    query: list[list[Pair]] = [[], []]
    support: list[list[list[Pair]]] = [[[] for _ in range(steps)] for _ in range(2)]
    curvature: list[list[list[Pair]]] = [[[] for _ in range(steps)] for _ in range(2)]
    for task in range(len(SUPPORT)):
        weights, trail = [m * w for m, w in zip(keep, WEIGHTS, strict=True)], []
        for k in range(steps):
            found = factors(tuple(weights), SUPPORT[task])
            trail.append(weights)
            for layer in range(2):
                support[layer][k].append((found[2 * layer], found[2 * layer + 1]))
            weights = [weights[i] - RATE * (keep[i] * (found[2 * i].mT @ found[2 * i + 1])) for i in range(2)]
        found = factors(tuple(weights), QUERY[task])
        for layer in range(2):
            query[layer].append((found[2 * layer], found[2 * layer + 1]))
        rest = [found[2 * i].mT @ found[2 * i + 1] for i in range(2)]
        for k in reversed(range(steps)):
            direction = tuple(m * r for m, r in zip(keep, rest, strict=True))
            now, moved = jvp(lambda *w: factors(w, SUPPORT[task]), tuple(trail[k]), direction)  # noqa: B023
            for i in range(2):
                pair = (torch.cat([moved[2 * i], now[2 * i]]), torch.cat([now[2 * i + 1], moved[2 * i + 1]]))
                curvature[i][k].insert(task, pair)
                rest[i] = rest[i] - RATE * (pair[0].mT @ pair[1])

    def stacked(rows: list[Pair]) -> Pair:
        return torch.stack([left for left, _ in rows]), torch.stack([right for _, right in rows])

    def steps_of(layer: list[list[Pair]]) -> Pair:
        pairs = [stacked(rows) for rows in layer]
        return torch.stack([left for left, _ in pairs]), torch.stack([right for _, right in pairs])

    bent = [steps_of(layer) for layer in curvature] if second_order else None
    return [stacked(rows) for rows in query], [steps_of(layer) for layer in support], bent


def by_autograd(steps: int, second_order: bool) -> tuple[Tensor, ...]:
    scores = [s.clone().requires_grad_() for s in SCORES]
    total = torch.zeros((), dtype=torch.float64)
    for task in range(len(SUPPORT)):
        weights = [w.clone().requires_grad_() for w in WEIGHTS]
        for _ in range(steps):
            now = loss([masked_reference(w, s, SIGMA) for w, s in zip(weights, scores, strict=True)], SUPPORT[task])
            gradients = torch.autograd.grad(now, weights, create_graph=second_order)
            weights = [w - RATE * g for w, g in zip(weights, gradients, strict=True)]
        total = total + loss([masked_reference(w, s, SIGMA) for w, s in zip(weights, scores, strict=True)], QUERY[task])
    return torch.autograd.grad(total, scores)


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_equals_automatic_differentiation_through_the_inner_loop(steps: int, second_order: bool) -> None:
    query, support, curvature = by_factors(steps, second_order)
    wanted = by_autograd(steps, second_order)
    for layer in range(2):
        bent = None if curvature is None else curvature[layer]
        found = score_gradient(WEIGHTS[layer], SCORES[layer], SIGMA, query[layer], support[layer], bent, rate=RATE)
        torch.testing.assert_close(found, wanted[layer], rtol=1e-11, atol=1e-13)
        dense = [None if pair is None else pair[0].mT @ pair[1] for pair in (query[layer], support[layer], bent)]
        keep = mask(SCORES[layer], SIGMA)
        reference = score_gradient_reference(WEIGHTS[layer], keep, *dense, RATE)  # type: ignore[arg-type]
        torch.testing.assert_close(reference, wanted[layer], rtol=1e-11, atol=1e-13)


def case(tasks: int, rows: int, outputs: int, inputs: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    def pair(*lead: int, address: int) -> Pair:
        return noise(*lead, outputs, address=address, dtype=dtype), noise(*lead, inputs, address=address + 1, dtype=dtype)

    return {
        "weight": noise(outputs, inputs, address=10, dtype=dtype),
        "scores": noise(outputs, inputs, address=11, dtype=dtype),
        "threshold": SIGMA,
        "query": pair(tasks, rows, address=12),
        "support": pair(2, tasks, rows + 1, address=14),
        "curvature": pair(2, tasks, 2 * rows, address=16),
        "rate": RATE,
    }


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 5, 7, 9), (0, 3, 2, 2), (2, 0, 3, 4), (2, 3, 0, 4), (2, 25, 33, 65)], ids=str
)
def test_float32_is_near_the_reference(shape: tuple[int, int, int, int]) -> None:
    given = case(*shape, dtype=torch.float32)
    wide = [given[name][0].double().mT @ given[name][1].double() for name in ("query", "support", "curvature")]
    keep = mask(given["scores"], SIGMA)
    wanted = score_gradient_reference(given["weight"].double(), keep, *wide, RATE)
    assert float((score_gradient(**given).double() - wanted).norm()) <= 1e-5 * float(wanted.norm())


@pytest.mark.parametrize(
    ("name", "change", "kind", "message"),
    [
        ("scores", lambda t: t[1:], ValueError, "scores: expected (O, I) as weight has, got (6, 9), weight (7, 9)"),
        ("scores", Tensor.float, TypeError, "scores: expected torch.float64 as weight is, floating, got torch.float32 (7, 9)"),
        ("query", lambda p: (p[0], p[1][..., 1:]), ValueError, "query: expected (T, N, O) and (T, N, I) for weight (7, 9)"),
        ("query", lambda p: (p[0].transpose(0, 1).contiguous().transpose(0, 1), p[1]), ValueError, "query: expected contiguous"),
        ("support", lambda p: (p[0][:, 1:], p[1][:, 1:]), ValueError, "support: expected (S, T, N, O) and (S, T, N, I), S >= 1,"),
        ("support", lambda p: (p[0][:0], p[1][:0]), ValueError, "support: expected (S, T, N, O)"),
        ("curvature", lambda p: (p[0][:1], p[1][:1]), ValueError, "curvature: expected (S, T, N, O)"),
        ("curvature", lambda p: (p[0], p[1].float()), TypeError, "curvature's right: expected torch.float64"),
    ],
)
def test_bad_arguments_are_named(name: str, change: Callable[[Any], Any], kind: type[Exception], message: str) -> None:
    given = case(3, 5, 7, 9)
    with pytest.raises(kind, match=re.escape(message)):
        score_gradient(**given | {name: change(given[name])})
