"""Relaxations against their definitions, one edge and one pair at a time."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigurationError
from engine.spaces.relaxations import InputPairs, Relaxation, annealed_temperature, softmax_mixture
from engine.spaces.space import FEW_SHOT, Space, dense_edges


def parameters(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_softmax_at_a_temperature() -> None:
    alphas = parameters(2, 9, 8)
    mixture = softmax_mixture(alphas, 0.5)
    for t, e, o in [(0, 0, 0), (1, 8, 7), (1, 3, 4)]:
        terms = [math.exp(a / 0.5) for a in alphas[t, e].tolist()]
        assert mixture.weights[t, e, o].item() == pytest.approx(terms[o] / sum(terms), rel=1e-12)
    assert bool(mixture.alive.all())


def test_dead_operations_leave_the_softmax_and_an_empty_edge_weighs_nothing() -> None:
    alphas = parameters(1, 3, 4).requires_grad_(True)
    alive = torch.ones(1, 3, 4, dtype=torch.bool)
    alive[0, 0, 1] = False
    alive[0, 2] = False
    mixture = softmax_mixture(alphas, 1.0, alive)
    assert mixture.weights[0].sum(-1).tolist() == pytest.approx([1, 1, 0])
    assert mixture.weights[0, 0, 1].item() == 0
    assert torch.equal(mixture.weights[0, 1], torch.softmax(alphas[0, 1], -1))
    (gradient,) = torch.autograd.grad(mixture.weights.square().sum(), alphas)
    assert bool(gradient.isfinite().all())
    assert gradient[0, 2].abs().sum() == 0


def test_many_architectures_at_once() -> None:
    alphas = parameters(5, 2, 9, 8)
    together = softmax_mixture(alphas, 0.3)
    assert together.groups == 5
    for group in range(5):
        torch.testing.assert_close(together.weights[group], softmax_mixture(alphas[group], 0.3).weights, rtol=1e-14, atol=0)


def test_published_schedule_of_five_steps() -> None:
    assert [annealed_temperature(s, 5) for s in range(7)] == pytest.approx([1, 0.775, 0.55, 0.325, 0.1, 0.1, 0.1])


@pytest.mark.parametrize(
    ("steps", "t_max", "t_min", "said"),
    [(1, 1.0, 0.1, "at least 2"), (5, 1.0, 0.0, "0 < t_min"), (5, 0.1, 1.0, "t_min"), (5, float("inf"), 1.0, "finite")],
)
def test_schedules_that_cannot_be(steps: int, t_max: float, t_min: float, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        annealed_temperature(0, steps, t_max, t_min)


def test_one_step_at_one_temperature() -> None:
    assert annealed_temperature(0, 1, 0.5, 0.5) == 0.5


def test_pairs_in_published_order() -> None:
    pairs = InputPairs.of(FEW_SHOT)
    assert pairs.counts == (1, 3, 6)
    assert [FEW_SHOT.edges[e][0] for e, _ in pairs.pairs[4:]] == [0, 0, 0, 1, 1, 2]
    assert [FEW_SHOT.edges[e][0] for _, e in pairs.pairs[4:]] == [1, 2, 3, 2, 3, 3]


def test_a_node_with_one_input_makes_no_pair() -> None:
    lonely = Space(name="lonely", operations=("skip_connect",), nodes=1, edges=((0, 2),))
    with pytest.raises(ConfigurationError, match="makes no pair"):
        InputPairs.of(lonely)


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 0.05, 0.2]),
    hard=st.booleans(),
    temperature=st.sampled_from([0.1, 1.0]),
    seed=st.integers(0, 99),
)
def test_cheap_form_is_the_published_sum_over_pairs(
    nodes: int, threshold: float, hard: bool, temperature: float, seed: int
) -> None:
    """sum over the pairs of p (e_i + e_k), with edge outputs that are plain numbers."""
    space = Space(name="any", operations=("a", "b"), nodes=nodes, edges=dense_edges(nodes))
    pairs = InputPairs.of(space)
    betas, outputs = parameters(1, len(pairs.pairs), seed=seed), parameters(len(space.edges), seed=seed + 1)
    found = Relaxation(pairs, threshold, hard).coefficients(betas, temperature)
    assert found is not None
    start = 0
    for node in range(2, space.states):
        edges = [e for e, (_, target) in enumerate(space.edges) if target == node]
        inputs = list(combinations(edges, 2))
        p = torch.softmax(betas[0, start : start + len(inputs)] / temperature, 0).tolist()
        start += len(inputs)
        kept = [w for w in p if w > threshold and (not hard or w == max(p))]
        published = sum(w * (outputs[i] + outputs[k]) for w, (i, k) in zip(p, inputs, strict=True) if w in kept)
        cheap = sum(found[0, e] * outputs[e] for e in edges)
        assert float(cheap) == pytest.approx(float(published), abs=1e-12)
        if not threshold and not hard:
            assert float(found[0, edges].sum()) == pytest.approx(2, rel=1e-12)


def test_threshold_and_temperature_are_data() -> None:
    """A temperature that is a tensor changes the mixture without a new graph, and gradients reach what is kept."""
    pairs = InputPairs.of(FEW_SHOT)
    alphas, betas = parameters(2, 9, 8).requires_grad_(True), parameters(2, 10, seed=1).requires_grad_(True)
    mixture = Relaxation(pairs, threshold=0.05)(alphas, betas, torch.tensor(0.5, dtype=torch.float64))
    plain = torch.softmax(alphas / 0.5, -1)
    assert torch.equal(mixture.weights, torch.where(plain > 0.05, plain, 0))
    assert mixture.edges is not None
    for gradient in torch.autograd.grad(mixture.weights.square().sum() + mixture.edges.square().sum(), [alphas, betas]):
        assert bool(gradient.isfinite().all())
        assert gradient.abs().sum() > 0
