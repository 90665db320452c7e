"""Meta-gradients through the task learner's steps, against finite differences of the query loss."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from engine.learning.architecture_task import Supports, TaskRule
from engine.learning.task_networks import ReferenceNetwork, SearchedNetwork
from engine.learning.unrolled import meta_gradient, unrolled
from engine.runs.streams import stream
from engine.spaces.metanas import Architecture, metanas_supernet
from engine.spaces.supernet import initialise

RULE = TaskRule(steps=2, architecture_steps=2, rate=0.05, architecture_rate=0.5)
LABELS = torch.arange(6).remainder(3).expand(1, -1)


def setup() -> tuple[ReferenceNetwork, SearchedNetwork, tuple[torch.Tensor, torch.Tensor], Supports, torch.Tensor]:
    reference = metanas_supernet(cells=2, channels=4, outputs=3, channels_in=1)
    initialise(reference, stream(0, "weights"))
    reference.double()
    slow, fast = (kind(reference, Architecture()) for kind in (ReferenceNetwork, SearchedNetwork))
    alphas = 0.1 * torch.randn(fast.architecture.size, generator=stream(0, "alphas"), dtype=torch.float64)
    x = torch.randn(2, 6, 1, 6, 6, generator=stream(0, "images"), dtype=torch.float64)
    start = fast.stacked.pack(dict(reference.named_parameters())), alphas
    return slow, fast, start, Supports(x[:1], LABELS, lambda *_: None, lambda *_: stream(0, "unused")), x[1:]


def test_second_order_is_the_derivative_and_first_order_is_not() -> None:
    slow, _, start, supports, query = setup()

    def value(weights: torch.Tensor, alphas: torch.Tensor) -> float:
        ends = unrolled(slow, (weights.requires_grad_(True), alphas.requires_grad_(True)), supports, 0, RULE, second_order=False)
        return F.cross_entropy(slow(*ends, query[0], RULE.temperature(2)), LABELS[0]).item()

    directions = [torch.randn(t.shape, generator=stream(1, "direction"), dtype=torch.float64) for t in start]
    step = 1e-7
    ends = [value(*(t + sign * step * d for t, d in zip(start, directions, strict=True))) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    errors = []
    for second_order in (True, False):
        gradients, _ = meta_gradient(slow, start, supports, (query, LABELS), RULE, second_order=second_order)
        along = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
        errors.append(abs(along - slope) / abs(slope))
    assert errors[0] < 1e-4
    assert errors[1] > 1e-2


def test_first_order_takes_the_fast_network() -> None:
    slow, fast, start, supports, query = setup()
    found = [meta_gradient(network, start, supports, (query, LABELS), RULE, second_order=False)[0] for network in (slow, fast)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
